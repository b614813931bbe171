"""List every figure and table of the run."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.pipeline.job import job
from tunediff.report.paper import write_contents

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    numbers = [Path(p) for p in [*snakemake.input.figures, *snakemake.input.tables] if p.endswith(".csv")]
    write_contents(numbers, Path(snakemake.output[0]))
