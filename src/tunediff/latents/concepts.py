"""Labelled concepts: how well a single latent tells the tokens of a concept from others, on validation tokens.

A latent that fires at every answer's onset separates the few onsets of one concept from all tokens almost perfectly, so
a concept is also scored *among* the tokens it must be told from. A latent is chosen on one half of the documents and
scored on the other, and stands for one concept only. The control repeats the choice in pools of the same size whose
latents fire as often on chats but are not chat-specific; there a latent may serve several concepts, which favours the
control (method.md section 6).
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from tunediff.data.activations import ActivationStore
from tunediff.data.documents import ANSWER_ONSET, ONSET
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.passes import encoded_batches
from tunediff.latents.scaling import document_block
from tunediff.latents.table import LatentTable
from tunediff.pipeline.artifacts import provenance, write_frame

CHAT_SPECIFIC, ALL_LATENTS = "chat-specific", "all"  # pools that a concept's latent is chosen from
ALL_TOKENS = "all tokens"  # in column `among`
THRESHOLDS = {
    "detected_auroc": 0.9,  # from which a latent detects a concept
    "detected_share": 0.05,  # of the control's draws that may do as well
}
BINS_PER_DECADE = 10  # of firing frequency on chats, within which the control is matched
CANDIDATES_PER_LATENT = 2  # in a bin, or the control's draws would hardly differ
COLUMNS = {
    "concept": "str",
    "chat_concept": "bool",  # only chat documents carry it
    "among": "str",  # `ALL_TOKENS`, or the concept whose tokens `auroc_among` is measured on
    "crosscoder": "str",
    "pool": "str",
    "scored": "bool",  # both halves have enough labelled tokens
    "n_positive_choosing": "int64",
    "n_positive_scoring": "int64",
    "latent": "int32",  # assigned one-to-one; −1: none
    "rank": "float64",  # of the assigned latent among all live ones by rank_sum
    "n_live": "int64",
    "auroc": "float64",
    "auroc_among": "float64",
    "precision": "float64",
    "recall": "float64",
    "best_latent": "int32",  # without the one-to-one rule; −1: none
    "best_serves": "int64",  # concepts of the same pool with the same best latent
    "best_auroc": "float64",
    "best_auroc_among": "float64",
    "n_pool": "int64",  # latents in the pool
    "n_matched": "int64",  # of them, matched by the control within their own bin of frequency
    "control_median": "float64",  # of the control draws' `best_auroc_among`
    "control_high": "float64",  # 95th percentile
    "control_share": "float64",  # of the draws whose best latent reaches `auroc_among`
    "best_control_share": "float64",  # … reaches `best_auroc_among`
    "nu_reconstruction": "float32",
    "nu_error": "float32",
    "norm_difference": "float32",
}


@dataclass(frozen=True)
class ConceptSettings:
    """Settings of the concept table."""

    batch_size: int = 2048  # tokens encoded at once
    min_positive: int = 10  # labelled tokens, in each half, under which a concept is not scored
    max_tokens: int | None = 1 << 18  # counted validation tokens used; 12 bytes are kept per nonzero of the code
    control_draws: int = 500  # pools of latents that are not chat-specific
    seed: int = 0  # of the control's draws


class Firings(NamedTuple):
    """All nonzeros of the code on validation tokens, and what is known of each token of the pass."""

    token: NDArray[np.int32]  # position in the pass
    latent: NDArray[np.int32]
    value: NDArray[np.float32]
    label: NDArray[np.uint64]  # per token: its concepts, one bit each
    scoring: NDArray[np.bool_]  # per token: its document is in the half that scores, not in the one that chooses
    chat: NDArray[np.bool_]  # per token: its source is of chats


@torch.no_grad()
def collect(
    crosscoder: Crosscoder, store: ActivationStore, tokens: TokenStore, settings: ConceptSettings, device: str
) -> Firings:
    """Return the nonzeros of one pass over the counted tokens."""
    label = np.asarray(tokens.label)
    of_chats = np.array([kind == "chat" for kind in tokens.attributes["kinds"]])
    parts: list[tuple[NDArray, ...]] = [tuple(np.zeros(0, dtype) for dtype in ("i4", "i4", "f4", "u8", "?", "?"))]
    seen = 0
    batches = encoded_batches(crosscoder, store, settings.batch_size, device, "concepts", settings.max_tokens)
    for batch, code in batches:
        token, latent, value = (code.token + seen).int(), code.latent.int(), code.value.float()
        nonzeros = [each.cpu().numpy() for each in (token, latent, value)]
        parts.append((*nonzeros, label[batch.row], document_block(batch.doc, 2) == 1, of_chats[batch.source]))
        seen += len(batch.row)
    return Firings(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def restricted(firings: Firings, kept: NDArray[np.bool_]) -> Firings:
    """Return the nonzeros on the kept tokens only, renumbered."""
    number = (np.cumsum(kept) - 1).astype(np.int32)
    inside = kept[firings.token]
    nonzeros = number[firings.token[inside]], firings.latent[inside], firings.value[inside]
    return Firings(*nonzeros, firings.label[kept], firings.scoring[kept], firings.chat[kept])


class Scores(NamedTuple):
    """Scores of every latent for some concepts, shape (concept, latent)."""

    auroc: NDArray[np.float64]
    precision: NDArray[np.float64]  # of the latent firing, as a detector of the concept
    recall: NDArray[np.float64]
    n_positive: NDArray[np.int64]  # per concept: labelled tokens


def ranked(
    firings: Firings, zeros: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.uint64], NDArray[np.float64]]:
    """Return (latent, label of the token, rank) of the nonzeros among all tokens of their latent, ties averaged.

    `zeros` counts the tokens without each latent, which rank below.
    """
    order = np.lexsort((firings.value, firings.latent))
    latent, value = firings.latent[order], firings.value[order]
    label = firings.label[firings.token[order]]
    # runs of equal value within a latent share their mean rank
    new = np.ones(len(latent), dtype=bool)
    new[1:] = (latent[1:] != latent[:-1]) | (value[1:] != value[:-1])
    start = np.flatnonzero(new)
    end = np.append(start[1:], len(latent))
    count = len(firings.label) - zeros
    before = np.cumsum(count) - count  # nonzeros of earlier latents
    mean = (start + end + 1) / 2 + (zeros - before)[latent[start]]
    return latent, label, np.repeat(mean, end - start)


def score(firings: Firings, n_latents: int, concepts: Sequence[int]) -> Scores:
    """Return AUROC (Mann-Whitney, ties at half), precision and recall of all latents for the concepts of these bits.

    With N tokens, z of them without the latent and P positives, AUROC = (Σ_positive rank − P(P+1)/2) / (P(N−P)); the
    z zeros have rank (z+1)/2, and a nonzero has z plus its mean rank among the latent's nonzeros.
    """
    n_tokens = len(firings.label)
    count = np.bincount(firings.latent, minlength=n_latents)
    zeros = n_tokens - count
    latent, label, rank = ranked(firings, zeros)
    auroc, precision, recall = (np.full((len(concepts), n_latents), np.nan) for _ in range(3))
    n_positive = np.zeros(len(concepts), dtype=np.int64)
    for i, concept in enumerate(concepts):
        bit = np.uint64(1 << concept)
        positives = int(np.count_nonzero(firings.label & bit))
        n_positive[i] = positives
        if positives in (0, n_tokens):
            continue
        hit = (label & bit) != 0
        hits = np.bincount(latent[hit], minlength=n_latents)
        ranks = np.bincount(latent[hit], rank[hit], minlength=n_latents) + (positives - hits) * (zeros + 1) / 2
        auroc[i] = (ranks - positives * (positives + 1) / 2) / (positives * (n_tokens - positives))
        precision[i] = np.divide(hits, count, out=np.full(n_latents, np.nan), where=count > 0)
        recall[i] = hits / positives
    return Scores(auroc, precision, recall, n_positive)


def compared_with(concepts: Sequence[str], kind_of: Mapping[str, str]) -> list[str]:
    """Return for each concept among which tokens it is scored: those of another concept, or `ALL_TOKENS`."""
    among = []
    for concept in concepts:
        if kind_of.get(concept) in concepts:
            among.append(kind_of[concept])
        elif concept.endswith(ONSET) and concept != ANSWER_ONSET and ANSWER_ONSET in concepts:
            among.append(ANSWER_ONSET)
        else:
            among.append(ALL_TOKENS)
    return among


def score_among(
    firings: Firings, every: Scores, concepts: Sequence[str], among: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each concept's AUROC (concept, latent) among the tokens it is compared with, and its positives there.

    `every` holds the scores among all tokens.
    """
    auroc, n_positive = every.auroc.copy(), every.n_positive.copy()
    for other in dict.fromkeys(among):
        if other != ALL_TOKENS:
            own = [i for i, name in enumerate(among) if name == other]
            bit = np.uint64(1 << concepts.index(other))
            inside = score(restricted(firings, (firings.label & bit) != 0), auroc.shape[1], own)
            auroc[own], n_positive[own] = inside.auroc, inside.n_positive
    return auroc, n_positive


def assign(auroc: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each concept (row) a latent (column) of its own, −1 where there are too few: the largest Σ AUROC.

    Of equally good latents that are free, a concept has the earliest.
    """
    rows, columns = linear_sum_assignment(auroc, maximize=True)
    chosen = np.full(len(auroc), -1, dtype=np.int64)
    chosen[rows] = columns
    moved = True
    while moved:
        moved = False
        for row in rows:
            equal = auroc[row] == auroc[row, chosen[row]]
            equal[np.delete(chosen[rows], np.searchsorted(rows, row))] = False
            earliest = int(equal.argmax())
            moved |= earliest != chosen[row]
            chosen[row] = earliest
    return chosen


def live_rank(rank_sum: NDArray[np.floating], live: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each live latent's place by `rank_sum` (1 is the most chat-specific, ties averaged), NaN for dead ones.

    Live latents without a `rank_sum` come last, tied at the mean of the remaining places.
    """
    place = np.full(len(rank_sum), np.nan)
    place[live] = rankdata(np.where(np.isnan(rank_sum), np.inf, rank_sum)[live])
    return place


def matched_draws(
    chat_count: NDArray[np.integer], pool: NDArray[np.bool_], candidates: NDArray[np.bool_], n_draws: int, seed: int
) -> tuple[NDArray[np.int64], int]:
    """Return pools of candidates, shape (draw, latent), that fire on chats as often as the latents of `pool`.

    `chat_count` is the number of chat tokens that each latent fires on. Each latent of the pool is matched with a
    random candidate of its bin of log frequency, without replacement within a draw. A bin with too few candidates is
    joined with the nearest bins; the second result counts the latents of bins that were not. No draw is possible, and
    the result is empty, where there are fewer candidates than latents in the pool.
    """
    if not pool.any() or candidates.sum() < pool.sum():
        return np.zeros((0, int(pool.sum())), dtype=np.int64), 0
    # a latent that never fires on chats has a bin of its own, below a single firing
    place = np.floor(BINS_PER_DECADE * np.log10(np.maximum(chat_count, 0.5))).astype(np.int64)
    needed, found = Counter(place[pool].tolist()), Counter(place[candidates].tolist())
    groups = [[b] for b in sorted(needed | found)]

    def count(counter: Counter[int], group: list[int]) -> int:
        return sum(counter[b] for b in group)

    while len(groups) > 1:
        few = [i for i, g in enumerate(groups) if count(found, g) < CANDIDATES_PER_LATENT * count(needed, g)]
        if not few:
            break
        gaps = [np.inf, *(right[0] - left[-1] for left, right in pairwise(groups)), np.inf]  # beside each group
        low = few[0] - 1 if gaps[few[0]] <= gaps[few[0] + 1] else few[0]
        groups[low : low + 2] = [groups[low] + groups[low + 1]]
    generator = np.random.default_rng(seed)
    drawn = []
    for group in groups:
        inside, n = np.flatnonzero(candidates & np.isin(place, group)), count(needed, group)
        drawn.append(np.array([generator.choice(inside, n, replace=False) for _ in range(n_draws)]))
    in_own_bin = sum(count(needed, group) for group in groups if len(group) == 1)
    return np.sort(np.concatenate(drawn, axis=1), axis=1), in_own_bin


def control_auroc(
    choosing: NDArray[np.float64], scoring: NDArray[np.float64], draws: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the AUROC on the scoring half of each draw's best latent on the choosing half, for one concept."""
    best = choosing[draws].argmax(axis=1)
    return scoring[draws[np.arange(len(draws)), best]]


def _at(latents: NDArray[np.int64], values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return each concept's value (concept or 1, latent) of its latent, NaN where it is −1."""
    rows = np.broadcast_to(values, (len(latents), values.shape[1]))
    return np.where(latents >= 0, rows[np.arange(len(latents)), latents], np.nan)


def best_latents(
    firings: Firings,
    table: LatentTable,
    crosscoder: str,
    concepts: Sequence[str],
    chat_concepts: AbstractSet[str],
    kind_of: Mapping[str, str],
    settings: ConceptSettings,
) -> pd.DataFrame:
    """Return concept × pool with the latent that stands for the concept, for one crosscoder (columns `COLUMNS`).

    A latent is chosen by its AUROC among the tokens that the concept is compared with, on the choosing half. A concept
    with fewer than `min_positive` labelled tokens in either half is a row without a latent.
    """
    n, among = len(table), compared_with(concepts, kind_of)
    every_bit = range(len(concepts))
    half = restricted(firings, ~firings.scoring)
    choosing, n_choosing = score_among(half, score(half, n, every_bit), concepts, among)
    half = restricted(firings, firings.scoring)
    every = score(half, n, every_bit)
    scoring, n_scoring = score_among(half, every, concepts, among)
    scored = (np.minimum(n_choosing, n_scoring) >= settings.min_positive) & ~np.isnan(
        choosing[:, 0] + scoring[:, 0] + every.auroc[:, 0]
    )
    frame = table.frame
    live = ~frame["dead"].to_numpy()
    specific = frame["chat_specific"].to_numpy()
    chat_count = np.bincount(firings.latent[firings.chat[firings.token]], minlength=n)
    draws, n_matched = matched_draws(
        chat_count, live & specific, live & ~specific, settings.control_draws, settings.seed
    )
    place = live_rank(frame["rank_sum"].to_numpy(), live)
    parts = []
    for pool, members in ((CHAT_SPECIFIC, np.flatnonzero(live & specific)), (ALL_LATENTS, np.flatnonzero(live))):
        assigned, best = (np.full(len(concepts), -1, dtype=np.int64) for _ in range(2))
        if scored.any() and len(members):
            inside = choosing[np.ix_(scored, members)]
            own = assign(inside)
            assigned[scored] = np.where(own >= 0, members[own], -1)
            best[scored] = members[inside.argmax(axis=1)]
        part: dict[str, Any] = {"concept": concepts, "chat_concept": [name in chat_concepts for name in concepts]}
        part |= {"among": among, "crosscoder": crosscoder, "pool": pool, "scored": scored}
        part |= {"n_positive_choosing": n_choosing, "n_positive_scoring": n_scoring, "n_live": live.sum()}
        part |= {"n_pool": len(members), "n_matched": n_matched if pool == CHAT_SPECIFIC else 0}
        part |= {"latent": assigned, "auroc": _at(assigned, every.auroc), "auroc_among": _at(assigned, scoring)}
        part |= {"precision": _at(assigned, every.precision), "recall": _at(assigned, every.recall)}
        for name in ("nu_reconstruction", "nu_error", "norm_difference"):
            part[name] = _at(assigned, frame[name].to_numpy()[None])
        part |= {"rank": _at(assigned, place[None]), "best_latent": best, "best_auroc": _at(best, every.auroc)}
        part |= {
            "best_serves": [(best == j).sum() if j >= 0 else 0 for j in best],
            "best_auroc_among": _at(best, scoring),
        }
        if pool == CHAT_SPECIFIC and len(draws):
            control = np.stack([control_auroc(*of, draws) for of in zip(choosing, scoring, strict=True)], axis=1)
            median, high = np.median(control, axis=0), np.quantile(control, 0.95, axis=0)
            part |= {
                "control_median": np.where(best >= 0, median, np.nan),
                "control_high": np.where(best >= 0, high, np.nan),
            }
            for name, latents in (("control_share", assigned), ("best_control_share", best)):
                reached = np.mean(control >= _at(latents, scoring), axis=0)
                part[name] = np.where(latents >= 0, reached, np.nan)
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True).reindex(columns=list(COLUMNS)).astype(COLUMNS)


class Detection(NamedTuple):
    """How many chat concepts a dictionary's chat-specific latents detect at the onset of an answer."""

    n_detected: int
    n_scored: int
    names: tuple[str, ...]  # of the detected concepts, without `ONSET`


def detected(table: pd.DataFrame) -> dict[str, Detection]:
    """Return per crosscoder which chat concepts are detected at their onset; `table` is concepts.parquet.

    A concept is detected where its assigned chat-specific latent has at least the table's `detected_auroc` on the
    scoring half, both among all validation tokens and among the onsets it is compared with, and at most its
    `detected_share` of the control's draws reach the latter (there must be a control). Counted are the onsets that are
    compared with other onsets and have enough labelled tokens; a crosscoder without any is left out.
    """
    onsets = table[
        (table["pool"] == CHAT_SPECIFIC) & table["chat_concept"] & table["scored"] & table["among"].str.endswith(ONSET)
    ]
    result = {}
    for name, own in onsets.groupby("crosscoder", sort=False):
        reached = own[["auroc", "auroc_among"]].min(axis=1) >= table.attrs["detected_auroc"]
        good = own[reached & (own["control_share"] <= table.attrs["detected_share"])]
        names = tuple(sorted(good["concept"].str.removesuffix(ONSET)))
        result[str(name)] = Detection(len(good), len(own), names)
    return result


def build_concepts(
    crosscoders: Mapping[str, Crosscoder],
    tables: Mapping[str, LatentTable],
    store: ActivationStore,
    tokens: TokenStore,
    chat_concepts: AbstractSet[str],
    kind_of: Mapping[str, str],
    settings: ConceptSettings,
    out: Path,
    *,
    key: str,
    device: str = "cpu",
) -> pd.DataFrame:
    """Score concept × crosscoder × pool as `best_latents`; write the table (kind `concepts`) at `out`.

    It is empty where the corpora carry no labels. `chat_concepts` names the concepts that only chat documents carry;
    `kind_of` maps a kind to the concept it is of.
    """
    started = time.time()
    concepts = list(tokens.concepts)
    parts = []
    for name, crosscoder in crosscoders.items() if concepts else ():
        firings = collect(crosscoder, store, tokens, settings, device)
        parts.append(best_latents(firings, tables[name], name, concepts, chat_concepts, kind_of, settings))
    empty = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS.items()})
    frame = pd.concat(parts or [empty], ignore_index=True)
    frame.attrs |= THRESHOLDS  # travel in the file
    facts = {"chat_concepts": sorted(chat_concepts), "kind_of": dict(kind_of), "settings": asdict(settings)}
    write_frame(frame, out, "concepts", key, {"concepts": concepts, **facts}, provenance(started, device))
    return frame
