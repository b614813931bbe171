"""Write table 1: counts per class, FVE, L0 and dead latents."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.figures.style import Style, save
from tunediff.latents import LatentTable
from tunediff.nulls import read_nulls
from tunediff.tables import draw_table1, outlier_tokens, table1
from tunediff.workflow import job

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
