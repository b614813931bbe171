"""A folder of results whose models can be run: a tiny pair, random dictionaries, tables made up."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import figure_tables
from analysis_fixtures import SOURCES, random_crosscoder
from helpers import TinyPair
from tunediff.data.rendering import Encoding
from tunediff.data.sampling import write_store
from tunediff.models.pair import prepare_pair
from tunediff.pipeline.artifacts import seal

D_MODEL, LATENTS, LAYER, IGNORED = 32, 60, 1, 2
NAME, DIFFERENCE = "batchtopk-seed0", "diff-seed0"
MAXIMUM = 8.0  # largest activation of every latent, in the tables


def live_results(root: Path, pair: TinyPair, replacements: Mapping[int, int] | None = None) -> Path:
    """Make a folder of results at `root` with the models of a pair, one crosscoder and one of the difference."""
    settings = {"base": str(pair.base), "chat": str(pair.chat), "base_token_replacements": dict(replacements or {})}
    prepare_pair(settings, Path("unused"), root / "models", key="k")
    (root / "hooks.json").write_text(json.dumps({"kind": "hooks", "layer": LAYER, "dtype": "float32"}))
    one = Encoding(np.array([2, 5], np.int32), np.array([1, 0], np.uint8), np.zeros(2, np.uint64))
    attributes = {"sources": list(SOURCES), "concepts": [], "split": "validation", "ignore_first_tokens": IGNORED}
    write_store(root / "tokens/validation.zarr", [one], [0], attributes, {}, "key", 0.0)
    (root / "latents").mkdir()
    for name, streams in ((NAME, 2), (DIFFERENCE, 1)):
        store = root / "crosscoders" / name
        random_crosscoder(D_MODEL, LATENTS, threshold=0.3, streams=streams).save(store)
        seal(store, "crosscoder", "key", {})
        table = figure_tables.latent_table(1, size=LATENTS)
        table.frame["max_activation"] = np.float32(MAXIMUM)
        if streams == 1:
            table.frame["norm_difference"] = np.float32(np.nan)
            table.frame["chat_specific"] = False
        table.write(root / f"latents/{name}.parquet")
        seal(root / f"latents/{name}.parquet", "latents", "key", {})
    return root
