"""Write the planted benchmark's table, and all its scores in long form."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.pipeline.artifacts import building
from tunediff.pipeline.job import job
from tunediff.report.figures.planted import draw_table
from tunediff.report.style import Style, save
from tunediff.validation.truth import read_scores, summary

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    style = Style(**snakemake.config["figures"])
    scores = read_scores([Path(p) for p in snakemake.input.scores])
    save(*draw_table(scores, style), Path(snakemake.output.pdf).with_suffix(""), style)
    with building(Path(snakemake.output.all)) as partial:
        summary(scores).to_csv(partial, index=False, lineterminator="\n")
