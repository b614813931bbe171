"""Write what the run shows, in plain words."""

from tunediff.pipeline.artifacts import seal, write_text
from tunediff.pipeline.job import job
from tunediff.report.inputs import Inputs
from tunediff.report.summary import summary

with job(snakemake) as work:
    write_text(work.out, summary(Inputs.of(snakemake)) + "\n")
    seal(work.out, "summary", work.own_key, {})
