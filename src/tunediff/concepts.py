"""Planted concepts: how well a single latent tells the tokens of a concept from all others, on validation tokens.

A latent that fires at every answer's onset separates the few onsets of one concept from all tokens almost perfectly,
whatever it is about. So onset concepts are also scored among the onsets of all answers alone (`auroc_among_onsets`),
and their best latent is the best of those.

The AUROC of a latent is exact, ties included, and is computed from the nonzeros of the code only: all tokens on which
the latent does not fire are tied at zero, so their mean rank is known without storing them.
"""

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from tunediff.activations import ActivationStore
from tunediff.artifacts import building, provenance, seal
from tunediff.crosscoder import Crosscoder
from tunediff.documents import ANSWER_ONSET, ONSET
from tunediff.latents import LatentTable
from tunediff.passes import counted_batches
from tunediff.tokens import TokenStore

POOLS = ("chat-specific", "all")
COLUMNS = {
    "concept": "str",
    "planted": "bool",
    "crosscoder": "str",
    "pool": "str",
    "latent": "int32",
    "rank": "float64",
    "auroc": "float64",
    "auroc_among_onsets": "float64",
    "precision": "float64",
    "recall": "float64",
    "n_positive": "int64",
    "nu_reconstruction": "float32",
    "nu_error": "float32",
    "norm_difference": "float32",
}


@dataclass(frozen=True)
class ConceptSettings:
    """Settings of the concept table."""

    batch_size: int = 2048  # tokens encoded at once
    min_positive: int = 10  # labelled validation tokens under which a concept is not scored
    max_tokens: int | None = None  # counted validation tokens used at most; memory is 20 bytes per nonzero of the code


class Firings(NamedTuple):
    """All nonzeros of the code on validation tokens."""

    token: NDArray[np.int32]  # position in the pass
    latent: NDArray[np.int32]
    value: NDArray[np.float32]
    label: NDArray[np.uint64]  # concepts of each token of the pass, one bit each


@torch.no_grad()
def collect(
    crosscoder: Crosscoder, store: ActivationStore, label: NDArray[np.uint64], settings: ConceptSettings, device: str
) -> Firings:
    """Return the nonzeros of one pass; `label` is indexed by the row of the token store."""
    tokens, latents, values, labels = [], [], [], []
    seen = 0
    for batch in counted_batches(store, settings.batch_size, device, "concepts", settings.max_tokens):
        code = crosscoder.encode(batch.activations)
        tokens.append((code.token + seen).cpu().numpy().astype(np.int32))
        latents.append(code.latent.cpu().numpy().astype(np.int32))
        values.append(code.value.float().cpu().numpy())
        labels.append(label[batch.row])
        seen += len(batch)
    if not tokens:
        return Firings(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint64))
    return Firings(*(np.concatenate(parts) for parts in (tokens, latents, values, labels)))


def restricted(firings: Firings, kept: NDArray[np.bool_]) -> Firings:
    """Return the nonzeros on the kept tokens only, renumbered."""
    number = (np.cumsum(kept) - 1).astype(np.int32)
    inside = kept[firings.token]
    token = number[firings.token[inside]]
    return Firings(token, firings.latent[inside], firings.value[inside], firings.label[kept])


class Scores(NamedTuple):
    """Scores of every latent for every concept, shape (concept, latent)."""

    auroc: NDArray[np.float64]
    precision: NDArray[np.float64]  # of the latent firing, as a detector of the concept
    recall: NDArray[np.float64]
    n_positive: NDArray[np.int64]  # per concept: labelled tokens


def score(firings: Firings, n_latents: int, n_concepts: int) -> Scores:
    """Return AUROC (Mann-Whitney, ties at half), precision and recall of all latents for all concepts.

    With N tokens, z of them without the latent and P positives, AUROC = (Σ_positive rank − P(P+1)/2) / (P(N−P)); the
    z zeros have rank (z+1)/2, and a nonzero has z plus its mean rank among the latent's nonzeros.
    """
    n_tokens = len(firings.label)
    order = np.lexsort((firings.value, firings.latent))
    latent, value = firings.latent[order], firings.value[order]
    label = firings.label[firings.token[order]]
    count = np.bincount(latent, minlength=n_latents)
    first = np.cumsum(count) - count
    # runs of equal value within a latent share their mean rank
    new = np.ones(len(latent), dtype=bool)
    new[1:] = (latent[1:] != latent[:-1]) | (value[1:] != value[:-1])
    run = np.cumsum(new) - 1
    run_start = np.flatnonzero(new)
    run_end = np.append(run_start[1:], len(latent))
    zeros = n_tokens - count
    rank = zeros[latent] + (run_start + run_end + 1)[run] / 2 - first[latent]
    shape = (n_concepts, n_latents)
    auroc, precision, recall = (np.full(shape, np.nan) for _ in range(3))
    n_positive = np.zeros(n_concepts, dtype=np.int64)
    for concept in range(n_concepts):
        bit = np.uint64(1 << concept)
        positives = int(np.count_nonzero(firings.label & bit))
        n_positive[concept] = positives
        if positives in (0, n_tokens):
            continue
        hit = (label & bit) != 0
        hits = np.bincount(latent[hit], minlength=n_latents)
        ranks = np.bincount(latent[hit], rank[hit], minlength=n_latents) + (positives - hits) * (zeros + 1) / 2
        auroc[concept] = (ranks - positives * (positives + 1) / 2) / (positives * (n_tokens - positives))
        precision[concept] = np.divide(hits, count, out=np.full(n_latents, np.nan), where=count > 0)
        recall[concept] = hits / positives
    return Scores(auroc, precision, recall, n_positive)


def best_latents(
    scores: Scores,
    among_onsets: Scores | None,
    table: LatentTable,
    crosscoder: str,
    concepts: Sequence[str],
    planted: AbstractSet[str],
    min_positive: int,
) -> pd.DataFrame:
    """Return the best latent per concept and pool, −1 where the pool or the concept has none.

    The best has the highest AUROC over all tokens; for an onset concept, among the onsets of all answers. Its `rank` is
    its place among the latents ordered by `rank_sum` of Latent Scaling (1 is the most chat-specific, ties averaged).
    """
    place = table.frame["rank_sum"].rank().to_numpy()
    pools = {"chat-specific": table.frame["chat_specific"].to_numpy(), "all": np.ones(len(table), dtype=bool)}
    rows = []
    for i, concept in enumerate(concepts):
        for pool in POOLS:
            row = {"concept": concept, "planted": concept in planted, "crosscoder": crosscoder, "pool": pool}
            row |= {"n_positive": int(scores.n_positive[i]), "latent": -1}
            among = among_onsets if concept.endswith(ONSET) and concept != ANSWER_ONSET else None
            ranking = scores.auroc[i] if among is None else among.auroc[i]
            auroc = np.where(pools[pool] & ~np.isnan(ranking), ranking, -1.0)
            if scores.n_positive[i] >= min_positive and auroc.max(initial=-1) >= 0:
                j = int(auroc.argmax())
                row |= {"latent": j, "rank": place[j], "auroc": scores.auroc[i, j]}
                row |= {"auroc_among_onsets": np.nan if among is None else among.auroc[i, j]}
                row |= {"precision": scores.precision[i, j], "recall": scores.recall[i, j]}
                row |= {
                    name: table.frame[name].iloc[j] for name in ("nu_reconstruction", "nu_error", "norm_difference")
                }
            rows.append(row)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(COLUMNS)


def concept_table(
    crosscoders: Mapping[str, Crosscoder],
    tables: Mapping[str, LatentTable],
    store: ActivationStore,
    tokens: TokenStore,
    planted: AbstractSet[str],
    settings: ConceptSettings,
    device: str = "cpu",
) -> pd.DataFrame:
    """Return concept × crosscoder × pool with the best latent; empty where the corpora carry no labels.

    `planted` names the concepts that only chat documents carry.
    """
    concepts = list(tokens.concepts)
    parts = [pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS.items()})]
    if concepts:
        label = np.asarray(tokens.label)
        for name, crosscoder in crosscoders.items():
            firings, size = collect(crosscoder, store, label, settings, device), (len(tables[name]), len(concepts))
            among_onsets = None
            if ANSWER_ONSET in concepts:
                onset = (firings.label & np.uint64(1 << concepts.index(ANSWER_ONSET))) != 0
                among_onsets = score(restricted(firings, onset), *size)
            found = best_latents(
                score(firings, *size), among_onsets, tables[name], name, concepts, planted, settings.min_positive
            )
            parts.append(found)
    return pd.concat(parts[1:] or parts, ignore_index=True)


def build_concepts(
    crosscoders: Mapping[str, Crosscoder],
    tables: Mapping[str, LatentTable],
    store: ActivationStore,
    tokens: TokenStore,
    planted: AbstractSet[str],
    settings: ConceptSettings,
    out: Path,
    *,
    key: str,
    device: str = "cpu",
) -> pd.DataFrame:
    """Score all concepts and write the table (kind `concepts`) at `out`."""
    started = time.time()
    frame = concept_table(crosscoders, tables, store, tokens, planted, settings, device)
    with building(out) as partial:
        frame.to_parquet(partial, index=False)
    facts = {"concepts": list(tokens.concepts), "planted": sorted(planted)}
    seal(out, "concepts", key, facts, provenance(started, device))
    return frame
