"""Draw the planted benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.pipeline.job import job
from tunediff.report.figures.planted import draw
from tunediff.report.style import Style, save
from tunediff.validation.truth import read_scores

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    scores = read_scores([Path(p) for p in snakemake.input.scores])
    save(*draw(scores, style), Path(snakemake.output.pdf).with_suffix(""), style)
