"""Write what the run shows, in plain words."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.pipeline.job import job
from tunediff.report.summary import write_summary
from tunediff.validation.nulls import read_nulls

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

read = snakemake.input
with job(snakemake):
    write_summary(
        Path(read.kl),
        Path(read.sets),
        {Path(p).stem: Path(p) for p in read.latents},
        {Path(p).stem: Path(p) for p in read.metrics},
        {Path(p).stem: Path(p) for p in read.crosscoders},
        Path(read.concepts),
        read_nulls(Path(snakemake.config["results"]), snakemake.params.nulls),
        {"train": [Path(p) for p in read.train], "validation": [Path(p) for p in read.validation]},
        Path(read.fig4).parent,
        Path(snakemake.output[0]),
    )
