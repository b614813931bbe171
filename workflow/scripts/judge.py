"""Judge the explanations of one dictionary: by their rules and, where one is configured, by a language model."""

from tunediff.config.settings import ExplanationSettings
from tunediff.data.tokens import TokenStore
from tunediff.explanations.backend import answering
from tunediff.explanations.explain import Reader
from tunediff.explanations.judge import build_judgements
from tunediff.explanations.tables import Explanations
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    config, models, device = work.config, work.config["models"], work.device
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    settings = ExplanationSettings(**config["explanations"], seed=config["seed"])
    with answering(settings, "judgements", work.out, device) as (model, answered):
        build_judgements(
            work.open(Explanations.open, "explanations"),
            Reader(work.open(TokenStore.open, "tokens"), pair.load_tokenizer()),
            work.out,
            key=work.own_key,
            model=model,
            seed=config["seed"],
            answered=answered,
            device=device,
        )
