"""Draw the template figure: are chat-only latents about the chat template?"""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.figures.style import Style, save
from tunediff.figures.template import draw
from tunediff.latents import LatentTable
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    tables = {Path(p).stem: LatentTable.read(Path(p)) for p in snakemake.input.tables}
    save(*draw(tables, style), Path(snakemake.output.pdf).with_suffix(""), style)
