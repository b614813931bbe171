import numpy as np
import pytest
from scipy import stats

from tunediff.statistics import percentile_interval, resample_weights


def clusters(n=60, seed=0):
    g = np.random.default_rng(seed)
    tokens = g.integers(1, 30, n).astype(float)
    return tokens * g.normal(1.0, 0.3, n), tokens


def test_interval_of_a_ratio_of_sums_agrees_with_scipy():
    numerator, denominator = clusters()
    weights = resample_weights(len(numerator), 20_000, seed=1)
    ratio = np.asarray(numerator.sum() / denominator.sum())
    ours = percentile_interval(ratio, weights @ numerator / (weights @ denominator))
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
    assert ours.value == ratio
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_weights_are_counts_of_draws_with_replacement():
    weights = resample_weights(7, 5000, seed=3)
    assert (weights.sum(axis=1) == 7).all()
    # multinomial(7, 1/7): mean 1, variance 6/7
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.05)
    assert weights.var(axis=0) == pytest.approx(np.full(7, 6 / 7), abs=0.08)


def test_undefined_values_have_undefined_ends():
    interval = percentile_interval(np.array([1.0, 2.0]), np.array([[np.nan, 1.0], [np.nan, 3.0]]))
    assert np.isnan([interval.low[0], interval.high[0]]).all()
    assert interval.low[1] == pytest.approx(1.05) and interval.high[1] == pytest.approx(2.95)
