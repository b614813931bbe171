"""Run every intervention on every conversation."""

from tunediff.config.settings import CausalSettings
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.interventions.kl import build_kl
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    config, models, device = work.config, work.config["models"], work.device
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    build_kl(
        (pair.load_base(device), pair.load_chat(device, upper=True)),
        work.open_each(Crosscoder.load, "crosscoders", device),
        work.open_each(LatentTable.read, "latents"),
        work.open(TokenStore.open, "conversations"),
        CausalSettings(**config["causal"], seed=config["seed"]),
        work.out,
        key=work.own_key,
        device=device,
        replacements=pair.replacements,
    )
