"""Find pairs of a chat-only and a base-only latent of the same direction, and compare where they fire."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.table import LatentTable
from tunediff.latents.twins import TwinSettings, build_twins
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    build_twins(
        Crosscoder.load(work.path("crosscoder"), work.device, key=work.key("crosscoder")),
        LatentTable.read(work.path("latents"), key=work.key("latents")),
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        TwinSettings(seed=work.config["seed"]),
        Path(snakemake.output.store),
        key=work.own_key,
        device=work.device,
    )
