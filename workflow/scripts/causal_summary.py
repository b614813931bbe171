"""Means of the KL experiment with bootstrap intervals over conversations."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.interventions.summary import build_summary
from tunediff.pipeline.artifacts import check
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    check(work.path("kl"), "kl", work.key("kl"), checksums=True)
    build_summary(
        pd.read_parquet(work.path("kl")),
        Path(snakemake.output.store),
        work.config["causal"]["bootstrap_samples"],
        work.config["seed"],
        key=work.own_key,
    )
