"""Measure one crosscoder on held-out tokens: FVE, L0, dead latents, cross-entropy recovered."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import EvaluationSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.evaluation import build_evaluation
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    models, device = work.config["models"], work.device
    pair = load_pair(work.path("models"), models["layer"], models["dtype"], key=work.key("models"))
    build_evaluation(
        Crosscoder.load(work.path("crosscoder"), device, key=work.key("crosscoder")),
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        TokenStore.open(work.path("tokens"), key=work.key("tokens")),
        (pair.load_base(device, upper=True), pair.load_chat(device, upper=True)),
        EvaluationSettings(**work.config["evaluation"]),
        Path(snakemake.output.manifest),
        key=work.own_key,
        device=device,
        replacements=pair.replacements,
    )
