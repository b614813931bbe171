"""Whole runs of the rules with Llama-3- and Qwen-2.5-architecture pairs, local models, local chats and texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import Checkout, family_checkout

from helpers import TinyPair


def assert_complete(checkout: Checkout) -> None:
    """Every figure and table is there, KL of the unedited chat model is 0, and nothing is left to do."""
    results = checkout.root / "results"
    for name in ("fig2", "fig3", "fig4", "training"):
        for suffix in ("pdf", "png", "csv"):
            assert (results / f"figures/{name}.{suffix}").stat().st_size > 100
    kl = pd.read_parquet(results / "causal/summary.parquet")
    chat = kl[kl["intervention"] == "chat"]
    assert (chat["mean"].abs() < 1e-5).all() and len(chat) == 2
    assert (kl[kl["intervention"] == "none"]["mean"] > 1e-3).all()
    for name in ("l1-seed0", "batchtopk-seed0"):
        assert len(pd.read_parquet(results / f"latents/{name}.parquet")) == 64
    assert checkout.planned() == {}


@pytest.mark.parametrize("family", ["llama3", "qwen2"])
def test_family_runs_to_the_figures(family: str, tiny_pairs: Callable[[str], TinyPair], tmp_path: Path) -> None:
    pair = tiny_pairs(family)
    quirks: dict[str, Any] = {"ignore_first_tokens": 3}
    if family == "llama3":
        vocabulary = pair.tokenizer.get_vocab()
        quirks["base_token_replacements"] = {str(vocabulary["<|eot_id|>"]): vocabulary["."]}
    checkout = family_checkout(tmp_path / "run", pair, **quirks)
    if family == "qwen2":  # answers given by the source, compressed stores
        checkout.edit_config("conversations.answers", "given")
        checkout.edit_config("activations.codec", "blosc")
        checkout.edit_config("nulls.same", {"base": str(pair.chat), "chat": str(pair.chat)})
    checkout.run()
    assert_complete(checkout)
    if family == "qwen2":
        checkout.run("nulls")
        rates = pd.read_csv(checkout.root / "results/nulls/summary.csv").fillna({"pair": ""})
        assert rates["pair"].tolist() == ["", "", "same", "same"] and (rates["live"] > 0).all()
        # one model twice: both decoders of a latent see the same gradients, so nothing is specific to either
        assert not rates[rates["pair"] == "same"][["chat_only", "chat_specific"]].to_numpy().any()
        assert checkout.planned("nulls") == {}
