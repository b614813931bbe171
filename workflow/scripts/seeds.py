"""Write the spread over seeds of counts, held-out metrics, KL reductions and matches."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job
from tunediff.report.style import Style, save
from tunediff.report.tables import across_seeds, draw_seeds

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

read = snakemake.input
with job(snakemake):
    style = Style(**snakemake.config["figures"])
    table = across_seeds(
        {Path(p).stem: LatentTable.read(Path(p)) for p in read.tables},
        {Path(p).stem: json.loads(Path(p).read_text(encoding="utf-8")) for p in read.metrics},
        pd.read_parquet(read.summary),
        pd.read_parquet(read.matches),
    )
    save(*draw_seeds(table, style), Path(snakemake.output.pdf).with_suffix(""), style)
