"""Run every intervention on every conversation."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import CausalSettings
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.interventions.kl import build_kl
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    config, models, device = work.config, work.config["models"], work.device
    pair = load_pair(work.path("models"), models["layer"], models["dtype"], key=work.key("models"))
    build_kl(
        (pair.load_base(device), pair.load_chat(device, upper=True)),
        {name: Crosscoder.load(path, device, key=key) for name, path, key in work.each("crosscoders")},
        {name: LatentTable.read(path, key=key) for name, path, key in work.each("latents")},
        TokenStore.open(work.path("conversations"), key=work.key("conversations")),
        CausalSettings(**config["causal"], seed=config["seed"]),
        Path(snakemake.output.store),
        key=work.own_key,
        device=device,
        replacements=pair.replacements,
    )
