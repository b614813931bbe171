"""False positives of the nulls against plain counting, and what each null is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from figure_tables import CONFIG, LABELS, OTHER, evaluation, latent_tables, nulls_table
from tunediff.errors import TunediffError
from tunediff.latents.table import LatentTable
from tunediff.pipeline.artifacts import seal
from tunediff.report.inputs import Inputs
from tunediff.report.nulls import model_name, null_kind, null_rates

EVALUATIONS = {label: evaluation() for label in LABELS}
SAME = {
    label: LatentTable(table.frame.assign(chat_specific=False, chat_specific_interval=False), table.sources)
    for label, table in latent_tables().items()
}
PAIRS = {"": (latent_tables(), EVALUATIONS), "same": (SAME, EVALUATIONS)}
KINDS = {"same": "exact"}


def test_rates_count_calls_among_live_latents() -> None:
    rates = null_rates(PAIRS, KINDS).set_index(["pair", "crosscoder"])
    assert list(rates.index) == [(pair, label) for pair in PAIRS for label in LABELS]
    assert rates["null_kind"].tolist() == ["", "", "exact", "exact"]
    for label, latents in latent_tables().items():
        table = latents.frame
        live = table[table["class_name"] != "dead"]
        own, null = rates.loc[("", label)], rates.loc[("same", label)]
        assert own["live"] == null["live"] == len(live) < len(table)
        called = int(table["chat_specific"].sum())
        assert own["chat_specific"] == called > 0
        assert own["chat_specific_interval"] == table["chat_specific_interval"].sum() <= called
        # only chat-only latents count for the rule by norms, in the null too
        assert own["chat_only"] == null["chat_only"] == (table["class_name"] == "chat-only").sum()
        share, z = called / len(live), norm.ppf(0.975)
        centre = (share + z**2 / (2 * len(live))) / (1 + z**2 / len(live))
        half = z / (1 + z**2 / len(live)) * np.sqrt(share * (1 - share) / len(live) + (z / (2 * len(live))) ** 2)
        assert own["chat_specific_share"] == pytest.approx(share)
        assert own["chat_specific_share_low"] == pytest.approx(centre - half)
        assert own["chat_specific_share_high"] == pytest.approx(centre + half)
        assert null["chat_specific_share"] == 0 < null["chat_specific_share_high"] < own["chat_specific_share"]


def test_a_null_is_exact_where_one_model_stands_twice() -> None:
    one = {"base": "org/model", "chat": "org/model"}
    assert null_kind(one) == null_kind({**one, "base_revision": "a", "chat_revision": "a"}) == "exact"
    different = [
        {"base": "demo-chat", "chat": "demo-retuned"},
        {**one, "base_revision": "a", "chat_revision": None},
        {**one, "base_token_replacements": {"3": 4}},
        {"base": "b", "chat": {"base": "b", "adapter": "org/lora"}},
    ]
    assert {null_kind(pair) for pair in different} == {"contaminated"}
    adapted = {"base": "b", "adapter": "org/lora"}
    assert null_kind({"base": adapted, "chat": dict(adapted)}) == "exact"
    assert (model_name("org/model"), model_name("/data/pair/chat"), model_name(adapted)) == ("model", "chat", "lora")


def test_tables_of_all_pairs_must_state_one_criterion() -> None:
    with pytest.raises(TunediffError, match="state different criteria"):
        null_rates({"": (latent_tables(), EVALUATIONS), "same": (latent_tables(OTHER), EVALUATIONS)}, KINDS)


def test_counts_are_read_back_only_under_their_own_key(tmp_path: Path) -> None:
    numbers = tmp_path / "nulls/summary.csv"
    numbers.parent.mkdir()
    nulls_table().to_csv(numbers, index=False)
    seal(numbers, "drawing", "k1", {})
    found = nulls_read(tmp_path, "k1")
    assert found is not None and found["pair"].tolist() == ["", "", "same", "same", "reseeded", "reseeded"]
    assert found["null_kind"].tolist() == ["", "", "exact", "exact", "contaminated", "contaminated"]
    assert nulls_read(tmp_path, "") is None
    with pytest.raises(TunediffError, match="made by other inputs"):
        nulls_read(tmp_path, "k2")
    numbers.write_text(numbers.read_text().replace("same", "sane"))
    with pytest.raises(TunediffError, match="checksum differs"):
        nulls_read(tmp_path, "k1")


def nulls_read(results: Path, key: str) -> pd.DataFrame | None:
    return Inputs({}, {**CONFIG, "results": str(results)}, key).nulls
