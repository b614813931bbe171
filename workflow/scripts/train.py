"""Train all crosscoders from one pass over the activations."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.activations import ActivationStore
from tunediff.training import TrainingSettings, train
from tunediff.workflow import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params, read = snakemake.config, snakemake.params, snakemake.input
with job(snakemake):
    train(
        params.dictionaries,
        ActivationStore([Path(p) for p in read.stores], key=params.activations_key),
        TrainingSettings.from_config(config["training"], config["seed"], resolve_device(config["models"]["device"])),
        Path(config["results"]) / "crosscoders",
        Path(config["results"]) / ".work",
        params.own_keys,
    )
