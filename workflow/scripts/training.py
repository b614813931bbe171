"""Draw the training curves."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.figures.style import Style, save
from tunediff.figures.training import draw
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    histories = {Path(p).name.removesuffix(".history.parquet"): pd.read_parquet(p) for p in snakemake.input.histories}
    save(*draw(histories, style), Path(snakemake.output.pdf).with_suffix(""), style)
