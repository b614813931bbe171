"""Prove that residuals are read and replaced as stated, for both models at this layer."""

from tunediff.models.pair import load_pair, verify_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    models = work.config["models"]
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    verify_pair(pair, work.device, work.out, key=work.own_key)
