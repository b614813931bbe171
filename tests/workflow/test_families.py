"""Whole runs of the rules with Llama-3- and Qwen-2.5-architecture pairs, local models, local chats and texts."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from checkout import Checkout, family_checkout

from helpers import TinyPair


def assert_complete(checkout: Checkout, figures: tuple[str, ...], *targets: str) -> None:
    """The figures are there, KL of the unedited chat model is 0, and nothing is left to do."""
    results = checkout.root / "results"
    for name in figures:
        for suffix in ("pdf", "png", "csv"):
            assert (results / f"figures/{name}.{suffix}").stat().st_size > 100
    kl = pd.read_parquet(results / "causal/summary.parquet")
    chat = kl[kl["intervention"] == "chat"]
    assert (chat["mean"].abs() < 1e-5).all() and len(chat) == 2
    assert (kl[kl["intervention"] == "none"]["mean"] > 1e-3).all()
    for name in ("l1-seed0", "batchtopk-seed0"):
        assert len(pd.read_parquet(results / f"latents/{name}.parquet")) == 64
    assert checkout.planned(*targets) == {}


def test_llama_pair_runs_to_every_figure(tiny_pairs: Callable[[str], TinyPair], tmp_path: Path) -> None:
    pair = tiny_pairs("llama3")
    vocabulary = pair.tokenizer.get_vocab()
    replaced = {str(vocabulary["<|eot_id|>"]): vocabulary["."]}
    checkout = family_checkout(tmp_path / "run", pair, ignore_first_tokens=3, base_token_replacements=replaced)
    checkout.run()
    assert_complete(checkout, ("fig2", "fig3", "fig4", "training"))


def test_qwen_pair_runs_to_figure_4_and_one_model_twice_has_no_chat_specific_latent(
    tiny_pairs: Callable[[str], TinyPair], tmp_path: Path
) -> None:
    pair = tiny_pairs("qwen2")
    checkout = family_checkout(tmp_path / "run", pair, ignore_first_tokens=3)
    checkout.edit_config("conversations.answers", "given")  # by the source
    checkout.edit_config("activations.codec", "blosc")
    checkout.edit_config("nulls.same", {"base": str(pair.chat), "chat": str(pair.chat)})
    targets, table1 = ("results/figures/fig4.pdf", "nulls"), "results/tables/table1.pdf"
    checkout.run(*targets, table1)
    assert_complete(checkout, ("fig4",), *targets)
    rates = pd.read_csv(checkout.root / "results/nulls/summary.csv").fillna({"pair": ""})
    assert rates["pair"].tolist() == ["", "", "same", "same"] and (rates["live"] > 0).all()
    # both decoders of a latent see the same gradients, so nothing is specific to either
    assert not rates[rates["pair"] == "same"][["chat_only", "chat_specific"]].to_numpy().any()
    assert rates["null_kind"].fillna("").tolist() == ["", "", "exact", "exact"]
    # table 1 was made before there were nulls: the next start makes it again, with their counts, and nothing else
    assert "null_same_kind" not in pd.read_csv(checkout.root / "results/tables/table1.csv")
    assert checkout.planned(table1) == {"drawing": 1}
    later = table1, "results/tables/ranking.pdf", "results/summary.txt"
    checkout.run(*later)
    table = pd.read_csv(checkout.root / "results/tables/table1.csv")
    assert table["null_same_chat_specific"].tolist() == [0, 0] and set(table["null_same_kind"]) == {"exact"}
    assert (checkout.root / "results/summary.txt").read_text().count("in the nulls: same 0 (must be 0)") == 2
    assert checkout.planned(*later) == {}
