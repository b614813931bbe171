"""Prove that residuals are read and replaced as stated, for both models at this layer."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.models.pair import load_pair, verify_pair
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

models = snakemake.config["models"]
with job(snakemake):
    pair = load_pair(Path(snakemake.input.models), models["layer"], models["dtype"], key=snakemake.params.models_key)
    verify_pair(pair, resolve_device(models["device"]), Path(snakemake.output[0]), key=snakemake.params.key)
