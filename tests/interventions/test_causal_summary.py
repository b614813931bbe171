"""Means, intervals and comparisons of the KL experiment against numpy and scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tunediff.errors import TunediffError
from tunediff.interventions.summary import summarise
from tunediff.statistics import area_under

N = 50
RANKING = "norm_difference"
# intervention, ranking, draw, point, KL as a share of None's, energy as a share of All's
EDITS = [
    ("all", "", 0, 0, 0.3, 1.0),
    ("norm_difference_best", RANKING, 0, 0, 0.5, 0.3),
    ("norm_difference_worst", RANKING, 0, 0, 0.8, 0.1),
    ("norm_difference_best_matched", RANKING, 0, 0, 0.7, 0.12),
    ("norm_difference_worst_matched", RANKING, 0, 0, 0.75, 0.11),
    ("matched_random", RANKING, 0, 0, 0.6, 0.3),
    ("matched_random", RANKING, 1, 0, 0.7, 0.29),
    ("prefix", RANKING, 0, 1, 0.6, 0.1),
    ("prefix", RANKING, 0, 3, 0.35, 1.05),  # more energy than all latents: they cancel each other
    ("prefix", RANKING, 0, 2, 0.5, 0.4),
    ("prefix", "random", 0, 1, 0.8, 0.15),
    ("prefix", "random", 0, 2, 0.6, 0.5),
    ("prefix", "random", 1, 1, 0.7, 0.3),
]


def kl_rows(seed=0):
    g = np.random.default_rng(seed)
    n_all, n_first = g.integers(5, 60, N), g.integers(0, 10, N)
    none, energy = g.gamma(2, 0.3, N), g.gamma(2, 5, N)
    parts = []
    for intervention, ranking, draw, point, factor, share in [("none", "", 0, 0, 1.0, 0.0), *EDITS]:
        mean = none * factor * g.normal(1, 0.1, N)
        columns = {"conversation": np.arange(N), "crosscoder": "" if intervention == "none" else "c"}
        columns |= {"intervention": intervention, "ranking": ranking, "draw": draw, "point": point, "n_latents": 7}
        columns |= {"kl_sum_all": mean * n_all, "n_all": n_all, "kl_sum_first": 2 * mean * n_first, "n_first": n_first}
        dose = energy * share * g.normal(1, 0.02, N)
        columns |= {"energy_all": dose, "energy_first": dose / 3}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


KL = kl_rows()
SUMMARY = summarise(KL.sample(frac=1, random_state=0), 8000, seed=0)


def sums(intervention, column="kl_sum_all", **where):
    rows = KL[KL["intervention"] == intervention]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows.set_index("conversation")[column].to_numpy()


def row(intervention, positions="all", **where):
    rows = SUMMARY[(SUMMARY["intervention"] == intervention) & (SUMMARY["positions"] == positions)]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def assert_interval(found, prefix, top, bottom):
    """Compare an interval with scipy's paired percentile bootstrap of a ratio of sums."""
    interval = stats.bootstrap(
        (top, bottom),
        lambda x, y, axis: x.sum(axis=axis) / y.sum(axis=axis),
        paired=True, vectorized=True, n_resamples=8000, method="percentile", rng=1,
    ).confidence_interval  # fmt: skip
    width = interval.high - interval.low
    assert found[f"{prefix}low"] == pytest.approx(interval.low, abs=0.06 * width)
    assert found[f"{prefix}high"] == pytest.approx(interval.high, abs=0.06 * width)


def test_means_and_reductions_agree_with_scipys_paired_bootstrap():
    found = row("norm_difference_best")
    n, none = sums("none", "n_all").astype(float), sums("none")
    best, energy = sums("norm_difference_best"), sums("norm_difference_best", "energy_all")
    assert found["mean"] == pytest.approx(best.sum() / n.sum())
    assert found["reduction"] == pytest.approx(1 - best.sum() / none.sum())
    assert_interval(found, "", best, n)
    assert_interval(found, "reduction_", none - best, none)
    assert (found["n_conversations"], found["n_tokens"], found["n_latents"]) == (N, n.sum(), 7)
    assert found["energy"] == pytest.approx(energy.sum())
    assert found["energy_share"] == pytest.approx(energy.sum() / sums("all", "energy_all").sum())
    assert np.isnan(row("none")["energy_share"]) and row("none")["energy"] == 0
    first = row("norm_difference_best", "first")
    assert first["mean"] == pytest.approx(
        sums("norm_difference_best", "kl_sum_first").sum() / sums("none", "n_first").sum()
    )


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("best_minus_worst", "norm_difference_best", ["norm_difference_worst"]),
        ("matched_best_minus_worst", "norm_difference_best_matched", ["norm_difference_worst_matched"]),
        ("best_minus_random", "norm_difference_best", ["matched_random"]),
    ],
)
def test_paired_differences_agree_with_numpy_and_scipy(name, left, right):
    found = row(name, ranking=RANKING)
    n, none = sums("none", "n_all").astype(float), sums("none")
    others = [sums(right[0], draw=draw) for draw in (0, 1) if right == ["matched_random"] or draw == 0]
    difference = sums(left) - np.mean(others, axis=0)
    assert found["mean"] == pytest.approx(difference.sum() / n.sum())
    assert found["reduction"] == pytest.approx(-difference.sum() / none.sum())
    assert_interval(found, "", difference, n)
    assert_interval(found, "reduction_", -difference, none)
    share = sums(left, "energy_all").sum() - np.mean(
        [sums(right[0], "energy_all", draw=draw).sum() for draw in range(len(others))]
    )
    assert found["energy_share"] == pytest.approx(share / sums("all", "energy_all").sum())
    # pairing: conversations differ far more than the interventions do within one
    assert found["high"] - found["low"] < 0.8 * (row(left)["high"] - row(left)["low"])


def test_the_random_mean_is_that_of_its_draws():
    found = row("matched_random_mean", ranking=RANKING)
    draws = [row("matched_random", draw=draw) for draw in (0, 1)]
    for column in ("mean", "reduction", "energy_share"):
        assert found[column] == pytest.approx(np.mean([draw[column] for draw in draws]))
    assert_interval(
        found, "", (sums("matched_random", draw=0) + sums("matched_random", draw=1)) / 2, sums("none", "n_all")
    )


def area(counts, ranking, draws):
    """∫ of KL over the energy share, the mean over draws taken on a fine grid."""
    grid = np.linspace(0, 1, 20_001)
    n, whole = counts @ sums("none", "n_all"), counts @ sums("all", "energy_all")
    curves = []
    for draw in draws:
        points = [(0, counts @ sums("none") / n), (1, counts @ sums("all") / n)]
        for point in sorted({edit[3] for edit in EDITS if edit[0] == "prefix" and edit[1:3] == (ranking, draw)}):
            where = {"ranking": ranking, "draw": draw, "point": point}
            share = counts @ sums("prefix", "energy_all", **where) / whole
            points.append((share, counts @ sums("prefix", **where) / n))
        curves.append(np.interp(grid, *zip(*sorted(points), strict=True)))
    return np.trapezoid(np.mean(curves, axis=0), grid)


def test_the_causal_value_is_the_area_between_the_curves():
    found = row("area_over_random", ranking=RANKING)
    g = np.random.default_rng(5)
    resamples = [np.ones(N), *(np.bincount(g.integers(0, N, N), minlength=N) for _ in range(400))]
    values = np.array([area(counts, RANKING, [0]) - area(counts, "random", [0, 1]) for counts in resamples])
    none = np.array([counts @ sums("none") / (counts @ sums("none", "n_all")) for counts in resamples])
    assert found["mean"] == pytest.approx(values[0], rel=1e-4)
    assert found["reduction"] == pytest.approx(-(values / none)[0], rel=1e-4) and found["reduction"] > 0
    low, high = np.quantile(-(values / none)[1:], [0.025, 0.975])
    assert found["reduction_low"] == pytest.approx(low, abs=0.3 * (high - low))
    assert found["reduction_high"] == pytest.approx(high, abs=0.3 * (high - low))
    assert not (SUMMARY["ranking"] == "energy").any()  # a ranking that was not run has no comparison


def test_area_under_a_curve():
    x = np.array([[0.5, 0.0, 1.0], [1.4, 1.0, 0.0]])
    y = np.array([[4.0, 0.0, 2.0], [9.0, 1.0, 3.0]])
    assert area_under(x, y) == pytest.approx([1.0 + 1.5, 2.0])  # the point beyond 1 is not integrated


def test_a_table_that_would_give_wrong_intervals_is_refused():
    with pytest.raises(TunediffError, match="some conversations lack an intervention"):
        summarise(KL.iloc[:-1], 10, 0)
    with pytest.raises(TunediffError, match="no intervention 'none'"):
        summarise(KL[KL["intervention"] != "none"], 10, 0)
    with pytest.raises(TunediffError, match="conversation 7 is counted more than once"):
        summarise(pd.concat([KL, KL[KL["conversation"] == 7]]), 10, 0)
