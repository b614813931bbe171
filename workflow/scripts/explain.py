"""Explain the chosen latents of one dictionary, and the controls."""

from functools import partial

from tunediff.config.settings import ExampleSettings, ExplanationSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import TokenStore
from tunediff.explanations.backend import answering
from tunediff.explanations.controls import control_windows
from tunediff.explanations.explain import build_explanations
from tunediff.latents.examples import Examples
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    config, models, device = work.config, work.config["models"], work.device
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    examples = ExampleSettings(**config["examples"], seed=config["seed"])
    settings = ExplanationSettings(**config["explanations"], context=examples.context, seed=config["seed"])
    store = ActivationStore(work.paths("validation"), key=work.key("validation"))
    tokens = {
        split: work.open(TokenStore.open, role) for split, role in (("validation", "tokens"), ("train", "train_tokens"))
    }
    with answering(settings, "explanations", work.out, device) as (model, answered):
        build_explanations(
            work.open(LatentTable.read, "latents"),
            work.open(Examples.open, "examples"),
            tokens,
            pair.load_tokenizer(),
            partial(control_windows, store, tokens["validation"], settings=examples, device=device, name=work.out.name),
            settings,
            work.out,
            key=work.own_key,
            model=model,
            answered=answered,
            device=device,
        )
