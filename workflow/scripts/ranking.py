"""Write the first latents of every crosscoder's ranking."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job
from tunediff.report.style import Style, save
from tunediff.report.tables import draw_ranking

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    tables = {Path(p).stem: LatentTable.read(Path(p)) for p in snakemake.input.tables}
    save(*draw_ranking(tables, style), Path(snakemake.output.pdf).with_suffix(""), style)
