"""Write table 1: counts per class, FVE, L0 and dead latents."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job
from tunediff.report.style import Style, save
from tunediff.report.tables import draw_table1, outlier_tokens, table1
from tunediff.validation.nulls import read_nulls

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

read = snakemake.input
with job(snakemake):
    style = Style(**snakemake.config["figures"])
    table = table1(
        {Path(p).stem: LatentTable.read(Path(p)) for p in read.tables},
        {Path(p).stem: json.loads(Path(p).read_text(encoding="utf-8")) for p in read.metrics},
        read_nulls(Path(snakemake.config["results"]), snakemake.params.nulls),
        outlier_tokens([Path(p) for p in read.validation]),
    )
    save(*draw_table1(table, style), Path(snakemake.output.pdf).with_suffix(""), style)
