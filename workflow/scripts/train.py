"""Train one dictionary; as one of several processes where torchrun starts it (rules/crosscoders.smk)."""

import sys
from contextlib import nullcontext
from pathlib import Path

from tunediff.config.dictionaries import dictionary_settings
from tunediff.config.settings import TrainingSettings
from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.sharding import WHOLE, torchrun
from tunediff.dictionaries.training import train
from tunediff.pipeline.job import from_shell, job

alone = "snakemake" in globals()
given = globals()["snakemake"] if alone else from_shell(*sys.argv[1:])

with nullcontext(WHOLE) if alone else torchrun() as shard, job(given, shard.rank == 0, shard.tells) as work:
    (settings, seed), out = work.params.training, work.out
    store = ActivationStore(work.paths("train"), key=work.key("train"))
    train(
        dictionary_settings(settings),
        seed,
        store,
        TrainingSettings(**work.config["training"], seed=work.config["seed"], device=shard.device(work.device)),
        out,
        Path(work.config["results"]) / ".work" / work.own_key,
        key=work.own_key,
        facts={"layer": work.config.get("models", {}).get("layer"), "outlier_norm": store.outlier_norm},
        shard=shard,
    )
