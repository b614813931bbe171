"""A folder of results whose models can be run: a tiny pair, random dictionaries, tables made up."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import figure_tables
from analysis_fixtures import SOURCES, random_crosscoder
from example_tables import small_examples
from helpers import TinyPair
from tunediff.data.rendering import Encoding
from tunediff.data.sampling import write_store
from tunediff.models.pair import prepare_pair
from tunediff.pipeline.artifacts import seal, write_json

D_MODEL, LATENTS, LAYER, IGNORED = 32, 60, 1, 2
NAME, DIFFERENCE = "batchtopk-seed0", "diff-seed0"
LENGTHS = (50,) * 24  # of the validation documents


def live_results(root: Path, pair: TinyPair, replacements: Mapping[int, int] | None = None) -> Path:
    """Make a folder of results at `root` with the models of a pair, one crosscoder and one of the difference."""
    settings = {"base": str(pair.base), "chat": str(pair.chat), "base_token_replacements": dict(replacements or {})}
    prepare_pair(settings, Path("unused"), root / "models", key="k")
    write_json(root / "hooks.json", {"kind": "hooks", "layer": LAYER, "dtype": "float32"})
    generator = np.random.default_rng(0)
    texts = [
        Encoding(generator.integers(270, 420, n).astype(np.int32), np.zeros(n, np.uint8), np.zeros(n, np.uint64))
        for n in LENGTHS
    ]
    attributes = {"sources": list(SOURCES), "concepts": [], "split": "validation", "ignore_first_tokens": IGNORED}
    write_store(root / "tokens/validation.zarr", texts, [i % 2 for i in range(len(texts))], attributes, {}, "key", 0.0)
    (root / "latents").mkdir()
    for name, streams, threshold in ((NAME, 2, 6.0), (DIFFERENCE, 1, 0.3)):  # a latent fires on some tokens
        store = root / "crosscoders" / name
        random_crosscoder(D_MODEL, LATENTS, threshold=threshold, streams=streams).save(store)
        seal(store, "crosscoder", "key", {})
        table = figure_tables.latent_table(1, (0.5, 0.3, 0.1, 0.06, 0.04), LATENTS)
        table.frame["max_activation"] = (table.frame["latent"] + 1).astype("float32")  # as in `small_examples`
        if streams == 1:
            table.frame["norm_difference"] = np.float32(np.nan)
            table.frame["chat_specific"] = False
        table.write(root / f"latents/{name}.parquet")
        seal(root / f"latents/{name}.parquet", "latents", "key", {})
    live = table.frame.loc[~table.frame["dead"], "latent"].tolist()
    small_examples(root / "examples" / NAME, live, LENGTHS, vocab=420)
    return root
