"""Read a published crosscoder into the artifact that training makes."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.exchange import import_published
from tunediff.pipeline.artifacts import read_manifest
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

params, stores = snakemake.params, [Path(p) for p in snakemake.input.stores]
with job(snakemake):
    import_published(
        params.settings,
        ActivationStore(stores, key=params.activations_key) if stores else None,
        Path(snakemake.output.store),
        {"layer": snakemake.config["models"]["layer"]},
        read_manifest(Path(snakemake.input.models), "models", params.models_key).facts["d_model"],
        key=params.key,
    )
