"""A small folder of results, each artifact in its own format."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

import figure_tables
from analysis_fixtures import activation_store, random_crosscoder, token_store
from tunediff.pipeline.artifacts import seal, write_json

DICTIONARIES = ("batchtopk-seed0", "l1-seed0")
D_MODEL, N_TOKENS = 6, 48


def sealed_frame(path: Path, kind: str, frame: pd.DataFrame) -> None:
    """Write a table and its manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)
    seal(path, kind, "key", {})


def small_results(root: Path) -> np.ndarray:
    """Make a whole folder of results at `root`; return the activations (row, model, d_model) of both splits."""
    (root / "models").mkdir(parents=True)
    (root / "models/pair.json").write_text("{}")
    pair = {"base": "org/base", "chat": "org/chat", "base_revision": "abc", "chat_revision": None}
    seal(root / "models", "models", "key", pair | {"d_model": D_MODEL, "n_layers": 4, "vocab_size": 40})
    write_json(root / "hooks.json", {"kind": "hooks", "key": "key", "layer": 1, "dtype": "float32"})

    activations = np.random.default_rng(0).standard_normal((N_TOKENS, 2, D_MODEL)).astype(np.float32)
    (root / "tokens").mkdir()
    for split in ("train", "validation"):
        (root / "activations" / split).mkdir(parents=True)
        tokens = token_store(root / f"tokens/{split}.zarr", [16, 16, 16])
        activation_store(root / f"activations/{split}/part-000.zarr", tokens, activations)
    for name in ("latents", "evaluation"):
        (root / name).mkdir()
    for i, name in enumerate(DICTIONARIES):
        store = root / "crosscoders" / name
        random_crosscoder(D_MODEL, seed=i).save(store)
        seal(store, "crosscoder", "key", {})
        table = root / f"latents/{name}.parquet"
        figure_tables.latent_table(i).write(table)
        seal(table, "latents", "key", {})
        evaluation = figure_tables.evaluation(fve=0.875 - i / 4, l0=20.5)
        write_json(root / f"evaluation/{name}.json", {"key": "key", **asdict(evaluation)})
    sealed_frame(root / "causal/summary.parquet", "kl-summary", figure_tables.kl_summary()[0])
    sealed_frame(root / "causal/kl.parquet", "kl", pd.DataFrame({"conversation": [0, 1], "kl_sum_all": [0.5, 0.25]}))
    return activations
