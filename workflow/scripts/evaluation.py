"""Complete the held-out metrics of one crosscoder: the cross-entropy recovered."""

from tunediff.config.settings import EvaluationSettings
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.evaluation import build_evaluation
from tunediff.latents.held_out import Reconstruction
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    models, device = work.config["models"], work.device
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    build_evaluation(
        work.open(Crosscoder.load, "crosscoder", device),
        work.open(Reconstruction.read, "latents"),
        work.open(TokenStore.open, "tokens"),
        (pair.load_base(device, upper=True), pair.load_chat(device, upper=True)),
        EvaluationSettings(**work.config["evaluation"]),
        work.out,
        key=work.own_key,
        device=device,
        replacements=pair.replacements,
    )
