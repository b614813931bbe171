"""Measure both models' losses, and their KL, on the documents that examples of chat-specific latents come from."""

from tunediff.data.tokens import TokenStore
from tunediff.latents.examples import Examples
from tunediff.latents.losses import build_losses
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    config, models, device = work.config, work.config["models"], work.device
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    build_losses(
        (pair.load_base(device, upper=True), pair.load_chat(device, upper=True)),
        work.open(TokenStore.open, "tokens"),
        work.open_each(LatentTable.read, "latents"),
        work.open_each(Examples.open, "examples"),
        config["examples"]["losses_latents"],
        work.out,
        key=work.own_key,
        batch_size=config["evaluation"]["batch_size"],
        device=device,
        replacements=pair.replacements,
    )
