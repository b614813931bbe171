"""False positives of the nulls against plain counting."""

import numpy as np
import pytest
from scipy.stats import norm

from figure_tables import LABELS, evaluation, latent_tables
from tunediff.nulls import null_rates

EVALUATIONS = {label: evaluation() for label in LABELS}
SAME = {
    label: table.assign(chat_specific=False, chat_specific_interval=False) for label, table in latent_tables().items()
}
PAIRS = {"": (latent_tables(), EVALUATIONS), "same": (SAME, EVALUATIONS)}


def test_rates_count_calls_among_live_latents() -> None:
    rates = null_rates(PAIRS).set_index(["pair", "crosscoder"])
    assert list(rates.index) == [(pair, label) for pair in PAIRS for label in LABELS]
    for label, table in latent_tables().items():
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
