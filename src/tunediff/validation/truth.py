"""How well a crosscoder's latents name the planted concepts, and whether they call them chat-specific rightly.

A concept is *found* where a latent's activation correlates with its own above `FOUND_ABOVE` on validation tokens. Each
rule then calls latents chat-specific: class chat-only by Δnorm; ν^r and ν^ε by the criterion of their latent table
(points); the upper ends of their intervals too; and the points under its thresholds, without its bounds. A latent that
the criterion calls reversed is an outcome of its own: neither called nor ranked, and counted.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import rankdata, t

from tunediff.data.activations import ActivationStore, counted_batches
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.latents.criterion import Criterion
from tunediff.latents.table import LatentTable
from tunediff.pipeline.artifacts import building, check, provenance, seal
from tunediff.validation.planted import PlantedPair

RULES = ("norm_difference", "nu_point", "nu_interval", "nu_unbounded")
BASE_RULES = ("norm_difference", "nu_point")  # by ν: the mirrored one, which has no interval
FOUND_ABOVE = 0.7  # activation correlation from which a latent stands for a concept
RELATED_ABOVE = 0.3  # and from which it is counted to the concept's kind, as one of several that share it
CHAT_ONLY_UP_TO = 0.2  # base's share of chat's strength at which Δnorm is 0.9


class Codes(NamedTuple):
    """One crosscoder on validation tokens."""

    correlation: Float[np.ndarray, "concept latent"]
    l0: float
    fve_base: float
    fve_chat: float


@torch.no_grad()
def codes(
    crosscoder: Crosscoder, store: ActivationStore, strength: Float[np.ndarray, "token concept"], batch_size: int = 4096
) -> Codes:
    """Return the activation correlations of all concepts with all latents, L0 and FVE, on counted tokens.

    `strength` is in the order of the token store. A concept or latent that never fires correlates with nothing: 0.
    """
    device = crosscoder.decoder_weight.device
    n_concepts, n_latents = strength.shape[1], crosscoder.dict_size
    products = torch.zeros(n_concepts, n_latents, dtype=torch.float64, device=device)
    planted, coded = (torch.zeros(2, n, dtype=torch.float64, device=device) for n in (n_concepts, n_latents))
    residual = torch.zeros(len(crosscoder.decoder_bias), dtype=torch.float64, device=device)
    moments = torch.zeros(2, *crosscoder.decoder_bias.shape, dtype=torch.float64, device=device)
    n_tokens = nonzero = 0
    for batch in counted_batches(store, batch_size, str(device), "match"):
        code = crosscoder.encode(batch.activations)
        dense = code.to_dense(n_latents).double()
        f = torch.from_numpy(strength[batch.row]).to(device).double()
        products += f.T @ dense
        planted += torch.stack([f.sum(0), f.square().sum(0)])
        coded += torch.stack([dense.sum(0), dense.square().sum(0)])
        h = crosscoder.inputs(batch.activations).double()
        residual += (h - crosscoder.decode(code)).square().sum(dim=(0, 2))
        moments += torch.stack([h.sum(0), h.square().sum(0)])
        n_tokens, nonzero = n_tokens + len(batch.row), nonzero + len(code.value)
    covariance = products - planted[0][:, None] * coded[0] / n_tokens
    spread = [(square - mean**2 / n_tokens).clamp(min=0).sqrt() for mean, square in (planted, coded)]
    scale = spread[0][:, None] * spread[1]
    total = (moments[1] - moments[0].square() / n_tokens).sum(dim=1)
    fve = (1 - residual / total).tolist() if crosscoder.reconstructs == "models" else [math.nan] * 2
    return Codes(torch.where(scale > 0, covariance / scale, 0.0).cpu().numpy(), nonzero / n_tokens, *fve)


def calls(table: LatentTable) -> pd.DataFrame:
    """Return, per latent, whether each rule calls it chat-specific (`chat_RULE`) or base-specific (`base_RULE`).

    By ν a latent is base-specific where the mirrored ν meet the same criterion; they have no interval.
    """
    frame, criterion = table.frame, table.criterion
    mirrored = criterion.chat_specific(frame["nu_reconstruction_mirrored"], frame["nu_error_mirrored"])
    unbounded = replace(criterion, lowest=-np.inf, highest=np.inf)
    return pd.DataFrame(
        {
            "chat_norm_difference": (frame["class_name"] == "chat-only").to_numpy(),
            "chat_nu_point": frame["chat_specific"].to_numpy(),
            "chat_nu_interval": frame["chat_specific_interval"].to_numpy(),
            "chat_nu_unbounded": unbounded.chat_specific(frame["nu_reconstruction"], frame["nu_error"]),
            "base_norm_difference": (frame["class_name"] == "base-only").to_numpy(),
            "base_nu_point": mirrored,
        }
    )


def undecided_up_to(criterion: Criterion) -> float:
    """Return base's share of chat's strength up to which a concept is chat-specific by a rule's own threshold.

    Such a concept has that share as both its ν. Neither calling nor sparing it is an error.
    """
    return max(CHAT_ONLY_UP_TO, min(criterion.nu_error_below, criterion.nu_reconstruction_below))


def _undecided(kind: NDArray[Any], factor: NDArray[Any], criterion: Criterion) -> NDArray[np.bool_]:
    return (kind == "weaker") & (factor <= undecided_up_to(criterion))


def score_concepts(
    pair: PlantedPair, correlation: Float[np.ndarray, "concept latent"], table: LatentTable
) -> pd.DataFrame:
    """Return one row per concept: its best latent, what that latent is called, and whether the call is right.

    `right_RULE`: a chat-only concept is called chat-specific, a base-only one base-specific, any other neither. NaN
    where the concept is not found, is undecided by definition, or is a part (base's own pieces of decoupled concepts).
    """
    best = correlation.argmax(axis=1)
    rows = pair.concepts[["kind", "frequency", "factor"]].copy()
    rows.insert(0, "concept", np.arange(len(rows)))
    owner = pair.concepts["owner"].to_numpy()
    rows["parts"] = np.bincount(owner[owner >= 0], minlength=len(rows))
    rows["latent"] = best
    rows["correlation"] = correlation.max(axis=1)
    rows["found"] = rows["correlation"] > FOUND_ABOVE
    for name in ("class_name", "norm_difference", "cosine", "nu_error", "nu_reconstruction", "rank_sum"):
        rows[name] = table.frame[name].to_numpy()[best]
    called = calls(table).iloc[best].reset_index(drop=True)
    kind = rows["kind"].to_numpy()
    undecided = _undecided(kind, rows["factor"].to_numpy(), table.criterion)
    scored = rows["found"].to_numpy() & (kind != "part") & ~undecided
    for rule in RULES:
        chat = rows[f"chat_{rule}"] = called[f"chat_{rule}"].to_numpy()
        base = called[f"base_{rule if rule in BASE_RULES else 'nu_point'}"].to_numpy()
        right = np.select([kind == "chat-only", kind == "base-only"], [chat, base & ~chat], ~chat & ~base)
        rows[f"right_{rule}"] = np.where(scored, right.astype(float), np.nan)
    return rows


def score_latents(
    pair: PlantedPair, correlation: Float[np.ndarray, "concept latent"], table: LatentTable
) -> pd.DataFrame:
    """Return one row per live latent: the concept it follows most, that concept's kind, and the calls.

    `kind` is "none" where no concept correlates above `RELATED_ABOVE`, and "undecided" as in `score_concepts`.
    """
    best = correlation.argmax(axis=0)
    kind, factor = pair.concepts["kind"].to_numpy()[best], pair.concepts["factor"].to_numpy()[best]
    kind = np.where(_undecided(kind, factor, table.criterion), "undecided", kind)
    highest = correlation.max(axis=0)
    kind = np.where(highest > RELATED_ABOVE, kind, "none")
    rows = pd.DataFrame({"latent": np.arange(len(table)), "concept": best, "correlation": highest, "kind": kind})
    for name in ("frequency", "norm_difference", "nu_error", "nu_reconstruction", "rank_sum", "reversed"):
        rows[name] = table.frame[name].to_numpy()
    rows = pd.concat([rows, calls(table)], axis=1)
    return rows[~table.frame["dead"].to_numpy()].reset_index(drop=True)


def auroc(score: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative, ties half (Mann and Whitney); NaN if none."""
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    return float((rankdata(score)[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def metrics(concepts: pd.DataFrame, latents: pd.DataFrame) -> dict[str, float]:
    """Return the scores of one crosscoder on one pair, as `QUANTITY_RULE`.

    recall: chat-only concepts that are found and called; precision: called latents that follow a chat-only concept
    (NaN where none is planted);
    false_positives: latents that follow no chat-only concept and are called, over all such latents; called: latents.
    false_base: latents that follow neither a base-only concept nor a part and are called base-specific, likewise.
    Undecided latents are in none of them. AUROC ranks all other live latents by Δnorm or by -rank_sum (unranked last).
    reversed: the share of all live latents that are reversed, so neither called by the bounded ν nor ranked.
    """
    chat_only = concepts["kind"] == "chat-only"
    decided = latents[latents["kind"] != "undecided"]
    positive = (decided["kind"] == "chat-only").to_numpy()
    result: dict[str, float] = {"found": float(concepts["found"].mean()), "live": len(latents)}
    result["reversed"] = _ratio(int(latents["reversed"].sum()), len(latents))
    for rule in RULES:
        chat = decided[f"chat_{rule}"].to_numpy()
        hit = concepts.loc[chat_only, "found"] & concepts.loc[chat_only, f"chat_{rule}"]
        result[f"called_{rule}"] = int(chat.sum())
        result[f"recall_{rule}"] = _ratio(int(hit.sum()), int(chat_only.sum()))
        result[f"precision_{rule}"] = _ratio(int((chat & positive).sum()), int(chat.sum()) if chat_only.any() else 0)
        result[f"false_positives_{rule}"] = _ratio(int((chat & ~positive).sum()), int((~positive).sum()))
    own = decided["kind"].isin(["base-only", "part"]).to_numpy()
    for rule in BASE_RULES:
        base = decided[f"base_{rule}"].to_numpy()
        result[f"called_base_{rule}"] = int(base.sum())
        result[f"false_base_{rule}"] = _ratio(int((base & ~own).sum()), int((~own).sum()))
    result["auroc_norm_difference"] = auroc(decided["norm_difference"].to_numpy(), positive)
    ranking = -decided["rank_sum"].to_numpy(np.float64)
    result["auroc_rank_sum"] = auroc(np.where(np.isnan(ranking), -np.inf, ranking), positive)
    return result


class SeedInterval(NamedTuple):
    """A mean over seeds with its 95 % t interval; the ends are NaN with one seed."""

    mean: float
    low: float
    high: float
    n: int


def over_seeds(values: Sequence[float] | NDArray[Any], bounds: tuple[float, float] | None = (0.0, 1.0)) -> SeedInterval:
    """Return mean ± t_{0.975, n-1} · s / √n over the seeds that have a value, cut to `bounds`."""
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    mean = float(x.mean()) if len(x) else np.nan
    if len(x) < 2:
        return SeedInterval(mean, np.nan, np.nan, len(x))
    half = float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    low, high = bounds or (-np.inf, np.inf)
    return SeedInterval(mean, max(low, mean - half), min(high, mean + half), len(x))


class Scores(NamedTuple):
    """What is known of every crosscoder of every pair; all have columns arm, seed, crosscoder (its config name)."""

    concepts: pd.DataFrame  # as `score_concepts`
    latents: pd.DataFrame  # as `score_latents`
    crosscoders: pd.DataFrame  # one row each: dict_size, l0, fve_base, fve_chat and `metrics`
    criterion: Criterion  # of all their latent tables


PARTS = ("concepts", "latents", "crosscoders")  # the tables of `Scores`, a file each


def _one(criteria: Collection[Criterion], where: str) -> Criterion:
    """Return the criterion of all."""
    if len(criteria) != 1:
        texts = "; ".join(sorted(criterion.text for criterion in criteria))
        raise TunediffError(f"{where}: judged by {len(criteria)} criteria ({texts}); run snakemake again")
    return next(iter(criteria))


def score_pair(
    pair: PlantedPair,
    strength: Float[np.ndarray, "token concept"],
    measured: Mapping[str, tuple[Crosscoder, LatentTable]],
    validation: ActivationStore,
    out: Path,
    *,
    key: str,
) -> None:
    """Score every crosscoder of one pair and write OUT/{concepts,latents,crosscoders}.parquet (kind `scores`)."""
    started = time.time()
    criterion = _one({table.criterion for _, table in measured.values()}, str(out))
    pieces: dict[str, list[pd.DataFrame]] = {name: [] for name in PARTS}
    for name, (crosscoder, table) in measured.items():
        seen = codes(crosscoder, validation, strength)
        concepts = score_concepts(pair, seen.correlation, table)
        latents = score_latents(pair, seen.correlation, table)
        row = {"dict_size": crosscoder.dict_size, "l0": seen.l0, "fve_base": seen.fve_base, "fve_chat": seen.fve_chat}
        crosscoders = pd.DataFrame([row | metrics(concepts, latents)])
        for part, frame in zip(PARTS, (concepts, latents, crosscoders), strict=True):
            frame.insert(0, "crosscoder", name.rpartition("-seed")[0])
            pieces[part].append(frame)
    with building(out) as partial:
        partial.mkdir()
        for part, frames in pieces.items():
            pd.concat(frames, ignore_index=True).to_parquet(partial / f"{part}.parquet", index=False)
    facts = {"crosscoders": list(measured), "planted": asdict(pair.settings), "criterion": criterion.as_dict()}
    seal(out, "scores", key, facts, provenance(started))


def read_scores(folders: Sequence[Path]) -> Scores:
    """Read the scores of all pairs, each in RESULTS/ARM/seedN/scores."""
    pieces: dict[str, list[pd.DataFrame]] = {name: [] for name in PARTS}
    criteria = set()
    for folder in folders:
        criteria.add(Criterion.from_dict(check(folder, "scores").facts["criterion"]))
        arm, seed = folder.parts[-3], int(folder.parts[-2].removeprefix("seed"))
        for part, frames in pieces.items():
            frame = pd.read_parquet(folder / f"{part}.parquet")
            frames.append(pd.concat([pd.DataFrame({"arm": arm, "seed": seed}, index=frame.index), frame], axis=1))
    tables = {part: pd.concat(frames, ignore_index=True) for part, frames in pieces.items()}
    return Scores(**tables, criterion=_one(criteria, "scores"))


def rates(concepts: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Return the mean of a column over each seed's concepts, then over seeds with an interval, per group `by`.

    `concepts` has a column `seed` besides those of `score_concepts`; missing values are left out.
    """
    per_seed = concepts.groupby([*by, "seed"], sort=False)[column].mean()
    rows = []
    for group, values in per_seed.groupby(level=list(range(len(by))), sort=False):
        key = group if isinstance(group, tuple) else (group,)
        rows.append(dict(zip(by, key, strict=True)) | over_seeds(values.to_numpy())._asdict())
    return pd.DataFrame(rows)


def summary(scores: Scores) -> pd.DataFrame:
    """Return the benchmark's table in long form: arm, crosscoder, quantity, kind, frequency, rule, mean and interval.

    Shares of concepts are those of a kind, or of a kind and frequency; quantities of whole crosscoders have no kind.
    """
    concepts, crosscoders = scores.concepts, scores.crosscoders
    shares = [("found", "", concepts["found"])]
    for rule in RULES:
        called = concepts[f"chat_{rule}"].where(concepts["found"])
        shares += [("called chat-specific, of the found", rule, called)]
        shares += [("called right, of the found", rule, concepts[f"right_{rule}"])]
    pieces = []
    for quantity, rule, values in shares:
        counted = concepts.assign(share=values.astype(float))
        for by in (["kind"], ["kind", "frequency"]):
            piece = rates(counted, ["arm", "crosscoder", *by], "share")
            pieces.append(piece.assign(quantity=quantity, rule=rule))
    for column in crosscoders.columns.drop(["arm", "seed", "crosscoder"]):
        rule = next((rule for rule in (*RULES, "rank_sum") if column.endswith(f"_{rule}")), "")
        whole: dict[str, Any] = {"quantity": column.removesuffix(f"_{rule}"), "rule": rule}
        bounds = None if column.startswith(("called", "l0", "live", "fve", "dict_size")) else (0.0, 1.0)
        for (arm, crosscoder), values in crosscoders.groupby(["arm", "crosscoder"], sort=False)[column]:
            whole |= {"arm": arm, "crosscoder": crosscoder, **over_seeds(values.to_numpy(), bounds)._asdict()}
            pieces.append(pd.DataFrame([whole]))
    table = pd.concat(pieces, ignore_index=True)
    columns = ["arm", "crosscoder", "quantity", "rule", "kind", "frequency", "mean", "low", "high", "n"]
    return table.reindex(columns=columns).rename(columns={"n": "seeds"})
