"""Prove that residuals are read and replaced as stated, for both models at this layer."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.models.pair import load_pair, verify_pair
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    models = work.config["models"]
    pair = load_pair(work.path("models"), models["layer"], models["dtype"], key=work.key("models"))
    verify_pair(pair, work.device, Path(snakemake.output.manifest), key=work.own_key)
