"""The truth test: token and activation stores of a pair whose latents are known.

A *concept* is a planted latent: it fires on some tokens with a strength f and adds f · d^m to the residual of model m.
What the two models share of it is its kind (`KINDS`). Stores are the ordinary ones, so every later stage runs on them.
Dimension names: concept (planted), token, model (2: base, chat), d_model.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import norm

from tunediff.config.planted import PlantedArm
from tunediff.config.settings import HarvestSettings
from tunediff.data.activations import MODELS, chunk_checksums, to_stored
from tunediff.data.harvest import create_part
from tunediff.data.masks import Mask
from tunediff.data.rendering import MAX_CONCEPTS, Encoding
from tunediff.data.sampling import write_store
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode, above_threshold
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import building, provenance, seal

KINDS = ("chat-only", "base-only", "shared", "weaker", "amplified", "rotated", "decoupled", "part")
SPLITS = ("train", "validation")
SOURCES = ("web", "chat")  # documents take turns; they differ in their masks only
BASE, CHAT = 0, 1

BOS_NORM = 30.0  # of the outlier at the first position of each document: left out by all that counts
HEADER = 3  # template tokens before each of a chat document's two turns


@dataclass(frozen=True)
class PlantedPair:
    """The concepts of one pair.

    `concepts` has one row per concept: kind, frequency (of a part: without its owner), factor (base over chat along the
    chat direction; NaN for parts), owner (of a part: the decoupled concept it fires with; else -1), weight (of a part:
    its strength over the owner's there; NaN where it has one of its own), parent (-1: none), group.
    """

    settings: PlantedArm
    concepts: pd.DataFrame
    decoder: Float[np.ndarray, "concept model d_model"]  # float64

    @property
    def names(self) -> list[str]:
        """One name per concept, such as chat-only-003."""
        return [f"{kind}-{number:03d}" for number, kind in enumerate(self.concepts["kind"])]

    @property
    def l0(self) -> float:
        """Expected number of concepts per token."""
        concepts = self.concepts
        owned = concepts["owner"].to_numpy() >= 0
        frequency = concepts["frequency"].to_numpy()
        owner = frequency[concepts["owner"].to_numpy()]
        return float(np.where(owned, owner + frequency - owner * frequency, frequency).sum())

    def second_moments(self) -> Float[np.ndarray, "concept concept"]:
        """Return E[f_i f_j] per counted token in closed form, for pairs without groups and hierarchy."""
        if self.settings.correlation or (self.concepts["parent"] >= 0).any():
            raise ValueError("there is no closed form with correlation or hierarchy")
        owner = self.concepts["owner"].to_numpy()
        weight = self.concepts["weight"].to_numpy()
        p = self.concepts["frequency"].to_numpy()
        part = owner >= 0
        own = part & np.isnan(weight)
        square = np.exp(self.settings.tail**2)  # E[strength²], the mean being 1
        there = np.where(own, 1.0, weight)  # mean strength of a part on its owner's tokens
        there_square = np.where(own, 1.0, weight**2) * square
        alone = np.where(part, (1 - p[owner]) * p, p)
        mean = alone + np.where(part, p[owner] * there, 0.0)
        moments = np.outer(mean, mean)
        for i in np.flatnonzero(part):
            o = owner[i]
            moments[i, o] = moments[o, i] = p[o] * (1.0 if own[i] else weight[i] * square)
            for j in np.flatnonzero(owner == o):
                moments[i, j] = p[o] * weight[i] * weight[j] * square + (1 - p[o]) * p[i] * p[j]
        np.fill_diagonal(moments, alone * square + np.where(part, p[owner] * there_square, 0.0))
        return moments

    def true_nu(self) -> dict[str, Float[np.ndarray, "concept"]]:
        """Return ν^ε and ν^r of a crosscoder whose code and decoder are the planted ones (method.md section 4).

        Noise is independent of the code, so it adds nothing to β in expectation. NaN (parts) where chat has none.
        """
        u = self.decoder[:, CHAT]
        gram = np.einsum("imd,jd->mij", self.decoder, u)
        moments = self.second_moments()
        own = np.einsum("mjj->mj", gram)
        with np.errstate(divide="ignore", invalid="ignore"):
            written = np.einsum("ij,mij->mj", moments, gram)
            return {"error": own[BASE] / own[CHAT], "reconstruction": written[BASE] / written[CHAT]}


def _unit(rng: np.random.Generator, count: int, d_model: int) -> NDArray[np.float64]:
    drawn = rng.standard_normal((count, d_model))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def plant(settings: PlantedArm, seed: int) -> PlantedPair:
    """Draw the concepts of a pair: kinds in the order of `KINDS`, directions uniform on the sphere."""
    rng = np.random.default_rng([seed, 0])
    d = settings.d_model
    rows: list[dict[str, Any]] = []
    decoder: list[NDArray[np.float64]] = []
    counts = {kind: getattr(settings, kind.replace("-", "_")) for kind in KINDS if kind != "part"}
    for kind, count in counts.items():
        frequencies = settings.shared_frequency if kind == "shared" else settings.frequency
        for i, u in enumerate(_unit(rng, count, d)):
            turn = i // len(frequencies)  # every frequency meets every factor
            row = {"kind": kind, "frequency": frequencies[i % len(frequencies)], "owner": -1, "weight": np.nan}
            base, chat, factor = u, u, 1.0
            if kind == "chat-only" or kind == "decoupled":
                base, factor = np.zeros(d), 0.0 if kind == "chat-only" else 1.0
            elif kind == "base-only":
                chat, factor = np.zeros(d), np.inf
            elif kind == "weaker":
                factor = settings.weaker_factors[turn % len(settings.weaker_factors)]
                base = factor * u
            elif kind == "amplified":
                chat, factor = settings.amplified_factor * u, 1 / settings.amplified_factor
            elif kind == "rotated":
                aside = _unit(rng, 1, d)[0]
                aside -= (aside @ u) * u
                factor = settings.rotated_cosine
                base = factor * u + np.sqrt(1 - factor**2) * aside / np.linalg.norm(aside)
            rows.append({**row, "factor": factor})
            decoder.append(np.stack([base, chat]))
    for number, owner in enumerate([i for i, row in enumerate(rows) if row["kind"] == "decoupled"]):
        turn = number // len(settings.frequency)
        n_parts = settings.decoupled_parts[turn % len(settings.decoupled_parts)]
        parts = decoder[owner][CHAT][None] if n_parts == 1 else _unit(rng, n_parts, d)
        total = parts.sum(axis=0)
        decoder[owner] = np.stack([np.zeros(d), total / np.linalg.norm(total)])
        # Several parts of strength f · weight add up to f · d^chat of the owner; a single one has its own strength.
        weight = 1 / np.linalg.norm(total) if n_parts > 1 else np.nan
        for part in parts:
            alone = settings.decoupled_alone * rows[owner]["frequency"]
            part_row = {"kind": "part", "frequency": alone, "owner": owner, "weight": weight, "factor": np.nan}
            rows.append(rows[owner] | part_row)
            decoder.append(np.stack([part, np.zeros(d)]))
    concepts = pd.DataFrame(rows)
    return PlantedPair(settings, _related(concepts, settings, rng), np.array(decoder))


def _related(concepts: pd.DataFrame, settings: PlantedArm, rng: np.random.Generator) -> pd.DataFrame:
    """Add parents and co-firing groups."""
    n = len(concepts)
    parent = np.full(n, -1)
    frequency = concepts["frequency"].to_numpy()
    shared = (concepts["kind"] == "shared").to_numpy()
    highest = frequency[shared].max(initial=0.0)
    possible = np.flatnonzero(shared & (frequency == highest))
    free = (concepts["kind"] != "part").to_numpy() & (frequency < highest)
    children = rng.permutation(np.flatnonzero(free))[: round(settings.hierarchy * int(free.sum()))]
    if settings.hierarchy and not len(children):
        raise TunediffError("planted.hierarchy: no concept is rarer than a shared one; raise shared_frequency")
    parent[children] = rng.choice(possible, len(children))
    group = rng.permutation(n) // settings.group_size
    return concepts.assign(parent=parent, group=group)


class Sample(NamedTuple):
    """Tokens of a planted pair, in the order of documents."""

    strength: Float[np.ndarray, "token concept"]  # float32, 0 where a concept does not fire
    activations: Float[np.ndarray, "token model d_model"]  # float32


def sample(pair: PlantedPair, n_tokens: int, seed: Sequence[int]) -> Sample:
    """Draw tokens, a pure function of the arguments; the first of each document is BOS.

    Gates are thresholded normals with a share of the document and one of the group, so that frequencies hold exactly.
    """
    s, concepts, n_concepts = pair.settings, pair.concepts, len(pair.concepts)
    rng = np.random.default_rng(list(seed))
    if n_tokens % s.document_tokens:
        raise TunediffError(f"planted: {n_tokens} tokens are not whole documents of {s.document_tokens}; correct it")
    n_documents = n_tokens // s.document_tokens
    doc = np.repeat(np.arange(n_documents), s.document_tokens)
    own = 1 - s.burstiness - s.correlation
    gate = np.sqrt(own) * rng.standard_normal((n_tokens, n_concepts), dtype=np.float32)
    gate += np.sqrt(s.burstiness) * rng.standard_normal((n_documents, n_concepts), dtype=np.float32)[doc]
    if s.correlation:
        group = concepts["group"].to_numpy()
        gate += np.sqrt(s.correlation) * rng.standard_normal((n_tokens, group.max() + 1), dtype=np.float32)[:, group]
    frequency, parent = concepts["frequency"].to_numpy(), concepts["parent"].to_numpy()
    given = np.where(parent >= 0, frequency / frequency[parent], frequency)
    fires = gate > norm.isf(given).astype(np.float32)
    for child in np.flatnonzero(parent >= 0):
        fires[:, child] &= fires[:, parent[child]]
    fires[:: s.document_tokens] = False
    for part in np.flatnonzero(concepts["owner"] >= 0):
        fires[:, part] |= fires[:, concepts["owner"][part]]

    token, concept = np.nonzero(fires)
    of_document = rng.standard_normal((n_documents, n_concepts))[doc[token], concept]
    logarithm = np.sqrt(s.burstiness) * of_document + np.sqrt(1 - s.burstiness) * rng.standard_normal(len(token))
    strength = np.zeros((n_tokens, n_concepts), dtype=np.float32)
    strength[token, concept] = np.exp(s.tail * logarithm - 0.5 * s.tail**2)
    for part in np.flatnonzero(concepts["weight"].notna()):
        owned = strength[:, concepts["owner"][part]]
        strength[:, part] = np.where(owned > 0, owned * concepts["weight"][part], strength[:, part])

    activations = strength @ pair.decoder.reshape(n_concepts, -1).astype(np.float32)
    activations = activations.reshape(n_tokens, 2, s.d_model)
    activations += s.noise * rng.standard_normal(activations.shape, dtype=np.float32)
    activations += s.document_noise * rng.standard_normal((n_documents, 2, s.d_model), dtype=np.float32)[doc]
    outlier = np.random.default_rng([len(concepts), s.d_model]).standard_normal(s.d_model)
    activations[:: s.document_tokens] = BOS_NORM * outlier / np.linalg.norm(outlier)
    return Sample(strength, activations)


# -- stores ------------------------------------------------------------------------------------------------------------


def _parts(pair: PlantedPair, split: str, n_tokens: int, layout: HarvestSettings, seed: int) -> Iterator[Sample]:
    for part, start in enumerate(range(0, n_tokens, layout.part_tokens)):
        yield sample(pair, min(layout.part_tokens, n_tokens - start), [seed, 1 + SPLITS.index(split), part])


def strengths(
    pair: PlantedPair, split: str, n_tokens: int, layout: HarvestSettings, seed: int
) -> Float[np.ndarray, "token concept"]:
    """Return when and how strongly each concept fires, in the order of the token store."""
    return np.concatenate([part.strength for part in _parts(pair, split, n_tokens, layout, seed)])


def _masks(document_tokens: int) -> dict[str, NDArray[np.uint8]]:
    """Return the mask of a document of each source: BOS, then nothing, or two turns with template headers."""
    web, chat = (np.zeros(document_tokens, dtype=np.uint8) for _ in range(2))
    half = document_tokens // 2
    chat[1:half], chat[half:] = Mask.USER, Mask.ASSISTANT
    for start in (1, half):
        chat[start : start + HEADER] = Mask.TEMPLATE
    chat[-1] |= np.uint8(Mask.TEMPLATE)
    web[0] = chat[0] = Mask.BOS
    return {"web": web, "chat": chat}


def write_split(
    pair: PlantedPair, split: str, n_tokens: int, layout: HarvestSettings, out: Path, seed: int, *, key: str
) -> list[Path]:
    """Write OUT/tokens/SPLIT.zarr and OUT/activations/SPLIT/part-*.zarr, as the models' stages do; return the parts.

    A token's id says which concept is strongest there (0 BOS, 1 none); its label, which of the first 64 fire.
    """
    started = time.time()
    length = pair.settings.document_tokens
    bits = np.arange(min(MAX_CONCEPTS, len(pair.concepts)))  # concepts with a label bit: chat-only ones come first
    masks = _masks(length)
    encodings: list[Encoding] = []
    parts = []
    first = 0
    shared: dict[str, Any] = {"sources": list(SOURCES), "split": split, "seed": seed, "layer": 0}
    shared |= {name: getattr(layout, name) for name in ("dtype", "codec", "shard_tokens", "chunk_tokens")}
    for part, drawn in enumerate(_parts(pair, split, n_tokens, layout, seed)):
        size = len(drawn.strength)
        token_id = np.where(drawn.strength.any(axis=1), 2 + drawn.strength.argmax(axis=1), 1).astype(np.int32)
        token_id[::length] = 0
        label = (drawn.strength[:, bits] > 0) @ (np.uint64(1) << bits.astype(np.uint64))
        mask = np.concatenate([masks[SOURCES[i % 2]] for i in range(size // length)])
        cuts = np.arange(length, size, length)
        encodings += map(Encoding, np.split(token_id, cuts), np.split(mask, cuts), np.split(label, cuts))
        row = np.arange(first, first + size)
        doc = row // length
        columns: dict[str, NDArray[Any]] = {"row": row, "token_id": token_id, "doc": doc, "pos": row % length}
        columns |= {"mask": mask, "source": doc % 2}
        by_model = zip(MODELS, drawn.activations.swapaxes(0, 1), strict=True)
        columns |= {m: to_stored(torch.from_numpy(h), layout.dtype) for m, h in by_model}
        path = out / f"activations/{split}/part-{part:03d}.zarr"
        attributes = shared | {"part": part, "first_row": first}
        with building(path) as partial:
            group = create_part(partial, size, pair.settings.d_model, layout, attributes)
            order = _shuffled_within_shards(size, layout.shard_tokens, seed, first // layout.shard_tokens)
            checksums: dict[str, str] = {}
            for name, values in columns.items():
                array: Any = group[name]
                stored = values[order].astype(array.dtype)
                array[:] = stored
                if name in MODELS:
                    shards = enumerate(np.split(stored, size // layout.shard_tokens))
                    checksums |= {f"{name}/c/{i}/0": chunk_checksums(own, layout.chunk_tokens) for i, own in shards}
        facts = attributes | {"n_tokens": size, "d_model": pair.settings.d_model}
        seal(path, "activations", key, facts, provenance(started), chunks=checksums)
        parts.append(path)
        first += size
    doc_source = [i % 2 for i in range(len(encodings))]
    named: dict[str, Any] = {"sources": list(SOURCES), "kinds": ["text", "chat"], "split": split, "seed": seed}
    named |= {"concepts": [pair.names[i] for i in bits], "max_length": length, "ignore_first_tokens": 0}
    named |= {"planted": asdict(pair.settings), "l0": round(pair.l0, 3)}
    counts = {name: doc_source.count(i) for i, name in enumerate(SOURCES)}
    by_source = {name: {"tokens": count * length, "documents": count} for name, count in counts.items()}
    write_store(out / f"tokens/{split}.zarr", encodings, doc_source, named, by_source, key, started)
    return parts


def _shuffled_within_shards(n: int, shard_tokens: int, seed: int, first: int) -> NDArray[np.int64]:
    """Return the order of rows in the files from shard `first` on, permuted as the harvest does."""
    shards = range(n // shard_tokens)
    orders = [np.random.default_rng([seed, first + i]).permutation(shard_tokens) + i * shard_tokens for i in shards]
    return np.concatenate(orders)


# -- the truth as a crosscoder -----------------------------------------------------------------------------------------


def planted_crosscoder(pair: PlantedPair) -> Crosscoder:
    """Return a crosscoder whose decoder is the planted one; its encoder is empty, for use with `planted_code`."""
    decoder = torch.from_numpy(pair.decoder).float()
    nothing = torch.zeros(len(decoder))
    return Crosscoder(torch.zeros_like(decoder), nothing, decoder, torch.zeros_like(decoder[0]), nothing)


def planted_code(strength: Float[np.ndarray, "token concept"]) -> SparseCode:
    """Return the concepts' strengths as a crosscoder's code."""
    return above_threshold(torch.from_numpy(strength))
