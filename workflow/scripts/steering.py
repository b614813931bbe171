"""Answer requests with the directions of the most chat-specific latents added, and with controls of equal dose."""

from tunediff.config.settings import SteeringSettings, generation_batch
from tunediff.data.corpora import opened
from tunediff.data.rendering import ChatRenderer
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.interventions.steering import build_steering
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    config, models, device = work.config, work.config["models"], work.device
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    build_steering(
        (pair.load_base(device, upper=True), pair.load_chat(device, upper=True)),
        work.open_each(Crosscoder.load, "crosscoders", device),
        work.open_each(LatentTable.read, "latents"),
        work.open(TokenStore.open, "conversations"),
        ChatRenderer(pair.load_tokenizer()),
        opened(config["conversations"]["source"]),
        SteeringSettings(
            **config["steering"],
            generation_batch_size=generation_batch(config["conversations"]["batch_size"], device),
            batch_size=config["causal"]["batch_size"],
            seed=config["seed"],
        ),
        work.out,
        key=work.own_key,
        device=device,
        replacements=pair.replacements,
    )
