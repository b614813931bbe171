"""Measure every latent of one crosscoder: taxonomy, firing, Latent Scaling."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import LatentSettings
from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.measure import build_table
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params = snakemake.config, snakemake.params
device = resolve_device(config["models"]["device"])
with job(snakemake):
    build_table(
        Crosscoder.load(Path(snakemake.input.crosscoder), device, key=params.crosscoder_key),
        ActivationStore([Path(p) for p in snakemake.input.train], key=params.train_key),
        ActivationStore([Path(p) for p in snakemake.input.validation], key=params.validation_key),
        LatentSettings(**config["latents"], seed=config["seed"]),
        Path(snakemake.output.store),
        key=params.key,
        device=device,
    )
