"""The tables against plain counting, and the criterion they print."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figure_tables import (
    LABELS,
    OTHER,
    evaluation,
    given,
    judged,
    kl_summary,
    latent_table,
    latent_tables,
    nulls_table,
    steering_table,
    twin_tables,
    without_chat_only,
)
from tunediff.errors import TunediffError
from tunediff.latents.criterion import Criterion
from tunediff.latents.metrics import Evaluation
from tunediff.report.inputs import OutlierTokens
from tunediff.report.style import Drawn, Style, save
from tunediff.report.tables import published as published_table
from tunediff.report.tables import ranking as ranking_table
from tunediff.report.tables import seeds as seeds_table
from tunediff.report.tables import steering as steering_drawing
from tunediff.report.tables import table1 as first_table
from tunediff.report.tables.published import PUBLISHED, published
from tunediff.report.tables.ranking import ranking
from tunediff.report.tables.seeds import across_seeds
from tunediff.report.tables.table1 import table1

STYLE = Style(dpi=60)
EVALUATIONS = {LABELS[0]: evaluation(0.88, 52.3, 0.04), LABELS[1]: evaluation(0.9, 20.1, 0.12)}


def cells(drawing: Drawn) -> dict[str, list[str]]:
    """Lines of a typeset table: name → cells, read from where they are printed."""
    lines: dict[float, list[str]] = {}
    for text in sorted(drawing.figure.axes[0].texts, key=lambda text: text.get_position()[0]):
        lines.setdefault(round(text.get_position()[1], 4), []).append(text.get_text())
    return {line[0].strip(): line[1:] for line in lines.values()}


def all_text(drawing: Drawn) -> str:
    return " ".join(" ".join(text.get_text() for text in drawing.figure.axes[0].texts).split())


def test_table1_counts_classes() -> None:
    tables = latent_tables()
    rows = table1(tables, EVALUATIONS).set_index("crosscoder")
    assert list(rows.index) == list(LABELS) and list(rows["kind"]) == ["L1", "BatchTopK"]
    for label, latents in tables.items():
        row, table = rows.loc[label], latents.frame
        classes = [row[name] for name in ("chat_only", "shared", "base_only", "other", "dead")]
        assert sum(classes) == row["latents"] == len(table)
        chat_only = table[table["class_name"] == "chat-only"]
        assert row["chat_only"] == len(chat_only)
        below = (chat_only["nu_reconstruction"] < 0.5) & (chat_only["nu_error"] < 0.2)
        within = (chat_only[["nu_reconstruction", "nu_error"]] >= -0.1).all(axis=1)
        assert row["chat_specific"] == (below & within).sum() >= row["chat_specific_interval"] > 0
        held_out = (chat_only["nu_reconstruction_validation"] < 0.5) & (chat_only["nu_error_validation"] < 0.2)
        held_out &= (chat_only[["nu_reconstruction_validation", "nu_error_validation"]] >= -0.1).all(axis=1)
        assert 0 < row["chat_specific_validation"] == (below & within & held_out).sum() < row["chat_specific"]
        for name in ("chat_specific", "chat_specific_validation", "chat_specific_interval"):
            assert row[f"{name}_any_class"] == table[name].sum()
        turned = (table["nu_reconstruction"] < -0.1) | (table["nu_error"] < -0.1)
        assert row["reversed"] == turned.sum()
        passing = (table["nu_reconstruction_random"] < 0.5) & (table["nu_error_random"] < 0.2)
        passing &= (table[["nu_reconstruction_random", "nu_error_random"]] >= -0.1).all(axis=1)
        assert row["random_passing"] == passing.sum() > 0 and row["random_measured"] == len(table)
    assert rows.loc[LABELS[0], "reversed"] > 0
    assert list(rows["fve_base"]) == [0.88, 0.9] and list(rows["l0"]) == [52.3, 20.1]
    assert list(rows["dead_fraction"]) == [0.04, 0.12] and list(rows["n_tokens"]) == [1_000_000] * 2


def test_missing_evaluation_is_named() -> None:
    with pytest.raises(TunediffError, match="no evaluation of 'batchtopk-seed0'"):
        table1(latent_tables(), {LABELS[0]: EVALUATIONS[LABELS[0]]})


def test_published_stands_beside_ours() -> None:
    tables = latent_tables()
    summary, _ = kl_summary()
    frame = published(tables, EVALUATIONS, twin_tables(), summary)
    rows = frame.set_index(["quantity", "kind"])
    assert len(frame) == len(PUBLISHED)
    assert rows.loc[("chat-only latents", "L1"), ["published", "ours"]].tolist() == [
        3176,
        (tables[LABELS[0]].frame["class_name"] == "chat-only").sum(),
    ]
    assert rows.loc[("twins with cosine > 0.9", "L1"), "ours"] == 37
    assert rows.loc[("twins with cosine > 0.9", "BatchTopK"), "ours"] == 0
    assert rows.loc[("FVE", "BatchTopK"), "ours"] == pytest.approx(0.895)
    assert rows.loc[("KL, None, first 9", ""), "ours"] == pytest.approx(1.69)
    every = summary[(summary["crosscoder"] == LABELS[1]) & (summary["positions"] == "first")].set_index("intervention")
    change = every.loc["norm_difference_worst", "mean"] / 1.69 - 1
    assert rows.loc[("KL change, Δnorm worst, first 9", "BatchTopK"), "ours"] == pytest.approx(change)
    share = tables[LABELS[1]].frame.query("`class_name` == 'chat-only'")["template_share"]
    ours = rows.loc[("chat-only with ≥ 1/3 of activations on template tokens", "BatchTopK"), "ours"]
    assert ours == pytest.approx((share >= 1 / 3).mean())


def test_published_without_tables_or_crosscoder_is_nan() -> None:
    frame = published({LABELS[0]: latent_tables()[LABELS[0]]}, EVALUATIONS)
    rows = frame.set_index(["quantity", "kind"])["ours"]
    assert np.isnan(rows["chat-only latents", "BatchTopK"]) and np.isnan(rows["KL, None, all", ""])
    assert np.isnan(rows["twins with cosine > 0.9", "L1"]) and rows["L0", "L1"] == 52.3


def test_typeset_tables_print_the_numbers_and_are_reproducible(tmp_path: Path) -> None:
    summary, _ = kl_summary()
    for name in ("a", "b"):
        table = table1(latent_tables(), EVALUATIONS)
        save(first_table.printed(table, STYLE), tmp_path / name / "table1", STYLE)
        save(
            published_table.printed(published(latent_tables(), EVALUATIONS, None, summary), STYLE),
            tmp_path / name / "paper",
            STYLE,
        )
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [f"{stem}.{suffix}" for stem in ("paper", "table1") for suffix in ("csv", "pdf", "png")]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    printed = [text.get_text() for text in first_table.printed(table, STYLE).figure.axes[0].texts]
    assert "1,013" in printed and "88.0 %" in printed and "52.3" in printed


def test_tables_of_crosscoders_without_chat_only_latents() -> None:
    frame = published(without_chat_only(), EVALUATIONS)
    assert frame.set_index(["quantity", "kind"]).loc[("chat-only latents", "L1"), "ours"] == 0
    figure = published_table.printed(frame, STYLE).figure
    assert "–" in [text.get_text() for text in figure.axes[0].texts]


def test_table1_prints_fve_of_the_difference_first_controls_and_what_is_not_measured() -> None:
    table = table1(latent_tables(), EVALUATIONS)
    lines = cells(first_table.printed(table, STYLE))
    fve = [name for name in lines if name.startswith(("FVE", "standardised", "variance"))]
    assert fve[:3] == ["FVE, difference", "FVE, base model", "FVE, chat model"]
    assert lines["standardised FVE, base model"] == ["50.0 %", "50.0 %"]
    assert lines["variance in the largest dimension, chat model"] == ["86.0 %", "86.0 %"]
    assert lines["passing with random directions"] == [
        f"{row['random_passing']} of {row['random_measured']:,}" for row in table.to_dict("records")
    ]
    assert lines["reversed"] == [str(n) for n in table["reversed"]]
    assert lines["outlier tokens, left out"] == ["–", "–"]
    old = {
        label: Evaluation([m for m in own.metrics if m["metric"] == "fve"], own.n_tokens)
        for label, own in EVALUATIONS.items()
    }
    lines = cells(first_table.printed(table1(latent_tables(), old), STYLE))
    assert lines["standardised FVE, base model"] == lines["L0"] == ["–", "–"]


def test_nulls_stand_beside_the_counts_or_are_said_not_to_have_run() -> None:
    drawing = first_table.printed(table1(latent_tables(), EVALUATIONS), STYLE)
    assert "Nulls: not run (snakemake nulls)." in all_text(drawing)
    nulls = nulls_table()
    nulls.loc[(nulls["pair"] == "same") & (nulls["crosscoder"] == LABELS[0]), "chat_specific"] = 3
    tables = latent_tables() | {"theirs": latent_table(5)}
    table = table1(tables, EVALUATIONS | {"theirs": evaluation()}, nulls)
    lines = cells(first_table.printed(table, STYLE))
    row = table.set_index("crosscoder").loc[LABELS[0]]
    assert lines["same (must be 0)"][0] == f"{row['chat_only']}, 3, {row['chat_specific_interval']}"
    assert lines["same (must be 0)"][-1] == "–, –, –"  # a published dictionary is in no null
    assert lines["reseeded (upper bound)"][1] == "15, 5, 5"
    assert "not run" not in all_text(first_table.printed(table, STYLE))


def test_outlier_tokens_are_a_share_of_all_tokens() -> None:
    found = OutlierTokens(5.0, {"base": 30.0}, {"web": 5, "chat": 0}, {"web": 80, "chat": 120})
    lines = cells(first_table.printed(table1(latent_tables(), EVALUATIONS, None, found), STYLE))
    assert lines["outlier tokens, left out"] == ["2.5 %", "2.5 %"]


def test_ranking_is_the_first_twenty_by_both_nu(tmp_path: Path) -> None:
    tables = latent_tables()
    drawing = ranking_table.draw(given(latents=tables), STYLE)
    for label, latents in tables.items():
        frame = latents.frame[~latents.frame["dead"]]
        both = frame[["nu_reconstruction", "nu_error"]]
        kept = frame[((both >= -0.1) & (both <= 2)).all(axis=1)]
        score = kept["nu_reconstruction"].rank() + kept["nu_error"].rank()
        own = drawing.numbers[drawing.numbers["crosscoder"] == label]
        assert len(own) == 20 and list(own["place"]) == list(range(1, 21))
        assert score[own["latent"]].tolist() == sorted(score)[:20]
        assert own["frequency_chat"].tolist() == frame.loc[own["latent"], "frequency_chat"].tolist()
    lines = cells(drawing)
    first = drawing.numbers.iloc[0]
    printed = next(line for name, line in lines.items() if name == f"1.  latent {first['latent']}")
    assert printed[0] == "chat-only" and printed[-1] in ("confirmed", "not confirmed")
    assert f"{first['nu_error']:.2f}".replace("-", "−") in printed[3]
    specific = int(tables[LABELS[1]].frame["chat_specific"].sum())
    assert f"BatchTopK (batchtopk-seed0): {specific} of 1,802 live latents are chat-specific" in lines
    save(drawing, tmp_path / "ranking", STYLE)
    assert len(pd.read_csv(tmp_path / "ranking.csv")) == 40


def test_ranking_without_a_chat_specific_latent_or_without_any_rank() -> None:
    drawing = ranking_table.draw(given(latents=without_chat_only()), STYLE)
    lines = cells(drawing)
    live = int((~without_chat_only()[LABELS[0]].frame["dead"]).sum())
    assert f"L1 (l1-seed0): none of {live} live latents is chat-specific" in lines
    assert "BatchTopK (batchtopk-seed0): no live latent (0 of 64)" in lines
    assert len(drawing.numbers) == 20
    frame = latent_table(size=50).frame
    frame["nu_error"] = 7.0  # beyond the bounds
    unranked = {LABELS[0]: judged(frame, Criterion())}
    live_norms = frame.loc[~frame["dead"], "norm_difference"].sort_values(ascending=False)
    assert ranking(unranked)["norm_difference"].tolist() == live_norms[:20].tolist()
    assert "none has both ν within the bounds" in all_text(ranking_table.draw(given(latents=unranked), STYLE))


@pytest.mark.parametrize("name", ["table1", "ranking", "seeds"])
def test_tables_print_the_criterion_of_the_latent_tables(name: str) -> None:
    latents = latent_tables(OTHER)
    if name == "table1":
        drawing = first_table.printed(table1(latents, EVALUATIONS), STYLE)
    elif name == "ranking":
        drawing = ranking_table.draw(given(latents=latents), STYLE)
    else:
        latents["l1-seed1"] = latent_table(3, criterion=OTHER)
        metrics = EVALUATIONS | {"l1-seed1": evaluation()}
        matches = pd.DataFrame(columns=["crosscoder", "seed", "latent", "class_name", "chat_specific", "stable"])
        matches.attrs["stable_cosine"] = 0.75
        drawing = seeds_table.printed(across_seeds(latents, metrics, kl_summary()[0], matches), STYLE)
    shown = all_text(drawing)
    assert name != "seeds" or "≥ 0.75 in every other seed" in shown
    assert OTHER.math in shown and not re.search(r"< 0\.[52]\b|−0\.1, 2\]", shown)
    assert set(drawing.numbers["criterion"]) == {OTHER.text}


def test_tables_of_different_criteria_are_an_error_of_one_line() -> None:
    tables = {LABELS[0]: latent_table(), LABELS[1]: latent_table(1, criterion=OTHER)}
    for make in (lambda: table1(tables, EVALUATIONS), lambda: ranking(tables)):
        with pytest.raises(TunediffError, match="state different criteria"):
            make()


def test_steering_is_printed_beside_its_controls() -> None:
    rows = steering_table()
    drawn = steering_drawing.draw(given(steering=rows), STYLE)
    first = drawn.numbers.iloc[0]
    own = rows[(rows["crosscoder"] == LABELS[0]) & (rows["latent"] == 11) & (rows["positions"] == "all")]
    own = own[(own["alpha"] == 0.25) & (own["measure"] == "kl")].set_index("arm")["value"]
    assert (first["kl"], first["kl_random"]) == pytest.approx((own["steered"], own["random"].mean()))
    assert (first["ablation_firing"], first["ablation_elsewhere"], first["ablation_random"]) == (0.3, 0.03, 0.04)
    assert len(drawn.numbers) == 2 * 3 * 2 * 2
    printed = [text.get_text() for text in drawn.figure.axes[0].texts]
    assert "11, α = 0.25" in printed and "11, α = 0.5, prompt only" in printed
    assert f"{first['kl']:.2f} ({first['kl_random']:.2f})" in printed
    assert "joke 80 [70, 90] %" in printed and "0–25 %" in printed and printed.count("raises") == 2 * 2 * 2
    assert printed.count("0.300 | 0.030 | 0.040") == 6 and printed.count("of no kind") == 8
