"""Intervals: bootstrap over independent clusters (conversations, blocks of documents) and the delete-one jackknife.

Tokens of one document are not independent, so nothing here resamples tokens.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


class Interval(NamedTuple):
    """An estimate with the ends of its interval."""

    value: Array
    low: Array
    high: Array


def resample_weights(n_clusters: int, n_bootstrap: int, seed: int) -> NDArray[np.float64]:
    """Return how often each cluster is drawn in each bootstrap resample, shape (n_bootstrap, n_clusters).

    Rows are multinomial(n_clusters, uniform): the same law as drawing clusters with replacement. One set of weights
    used for several statistics makes their comparison paired.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_clusters, np.full(n_clusters, 1.0 / n_clusters), size=n_bootstrap).astype(np.float64)


def ratio_of_sums(numerator: Array, denominator: Array, weights: Array | None = None) -> Array:
    """Return Σ numerator / Σ denominator over clusters (axis 0), NaN where the denominator is zero.

    With `weights` (resample, cluster) there is one ratio per resample: shape (resample, ...).
    """
    if weights is None:
        top, bottom = numerator.sum(axis=0), denominator.sum(axis=0)
    else:
        top, bottom = np.tensordot(weights, numerator, axes=1), np.tensordot(weights, denominator, axes=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom == 0, np.nan, top / bottom)


def percentile_interval(value: Array, resampled: Array, level: float = 0.95) -> Interval:
    """Return `value` with the percentile interval of its resampled values (axis 0), ignoring undefined resamples."""
    tail = (1 - level) / 2
    resampled = np.asarray(resampled, dtype=np.float64)
    undefined = np.isnan(resampled).all(axis=0)
    low, high = np.nanquantile(np.where(undefined, 0.0, resampled), [tail, 1 - tail], axis=0)
    return Interval(np.asarray(value), np.where(undefined, np.nan, low), np.where(undefined, np.nan, high))


def bootstrap_ratio(
    numerator: Array, denominator: Array, n_bootstrap: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return Σ numerator / Σ denominator over clusters (axis 0) with its percentile bootstrap interval."""
    weights = resample_weights(len(numerator), n_bootstrap, seed)
    return percentile_interval(
        ratio_of_sums(numerator, denominator), ratio_of_sums(numerator, denominator, weights), level
    )


def jackknife_standard_error(leave_one_out: Array) -> Array:
    """Return the delete-one jackknife standard error from the estimates without each cluster (axis 0).

    se² = (B − 1)/B · Σ_b (estimate without b − their mean)² (Efron & Stein 1981); NaN where one of them is undefined.
    """
    blocks = len(leave_one_out)
    deviations = leave_one_out - leave_one_out.mean(axis=0)
    return np.sqrt((blocks - 1) / blocks * (deviations**2).sum(axis=0))


def area_under(x: Array, y: Array) -> Array:
    """Return ∫ y dx over [0, 1] along the last axis: trapezoids between the points, sorted by x, and cut at 0 and 1.

    There must be points at x = 0 and x = 1. Leading axes (resamples) are integrated independently.
    """
    at = np.argsort(x, axis=-1, kind="stable")
    x, y = np.clip(np.take_along_axis(x, at, -1), 0, 1), np.take_along_axis(y, at, -1)
    return np.asarray(np.trapezoid(y, x, axis=-1))
