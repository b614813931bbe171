"""Find pairs of a chat-only and a base-only latent of the same direction, and compare where they fire."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.table import LatentTable
from tunediff.latents.twins import TwinSettings, build_twins
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params, read = snakemake.config, snakemake.params, snakemake.input
device = resolve_device(config["models"]["device"])
with job(snakemake):
    build_twins(
        Crosscoder.load(Path(read.crosscoder), device, key=params.crosscoder_key),
        LatentTable.read(Path(read.latents), key=params.latents_key),
        ActivationStore([Path(p) for p in read.validation], key=params.validation_key),
        TwinSettings(seed=config["seed"]),
        Path(snakemake.output.store),
        key=params.key,
        device=device,
    )
