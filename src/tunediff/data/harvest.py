"""Harvest: both models over the tokens of one part, their residuals written as an activation store.

Rows are permuted within each shard, so that a contiguous chunk already mixes documents. Tokens of massive activations
are stored, but carry a mask bit and are left out of training and of every metric, as BOS is.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from tunediff.config.settings import HarvestSettings
from tunediff.data.activations import MODELS, ROW_ARRAYS, STORAGE, chunk_checksums, to_stored
from tunediff.data.masks import LEFT_OUT, Mask
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.models.pair import PairInfo
from tunediff.models.residual import ResidualModel, replace_tokens
from tunediff.pipeline.artifacts import building, provenance, seal
from tunediff.pipeline.progress import Progress

BLOSC_BLOCK = 1 << 20  # bytes; with automatic blocks the byte shuffle gains 12 % less
WINDOW_BYTES = 4 << 30  # of residuals held by a harvest before they are written


def _outliers(
    norms: NDArray[np.float32], counted: NDArray[np.bool_], factor: float, source: NDArray[Any], sources: Sequence[str]
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Return which tokens have a norm above `factor` medians of the counted tokens, in either model, and the facts."""
    medians = np.median(norms[counted], axis=0) if counted.any() else np.full(2, np.inf)
    massive: NDArray[np.bool_] = np.asarray((norms > factor * medians).any(axis=1))
    median = dict(zip(MODELS, map(float, medians), strict=True))
    facts = {
        "factor": factor,
        "median": median,
        "norm": {name: factor * value for name, value in median.items()},  # the largest that is no outlier
        "tokens": {name: int((counted & massive & (source == i)).sum()) for i, name in enumerate(sources)},
        "of": {name: int((counted & (source == i)).sum()) for i, name in enumerate(sources)},
    }
    return massive, facts


def create_part(path: Path, n: int, d_model: int, settings: HarvestSettings, attributes: Mapping[str, Any]) -> Any:
    """Create the empty zarr group of one part of `n` tokens.

    `TunediffError`: `n` tokens are not whole shards.
    """
    if n % settings.shard_tokens:
        raise TunediffError(
            f"activations: {n} tokens are not a multiple of `activations.shard_tokens` ({settings.shard_tokens}); "
            "change that or the token budgets"
        )
    storage = STORAGE[settings.dtype]
    codecs: list[Any] = [Crc32cCodec()]
    if settings.codec == "blosc":
        layout: dict[str, Any] = {"typesize": storage.numpy.itemsize, "blocksize": BLOSC_BLOCK}
        codecs.insert(0, BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", **layout))
    group = zarr.create_group(str(path), zarr_format=3, attributes=dict(attributes))
    config: Any = {"write_empty_chunks": True}
    for name in MODELS:
        group.create_array(
            name,
            shape=(n, d_model),
            shards=(settings.shard_tokens, d_model),
            chunks=(settings.chunk_tokens, d_model),
            dtype=storage.numpy,
            compressors=codecs,
            fill_value=storage.fill,
            attributes={"logical_dtype": settings.dtype},
            config=config,
        )
    for name, dtype in ROW_ARRAYS.items():
        group.create_array(
            name, shape=(n,), chunks=(settings.shard_tokens,), dtype=dtype, compressors=[Crc32cCodec()], config=config
        )
    return group


def _write_shard(array: Any, shard: int, shard_tokens: int, block: NDArray[Any]) -> None:
    """Write one shard in one assignment and read it back."""
    if block.dtype != array.dtype:  # a bfloat16 array would be cast by value, silently
        raise TypeError(f"block of {block.dtype} for an array of {array.dtype}")
    place = slice(shard * shard_tokens, (shard + 1) * shard_tokens)
    array.with_config({"write_empty_chunks": True})[place] = block
    if not np.array_equal(np.asarray(array[place]).view(np.uint8), block.view(np.uint8)):
        raise TunediffError(f"{array.store_path}: shard {shard} reads back other values; check the disk, run again")


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group documents of similar length so that rows × longest row stays within `batch_tokens` (one row at least)."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[i] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


class _Harvester:
    """Both models, run on the same documents of one part."""

    def __init__(self, pair: PairInfo, settings: HarvestSettings, part: int, device: str) -> None:
        self.layer, self.dtype, self.batch_tokens = pair.layer, settings.dtype, settings.batch_tokens
        self.part, self.replacements = part, (pair.replacements, dict[int, int]())
        self.models: tuple[ResidualModel, ...] = pair.load_base(device), pair.load_chat(device)

    def window(
        self, token_id: NDArray[Any], doc_start: NDArray[Any], low: int, high: int, bar: Any
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """Return stored residuals and norms [row, model] of rows [low, high); straddling documents run whole.

        `token_id` holds the ids of all documents touched, the first at row `doc_start[0]`.
        """
        storage = STORAGE[self.dtype]
        stored = {name: np.empty((high - low, self.models[0].d_model), dtype=storage.numpy) for name in MODELS}
        norms = np.empty((high - low, 2), dtype=np.float32)
        lengths = np.diff(doc_start)
        for batch in length_batches(lengths.tolist(), self.batch_tokens):
            ids = torch.zeros((len(batch), int(lengths[batch].max())), dtype=torch.long)
            for i, document in enumerate(batch):
                start = int(doc_start[document] - doc_start[0])
                ids[i, : lengths[document]] = torch.from_numpy(token_id[start : start + lengths[document]])
            real = torch.arange(ids.shape[1])[None] < torch.from_numpy(lengths[batch])[:, None]
            rows = np.concatenate([np.arange(doc_start[d], doc_start[d + 1]) for d in batch])
            kept = (rows >= low) & (rows < high)
            select = torch.from_numpy(kept)
            for m, (name, model) in enumerate(zip(MODELS, self.models, strict=True)):
                residual = model.residual(replace_tokens(ids, self.replacements[m]), real.long())
                values = residual[real.to(residual.device)][select.to(residual.device)]
                if not bool(torch.isfinite(values).all()):
                    raise TunediffError(
                        f"{name} model, part {self.part}: residuals after block {self.layer} are not finite; run the "
                        "models in another dtype (`models.dtype`: bfloat16 or float32)"
                    )
                rounded = values.to(storage.torch)
                if self.dtype == "float16" and not bool(torch.isfinite(rounded).all()):
                    raise TunediffError(
                        f"{name} model, part {self.part}: residuals overflow float16 (largest "
                        f"{float(values.abs().max()):.3g}); set `activations.dtype: bfloat16`"
                    )
                stored[name][rows[kept] - low] = to_stored(rounded, self.dtype)
                norms[rows[kept] - low, m] = torch.linalg.vector_norm(rounded.float(), dim=1).cpu()
            bar.update(int(kept.sum()))
        return stored, norms


def harvest_part(
    tokens: TokenStore,
    pair: PairInfo,
    part: int,
    settings: HarvestSettings,
    out: Path,
    seed: int,
    device: str,
    *,
    key: str,
) -> None:
    """Run both models over token rows [part · part_tokens, (part + 1) · part_tokens) and write their residuals.

    Rows are permuted within each shard by (seed, number of the shard). The last part may be shorter. Tokens of massive
    activations get the mask bit OUTLIER, by the medians of this part. `TunediffError`: residuals are not finite or
    overflow the stored dtype, sizes do not divide, or the part is empty.
    """
    started = time.time()
    first = part * settings.part_tokens
    last = min(first + settings.part_tokens, tokens.n_tokens)
    n = last - first
    if n <= 0:
        raise TunediffError(
            f"{tokens.path}: has {tokens.n_tokens} tokens, none for part {part}; check the part numbers"
        )
    doc_start, shard_tokens = tokens.doc_start, settings.shard_tokens
    per_shard = 2 * shard_tokens * pair.d_model * STORAGE[settings.dtype].numpy.itemsize
    window = max(1, WINDOW_BYTES // per_shard) * shard_tokens
    attributes = {
        "sources": tokens.sources,
        "split": tokens.attributes["split"],
        "part": part,
        "first_row": first,
        "layer": pair.layer,
        "dtype": settings.dtype,
        "codec": settings.codec,
        "shard_tokens": shard_tokens,
        "chunk_tokens": settings.chunk_tokens,
        "seed": seed,
    }
    mask = tokens.read("mask", first, last)
    source = tokens.doc_source[tokens.read("doc", first, last)]
    norms = np.empty((n, 2), dtype=np.float32)
    facts = {**attributes, "n_tokens": n, "d_model": pair.d_model, "outliers": None}
    checksums: dict[str, str] = {}
    bar = Progress(n, f"harvest {part}", "tok")
    with building(out) as partial, bar:
        group = create_part(partial, n, pair.d_model, settings, attributes)
        harvester = _Harvester(pair, settings, part, device)

        def write(name: str, values: NDArray[Any], low: int) -> None:
            for offset in range(0, len(values), shard_tokens):
                shard = (low - first + offset) // shard_tokens
                generator = np.random.default_rng([seed, first // shard_tokens + shard])
                block = values[offset + generator.permutation(shard_tokens)]
                _write_shard(group[name], shard, shard_tokens, block)
                if name in MODELS:
                    checksums[f"{name}/c/{shard}/0"] = chunk_checksums(block, settings.chunk_tokens)

        for low in range(first, last, window):
            high = min(low + window, last)
            d0 = int(np.searchsorted(doc_start, low, side="right")) - 1
            d1 = int(np.searchsorted(doc_start, high, side="left"))
            bounds = doc_start[d0 : d1 + 1]
            token_id = tokens.read("token_id", int(bounds[0]), int(bounds[-1])).astype(np.int64)
            stored, norms[low - first : high - first] = harvester.window(token_id, bounds, low, high, bar)
            for name in MODELS:
                write(name, stored[name], low)
        if settings.outlier_factor is not None:
            counted = (mask & np.uint8(LEFT_OUT)) == 0
            massive, facts["outliers"] = _outliers(norms, counted, settings.outlier_factor, source, tokens.sources)
            mask = np.where(massive, mask | np.uint8(Mask.OUTLIER), mask)
        write("row", np.arange(first, last, dtype=np.int64), first)
        write("mask", mask, first)
        write("source", source, first)
        for name in ("token_id", "doc", "pos"):
            write(name, tokens.read(name, first, last), first)
    made = provenance(started, device, tokens_per_second=n / (time.time() - started))
    seal(out, "activations", key, facts, made, chunks=checksums)
