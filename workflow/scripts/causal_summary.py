"""Means of the KL experiment with bootstrap intervals over conversations."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.interventions.summary import build_summary
from tunediff.pipeline.artifacts import check
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params = snakemake.config, snakemake.params
with job(snakemake):
    check(Path(snakemake.input.kl), "kl", params.kl_key, checksums=True)
    build_summary(
        pd.read_parquet(snakemake.input.kl),
        Path(snakemake.output.store),
        config["causal"]["bootstrap_samples"],
        config["seed"],
        key=params.key,
    )
