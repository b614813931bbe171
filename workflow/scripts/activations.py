"""Run both models over one part of the tokens and store their residuals."""

from tunediff.config.settings import HarvestSettings
from tunediff.data.harvest import harvest_part
from tunediff.data.tokens import TokenStore
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    models = work.config["models"]
    harvest_part(
        work.open(TokenStore.open, "tokens"),
        work.open(load_pair, "models", models["layer"], models["dtype"]),
        int(work.wildcards.part),
        HarvestSettings(**work.config["activations"]),
        work.out,
        work.config["seed"],
        work.device,
        key=work.own_key,
    )
