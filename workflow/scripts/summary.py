"""Write what the run shows, in plain words."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.pipeline.artifacts import seal, write_text
from tunediff.pipeline.job import job
from tunediff.report.inputs import Inputs
from tunediff.report.summary import summary

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    out = Path(snakemake.output.store)
    write_text(out, summary(Inputs.of(snakemake)) + "\n")
    seal(out, "summary", work.own_key, {})
