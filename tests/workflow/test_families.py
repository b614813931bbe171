"""A run of the rules with a Qwen-2.5-architecture pair, local models, local chats and texts, and nulls."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from checkout import assert_complete, family_checkout

from helpers import TinyPair


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
