"""Measure every latent of one crosscoder: taxonomy, firing, Latent Scaling."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import LatentSettings
from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.measure import build_table
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    build_table(
        Crosscoder.load(work.path("crosscoder"), work.device, key=work.key("crosscoder")),
        ActivationStore(work.paths("train"), key=work.key("train")),
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        LatentSettings(**work.config["latents"], seed=work.config["seed"]),
        Path(snakemake.output.store),
        key=work.own_key,
        device=work.device,
    )
