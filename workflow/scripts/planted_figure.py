"""Draw the planted benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.figures.planted import draw
from tunediff.figures.style import Style, save
from tunediff.truth import read_scores
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    scores = read_scores([Path(p) for p in snakemake.input.scores])
    save(*draw(scores, style), Path(snakemake.output.pdf).with_suffix(""), style)
