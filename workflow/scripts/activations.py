"""Run both models over one part of the tokens and store their residuals."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import HarvestSettings
from tunediff.data.activations import harvest_part
from tunediff.data.tokens import TokenStore
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

models, params = snakemake.config["models"], snakemake.params
with job(snakemake):
    harvest_part(
        TokenStore.open(Path(snakemake.input.tokens), key=params.tokens_key),
        load_pair(Path(snakemake.input.models), models["layer"], models["dtype"], key=params.models_key),
        int(snakemake.wildcards.part),
        HarvestSettings(**snakemake.config["activations"]),
        Path(snakemake.output.store),
        snakemake.config["seed"],
        resolve_device(models["device"]),
        key=params.key,
    )
