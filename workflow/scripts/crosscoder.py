"""Copy one trained crosscoder to where the later rules read it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.pipeline.finished import publish
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

results, key = Path(snakemake.config["results"]), snakemake.params.key
with job(snakemake):
    publish(snakemake.wildcards.name, results / ".work" / key, key, Path(snakemake.output.store).parent)
