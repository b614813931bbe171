"""Write a crosscoder as the paper's library loads it."""

from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.exchange import export
from tunediff.pipeline.job import job

with job(snakemake) as work:
    export(work.open(Crosscoder.load, "crosscoder"), work.out)
