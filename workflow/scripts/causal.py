"""Run every intervention on every conversation."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import CausalSettings
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.interventions.kl import build_kl
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params, read = snakemake.config, snakemake.params, snakemake.input
models, device = config["models"], resolve_device(config["models"]["device"])
with job(snakemake):
    pair = load_pair(Path(read.models), models["layer"], models["dtype"], key=params.models_key)
    build_kl(
        (pair.load_base(device), pair.load_chat(device, upper=True)),
        {Path(p).name: Crosscoder.load(Path(p), device, key=params.own_keys[Path(p).name]) for p in read.crosscoders},
        {Path(p).stem: LatentTable.read(Path(p), key=params.latent_keys[Path(p).stem]) for p in read.latents},
        TokenStore.open(Path(read.conversations), key=params.conversations_key),
        CausalSettings(**config["causal"], seed=config["seed"]),
        Path(snakemake.output.store),
        key=params.key,
        device=device,
        replacements=pair.replacements,
    )
