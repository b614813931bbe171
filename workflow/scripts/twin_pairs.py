"""Find pairs of a chat-only and a base-only latent of the same direction, and compare where they fire."""

from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.table import LatentTable
from tunediff.latents.twins import TwinSettings, build_twins
from tunediff.pipeline.job import job

with job(snakemake) as work:
    build_twins(
        work.open(Crosscoder.load, "crosscoder", work.device),
        work.open(LatentTable.read, "latents"),
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        TwinSettings(seed=work.config["seed"]),
        work.out,
        key=work.own_key,
        device=work.device,
    )
