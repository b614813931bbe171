"""Read a published crosscoder into the artifact that training makes."""

from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.exchange import import_published
from tunediff.pipeline.artifacts import read_manifest
from tunediff.pipeline.job import job

with job(snakemake) as work:
    stores = work.paths("train")
    import_published(
        work.params.settings,
        ActivationStore(stores, key=work.key("train")) if stores else None,
        work.out,
        {"layer": work.config["models"]["layer"]},
        read_manifest(work.path("models"), "models", work.key("models")).facts["d_model"],
        key=work.own_key,
    )
