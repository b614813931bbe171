"""Resolve a model pair (the run's own or a null) and compare its tokenizers."""

from pathlib import Path

from tunediff.models.pair import prepare_pair
from tunediff.pipeline.artifacts import check
from tunediff.pipeline.job import job

with job(snakemake) as work:
    models, shipped = work.config["models"], Path(snakemake.scriptdir).parents[1] / "resources/demo-pair"
    if work.wildcards.pair:
        models = models | work.config["nulls"][Path(work.wildcards.pair).name]
        models["demo"] = {**models["demo"], "retrain": False}
        shipped = work.path("own")  # the run's own demo models
        check(shipped, "models", work.key("own"))
    prepare_pair(models, shipped, work.out, key=work.own_key)
