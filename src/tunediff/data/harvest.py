"""Harvest: both models over the tokens of one part, their residuals written as an activation store.

Rows are permuted within each shard, so that a contiguous chunk already mixes documents. Tokens of massive activations
are stored, but carry a mask bit and are left out of training and of every metric, as BOS is.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from tunediff.config.settings import HarvestSettings
from tunediff.data.activations import MODELS, ROW_ARRAYS, STORAGE, chunk_checksums, to_stored
from tunediff.data.masks import LEFT_OUT, Mask
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.models.pair import PairInfo
from tunediff.models.residual import ResidualModel, replace_tokens
from tunediff.pipeline.artifacts import building, is_finished, move, provenance, seal
from tunediff.pipeline.progress import Progress

BLOSC_BLOCK = 1 << 20  # bytes; with automatic blocks the byte shuffle gains 12 % less
WINDOW_BYTES = 2 << 30  # of residuals harvested before they are written; two are held, as one is written meanwhile


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


class HashedStore(LocalStore):
    """A local zarr store that knows the sha256 of every file it wrote (`digests`): none is read again for it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.digests: dict[str, str] = {}

    def _hash(self, key: str, value: Buffer) -> None:
        self.digests[key] = hashlib.sha256(value.as_buffer_like()).hexdigest()

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        await super()._set(key, value, exclusive)
        await asyncio.to_thread(self._hash, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write a file."""
        super().set_sync(key, value)
        self._hash(key, value)


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
    group = zarr.create_group(HashedStore(path), zarr_format=3, attributes=dict(attributes))
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
    """Write one shard in one assignment."""
    if block.dtype != array.dtype:  # a bfloat16 array would be cast by value, silently
        raise TypeError(f"block of {block.dtype} for an array of {array.dtype}")
    place = slice(shard * shard_tokens, (shard + 1) * shard_tokens)
    array.with_config({"write_empty_chunks": True})[place] = block


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


class _Launched(NamedTuple):
    """What a batch gives, perhaps still on its way from a GPU."""

    rows: NDArray[np.int64]  # of the window, one per token
    stored: list[Tensor]  # per model [token, d_model], in the stored type
    norms: list[Tensor]  # per model [token]
    finite: list[Tensor]  # per model: whether the residuals are, and whether they are as stored
    largest: list[Tensor]  # per model: the largest value
    arrived: torch.cuda.Event | None


class Harvester:
    """Both models of a pair on one device, run on the same documents."""

    def __init__(self, pair: PairInfo, settings: HarvestSettings, device: str) -> None:
        self.layer, self.dtype, self.batch_tokens = pair.layer, settings.dtype, settings.batch_tokens
        self.device, self.replacements = device, (pair.replacements, dict[int, int]())
        self.models: tuple[ResidualModel, ...] = pair.load_base(device), pair.load_chat(device)
        self.on_gpu = self.models[0].device.type == "cuda"

    def _sent(self, values: Tensor) -> Tensor:
        """Return values of the host on the device; the host does not wait."""
        return values.pin_memory().to(self.models[0].device, non_blocking=True) if self.on_gpu else values

    def _fetched(self, values: Tensor) -> Tensor:
        """Return values of the device on the host, where they arrive later."""
        if not self.on_gpu:
            return values
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)

    def _launch(self, ids: Tensor, real: Tensor, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> _Launched:
        """Start both models on a batch of documents; `kept` says which of its tokens are stored, at `rows`."""
        storage = STORAGE[self.dtype]
        at, mask = self._sent(real.flatten().nonzero()[:, 0][torch.from_numpy(kept)]), self._sent(real.long())
        found = _Launched(rows, [], [], [], [], torch.cuda.Event() if self.on_gpu else None)
        for model, replacements in zip(self.models, self.replacements, strict=True):
            residual = model.residual(self._sent(replace_tokens(ids, replacements)), mask)
            values = residual.flatten(0, 1)[at]
            rounded = values.to(storage.torch)
            finite = torch.stack([torch.isfinite(values).all(), torch.isfinite(rounded).all()])
            largest = values.abs().amax() if len(values) else values.new_zeros(())
            norms = torch.linalg.vector_norm(rounded.float(), dim=1)
            new = rounded.contiguous(), norms, finite, largest
            for column, made in zip(found[1:5], new, strict=True):
                column.append(self._fetched(made))
        if found.arrived is not None:
            found.arrived.record()
        return found

    def _check(self, batch: _Launched, part: int) -> None:
        for name, (finite, as_stored), largest in zip(MODELS, batch.finite, batch.largest, strict=True):
            if not finite:
                raise TunediffError(
                    f"{name} model, part {part}: residuals after block {self.layer} are not finite; run the models in "
                    "another dtype (`models.dtype`: bfloat16 or float32)"
                )
            if self.dtype == "float16" and not as_stored:
                raise TunediffError(
                    f"{name} model, part {part}: residuals overflow float16 (largest {float(largest):.3g}); set "
                    "`activations.dtype: bfloat16`"
                )

    def window(
        self, part: int, token_id: NDArray[Any], doc_start: NDArray[Any], low: int, high: int, bar: Any
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """Return stored residuals and norms [row, model] of rows [low, high); straddling documents run whole.

        `token_id` holds the ids of all documents touched, the first at row `doc_start[0]`. On a GPU a batch is taken in
        while the next one runs.
        """
        storage = STORAGE[self.dtype]
        stored = {name: np.empty((high - low, self.models[0].d_model), dtype=storage.numpy) for name in MODELS}
        norms = np.empty((high - low, 2), dtype=np.float32)
        lengths = np.diff(doc_start)

        def take(batch: _Launched) -> None:
            if batch.arrived is not None:
                batch.arrived.synchronize()
            self._check(batch, part)
            for m, name in enumerate(MODELS):
                stored[name][batch.rows] = to_stored(batch.stored[m], self.dtype)
                norms[batch.rows, m] = batch.norms[m]
            bar.update(len(batch.rows))

        running = deque[_Launched]()
        for chosen in length_batches(lengths.tolist(), self.batch_tokens):
            ids = torch.zeros((len(chosen), int(lengths[chosen].max())), dtype=torch.long)
            for i, document in enumerate(chosen):
                start = int(doc_start[document] - doc_start[0])
                ids[i, : lengths[document]] = torch.from_numpy(token_id[start : start + lengths[document]])
            real = torch.arange(ids.shape[1])[None] < torch.from_numpy(lengths[chosen])[:, None]
            rows = np.concatenate([np.arange(doc_start[d], doc_start[d + 1]) for d in chosen])
            kept = (rows >= low) & (rows < high)
            running.append(self._launch(ids, real, rows[kept] - low, kept))
            if len(running) > self.on_gpu:  # one runs on while the one before it is taken
                take(running.popleft())
        while running:
            take(running.popleft())
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
    harvester: Harvester | None = None,
) -> None:
    """Run both models over token rows [part · part_tokens, (part + 1) · part_tokens) and write their residuals.

    Rows are permuted within each shard by (seed, number of the shard). The last part may be shorter. Tokens of massive
    activations get the mask bit OUTLIER, by the medians of this part. Models are loaded unless a `harvester` has them.
    `TunediffError`: residuals are not finite or overflow the stored dtype, sizes do not divide, or the part is empty.
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
        harvester = harvester or Harvester(pair, settings, device)

        def write(name: str, values: NDArray[Any], low: int) -> None:
            for offset in range(0, len(values), shard_tokens):
                shard = (low - first + offset) // shard_tokens
                generator = np.random.default_rng([seed, first // shard_tokens + shard])
                block = values[offset + generator.permutation(shard_tokens)]
                _write_shard(group[name], shard, shard_tokens, block)
                if name in MODELS:
                    checksums[f"{name}/c/{shard}/0"] = chunk_checksums(block, settings.chunk_tokens)

        def write_all(columns: Mapping[str, NDArray[Any]], low: int) -> None:
            for name, values in columns.items():
                write(name, values, low)

        with ThreadPoolExecutor(1) as writer:  # one window is written while the models run on the next
            writing: Future[None] | None = None
            for low in range(first, last, window):
                high = min(low + window, last)
                d0 = int(np.searchsorted(doc_start, low, side="right")) - 1
                d1 = int(np.searchsorted(doc_start, high, side="left"))
                bounds = doc_start[d0 : d1 + 1]
                token_id = tokens.read("token_id", int(bounds[0]), int(bounds[-1])).astype(np.int64)
                stored, norms[low - first : high - first] = harvester.window(part, token_id, bounds, low, high, bar)
                if writing is not None:
                    writing.result()
                writing = writer.submit(write_all, stored, low)
            if writing is not None:
                writing.result()
        if settings.outlier_factor is not None:
            counted = (mask & np.uint8(LEFT_OUT)) == 0
            massive, facts["outliers"] = _outliers(norms, counted, settings.outlier_factor, source, tokens.sources)
            mask = np.where(massive, mask | np.uint8(Mask.OUTLIER), mask)
        rest = {name: tokens.read(name, first, last) for name in ("token_id", "doc", "pos")}
        write_all({"row": np.arange(first, last, dtype=np.int64), "mask": mask, "source": source, **rest}, first)
    made = provenance(started, device, tokens_per_second=n / (time.time() - started))
    seal(out, "activations", key, facts, made, chunks=checksums, digests=group.store.digests)


class Wanted(NamedTuple):
    """A part to make."""

    tokens: TokenStore
    part: int
    out: Path
    key: str


def harvest(
    wanted: Sequence[Wanted], pair: PairInfo, settings: HarvestSettings, work: Path, seed: int, device: str
) -> None:
    """Make parts, the models loaded once; each is finished in `work`, and all are moved to their places at the end.

    A part that is finished there, by this job before it was killed, is kept. `TunediffError`: as `harvest_part`.
    """
    places = [work / each.key / each.out.name for each in wanted]
    missing = [
        (each, place)
        for each, place in zip(wanted, places, strict=True)
        if not is_finished(place, "activations", each.key)
    ]
    harvester = Harvester(pair, settings, device) if missing else None
    for each, place in missing:
        harvest_part(each.tokens, pair, each.part, settings, place, seed, device, key=each.key, harvester=harvester)
    for each, place in zip(wanted, places, strict=True):
        move(place, each.out)
    for folder in {place.parent for place in places}:
        folder.rmdir()
