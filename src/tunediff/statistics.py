"""Intervals: bootstrap over independent clusters (conversations, blocks of documents).

Tokens of one document are not independent, so nothing here resamples tokens.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
TAIL = (1 - 0.95) / 2  # beyond each end of an interval


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


def percentile_interval(value: Array, resampled: Array) -> Interval:
    """Return `value` with the 95 % percentile interval of its resamples (axis 0), ignoring undefined ones."""
    resampled = np.asarray(resampled, dtype=np.float64)
    undefined = np.isnan(resampled).all(axis=0)
    low, high = np.nanquantile(np.where(undefined, 0.0, resampled), [TAIL, 1 - TAIL], axis=0)
    return Interval(np.asarray(value), np.where(undefined, np.nan, low), np.where(undefined, np.nan, high))


def area_under(x: Array, y: Array) -> Array:
    """Return ∫ y dx over [0, 1] along the last axis: trapezoids between the points, sorted by x, and cut at 0 and 1.

    There must be points at x = 0 and x = 1. Leading axes (resamples) are integrated independently.
    """
    at = np.argsort(x, axis=-1, kind="stable")
    x, y = np.clip(np.take_along_axis(x, at, -1), 0, 1), np.take_along_axis(y, at, -1)
    return np.asarray(np.trapezoid(y, x, axis=-1))
