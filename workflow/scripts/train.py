"""Train all crosscoders from one pass over the activations."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import TrainingSettings
from tunediff.data.activations import ActivationStore
from tunediff.dictionaries import dictionary_settings
from tunediff.dictionaries.training import train
from tunediff.pipeline.artifacts import write_text
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params, results = snakemake.config, snakemake.params, Path(snakemake.config["results"])
with job(snakemake):
    store = ActivationStore([Path(p) for p in snakemake.input.stores], key=params.activations_key)
    train(
        {name: (dictionary_settings(own, name), seed) for name, (own, seed) in params.dictionaries.items()},
        store,
        TrainingSettings(**config["training"], seed=config["seed"], device=resolve_device(config["models"]["device"])),
        None,
        results / ".work",
        params.own_keys,
        facts={"layer": config["models"]["layer"], "outlier_norm": store.outlier_norm},
    )
    write_text(Path(snakemake.output[0]), json.dumps(dict(params.own_keys), indent=1) + "\n")
