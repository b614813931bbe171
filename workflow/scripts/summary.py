"""Write five lines on what the run shows."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.report import write_summary
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

read = snakemake.input
with job(snakemake):
    write_summary(
        Path(read.kl),
        {Path(p).stem: Path(p) for p in read.latents},
        {Path(p).stem: Path(p) for p in read.metrics},
        Path(read.concepts),
        Path(read.fig4).parent,
        Path(snakemake.output[0]),
    )
