"""Measure every latent of one crosscoder: taxonomy, firing, Latent Scaling, twins; and what it reconstructs."""

from tunediff.config.settings import LatentSettings
from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.measure import build_table
from tunediff.pipeline.job import job

with job(snakemake) as work:
    build_table(
        work.open(Crosscoder.load, "crosscoder", work.device, work.precision),
        ActivationStore(work.paths("train"), key=work.key("train")),
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        LatentSettings(**work.config["latents"], seed=work.config["seed"]),
        work.out,
        key=work.own_key,
        device=work.device,
    )
