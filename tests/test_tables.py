"""Table 1 and the published numbers against plain counting."""

from pathlib import Path

import numpy as np
import pytest

from figure_tables import LABELS, evaluation, kl_summary, latent_tables, twin_tables, without_chat_only
from tunediff.errors import TunediffError
from tunediff.figures.style import Style, save
from tunediff.tables import PUBLISHED, draw_published, draw_table1, metric, published, table1

STYLE = Style(dpi=60)
EVALUATIONS = {LABELS[0]: evaluation(0.88, 52.3, 0.04), LABELS[1]: evaluation(0.9, 20.1, 0.12)}


def test_table1_counts_classes() -> None:
    tables = latent_tables()
    rows = table1(tables, EVALUATIONS).set_index("crosscoder")
    assert list(rows.index) == list(LABELS) and list(rows["kind"]) == ["L1", "BatchTopK"]
    for label, table in tables.items():
        row = rows.loc[label]
        classes = [row[name] for name in ("chat_only", "shared", "base_only", "other", "dead")]
        assert sum(classes) == row["latents"] == len(table)
        chat_only = table[table["class_name"] == "chat-only"]
        assert row["chat_only"] == len(chat_only)
        below = (chat_only["nu_reconstruction"] < 0.5) & (chat_only["nu_error"] < 0.2)
        assert row["chat_specific"] == below.sum() >= row["chat_specific_interval"] > 0
        assert row["chat_specific_any_class"] == table["chat_specific"].sum()
    assert list(rows["fve_base"]) == [0.88, 0.9] and list(rows["l0"]) == [52.3, 20.1]
    assert list(rows["dead_fraction"]) == [0.04, 0.12] and list(rows["n_tokens"]) == [1_000_000] * 2


def test_metric_that_was_not_measured_is_nan() -> None:
    assert metric(EVALUATIONS[LABELS[0]], "fve", "chat", "template") == pytest.approx(0.87)
    assert np.isnan(metric(EVALUATIONS[LABELS[0]], "cross_entropy_recovered", "base"))
    unknown = {"metrics": [{"metric": "fve", "model": "base", "subset": "all", "value": None}]}
    assert np.isnan(metric(unknown, "fve", "base"))


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
        (tables[LABELS[0]]["class_name"] == "chat-only").sum(),
    ]
    assert rows.loc[("twins with cosine > 0.9", "L1"), "ours"] == 37
    assert rows.loc[("twins with cosine > 0.9", "BatchTopK"), "ours"] == 0
    assert rows.loc[("FVE", "BatchTopK"), "ours"] == pytest.approx(0.895)
    assert rows.loc[("KL, None, first 9", ""), "ours"] == pytest.approx(1.69)
    every = summary[(summary["crosscoder"] == LABELS[1]) & (summary["positions"] == "first")].set_index("intervention")
    change = every.loc["norm_difference_worst", "mean"] / 1.69 - 1
    assert rows.loc[("KL change, Δnorm worst, first 9", "BatchTopK"), "ours"] == pytest.approx(change)
    share = tables[LABELS[1]].query("`class_name` == 'chat-only'")["template_share"]
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
        save(*draw_table1(table, STYLE), tmp_path / name / "table1", STYLE)
        save(*draw_published(published(latent_tables(), EVALUATIONS, None, summary), STYLE), tmp_path / name / "paper")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [f"{stem}.{suffix}" for stem in ("paper", "table1") for suffix in ("csv", "pdf", "png")]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    printed = [text.get_text() for text in draw_table1(table, STYLE).figure.axes[0].texts]
    assert "1,013" in printed and "88.0 %" in printed and "52.3" in printed


def test_tables_of_crosscoders_without_chat_only_latents() -> None:
    frame = published(without_chat_only(), EVALUATIONS)
    assert frame.set_index(["quantity", "kind"]).loc[("chat-only latents", "L1"), "ours"] == 0
    figure = draw_published(frame, STYLE).figure
    assert "–" in [text.get_text() for text in figure.axes[0].texts]
