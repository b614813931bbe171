"""Draw the template figure: are chat-only latents about the chat template?"""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.figures.style import Style, save
from tunediff.figures.template import draw
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    tables = {Path(p).stem: pd.read_parquet(p) for p in snakemake.input.tables}
    save(*draw(tables, style), Path(snakemake.output.pdf).with_suffix(""), style)
