"""Scores of explanations: balanced accuracy and AUROC of the judgements, with what they are measured against.

Intervals resample documents for one latent, and latents and their documents for a mean over latents.
"""

import math
import time
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tunediff.explanations.contexts import (
    BANDS,
    DIRECTIONS,
    LISTED,
    MIN_WINDOWS,
    RANKED,
    SHARED,
    SUBJECT,
)
from tunediff.explanations.tables import MODEL, NO_RULE, OK, RULE, Explanations
from tunediff.latents.examples import SILENT
from tunediff.latents.table import LatentTable
from tunediff.pipeline.artifacts import building, provenance, write_frame
from tunediff.statistics import percentile_interval

N_BOOTSTRAP = 400
BINS = 5  # of 20 % of the ranked latents
DECILES = 10  # of frequency, within which dictionaries are compared
MEASURES = ("balanced_accuracy", "auroc", *(f"accuracy_{band}" for band in (*BANDS, *SILENT)))
SCORED = "scored"

PER_LATENT = {
    **{"dictionary": "string", "group": "string", "latent": "int32", "explainer": "string", "judge": "string"},
    **{"of": "int32", "text": "string", "status": "string"},
    **dict.fromkeys(("n_active", "n_silent", "n_missing"), "int32"),  # windows judged, and not
    **dict.fromkeys(("balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high"), "float32"),
    **dict.fromkeys(("auroc", "auroc_low", "auroc_high"), "float32"),
    **dict.fromkeys((f"auroc_of_{band}" for band in BANDS), "float32"),  # of one band against all silent windows
    **dict.fromkeys((f"accuracy_{band}" for band in (*BANDS, *SILENT)), "float32"),  # share judged rightly
    **{"order_effect": "float32", "rank_sum": "float32", "frequency": "float32"},
}
OVERALL = {
    **{"dictionary": "string", "group": "string", "explainer": "string", "judge": "string", "measure": "string"},
    **{"latents": "int32", "unscored": "int32", "value": "float32", "low": "float32", "high": "float32"},
}


class Judged(NamedTuple):
    """The judged windows of one latent by one explanation."""

    p: NDArray[np.float64]  # mean over the orders
    active: NDArray[np.bool_]
    band: NDArray[np.str_]
    document: NDArray[np.int64]


def right(p: NDArray[np.float64], active: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return 1 for each window judged rightly, 0 for the others, and one half where both were as likely."""
    says = np.where(p > 0.5, 1.0, np.where(p < 0.5, 0.0, 0.5))
    return np.where(active, says, 1 - says)


def balanced_accuracy(p: NDArray[np.float64], active: NDArray[np.bool_], weight: NDArray[np.float64]) -> Any:
    """Return the mean of the two classes' shares judged rightly; `weight` is (…, window)."""
    good = right(p, active)
    with np.errstate(invalid="ignore"):
        shares = [(weight[..., of] @ good[of]) / weight[..., of].sum(-1) for of in (active, ~active)]
    return (shares[0] + shares[1]) / 2


def auroc(p: NDArray[np.float64], active: NDArray[np.bool_], weight: NDArray[np.float64]) -> Any:
    """Return the probability that a window where the latent fires has the larger p than one where not; ties half."""
    ahead = p[active][:, None] - p[~active][None]
    wins = np.where(ahead > 0, 1.0, np.where(ahead == 0, 0.5, 0.0))
    own, other = weight[..., active], weight[..., ~active]
    with np.errstate(invalid="ignore"):
        return np.einsum("...i,...i", own @ wins, other) / (own.sum(-1) * other.sum(-1))


def document_weights(document: NDArray[np.integer], seed: int, n: int = N_BOOTSTRAP) -> NDArray[np.float64]:
    """Return how often each window is drawn in each resample of documents, shape (n, window)."""
    unique, of = np.unique(document, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=n)
    return counts.astype(np.float64)[:, of]


def score(judged: Judged, seed: int) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Return the scores of one latent by one explanation, and the resamples of its balanced accuracy and AUROC."""
    weight = document_weights(judged.document, seed)
    ones = np.ones(len(judged.p))
    result: dict[str, float] = {}
    resampled = {}
    for name, measure in (("balanced_accuracy", balanced_accuracy), ("auroc", auroc)):
        resampled[name] = measure(judged.p, judged.active, weight)
        interval = percentile_interval(measure(judged.p, judged.active, ones), resampled[name])
        result |= {
            name: float(interval.value),
            f"{name}_low": float(interval.low),
            f"{name}_high": float(interval.high),
        }
    good = right(judged.p, judged.active)
    for band in (*BANDS, *SILENT):
        own = judged.band == band
        result[f"accuracy_{band}"] = float(good[own].mean()) if own.any() else np.nan
        if band in BANDS:
            both = own | ~judged.active
            of = judged.p[both], judged.active[both], np.ones(int(both.sum()))
            result[f"auroc_of_{band}"] = float(auroc(*of)) if own.any() else np.nan
    return result, resampled


def _judged(windows: pd.DataFrame, judgements: pd.DataFrame) -> tuple[Judged, int]:
    """Return the judged windows of one latent by one explanation, and how many windows have no judgement.

    `judgements` are means over the orders that could be read, by number of the window.
    """
    number = judgements["number"].to_numpy()
    values = np.full(len(windows), np.nan)
    values[number] = judgements["mean"].to_numpy()  # windows are numbered in order, from 0
    known = np.isfinite(values)
    band, document = windows["band"].to_numpy().astype(str)[known], windows["document"].to_numpy()[known]
    return Judged(values[known], ~np.isin(band, SILENT), band, document), int((~known).sum())


def _order_effect(judgements: pd.DataFrame) -> float:
    """Return the mean |difference| of a window's two orders; NaN where none has both."""
    both = judgements[judgements["count"] == 2]
    return float((both["max"] - both["min"]).mean()) if len(both) else np.nan


def latent_scores(
    name: str, explanations: Explanations, judgements: pd.DataFrame, table: LatentTable, seed: int
) -> Iterator[tuple[dict[str, Any], dict[str, NDArray[np.float64]]]]:
    """Yield a row of `PER_LATENT` for every explanation and judge of a dictionary, with the resamples of its scores.

    A latent that cannot be scored has a row that says why.
    """
    keys = [*SUBJECT, "explainer", "judge"]
    means = judgements.groupby([*keys, "number"])["p"].agg(["mean", "min", "max", "count"]).reset_index()
    found: Any = dict(iter(means.groupby(keys)))
    lacking = judgements[judgements["status"] != OK].groupby(keys)["status"].agg(lambda told: told.mode().iloc[0])
    rank, frequency = (
        dict(zip(table.frame["latent"], table.frame[of], strict=True)) for of in ("rank_sum", "frequency")
    )
    judges = [RULE, MODEL] if (judgements["judge"] == MODEL).any() else [RULE]
    for row in explanations:
        windows = explanations.scored_on.get((row.group, row.latent))
        why = row.status if row.status not in (OK, NO_RULE) else explanations.unscorable(row.group, row.latent)
        of_latent = {
            "rank_sum": np.nan if row.group in DIRECTIONS else rank[row.latent],
            "frequency": frequency[row.latent],
        }
        for judge in judges:
            own = found.get((row.group, row.latent, row.explainer, judge))
            said = {"dictionary": name, "group": row.group, "latent": row.latent, "explainer": row.explainer}
            said |= {"judge": judge, "of": row.of, "text": row.text} | of_latent
            if own is None or windows is None:
                if why and judge == (MODEL if row.explainer.startswith(MODEL) else RULE):
                    yield said | {"status": why}, {}
                continue
            judged, missing = _judged(windows, own)
            counts = {
                "n_active": int(judged.active.sum()),
                "n_silent": int((~judged.active).sum()),
                "n_missing": missing,
            }
            if min(counts["n_active"], counts["n_silent"]) < MIN_WINDOWS:
                told = lacking.get((row.group, row.latent, row.explainer, judge), "")
                yield said | counts | {"status": f"{missing} windows not judged ({told})"}, {}
                continue
            values, resampled = score(judged, seed)
            effect = _order_effect(own) if judge == MODEL else np.nan
            yield said | counts | {"status": SCORED, "order_effect": effect} | values, resampled


def mean_over_latents(
    values: NDArray[np.float64], resampled: NDArray[np.float64], generator: np.random.Generator
) -> tuple[float, float, float]:
    """Return the mean over latents with its interval: latents are drawn again, and for each one of its resamples.

    `resampled` is (latent, resample). All are NaN without latents.
    """
    n, draws = resampled.shape
    if not n:
        return math.nan, math.nan, math.nan
    drawn = generator.integers(n, size=(N_BOOTSTRAP, n))
    means = resampled[drawn, generator.integers(draws, size=drawn.shape)].mean(1)
    interval = percentile_interval(np.asarray(values.mean()), means)
    return float(values.mean()), float(interval.low), float(interval.high)


def bins_of_rank(rank_sum: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the bin of each ranked latent, 0 of the lowest 20 % of `rank_sum`; equal numbers in each but for one."""
    order = np.argsort(np.argsort(rank_sum, kind="stable"), kind="stable")
    return order * BINS // max(1, len(order))


def overall(rows: pd.DataFrame, resampled: Mapping[int, Mapping[str, NDArray[np.float64]]], seed: int) -> pd.DataFrame:
    """Return the means over latents (`OVERALL`), given all rows of `PER_LATENT` and the resamples by row.

    Groups are those of the latents, "ranked 1" to "ranked 5" by rising `rank_sum`, and comparisons: dictionary
    "a − b", paired within deciles of frequency.
    """
    generator, result = np.random.default_rng(seed), []

    def add(own: pd.DataFrame, **said: Any) -> None:
        done = own[own["status"] == SCORED]
        for measure in MEASURES:
            values = done[measure].to_numpy(np.float64)
            if measure in ("balanced_accuracy", "auroc"):
                draws = np.array([resampled[row][measure] for row in done.index]).reshape(-1, N_BOOTSTRAP)
            else:
                draws = values[:, None]
            known = np.isfinite(values)
            mean = mean_over_latents(values[known], draws[known], generator)
            counts = {"latents": int(known.sum()), "unscored": len(own) - len(done)}
            result.append(said | {"measure": measure} | counts | dict(zip(("value", "low", "high"), mean, strict=True)))

    for (name, explainer, judge), own in rows.groupby(["dictionary", "explainer", "judge"], sort=False):
        said = {"dictionary": name, "explainer": explainer, "judge": judge}
        for group, part in own.groupby("group", sort=False):
            add(part, group=group, **said)
            if group == RANKED:
                number = bins_of_rank(part["rank_sum"].to_numpy())
                for one in range(BINS):
                    add(part[number == one], group=f"{RANKED} {one + 1}", **said)
    for (explainer, judge), own in rows[rows["group"].isin([RANKED, SHARED, LISTED])].groupby(["explainer", "judge"]):
        done = own[own["status"] == SCORED]
        edges = np.quantile(done["frequency"], np.linspace(0, 1, DECILES + 1)[1:-1]) if len(done) else []
        decile = pd.Series(np.searchsorted(edges, done["frequency"]), index=done.index)
        for first, second in combinations(dict.fromkeys(done["dictionary"]), 2):
            difference = _paired(done, decile, (first, second), resampled, generator)
            if difference is not None:
                said = {"dictionary": f"{first} − {second}", "group": "by frequency", "explainer": explainer}
                result.append(said | {"judge": judge, "measure": "balanced_accuracy", "unscored": 0} | difference)
    return pd.DataFrame(result, columns=list(OVERALL)).astype(OVERALL)


def _paired(
    done: pd.DataFrame,
    decile: "pd.Series[int]",
    names: tuple[str, str],
    resampled: Mapping[int, Mapping[str, NDArray[np.float64]]],
    generator: np.random.Generator,
) -> dict[str, Any] | None:
    """Return the difference of two dictionaries' mean accuracy within deciles of frequency, weighted by the fewer."""
    total, means, draws = 0, 0.0, np.zeros(N_BOOTSTRAP)
    for number in sorted(set(decile)):
        rows = [done.index[(decile == number) & (done["dictionary"] == name)] for name in names]
        weight = min(map(len, rows))
        if not weight:
            continue
        sides = []
        for own in rows:
            every = np.array([resampled[row]["balanced_accuracy"] for row in own])
            drawn = generator.integers(len(own), size=(N_BOOTSTRAP, len(own)))
            again = every[drawn, generator.integers(every.shape[1], size=drawn.shape)].mean(1)
            sides.append((float(done.loc[own, "balanced_accuracy"].mean()), again))
        total += weight
        means += weight * (sides[0][0] - sides[1][0])
        draws += weight * (sides[0][1] - sides[1][1])
    if not total:
        return None
    interval = percentile_interval(np.asarray(means / total), draws / total)
    return {"latents": total, "value": means / total, "low": float(interval.low), "high": float(interval.high)}


def build_scores(
    explanations: Mapping[str, Explanations],
    judgements: Mapping[str, pd.DataFrame],
    tables: Mapping[str, LatentTable],
    out: Path,
    *,
    key: str,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score every explanation of every dictionary; write the rows at `out` and the means at `out`.overall.parquet.

    Returned are both tables (kind `explanation_scores`), with the columns of `PER_LATENT` and `OVERALL`.
    """
    started = time.time()
    rows: list[dict[str, Any]] = []
    resampled: dict[int, dict[str, NDArray[np.float64]]] = {}
    for name, own in explanations.items():
        for row, draws in latent_scores(name, own, judgements[name], tables[name], seed):
            if draws:
                resampled[len(rows)] = draws
            rows.append(row)
    counts = {name: 0 for name in ("n_active", "n_silent", "n_missing")}
    frame = pd.DataFrame(rows, columns=list(PER_LATENT)).fillna(counts).astype(PER_LATENT)
    means = overall(frame, resampled, seed)
    facts = {"models": {name: own.facts["settings"]["model"] for name, own in explanations.items()}}
    with building(out.with_suffix(".overall.parquet")) as partial:
        means.to_parquet(partial, index=False)
    write_frame(frame, out, "explanation_scores", key, facts, provenance(started), beside=[".overall.parquet"])
    return frame, means
