"""The summary says what the tables say."""

from typing import Any

import pandas as pd
import pytest

from figure_tables import (
    LABELS,
    OTHER,
    concepts,
    evaluation,
    given,
    kl_summary,
    latent_tables,
    nulls_table,
    steering_table,
    without_chat_only,
)
from tunediff.report.inputs import Inputs, OutlierTokens
from tunediff.report.summary import summary

FIRST = LABELS[0]
OUTLIERS = OutlierTokens(
    factor=5.0,
    norm={"base": 32000.0, "chat": 33.5},
    tokens={"chat": 0, "web": 310},
    of={"chat": 500, "web": 1000},
)
FACTS = {
    LABELS[0]: {"settings": {"target_l0": 50}, "final": {"l0": 51.25}, "warnings": ["64 % of the latents are dead"]},
    LABELS[1]: {"settings": {"k": 20}},
}


@pytest.fixture
def run() -> Inputs:
    kl, sets = kl_summary()
    of = (kl["crosscoder"] == FIRST) & (kl["positions"] == "all")
    matched = [
        kl[of & (kl["intervention"] == f"norm_difference_{side}")].assign(
            intervention=f"norm_difference_{side}_matched", reduction=reduction, energy_share=0.091
        )
        for side, reduction in (("best", 0.182), ("worst", 0.143))
    ]
    sets[FIRST]["notes"] = ["no energy-matched halves by latent_scaling: 0 pairs"]
    evaluations = {label: evaluation(l0=52.3) for label in LABELS}
    kl = pd.concat([kl, *matched], ignore_index=True)
    return given(
        kl=kl, sets=sets, latents=latent_tables(), evaluation=evaluations, crosscoders=FACTS, concepts=concepts(),
        nulls=None, outliers={"train": OUTLIERS}, steering=steering_table(),
    )  # fmt: skip


def replace(run: Inputs, **found: Any) -> Inputs:
    """Return the same results but for some."""
    own = {
        name: value
        for name, value in vars(run).items()
        if name not in ("files", "config", "nulls_key", "folder", "seed")
    }
    return given(**own | found)


def line_with(text: str, wanted: str) -> str:
    found = [line for line in text.splitlines() if wanted in line]
    assert len(found) == 1, (wanted, found)
    return found[0]


def test_what_was_found_comes_first_then_fve_of_the_difference(run: Inputs) -> None:
    lines = summary(run).splitlines()
    for label, table in run.latents.items():
        specific, live = table.frame["chat_specific"], ~table.frame["dead"]
        assert f"{label}: {specific.sum():,} of {live.sum():,} live latents are chat-specific" in lines[0]
        confirmed = table.frame["chat_specific_validation"].sum()
        own = next(line for line in lines if line.startswith(f"  {label}: "))
        assert f"{confirmed} confirmed on validation tokens" in own and "controls: " in own
    assert lines[0].startswith("Found: ") and f"  Chat-specific: {run.latents[FIRST].criterion.text}" in lines[1]
    at = next(i for i, line in enumerate(lines) if line.startswith("FVE of the difference"))
    assert at < 6 and "l1-seed0 0.580 (standardised 0.310)" in lines[at]
    assert "base 0.880 (standardised 0.500), chat 0.870 (standardised 0.480)" in lines[at + 1]
    assert "L0 52.3 (asked: 50), 51.2 at the end of training" in lines[at + 1]
    assert "L0 52.3 (asked: 20); dead 4 %" in lines[at + 2]
    held_out = [line for line in lines if "on held-out tokens" in line]  # 52.3 is within 10 % of 50, not of 20
    assert held_out == [f"WARNING {LABELS[1]}: L0 is 52.3 on held-out tokens, 20 was asked; compare it by L0."]
    assert lines[-1].startswith("Figures: r/figures/fig4.pdf")


def test_warnings_of_one_dimension_and_of_training(run: Inputs) -> None:
    text = summary(run)
    warning = line_with(text, f"WARNING {FIRST}: FVE rests on one dimension")
    assert "base: dimension 347 holds 88 %, standardised FVE 0.500" in warning
    assert "difference" not in warning  # its largest dimension holds 20 %
    assert f"WARNING {FIRST}: 64 % of the latents are dead" in text.splitlines()
    spread = {label: evaluation() for label in LABELS}
    for own in spread.values():
        for row in own.metrics:
            row["value"] = 0.5 if row["metric"] == "largest_dimension_share" else row["value"]
    plain = replace(run, evaluation=spread, crosscoders={label: {} for label in LABELS})
    assert "WARNING" not in summary(plain) and "asked" not in summary(plain)


def test_outlier_tokens_per_source(run: Inputs) -> None:
    text = summary(replace(run, outliers={"train": OUTLIERS, "validation": None}))
    line = line_with(text, "Outlier tokens, train")
    assert "left out: chat 0 of 500 (0 %), web 310 of 1,000 (31 %)" in line
    assert "norm above 5 medians (base 32,000, chat 33.5)" in line
    assert "not looked for" in line_with(text, "Outlier tokens, validation")


def test_counts_stand_beside_those_of_the_nulls(run: Inputs) -> None:
    assert "  Nulls: not run (snakemake nulls)." in summary(run).splitlines()
    nulls = nulls_table()
    nulls.loc[(nulls["pair"] == "reseeded") & (nulls["crosscoder"] == FIRST), "chat_specific"] = 4
    text = summary(replace(run, nulls=nulls))
    assert "chat-specific in the nulls: same 113 (must be 0), reseeded 4 (upper bound)." in text
    assert "not run" not in text


def test_classes_and_reversed_latents(run: Inputs) -> None:
    text = summary(run)
    frame = run.latents[FIRST].frame
    chat_only = frame[frame["class_name"] == "chat-only"]
    line = line_with(text, f"  {FIRST}: {len(chat_only)} chat-only")
    assert f"{(chat_only['nu_reconstruction'] >= 0.5).sum()} decoupled, ν^r ≥ 0.5" in line
    assert f"{(chat_only['nu_error'] >= 0.2).sum()} shrunk, ν^ε ≥ 0.2" in line
    turned = ((frame["nu_reconstruction"] < -0.1) | (frame["nu_error"] < -0.1)).sum()
    assert turned > 0 and f"of all, {turned} reversed (a ν under −0.1)" in line


def test_thresholds_of_the_tables_are_the_only_ones_printed(run: Inputs) -> None:
    text = summary(replace(run, latents=latent_tables(OTHER)))
    assert OTHER.text in text and "decoupled, ν^r ≥ 0.37" in text and "shrunk, ν^ε ≥ 0.13" in text
    assert "a ν under −0.06" in text
    assert not any(old in text for old in ("< 0.5", "< 0.2", "≥ 0.5", "≥ 0.2", "−0.1, 2]", "under −0.1)"))


def test_five_ranked_latents_are_shown_and_twenty_where_none_is_chat_specific(run: Inputs) -> None:
    ranked = [line for line in summary(run).splitlines() if line.startswith("    ") and ". latent " in line]
    assert len(ranked) == 2 * 5
    first = run.latents[FIRST].first(1).iloc[0]
    fires = f"chat {100 * first['frequency_chat']:.2g} %"
    assert f"1. latent {first['latent']}, chat-only" in ranked[0] and fires in ranked[0]
    text = summary(replace(run, latents=without_chat_only()))
    ranked = [line for line in text.splitlines() if line.startswith("    ") and ". latent " in line]
    assert len(ranked) == 20 and "chat-specific" not in "".join(ranked)
    live = int((~without_chat_only()[FIRST].frame["dead"]).sum())
    assert text.startswith(f"Found: {FIRST}: none of {live} live latents is chat-specific; ")


def test_best_against_worst_with_energies_and_at_equal_energy(run: Inputs) -> None:
    text = summary(run)
    kl = run.kl[(run.kl["positions"] == "all") & (run.kl["crosscoder"] == FIRST)]
    row = {name: kl[(kl["intervention"] == name) & (kl["ranking"] == "norm_difference")].iloc[0] for name in (
        "norm_difference_best", "norm_difference_worst", "best_minus_worst", "matched_best_minus_worst")}  # fmt: skip
    raw, matched = (
        next(line for line in text.splitlines() if f"    Δnorm, {what}: " in line)
        for what in ("best and worst half", "energy-matched subsets")
    )
    best = f"−{100 * row['norm_difference_best']['reduction']:.0f} % ["
    assert best in raw and "14.5 % of the edit energy against" in raw and "with 6.3 %" in raw
    difference = f"{-100 * row['best_minus_worst']['reduction']:+.1f} points".replace("-", "−")
    assert raw.split("difference ")[1].startswith(difference)
    assert "−18 % [" in matched and "with 9.1 % of the edit energy against −14 % [" in matched
    difference = f"{-100 * row['matched_best_minus_worst']['reduction']:+.1f} points".replace("-", "−")
    assert matched.split("difference ")[1].startswith(difference)
    assert text.count("    Latent Scaling, energy-matched subsets: none") == 2
    assert "    no energy-matched halves by latent_scaling: 0 pairs" in text
    assert "(17 of them chat-only)" in text and "effective chat-only" not in text


def test_steering_says_which_latents_move_the_rate_of_their_kind_or_that_none_does(run: Inputs) -> None:
    text = summary(run)
    assert "2 of 4 latents with a kind of answer of their own (of 6 steered) move its rate" in text
    line = line_with(text, f"{FIRST} latent 11 raises joke from 10 % to 80 % [70 %, 90 %] at α = 0.25 (all positions; ")
    assert line.endswith("9 % of the residuals' norm); controls within 0 % and 25 %")
    none = line_with(summary(replace(run, steering=steering_table(moved=False))), "Steering, 64 requests")
    assert "none of 4 latents with a kind of answer of their own (of 6 steered) moves its rate beyond" in none
    assert "latent 11 raises" not in summary(replace(run, steering=steering_table(moved=False)))
    table = steering_table()
    unlabelled = summary(replace(run, steering=table[table["measure"] != "rate"]))
    assert "no kinds of answers are labelled" in line_with(unlabelled, "Steering")


def test_labelled_concepts(run: Inputs) -> None:
    table = concepts()
    chosen = (table["crosscoder"] == FIRST) & (table["concept"] == "joke_onset") & (table["pool"] == "chat-specific")
    table.loc[chosen, ["auroc", "auroc_among"]] = 0.95
    table.loc[chosen, "control_share"] = 0.0
    line = line_with(summary(replace(run, concepts=table)), "Labelled concepts")
    assert f"{FIRST} 1 of 2 (joke" in line or f"{FIRST} 2 of 2 (joke" in line
    assert "planted" not in summary(run)
    assert line_with(summary(replace(run, concepts=table.iloc[:0])), "Labelled concepts").endswith("none was scored.")
