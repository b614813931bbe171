"""Write what the run shows, in plain words."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.pipeline.artifacts import write_text
from tunediff.pipeline.job import job
from tunediff.report.inputs import Results
from tunediff.report.summary import summary

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    write_text(Path(snakemake.output[0]), summary(Results.of(snakemake)) + "\n")
