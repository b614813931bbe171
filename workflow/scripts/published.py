"""Write the published numbers beside ours."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job
from tunediff.report.style import Style, save
from tunediff.report.tables import draw_published, published

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

read = snakemake.input
with job(snakemake):
    style = Style(**snakemake.config["figures"])
    table = published(
        {Path(p).stem: LatentTable.read(Path(p)) for p in read.tables},
        {Path(p).stem: json.loads(Path(p).read_text(encoding="utf-8")) for p in read.metrics},
        {Path(p).stem: pd.read_parquet(p) for p in read.twins},
        pd.read_parquet(read.summary),
    )
    save(*draw_published(table, style), Path(snakemake.output.pdf).with_suffix(""), style)
