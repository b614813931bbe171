"""Draw the twins figure: do pairs of the same direction fire on the same tokens?"""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.pipeline.job import job
from tunediff.report.figures.twins import draw
from tunediff.report.style import Style, save

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    pairs = {Path(p).stem: pd.read_parquet(p) for p in snakemake.input.twins}
    save(*draw(pairs, style), Path(snakemake.output.pdf).with_suffix(""), style)
