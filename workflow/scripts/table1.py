"""Write table 1: counts per class, FVE, L0 and dead latents."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.figures.style import Style, save
from tunediff.tables import draw_table1, table1
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    tables = {Path(p).stem: pd.read_parquet(p) for p in snakemake.input.tables}
    metrics = {Path(p).stem: json.loads(Path(p).read_text(encoding="utf-8")) for p in snakemake.input.metrics}
    save(*draw_table1(table1(tables, metrics), style), Path(snakemake.output.pdf).with_suffix(""), style)
