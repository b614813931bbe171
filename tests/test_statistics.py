import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunediff.statistics import (
    bootstrap_ratio,
    jackknife_standard_error,
    percentile_interval,
    ratio_of_sums,
    resample_weights,
)


def clusters(n=60, seed=0):
    g = np.random.default_rng(seed)
    tokens = g.integers(1, 30, n).astype(float)
    return tokens * g.normal(1.0, 0.3, n), tokens


def test_interval_of_a_ratio_of_sums_agrees_with_scipy():
    numerator, denominator = clusters()
    ours = bootstrap_ratio(numerator, denominator, 20_000, seed=1)
    theirs = stats.bootstrap(
        (numerator, denominator),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(numerator.sum() / denominator.sum(), rel=1e-12)
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_weights_are_counts_of_draws_with_replacement():
    weights = resample_weights(7, 5000, seed=3)
    assert (weights.sum(axis=1) == 7).all()
    # multinomial(7, 1/7): mean 1, variance 6/7
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.05)
    assert weights.var(axis=0) == pytest.approx(np.full(7, 6 / 7), abs=0.08)


def test_weighted_ratio_equals_explicit_resampling():
    numerator, denominator = clusters(9)
    weights = resample_weights(9, 4, seed=0)
    for ratio, counts in zip(ratio_of_sums(numerator, denominator, weights), weights.astype(int), strict=True):
        drawn = np.repeat(np.arange(9), counts)
        assert ratio == pytest.approx(numerator[drawn].sum() / denominator[drawn].sum(), rel=1e-12)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_jackknife_of_a_mean_is_its_standard_error(values):
    x = np.array(values)
    without = (x.sum() - x) / (len(x) - 1)
    assert jackknife_standard_error(without) == pytest.approx(x.std(ddof=1) / len(x) ** 0.5, rel=1e-6, abs=1e-7)


def test_undefined_values_have_undefined_ends():
    assert np.isnan(ratio_of_sums(np.zeros(3), np.zeros(3)))
    interval = percentile_interval(np.array([1.0, 2.0]), np.array([[np.nan, 1.0], [np.nan, 3.0]]))
    assert np.isnan([interval.low[0], interval.high[0]]).all()
    assert interval.low[1] == pytest.approx(1.05) and interval.high[1] == pytest.approx(2.95)
