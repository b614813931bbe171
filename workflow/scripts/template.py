"""Draw the template figure: are chat-only latents about the chat template?"""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job
from tunediff.report.figures.template import draw
from tunediff.report.style import Style, save

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    tables = {Path(p).stem: LatentTable.read(Path(p)) for p in snakemake.input.tables}
    save(*draw(tables, style), Path(snakemake.output.pdf).with_suffix(""), style)
