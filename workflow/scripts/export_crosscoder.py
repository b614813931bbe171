"""Write a crosscoder as the paper's library loads it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.crosscoder import Crosscoder
from tunediff.exchange import export
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    crosscoder = Crosscoder.load(Path(snakemake.input.crosscoder), key=snakemake.params.crosscoder_key)
    export(crosscoder, Path(snakemake.output[0]))
