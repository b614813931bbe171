"""Train the crosscoders of one planted pair, measure their latents as everywhere else, and score them."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.planted import PlantedArm
from tunediff.config.settings import HarvestSettings, LatentSettings, TrainingSettings
from tunediff.data.activations import ActivationStore
from tunediff.dictionaries import dictionary_settings
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.training import train
from tunediff.latents.measure import build_table
from tunediff.pipeline.job import job, resolve_device
from tunediff.validation.planted import plant, strengths
from tunediff.validation.truth import score_pair

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params, seed = snakemake.config, snakemake.params, int(snakemake.wildcards.n)
planted, latents = config["planted"], LatentSettings(**config["latents"], seed=config["seed"])
folder, device = Path(snakemake.output.scores).parent, resolve_device(planted["device"])
with job(snakemake):
    train_store, validation = (
        ActivationStore(sorted((folder / f"activations/{split}").glob("part-*.zarr")), key=params.stores_key)
        for split in ("train", "validation")
    )
    train(
        {name: (dictionary_settings(own, name), own_seed) for name, (own, own_seed) in params.dictionaries.items()},
        train_store,
        TrainingSettings(**config["training"], seed=config["seed"], device=device),
        folder / "crosscoders",
        folder / ".work",
        {name: params.own_keys[f"crosscoders/{name}"] for name in params.dictionaries},
    )
    pair = plant(PlantedArm(**planted["arms"][snakemake.wildcards.arm]), seed)
    measured = {}
    for name in params.dictionaries:
        crosscoder = Crosscoder.load(folder / "crosscoders" / name, device, key=params.own_keys[f"crosscoders/{name}"])
        table, key = folder / "latents" / f"{name}.parquet", params.own_keys[f"latents/{name}"]
        measured[name] = (
            crosscoder,
            build_table(crosscoder, train_store, validation, latents, table, key=key, device=device),
        )
    strength = strengths(
        pair, "validation", planted["validation_tokens"], HarvestSettings(**config["activations"]), seed
    )
    score_pair(pair, strength, measured, validation, Path(snakemake.output.scores), key=params.key)
