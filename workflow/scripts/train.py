"""Train one dictionary."""

from pathlib import Path

from tunediff.config.dictionaries import dictionary_settings
from tunediff.config.settings import TrainingSettings
from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.training import train
from tunediff.pipeline.job import job

with job(snakemake) as work:
    (settings, seed), out = work.params.training, work.out
    store = ActivationStore(work.paths("train"), key=work.key("train"))
    train(
        dictionary_settings(settings),
        seed,
        store,
        TrainingSettings(**work.config["training"], seed=work.config["seed"], device=work.device),
        out,
        Path(work.config["results"]) / ".work" / work.own_key,
        key=work.own_key,
        facts={"layer": work.config.get("models", {}).get("layer"), "outlier_norm": store.outlier_norm},
    )
