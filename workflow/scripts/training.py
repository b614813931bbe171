"""Draw the training curves."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.pipeline.job import job
from tunediff.report.figures.training import draw
from tunediff.report.style import Style, save

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    histories = {Path(p).name.removesuffix(".history.parquet"): pd.read_parquet(p) for p in snakemake.input.histories}
    save(*draw(histories, style), Path(snakemake.output.pdf).with_suffix(""), style)
