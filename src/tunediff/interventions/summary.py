"""Means of the KL experiment with intervals over conversations, and the comparisons of rankings that decide claims.

Every row is computed on the same resamples of conversations, so differences are paired.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tunediff.errors import TunediffError
from tunediff.interventions import registry
from tunediff.pipeline.artifacts import provenance, write_frame
from tunediff.statistics import area_under, percentile_interval, resample_weights

POSITIONS = ("all", "first")
REMEDY = "delete it and run snakemake again"
Samples = NDArray[np.float64]


class Resampled(NamedTuple):
    """KL and energy of every intervention over one kind of positions: row 0 is the data, the others are resamples."""

    interventions: pd.DataFrame  # the columns of `KEY` and n_latents
    kl: Samples  # (1 + resample, intervention): nats per token
    energy: Samples  # (1 + resample, intervention): sum over tokens
    facts: dict[str, int]  # numbers of conversations and tokens

    def at(self, crosscoder: str, intervention: str, ranking: str | None = None) -> NDArray[np.int64]:
        """Return the columns of an intervention: all draws and points of it."""
        of = self.interventions
        same = (of["crosscoder"] == crosscoder) & (of["intervention"] == intervention)
        return np.flatnonzero(same if ranking is None else same & (of["ranking"] == ranking))


def resample(kl: pd.DataFrame, positions: str, n_bootstrap: int, seed: int) -> Resampled:
    """Return means over conversations, and over resamples of them, from the rows of causal/kl.parquet.

    `TunediffError`: a conversation is there twice, or an intervention is missing.
    """
    interventions = kl.drop_duplicates(registry.KEY)[[*registry.KEY, "n_latents"]].reset_index(drop=True)
    if "none" not in set(interventions["intervention"]):
        raise TunediffError(f"causal/kl.parquet: no intervention 'none'; {REMEDY}")
    repeated = kl.duplicated([*registry.KEY, "conversation"])
    if repeated.any():
        number = kl.loc[repeated, "conversation"].iloc[0]
        raise TunediffError(f"causal/kl.parquet: conversation {number} is counted more than once; {REMEDY}")
    conversations = np.sort(kl["conversation"].unique())
    shape = len(conversations), len(interventions)
    if len(kl) != shape[0] * shape[1]:
        raise TunediffError(f"causal/kl.parquet: some conversations lack an intervention; {REMEDY}")
    column = pd.Series(np.arange(shape[1]), pd.MultiIndex.from_frame(interventions[registry.KEY]))
    row = np.searchsorted(conversations, kl["conversation"])
    at = row, column.loc[pd.MultiIndex.from_frame(kl[registry.KEY])].to_numpy()
    weights = np.vstack([np.ones(shape[0]), resample_weights(shape[0], n_bootstrap, seed)])
    sums = {}
    for name in ("kl_sum", "n", "energy"):
        per_conversation = np.zeros(shape)
        per_conversation[at] = kl[f"{name}_{positions}"]
        sums[name] = weights @ per_conversation
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums["kl_sum"] / sums["n"]
    facts = {"n_conversations": shape[0], "n_tokens": int(sums["n"][0, 0])}
    return Resampled(interventions, means, sums["energy"], facts)


def comparisons(data: Resampled, crosscoder: str) -> Iterator[tuple[str, str, Samples, float]]:
    """Yield (name, ranking, KL or difference of KL (1 + resample), energy share or difference of it)."""
    whole = data.energy[:, data.at(crosscoder, "all")]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = data.energy / whole
    ends = np.concatenate([data.at("", "none"), data.at(crosscoder, "all")])

    def areas(ranking: str) -> Samples | None:
        prefixes = data.at(crosscoder, registry.PREFIX, ranking)
        draws = data.interventions["draw"].to_numpy()[prefixes]
        curves = [np.concatenate([prefixes[draws == draw], ends]) for draw in np.unique(draws)]
        return np.mean([area_under(share[:, at], data.kl[:, at]) for at in curves], axis=0) if curves else None

    random_area = areas(registry.RANDOM)
    for ranking in (*registry.RANKINGS, ""):  # the last are interventions that belong to none
        compared = []
        for name, partner, difference in registry.pairs(ranking):
            of = "" if registry.INTERVENTIONS[partner].needs == "models" else crosscoder
            compared.append((difference.name, data.at(crosscoder, name), data.at(of, partner)))
        for each in registry.INTERVENTIONS.values():
            if each.ranking == ranking and each.control is not None:
                random = data.at(crosscoder, each.control, ranking)
                compared.append((registry.BEST_RANDOM.name, data.at(crosscoder, each.name), random))
                if len(random):
                    yield registry.RANDOM_MEAN, ranking, data.kl[:, random].mean(1), float(share[0, random].mean())
        for name, left, right in compared:
            if len(left) and len(right):
                values = data.kl[:, left].mean(1) - data.kl[:, right].mean(1)
                yield name, ranking, values, float(share[0, left].mean() - share[0, right].mean())
        area = areas(ranking)
        if area is not None and random_area is not None:
            yield registry.AREA, ranking, area - random_area, float("nan")


def summarise(kl: pd.DataFrame, n_bootstrap: int, seed: int) -> pd.DataFrame:
    """Return mean KL per intervention with 95 % intervals over conversations, and the comparisons of rankings.

    `reduction` is 1 − mean/None, and for a comparison −mean/None, so that more is better; `energy_share` is the edit
    energy over that of `all` of the same crosscoder (NaN where no crosscoder is involved).
    """
    rows: list[dict[str, Any]] = []

    def add(where: dict[Any, Any], values: Samples, none: Samples, whole: float, energy_share: float) -> None:
        with np.errstate(invalid="ignore", divide="ignore"):
            reduction = whole - values / none
        row = where
        for prefix, samples in (("", values), ("reduction_", reduction)):
            names = prefix.removesuffix("_") or "mean", f"{prefix}low", f"{prefix}high"
            row |= dict(zip(names, map(float, percentile_interval(samples[0], samples[1:])), strict=True))
        rows.append(row | {"energy_share": energy_share})

    for positions in POSITIONS:
        data = resample(kl, positions, n_bootstrap, seed)
        none = data.kl[:, data.at("", "none")[0]]
        whole = {name: data.energy[0, data.at(name, "all")].sum() for name in data.interventions["crosscoder"].unique()}
        shared = {"positions": positions, **data.facts}
        for i, where in enumerate(data.interventions.to_dict("records")):
            energy = float(data.energy[0, i])
            of = whole[where["crosscoder"]]
            add(where | shared | {"energy": energy}, data.kl[:, i], none, 1.0, energy / of if of else np.nan)
        for crosscoder in whole:
            for name, ranking, values, share in comparisons(data, crosscoder) if crosscoder else ():
                where = dict(zip(registry.KEY, (crosscoder, name, ranking, 0, 0), strict=True))
                add(where | shared, values, none, float(name == registry.RANDOM_MEAN), share)
    return pd.DataFrame(rows)


def build_summary(kl: pd.DataFrame, out: Path, n_bootstrap: int, seed: int, *, key: str) -> pd.DataFrame:
    """Summarise the KL sums and write the table (kind `kl-summary`) at `out`."""
    started = time.time()
    frame = summarise(kl, n_bootstrap, seed)
    facts = {"bootstrap_samples": n_bootstrap, "seed": seed}
    write_frame(frame, out, "kl-summary", key, facts, provenance(started))
    return frame
