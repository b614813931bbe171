"""Run both models over all tokens and store their residuals."""

from pathlib import Path

from tunediff.config.settings import HarvestSettings
from tunediff.data.harvest import Wanted, harvest
from tunediff.data.tokens import TokenStore
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    models, tokens = work.config["models"], work.open_each(TokenStore.open, "tokens")
    parts = [(Path(path), key) for path, key in work.params.parts.items()]
    harvest(
        [Wanted(tokens[path.parent.name], int(path.stem[5:]), path, key) for path, key in parts],
        work.open(load_pair, "models", models["layer"], models["dtype"]),
        HarvestSettings(**work.config["activations"]),
        Path(work.config["results"]) / ".work",
        work.config["seed"],
        work.device,
    )
