"""Draw how well chat-specific latents detect the labelled concepts of chats, against a control."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.pipeline.job import job
from tunediff.report.figures.detection import draw
from tunediff.report.style import Style, save

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    drawing = draw(pd.read_parquet(snakemake.input.concepts), style)
    save(*drawing, Path(snakemake.output.pdf).with_suffix(""), style)
