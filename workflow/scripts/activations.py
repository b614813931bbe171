"""Run both models over one part of the tokens and store their residuals."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import HarvestSettings
from tunediff.data.harvest import harvest_part
from tunediff.data.tokens import TokenStore
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    models = work.config["models"]
    harvest_part(
        TokenStore.open(work.path("tokens"), key=work.key("tokens")),
        load_pair(work.path("models"), models["layer"], models["dtype"], key=work.key("models")),
        int(work.wildcards.part),
        HarvestSettings(**work.config["activations"]),
        Path(snakemake.output.store),
        work.config["seed"],
        work.device,
        key=work.own_key,
    )
