"""Write what the run shows, in plain words."""

from tunediff.pipeline.artifacts import seal, write_text
from tunediff.pipeline.job import job
from tunediff.report.inputs import Results
from tunediff.report.summary import summary

with job(snakemake) as work:
    out = work.out
    write_text(out, summary(Results.of(snakemake)) + "\n")
    seal(out, "summary", work.own_key, {})
