"""What another seed would have given: every latent's best match in the other seeds of its crosscoder.

The similarity of two latents is the cosine of their decoder directions of both models, concatenated and normalised as
one vector: normalised on its own, the noise of a chat-only latent's base direction would hide that it was found again.
"""

import time
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.table import STABLE_COSINE, LatentTable
from tunediff.pipeline.artifacts import provenance, write_frame
from tunediff.pipeline.progress import tracked

HUNGARIAN_LATENTS = 8192  # above, the assignment would take hours and more memory than the rest of the pipeline
BLOCK = 2048  # latents compared at once in a mutual-best matching
SCHEMA = {
    "crosscoder": "string",  # its name in the config
    "seed": "int32",
    "latent": "int32",
    "class_name": "string",
    "chat_specific": "bool",
    "other_seed": "int32",
    "match": "int32",  # latent of the other seed; −1 without one
    "cosine": "float32",  # of the match; NaN without one
    "match_class": "string",  # class of the match; empty without one
    "stable": "bool",  # matched with cosine ≥ 0.8 in every other seed: the same on all rows of a latent
}


class Matching(NamedTuple):
    """One-to-one matches of the latents of two dictionaries."""

    left: NDArray[np.int64]  # latents of the first, rising
    right: NDArray[np.int64]  # their matches in the second
    cosine: NDArray[np.float32]
    method: str  # how they were found, for a reader


def directions(crosscoder: Crosscoder) -> Float[Tensor, "latent model_d_model"]:
    """Return each latent's decoder directions of all streams as one vector of length 1 (0 for a decoder of zeros)."""
    weight = crosscoder.decoder_weight.flatten(1)
    return torch.nn.functional.normalize(weight, dim=1, eps=1e-30)


def _best(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cosine of each left row with its best right row, that row, and the best left row of each right row.

    `BLOCK` left rows are compared at a time.
    """
    cosine, forth = left.new_empty(len(left)), torch.empty(len(left), dtype=torch.int64, device=left.device)
    highest = right.new_full((len(right),), -torch.inf)
    back = torch.zeros(len(right), dtype=torch.int64, device=right.device)
    for first in range(0, len(left), BLOCK):
        similarity = left[first : first + BLOCK] @ right.T
        cosine[first : first + BLOCK], forth[first : first + BLOCK] = similarity.max(dim=1)
        values, rows = similarity.max(dim=0)
        better = values > highest
        highest = torch.where(better, values, highest)
        back = torch.where(better, rows + first, back)
    return cosine, forth, back


def match(
    left: Float[Tensor, "latent width"], right: Float[Tensor, "other width"], limit: int = HUNGARIAN_LATENTS
) -> Matching:
    """Match rows of length 1 one to one, so that the cosines add up to the most (Hungarian assignment).

    Of more than `limit` latents only pairs are matched of which each is the other's best. Where directions are nearly
    orthogonal these hold every match with a cosine above 1/√2; the others would not be stable anyway.
    """
    if not len(left) or not len(right):
        none = np.zeros(0, dtype=np.int64)
        return Matching(none, none, np.zeros(0, dtype=np.float32), "nothing to match")
    if max(len(left), len(right)) <= limit:
        similarity = (left @ right.T).cpu().numpy()
        rows, columns = linear_sum_assignment(similarity, maximize=True)
        return Matching(rows, columns, similarity[rows, columns], "Hungarian assignment")
    cosine, forth, back = _best(left, right)
    mutual = back[forth] == torch.arange(len(left), device=left.device)
    return Matching(
        mutual.nonzero().squeeze(1).cpu().numpy(),
        forth[mutual].cpu().numpy(),
        cosine[mutual].cpu().numpy(),
        f"mutual best (more than {limit} latents: the time of an assignment grows with their third power)",
    )


def matches(
    rows: Mapping[int, Float[Tensor, "latent width"]], tables: Mapping[int, LatentTable], limit: int = HUNGARIAN_LATENTS
) -> tuple[pd.DataFrame, list[str]]:
    """Return the match of every latent of every seed in every other seed, and how matches were found.

    `rows` are the `directions` per seed. Dead latents are not matched: theirs are still near those of initialisation.
    """
    live = {seed: np.flatnonzero(~table.frame["dead"].to_numpy()) for seed, table in tables.items()}
    pieces: list[pd.DataFrame] = []
    methods: list[str] = []
    for pair in combinations(rows, 2):
        left, right = (rows[seed][torch.from_numpy(live[seed])] for seed in pair)
        found = match(left, right, limit)
        methods.append(found.method)
        ends = [live[seed][side] for seed, side in zip(pair, (found.left, found.right), strict=True)]
        for i, seed in enumerate(pair):
            frame, other = tables[seed].frame, tables[pair[1 - i]].frame
            matched = np.full(len(frame), -1, dtype=np.int64)
            cosine = np.full(len(frame), np.nan, dtype=np.float32)
            matched[ends[i]], cosine[ends[i]] = ends[1 - i], found.cosine
            classes = other["class_name"].to_numpy(dtype=object)[matched]
            piece = frame[["latent", "class_name", "chat_specific"]].assign(seed=seed, other_seed=pair[1 - i])
            pieces.append(piece.assign(match=matched, cosine=cosine, match_class=np.where(matched < 0, "", classes)))
    if not pieces:
        return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in SCHEMA.items()}), []
    result = pd.concat(pieces, ignore_index=True)
    result["stable"] = (result["cosine"] >= STABLE_COSINE).groupby([result["seed"], result["latent"]]).transform("all")
    return result.sort_values(["seed", "latent", "other_seed"], ignore_index=True), list(dict.fromkeys(methods))


def build_matches(
    tables: Mapping[str, Mapping[int, LatentTable]],
    rows: Callable[[str], Mapping[int, Float[Tensor, "latent width"]]],
    out: Path,
    *,
    key: str,
    limit: int = HUNGARIAN_LATENTS,
) -> pd.DataFrame:
    """Match the seeds of every crosscoder and write the matches (kind `matches`) at `out`.

    `tables` holds the latent table per crosscoder (its name in the config) and seed. `rows` returns the `directions` of
    a crosscoder per seed: those of one crosscoder are in memory at a time.
    """
    started = time.time()
    pieces, methods = [], {}
    for name, own in tracked(tables.items(), "seeds", "crosscoder"):
        frame, methods[name] = matches(rows(name), own, limit)
        pieces.append(frame.assign(crosscoder=name))
    result = pd.concat(pieces, ignore_index=True)[list(SCHEMA)].astype(SCHEMA)
    result.attrs["stable_cosine"] = STABLE_COSINE  # travels in the file
    facts = {
        "seeds": {name: sorted(own) for name, own in tables.items()},
        "methods": methods,
        "similarity": "cosine of the concatenated decoder directions (base, chat), normalised as one vector",
        "stable": f"cosine ≥ {STABLE_COSINE} with the match in every other seed",
        "left_out": "dead latents",
    }
    write_frame(result, out, "matches", key, facts, provenance(started))
    return result
