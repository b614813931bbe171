"""Resolve a model pair (the run's own or a null) and compare its tokenizers."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.models.pair import prepare_pair
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

models, shipped = snakemake.config["models"], Path(snakemake.scriptdir).parents[1] / "resources/demo-pair"
if snakemake.wildcards.pair:
    models = models | snakemake.config["nulls"][Path(snakemake.wildcards.pair).name]
    models["demo"] = {**models["demo"], "retrain": False}
    shipped = Path(snakemake.input.own)  # the run's own demo models
with job(snakemake):
    prepare_pair(models, shipped, Path(snakemake.output.store), key=snakemake.params.key)
