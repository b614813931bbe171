"""Means of the KL experiment with bootstrap intervals over conversations."""

import pandas as pd

from tunediff.interventions.summary import build_summary
from tunediff.pipeline.artifacts import check
from tunediff.pipeline.job import job

with job(snakemake) as work:
    check(work.path("kl"), "kl", work.key("kl"))
    build_summary(
        pd.read_parquet(work.path("kl")),
        work.out,
        work.config["causal"]["bootstrap_samples"],
        work.config["seed"],
        key=work.own_key,
    )
