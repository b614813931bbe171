"""Draw figure 4: KL to the chat model per intervention."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.pipeline.job import job
from tunediff.report.figures.fig4 import draw
from tunediff.report.style import Style, save

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    sets = json.loads(Path(snakemake.input.sets).read_text(encoding="utf-8"))
    drawing = draw(pd.read_parquet(snakemake.input.summary), sets, style)
    save(*drawing, Path(snakemake.output.pdf).with_suffix(""), style)
