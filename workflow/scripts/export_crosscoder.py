"""Write a crosscoder as the paper's library loads it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.exchange import export
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    export(Crosscoder.load(work.path("crosscoder"), key=work.key("crosscoder")), Path(snakemake.output[0]))
