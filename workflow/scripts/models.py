"""Resolve the model pair and compare its tokenizers."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.models import prepare_pair
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    prepare_pair(
        snakemake.config["models"],
        Path(snakemake.scriptdir).parents[1] / "resources/demo-pair",
        Path(snakemake.output.store),
        key=snakemake.params.key,
    )
