"""Measure one crosscoder on held-out tokens: FVE, L0, dead latents, cross-entropy recovered."""

from tunediff.config.settings import EvaluationSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.evaluation import build_evaluation
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    models, device = work.config["models"], work.device
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    build_evaluation(
        work.open(Crosscoder.load, "crosscoder", device),
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        work.open(TokenStore.open, "tokens"),
        (pair.load_base(device, upper=True), pair.load_chat(device, upper=True)),
        EvaluationSettings(**work.config["evaluation"]),
        work.out,
        key=work.own_key,
        device=device,
        replacements=pair.replacements,
    )
