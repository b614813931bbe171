"""Figures: the numbers they show against plain counting, the files they are saved as, and tables without a class."""

import re
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figure_tables import (
    LABELS,
    OTHER,
    all_results,
    concepts,
    explanation_means,
    explanation_scores,
    given,
    histories,
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
from tunediff.interventions.registry import differences
from tunediff.latents.criterion import Criterion
from tunediff.report import style
from tunediff.report.figures import (
    cosine,
    detection,
    fig2,
    fig3,
    fig4,
    fig4b,
    fig5,
    frequency,
    nulls,
    steering,
    template,
    training,
    twins,
)
from tunediff.report.registry import Drawing, drawings
from tunediff.report.style import Drawn, Style

STYLE = Style(dpi=60)
MISSING = {
    "fig2": "(0 chat-only, 0 of them with ν)",
    "fig3": "no live latent (0 of 64)",
    "template": "no chat-only latent has ν\n(0 chat-only)",
    "cosine": "no live latent (0 of 64)",
    "frequency": "no latent fires (64 dead)",
}
FROM_LATENTS = {"fig2": fig2, "fig3": fig3, "template": template, "cosine": cosine, "frequency": frequency}
DRAWINGS = drawings()


def drawn(drawing: Drawing) -> Drawn:
    """Draw from exactly what a drawing declares that it reads."""
    every = all_results()
    every |= {"activations_train": None, "activations_validation": None}
    found = {name: every[name] for name in drawing.reads}
    return drawing.draw(given(outliers=every["outliers"], **found), STYLE)


def texts(drawing: Drawn) -> str:
    """All text of a figure."""
    return "\n".join(text.get_text() for text in drawing.figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("path", DRAWINGS)
def test_files_are_complete_and_reproducible(path: str, tmp_path: Path) -> None:
    drawing = drawn(DRAWINGS[path])
    first = style.save(drawing, tmp_path / "a" / "figure.v1", STYLE)
    assert_on_page(drawing.figure)
    second = style.save(drawn(DRAWINGS[path]), tmp_path / "b" / "figure.v1", STYLE)
    more = ["figure.v1_all.csv"] if path == "tables/planted" else []
    assert [path.name for path in first] == ["figure.v1.pdf", "figure.v1.png", "figure.v1.csv", *more]
    assert first[0].read_bytes().startswith(b"%PDF") and first[1].read_bytes().startswith(b"\x89PNG")
    assert all(len(pd.read_csv(table)) > 0 for table in first[2:])
    assert [path.read_bytes() for path in first[1:]] == [path.read_bytes() for path in second[1:]]
    assert pdf_content(first[0]) == pdf_content(second[0])
    assert b"CreationDate" not in first[0].read_bytes() and b"Software" not in first[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in first)


def pdf_content(path: Path) -> list[str]:
    """Return what a PDF's streams draw, numbers to six digits: the layout's solver moves the tenth from run to run."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", path.read_bytes(), re.DOTALL)
    assert streams
    texts = [zlib.decompress(stream).decode("latin1") for stream in streams]
    return [re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.6f}", text) for text in texts]


def assert_on_page(figure: Figure) -> None:
    """Check that nothing of a figure is drawn beyond its edges."""
    with STYLE.context():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 > -0.01 and box.y0 > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01


@pytest.mark.parametrize("name", FROM_LATENTS)
def test_missing_classes_are_stated_with_their_count(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        drawing = FROM_LATENTS[name].draw(given(latents=without_chat_only()), STYLE)
        style.save(drawing, tmp_path / name, STYLE)
    assert "nan" not in texts(drawing)
    assert MISSING[name] in texts(drawing)


def test_fig2_counts_points_and_shared_interval() -> None:
    tables = latent_tables()
    numbers = fig2.draw(given(1, latents=tables), STYLE).numbers
    for label, latents in tables.items():
        table, own = latents.frame, numbers[numbers["crosscoder"] == label]
        finite = table[table["nu_error"].notna() & table["nu_reconstruction"].notna()]
        chat_only = finite[finite["class_name"] == "chat-only"]
        shared = finite[finite["class_name"] == "shared"]
        points = own[own["item"] == "point"]
        assert list(points.loc[points["class_name"] == "chat-only", "latent"]) == list(chat_only["latent"])
        sample = points[points["class_name"] == "shared"]
        assert len(sample) == len(chat_only) and set(sample["latent"]) < set(shared["latent"])
        bars = own[own["item"] == "histogram_nu_error"]
        assert len(bars) == 2 * 50
        inside = chat_only["nu_error"].between(-0.2, 1.6).sum()
        assert bars.loc[bars["class_name"] == "chat-only", "count"].sum() == inside
        value = own[own["value"].notna()].set_index("item")["value"]
        low, high = np.percentile(shared["nu_reconstruction"], [2.5, 97.5])
        assert value["chat_only"] == (table["class_name"] == "chat-only").sum()
        nu = chat_only["nu_reconstruction"]
        assert value["chat_only_in_shared_interval"] == pytest.approx(((nu >= low) & (nu <= high)).mean())
        assert value["chat_only_reversed"] == ((nu < -0.1) | (chat_only["nu_error"] < -0.1)).sum()


def test_fig2_sample_depends_on_the_seed_only() -> None:
    def sample(seed: int) -> list[int]:
        numbers = fig2.draw(given(seed, latents=latent_tables()), STYLE).numbers
        return list(numbers.loc[(numbers["item"] == "point") & (numbers["class_name"] == "shared"), "latent"])

    assert sample(0) == sample(0) != sample(1)


def test_fig2_says_how_many_points_lie_outside_the_axes() -> None:
    table = latent_table().frame
    rows = table.index[table["class_name"] == "chat-only"][:3]
    table["nu_error"] = table["nu_error"].clip(0, 1)
    table["nu_reconstruction"] = table["nu_reconstruction"].clip(0, 1)
    table.loc[rows, "nu_reconstruction"] = [5.0, -3.0, 0.1]
    shown = " ".join(texts(fig2.draw(given(latents={"l1-seed0": judged(table, Criterion())}), STYLE)).split())
    assert "Outside the axes: 2 chat-only, 0 shared." in shown
    assert "Reversed (a ν under −0.1): 1 of the chat-only." in shown


def test_fig3_histogram_and_threshold_curve() -> None:
    tables = latent_tables()
    numbers = fig3.draw(given(latents=tables), STYLE).numbers
    for label, latents in tables.items():
        table, own = latents.frame, numbers[numbers["crosscoder"] == label]
        bars = own[own["item"] == "norm_difference"].groupby("class_name")["count"].agg(["sum", "size"])
        assert (bars["size"] == 100).all() and "dead" not in bars.index
        for class_name in ("chat-only", "shared", "base-only", "other"):
            assert bars.loc[class_name, "sum"] == (table["class_name"] == class_name).sum()
        specific = table[(table["class_name"] == "chat-only") & table["chat_specific"]]
        assert bars.loc["chat-specific", "sum"] == len(specific) > 0
        curve = own[(own["item"] == "below_threshold") & (own["class_name"] == "all")].set_index("threshold")["count"]
        for threshold in (0.0, 0.5, 1.0):
            both = table[["nu_reconstruction", "nu_error"]]
            assert curve[threshold] == ((both < threshold) & (both >= -0.1) & (both <= 2)).all(axis=1).sum()
        assert curve.is_monotonic_increasing


def test_threshold_is_strict_and_latents_without_nu_do_not_count() -> None:
    table = pd.DataFrame({"nu_reconstruction": [0.1, 0.5, 0.2, np.nan], "nu_error": [0.4, 0.1, np.nan, 0.0]})
    assert list(fig3.below_thresholds(table, Criterion(), np.array([0.4, 0.41, 0.5, 0.51]))) == [0, 1, 1, 2]


def test_threshold_curve_leaves_out_what_is_beyond_the_bounds() -> None:
    table = pd.DataFrame({"nu_reconstruction": [0.1, -0.2, 0.1, 1.8], "nu_error": [0.1, 0.1, -0.07, 0.1]})
    assert list(fig3.below_thresholds(table, Criterion(), np.array([0.5, 2.5]))) == [2, 3]
    assert list(fig3.below_thresholds(table, OTHER, np.array([0.5, 2.5]))) == [1, 1]


def test_fig4_numbers_and_printed_values() -> None:
    summary, sets = kl_summary()
    drawing = fig4.draw(given(kl=summary, sets=sets), STYLE)
    numbers = drawing.numbers
    assert set(numbers["intervention"]).isdisjoint({"prefix", "area_over_random", "best_minus_worst"})
    assert numbers["intervention"].str.endswith("_additive").sum() == 16
    assert not numbers.loc[numbers["intervention"].str.endswith(("_additive", "random")), "drawn"].any()
    printed = texts(drawing)
    halves = 0
    for _, row in numbers[numbers["intervention"].isin(fig4.bars()) & (numbers["intervention"] != "none")].iterrows():
        lines = f"{row['mean']:.3f}\n−{100 * row['reduction']:.0f}%"
        if row["intervention"].endswith(("best", "worst")):
            lines += f"\nE {100 * row['energy_share']:.0f}%"
            halves += 1
        assert lines in printed
    assert halves == 16 and "81,234" in printed and "4,608" in printed
    said = " ".join(printed.split())
    assert "512 different conversations" in said and "random latents of equal E, mean of 5" in said
    assert "the 286 live latents of highest norm difference (17 of them chat-only) (batchtopk-seed0)" in said
    assert "ffective" not in said


def test_fig4_marks_the_random_latents_of_equal_energy_on_best_bars_only() -> None:
    summary, sets = kl_summary()
    figure = fig4.draw(given(kl=summary, sets=sets), STYLE).figure
    for axes, positions in zip(figure.axes, ("all", "first"), strict=True):
        rows = summary[(summary["intervention"] == "matched_random_mean") & (summary["positions"] == positions)]
        lines = [line.get_ydata() for line in axes.lines if line.get_linestyle() == "--"]
        assert sorted(line[0] for line in lines) == pytest.approx(sorted(rows["mean"])) and len(lines) == 4
        heights = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in axes.patches}
        ticks = dict(zip(axes.get_xticks().round(3), (text.get_text() for text in axes.get_xticklabels()), strict=True))
        marked = {ticks[round(np.mean(line.get_xdata()), 3)] for line in axes.lines if line.get_linestyle() == "--"}
        assert len(heights) == 14 and marked == {"LS\nbest", f"{style.NORM_DIFFERENCE}\nbest"}


def test_fig4_bars_have_the_heights_of_the_table() -> None:
    summary, sets = kl_summary()
    figure = fig4.draw(given(kl=summary, sets=sets), STYLE).figure
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    for panel, positions in zip(heights, ("all", "first"), strict=True):
        rows = summary[(summary["positions"] == positions) & summary["intervention"].isin(fig4.bars())]
        assert len(panel) == 14 and sorted(panel) == pytest.approx(sorted(rows["mean"]))


def test_fig4_reads_parquet_with_other_sets_and_a_worse_intervention(tmp_path: Path) -> None:
    summary, sets = kl_summary()
    worse = summary["intervention"] == "latent_scaling_worst"
    summary.loc[worse, "reduction"] = -0.25
    summary.loc[summary["crosscoder"] == "", "crosscoder"] = None
    sets[LABELS[1]] = {**sets[LABELS[1]], "name": "the 3 live latents of highest norm difference (0 of them chat-only)"}
    summary.to_parquet(tmp_path / "summary.parquet")
    printed = texts(fig4.draw(given(kl=pd.read_parquet(tmp_path / "summary.parquet"), sets=sets), STYLE))
    assert "+25%" in printed and "None" in printed
    assert "the 3 live latents of highest norm difference (0 of them chat-only)" in " ".join(printed.split())


def test_fig4b_draws_every_curve_and_every_difference() -> None:
    summary, sets = kl_summary()
    drawing = fig4b.draw(given(kl=summary, sets=sets), STYLE)
    printed = texts(drawing)
    assert set(drawing.numbers["positions"]) == {"all", "first"}
    for number, label in enumerate(LABELS):
        curves, beside = drawing.figure.axes[2 * number : 2 * number + 2]
        own = summary[summary["crosscoder"] == label]
        rows = own[own["positions"] == "all"].sort_values("energy_share")
        drawn = {
            line.get_color(): 0.01 * np.array(line.get_ydata()) for line in curves.lines if len(line.get_xdata()) == 6
        }
        for ranking, mark in fig4b.marks(drawing.numbers).items():
            points = rows[(rows["intervention"] == "prefix") & (rows["ranking"] == ranking)]["reduction"]
            whole = rows.loc[rows["intervention"] == "all", "reduction"]
            assert drawn[mark.colour] == pytest.approx([0, *points, *whole])
            area = rows[(rows["intervention"] == "area_over_random") & (rows["ranking"] == ranking)].iloc[0]
            assert f"{100 * area['reduction']:+.1f} [".replace("-", "−") in printed
        (random,) = [line for line in curves.lines if len(line.get_xdata()) > 100]
        points = rows[(rows["intervention"] == "prefix") & (rows["ranking"] == "random") & (rows["point"] == 2)]
        at = np.flatnonzero(np.isclose(random.get_xdata(), 0.1))
        assert random.get_ydata()[at] == pytest.approx(100 * points["reduction"].mean())
        compared = own[own["intervention"].isin(differences())]
        marks = [line for line in beside.lines if len(line.get_xdata()) == 1]
        assert sorted(line.get_xdata()[0] for line in marks) == pytest.approx(sorted(100 * compared["reduction"]))
        hollow = [line.get_xdata()[0] for line in marks if line.get_markerfacecolor() == "white"]
        first = compared.loc[compared["positions"] == "first", "reduction"]
        assert sorted(hollow) == pytest.approx(sorted(100 * first))
        bars = [tuple(line.get_xdata()) for line in beside.lines if len(set(line.get_xdata())) == 2]
        expected = 100 * compared[["reduction_low", "reduction_high"]]
        np.testing.assert_allclose(sorted(bars), sorted(map(tuple, expected.to_numpy())))
        assert any(set(line.get_xdata()) == {0} for line in beside.lines)
    assert "512 different conversations" in " ".join(printed.split())


def test_fig4b_says_where_there_is_nothing_to_draw() -> None:
    summary, sets = kl_summary()
    kept = ~summary["intervention"].isin(["prefix", "area_over_random", "matched_best_minus_worst"])
    printed = texts(fig4b.draw(given(kl=summary[kept], sets=sets), STYLE))
    assert "no curve: the edits\nhave no energy" in printed and " none" in printed


def test_template_shares() -> None:
    tables = latent_tables()
    numbers = template.draw(given(latents=tables), STYLE).numbers
    table = tables[LABELS[0]].frame
    chat_only = table[table["class_name"] == "chat-only"]
    own = numbers[numbers["crosscoder"] == LABELS[0]]
    curve = own[own["item"] == "share_at_least"].set_index("threshold")["share"]
    assert curve[0.0] == 1.0
    assert curve[0.5] == pytest.approx((chat_only["template_share"] >= 0.5).mean())
    bars = own[own["item"] == "nu_error"].groupby("pool")["count"].sum()
    mainly = chat_only[chat_only["template_share"] > 0.5]
    assert bars["mainly template"] == mainly["nu_error"].between(-0.2, 1.6).sum() > 0


def test_cosine_histogram_and_correlation() -> None:
    tables = latent_tables()
    tables[LABELS[0]].frame.loc[0, "cosine"] = 1.0000001
    drawing = cosine.draw(given(latents=tables), STYLE)
    numbers, table = drawing.numbers, tables[LABELS[0]].frame
    own = numbers[numbers["crosscoder"] == LABELS[0]]
    bars = own[own["item"] == "cosine"].groupby("class_name")["count"].agg(["sum", "size"])
    assert (bars["size"] == 20).all()
    assert bars["sum"].to_dict() == table.loc[table["class_name"] != "dead", "class_name"].value_counts().to_dict()
    ranked = table.dropna(subset=["rank_sum"])
    r = own[(own["item"] == "pearson_r") & (own["class_name"] == "all")]
    assert r["count"].item() == len(ranked)
    assert r["value"].item() == pytest.approx(ranked["rank_sum"].corr(ranked["norm_difference"].astype(float)))
    turned = ((table["nu_reconstruction"] < -0.1) | (table["nu_error"] < -0.1)).sum()
    assert turned > 0 and f"Reversed, so unranked: {turned}." in texts(drawing)


def test_pearson_is_undefined_without_variance() -> None:
    assert np.isnan(cosine.pearson(np.ones(5), np.arange(5.0)))
    assert np.isnan(cosine.pearson(np.arange(2.0), np.arange(2.0)))
    assert cosine.pearson(np.arange(4.0), -np.arange(4.0)) == pytest.approx(-1)


def test_twins_are_told_from_random_pairs() -> None:
    tables = twin_tables()
    tables[LABELS[0]].loc[0, "divergence"] = np.nan
    drawing = twins.draw(given(twins=tables), STYLE)
    bars = drawing.numbers[drawing.numbers["item"] == "divergence"].groupby(["crosscoder", "pool"])["count"].sum()
    assert bars[LABELS[0], "twins"] == 36 and bars[LABELS[0], "random"] == 400 and bars[LABELS[1], "twins"] == 0
    missing = drawing.numbers[drawing.numbers["item"] == "without_divergence"].set_index(["crosscoder", "pool"])
    assert missing.loc[(LABELS[0], "twins"), "count"] == 1
    assert "no twins: 0 of 100 pairs" in texts(drawing)
    empty = {LABELS[0]: tables[LABELS[0]].iloc[:0]}
    assert "base-only latent (0)" in texts(twins.draw(given(twins=empty), STYLE))


def test_frequency_counts_every_firing_latent() -> None:
    tables = latent_tables()
    numbers = frequency.draw(given(latents=tables), STYLE).numbers
    for label, latents in tables.items():
        table, own = latents.frame, numbers[numbers["crosscoder"] == label]
        bars = own[own["item"] == "log10_frequency"]
        assert bars["count"].sum() == (table["frequency"] > 0).sum()
        assert bars.groupby("class_name")["share"].sum().to_numpy() == pytest.approx(1)
        assert own.loc[own["item"] == "never_fires", "count"].item() == (table["frequency"] == 0).sum() > 0


def test_training_draws_every_seed_and_thins_long_histories() -> None:
    tables = histories()
    tables["long-seed0"] = pd.concat([tables["l1-seed0"]] * 30, ignore_index=True)
    numbers = training.draw(given(histories=tables), STYLE).numbers
    assert list(dict.fromkeys(numbers["crosscoder"])) == list(tables)
    sizes = numbers.groupby("crosscoder").size()
    assert sizes["l1-seed1"] == 150 and 1000 < sizes["long-seed0"] <= training.MAX_POINTS
    tables["new-seed0"] = tables["l1-seed0"].iloc[:0]
    assert "new-seed0): no history (0 rows)" in texts(training.draw(given(histories=tables), STYLE))


def test_one_seed_per_kind_unless_told() -> None:
    tables = {"l1-seed0": 0, "l1-seed1": 1, "batchtopk-seed0": 2, "diff-sae-seed3": 3}
    assert list(style.selected(tables)) == ["l1-seed0", "batchtopk-seed0", "diff-sae-seed3"]
    with pytest.raises(TunediffError, match="at least one"):
        style.selected({})
    assert style.display_name("l1-seed0") == "L1 (l1-seed0)"
    assert style.display_name("diff-sae-seed3") == "diff-sae (diff-sae-seed3)"
    colours = style.crosscoder_colours(tables)
    assert colours["l1-seed0"] == colours["l1-seed1"] != colours["batchtopk-seed0"]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_any_number_of_crosscoders_fits(count: int) -> None:
    tables = {f"kind{i}-seed0": latent_table(i, size=256) for i in range(count)}
    figure = fig3.draw(given(latents=tables), STYLE).figure
    assert len(figure.axes) == count + 1
    assert_on_page(figure)


def test_a_missing_column_is_named() -> None:
    tables = {"l1-seed0": twin_tables()[LABELS[0]].drop(columns="divergence")}
    with pytest.raises(TunediffError, match="twins of l1-seed0: no column 'divergence'"):
        twins.draw(given(twins=tables), STYLE)


def test_detection_shows_the_chat_specific_latent_of_every_chat_concept_and_its_control() -> None:
    table = concepts()
    drawing = detection.draw(given(concepts=table), STYLE)
    wanted = table[table["chat_concept"] & (table["pool"] == "chat-specific")]
    assert drawing.numbers["auroc"].tolist() == wanted["auroc"].tolist()
    first = drawing.figure.axes[0]
    assert [text.get_text() for text in first.get_yticklabels()] == ["joke", "joke wedding", "refusal"]  # onsets first
    headings = [text.get_text() for text in first.texts]
    assert headings == [
        "Onsets of answers, among the onsets of all answers",
        "Onsets of one kind of joke, among all onsets of joke",
        "Among all tokens",
    ]
    order = ["joke_onset", "joke_wedding_onset", "refusal"]
    for axes, column in zip(drawing.figure.axes, detection.PANELS, strict=True):
        marks = [(line.get_xdata(), line.get_mfc() == "white") for line in axes.lines if len(line.get_xdata()) == 6]
        shown = [
            sorted((x, white) for values, white in pair for x in values if np.isfinite(x))
            for pair in zip(marks[::2], marks[1::2], strict=True)
        ]
        for own, label in zip(shown, wanted["crosscoder"].unique(), strict=True):
            rows = wanted[wanted["crosscoder"] == label]
            assert own == sorted(zip(rows[column], rows["control_share"] > 0.05, strict=True))  # hollow: by chance
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in first.containers[0] if np.isfinite(bar.get_width())]
    rows = wanted[wanted["crosscoder"] == "l1-seed0"].set_index("concept").loc[order]
    np.testing.assert_allclose(bars, rows[["control_median", "control_high"]])
    assert drawing.figure.axes[-1].get_xlim()[1] > wanted["n_live"].max()
    assert "One mark per seed (2)" in texts(drawing)
    nothing = detection.draw(given(concepts=table[~table["chat_concept"]]), STYLE)
    assert "no chat concept is labelled" in texts(nothing)


def test_nulls_show_every_call_and_name_the_models() -> None:
    table = nulls_table()
    drawing = nulls.draw(given(pairs=all_results()["pairs"]), STYLE)
    pd.testing.assert_frame_equal(drawing.numbers, table)
    shown = " ".join(texts(drawing).split())
    assert "so there must be none): same: demo-chat and demo-chat." in shown
    assert "upper bound of the false-positive rate): reseeded: demo-chat and demo-retuned." in shown
    assert "same (must be 0) L1, seed 0" in shown and "reseeded (upper bound) BatchTopK, seed 0" in shown
    axes = drawing.figure.axes[0]
    marks = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == len(table)]
    for x, name in zip(marks, ("chat_only", "chat_specific", "chat_specific_interval"), strict=True):
        np.testing.assert_allclose(x, 100 * table[f"{name}_share"])
    for row in table.to_dict("records"):
        assert f"{row['chat_only']:,}, {row['chat_specific']:,}, {row['chat_specific_interval']:,}" in shown


@pytest.mark.parametrize("name", ["fig2", "fig3", "template", "cosine", "nulls"])
def test_the_criterion_of_the_tables_is_printed(name: str) -> None:
    found = {name: all_results(OTHER)[name] for name in ("latents", "pairs")}
    drawing = {**FROM_LATENTS, "nulls": nulls}[name].draw(given(**found), STYLE)
    shown = " ".join(texts(drawing).split())
    assert "[−0.06, 1.7]" in shown and "[−0.1, 2]" not in shown
    assert not re.search(r"(<|below|under|≥) ?[−-]?0\.[512]\b", shown)
    assert name == "cosine" or OTHER.math in shown
    if name == "template":
        lines = {
            line.get_xdata()[0] for axes in drawing.figure.axes for line in axes.lines if len(line.get_xdata()) == 2
        }
        assert lines == {0.37, 0.13, 1 / 3, 0.5}  # the last two are template shares
    if name == "fig2":
        box = next(
            patch for patch in drawing.figure.axes[2].patches if isinstance(patch, Rectangle) and not patch.get_fill()
        )
        assert box.get_bbox().extents == pytest.approx([-0.06, -0.06, 0.13, 0.37])


def test_tables_of_different_criteria_are_an_error_of_one_line() -> None:
    tables = {LABELS[0]: latent_table(), LABELS[1]: latent_table(1, criterion=OTHER)}
    for module in (fig2, fig3, template, cosine):
        with pytest.raises(
            TunediffError, match=r"l1-seed0 and of batchtopk-seed0 state different criteria.*delete"
        ) as error:
            module.draw(given(latents=tables), STYLE)
        assert "\n" not in str(error.value)


def test_notes_are_wrapped_by_their_printed_length() -> None:
    text = r"a $\nu^{r}$ b " * 4
    lines = style.wrapped(text, 13).split("\n")
    assert " ".join(lines) == text.strip() and [line.count("$") for line in lines] == [4, 4]


def test_steering_shows_rates_of_the_own_kind_and_kl_with_their_intervals() -> None:
    table = steering_table()
    drawing = steering.draw(given(steering=table), STYLE)
    assert set(drawing.numbers["measure"]) == {"kl", "rate"} and "base_model" not in set(drawing.numbers["arm"])
    rates, kl = drawing.figure.subfigs[0].axes
    names = [label.get_text() for label in rates.get_yticklabels()]
    assert len(names) == 3 * 2 * 2 and names[0] == "11, α = 0.25\njoke" and names[-1].endswith("of no kind")
    marks = [line for line in rates.get_lines() if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in marks] == [80] * 4 + [15] * 4
    faces = {line.get_markerfacecolor() for line in marks[:4]}, {line.get_markerfacecolor() for line in marks[4:]}
    assert faces == ({style.VERMILLION}, {"white"})  # filled where it is apart from all controls
    own = table[(table["crosscoder"] == LABELS[0]) & (table["arm"] == "steered") & (table["measure"] == "kl")]
    drawn_kl = [line.get_xdata()[0] for line in kl.get_lines() if line.get_marker() == "o"]
    assert sorted(drawn_kl) == pytest.approx(sorted(own["value"]))
    assert drawing.figure.get_size_inches()[0] == STYLE.width
    without = table.assign(own=False)
    assert "no latent fires in answers\nof one labelled kind" in texts(steering.draw(given(steering=without), STYLE))


def test_explanations_stand_beside_shared_latents_and_controls() -> None:
    means = explanation_means()
    drawing = fig5.draw(given(explanation_means=means), STYLE)
    shown = " ".join(texts(drawing).split())
    assert all(mark.name in shown for mark in fig5.SERIES.values())
    assert "l1-seed0: 49 latents scored, 25 of them with a label, 1 could not be" in shown
    own = means[means["dictionary"] == LABELS[0]].set_index(["explainer", "judge", "measure", "group"])["value"]
    upper, lower = axes_of_explanations(drawing)
    fifths = [f"ranked {i}" for i in range(1, 6)]
    for (explainer, judge), mark in fig5.SERIES.items():
        points = [line.get_ydata()[0] for line in upper.get_lines() if line.get_marker() == mark.marker]
        groups = [*fifths, "shared"] + ["random", "untrained"] * (explainer != "label")
        expected = [own[explainer, judge, "balanced_accuracy", group] for group in groups]
        if (f"{explainer} of another", judge) in own.index:
            expected.append(own[f"{explainer} of another", judge, "balanced_accuracy", "ranked"])
        assert points == pytest.approx(expected)
        points = [line.get_ydata()[0] for line in lower.get_lines() if line.get_marker() == mark.marker]
        bands = ("high", "middle", "low", "inactive", "inactive_hard")
        assert points == pytest.approx([own[explainer, judge, f"accuracy_{band}", "ranked"] for band in bands])
    few = means.assign(latents=means["latents"].where(~means["group"].isin(fifths), fig5.LEAST - 1))
    upper, _ = axes_of_explanations(fig5.draw(given(explanation_means=few), STYLE))
    assert len([line for line in upper.get_lines() if line.get_marker() == "s"]) == 4  # too few are left out


def test_where_no_latent_is_explained_that_is_said() -> None:
    none = given(explanation_means=explanation_means()[:0], explanation_scores=explanation_scores()[:0])
    for path in ("figures/fig5", "tables/explanations"):
        drawing = DRAWINGS[path].draw(none, STYLE)
        assert "no latent was explained" in texts(drawing) and list(drawing.numbers["count"]) == [0]


def axes_of_explanations(drawing: Drawn) -> list[Axes]:
    """The first dictionary's axes: by rank, and by band."""
    return [axes for axes in drawing.figure.findobj(Axes) if axes.get_ylabel()][:2]
