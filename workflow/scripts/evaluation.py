"""Measure one crosscoder on held-out tokens: FVE, L0, dead latents, cross-entropy recovered."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import EvaluationSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.evaluation import build_evaluation
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params = snakemake.config, snakemake.params
models, device = config["models"], resolve_device(config["models"]["device"])
with job(snakemake):
    pair = load_pair(Path(snakemake.input.models), models["layer"], models["dtype"], key=params.models_key)
    build_evaluation(
        Crosscoder.load(Path(snakemake.input.crosscoder), device, key=params.crosscoder_key),
        ActivationStore([Path(p) for p in snakemake.input.validation], key=params.validation_key),
        TokenStore.open(Path(snakemake.input.tokens), key=params.tokens_key),
        (pair.load_base(device, upper=True), pair.load_chat(device, upper=True)),
        EvaluationSettings(**config["evaluation"]),
        Path(snakemake.output[0]),
        key=params.key,
        device=device,
        replacements=pair.replacements,
    )
