"""Activation stores, read: the residuals of both models at every token, and the shuffled batches of training.

A part is a zarr v3 group, written by `tunediff.data.harvest`. `base` and `chat` are sharded along tokens; with the
default codec a shard file is the chunks in order, each followed by its crc32c, then an index: it is read directly, at
the speed of the page cache. The manifest knows the crc32c of every chunk, and each is compared when it is read. So a
damaged shard is noticed, and so is one of another part, split or model. All other files are compared at the opening.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import count, cycle, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
import zarr
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tunediff.data.masks import KEEP_ALL, LEFT_OUT, Mask, template_positions
from tunediff.data.transfer import Later, moved, on_gpu
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import check, manifest_path
from tunediff.pipeline.progress import Progress

MODELS = ("base", "chat")
ROW_ARRAYS = {"row": "int64", "token_id": "int32", "doc": "int32", "pos": "int32", "mask": "uint8", "source": "uint8"}
GATHERED_VALUES = 1 << 17  # of a batch and a model, picked at a time
GATHERERS, SHARED_FROM = 2, 1 << 22  # threads that fill a batch, where it has this many values or more
BF16_NAN = 0x7FC1  # fill value: a chunk that is not there reads as NaN, never as zeros
CRC_BYTES = 4  # after each chunk of a shard file
READERS, READ_AHEAD = 4, 8  # threads that read for a GPU, and batches they may be ahead


class ActivationBatch(NamedTuple):
    """Residuals of some tokens, and what those tokens are."""

    activations: Float[Tensor, "token model d_model"]  # float32 unless asked for; model 0 is base, 1 is chat
    row: Int[np.ndarray, "token"]  # in the token store
    token_id: Int[np.ndarray, "token"]
    doc: Int[np.ndarray, "token"]
    pos: Int[np.ndarray, "token"]
    mask: Int[np.ndarray, "token"]
    source: Int[np.ndarray, "token"]

    @property
    def template(self) -> Bool[np.ndarray, "token"]:
        """Which tokens the chat template wrote."""
        return template_positions(self.mask)


class StorageType(NamedTuple):
    """How a logical dtype is stored: numpy and zarr have no bfloat16, its bits are kept as uint16."""

    torch: torch.dtype
    numpy: np.dtype[Any]  # of the stored array
    carrier: torch.dtype  # torch dtype with numpy's bytes
    fill: Any
    exponent: np.unsignedinteger  # all these bits are set in what is not finite, and in no number


STORAGE = {
    "bfloat16": StorageType(torch.bfloat16, np.dtype("<u2"), torch.int16, BF16_NAN, np.uint16(0x7F80)),
    "float16": StorageType(torch.float16, np.dtype("<f2"), torch.float16, np.nan, np.uint16(0x7C00)),
    "float32": StorageType(torch.float32, np.dtype("<f4"), torch.float32, np.nan, np.uint32(0x7F800000)),
}


def to_stored(values: Float[Tensor, "token d_model"], dtype: str) -> NDArray[Any]:
    """Return the stored form of residuals: rounded to `dtype`, bfloat16 as its bits."""
    storage = STORAGE[dtype]
    return values.to(storage.torch).cpu().contiguous().view(storage.carrier).numpy().view(storage.numpy)


def chunk_checksums(shard: NDArray[Any], chunk_tokens: int) -> str:
    """Return the crc32c of every chunk of a stored shard [token, d_model], eight hexadecimal digits each."""
    return "".join(f"{google_crc32c.value(chunk):08x}" for chunk in shard.reshape(-1, chunk_tokens, shard.shape[1]))


def _rebuild(part: Path) -> str:
    return f"delete {manifest_path(part)} and run snakemake again"


class _Part:
    """One part, read chunk by chunk."""

    def __init__(self, path: Path, key: str | None) -> None:
        manifest = check(path, "activations", key, later=[f"{name}/c/*" for name in MODELS])
        self.outliers: dict[str, Any] | None = manifest.facts.get("outliers")
        self.path = path
        self.group: Any = zarr.open_group(str(path), mode="r")
        attributes: dict[str, Any] = dict(self.group.attrs)
        self.dtype = str(attributes["dtype"])
        self.direct = attributes["codec"] == "crc32c"
        self.sources: list[str] = list(attributes["sources"])
        self.first_row = int(attributes["first_row"])
        self.shard_tokens, self.chunk_tokens = int(attributes["shard_tokens"]), int(attributes["chunk_tokens"])
        self.arrays: dict[str, Any] = {name: self.group[name] for name in MODELS}
        self.n, self.d_model = self.arrays["base"].shape
        self.n_chunks = self.n // self.chunk_tokens
        shards = range(self.n // self.shard_tokens)
        self.checksums = {
            name: bytes.fromhex("".join(manifest.files[f"{name}/c/{shard}/0"]["chunks"] for shard in shards))
            for name in MODELS
        }

    def row_array(self, name: str) -> NDArray[Any]:
        """Read one of the arrays that have a value per row; a shard that is not there is an error."""
        for shard in range(self.n // self.shard_tokens):
            file = self.path / name / "c" / str(shard)
            if not file.is_file() or file.stat().st_size == 0:
                raise TunediffError(f"{file}: missing or empty; {_rebuild(self.path)}")
        try:
            return np.asarray(self.group[name][:])
        except (ValueError, RuntimeError, OSError) as error:
            raise TunediffError(f"{self.path / name}: damaged ({error}); {_rebuild(self.path)}") from error

    def read_chunk(self, name: str, chunk: int, target: NDArray[Any]) -> None:
        """Read one chunk of one model into `target` [chunk_tokens, d_model]; its crc32c must be the manifest's."""
        shard, inside = divmod(chunk, self.shard_tokens // self.chunk_tokens)
        file = self.path / name / "c" / str(shard) / "0"
        if self.direct:
            self._read_direct(file, inside, target)
        else:
            self._read_zarr(file, name, chunk, target)
        expected = self.checksums[name][chunk * CRC_BYTES : (chunk + 1) * CRC_BYTES]
        if google_crc32c.value(target) != int.from_bytes(expected, "big"):
            raise TunediffError(
                f"{file}: checksum of chunk {inside} differs from the manifest, the shard is damaged or one of another "
                f"place; {_rebuild(self.path)}"
            )

    def _read_zarr(self, file: Path, name: str, chunk: int, target: NDArray[Any]) -> None:
        place = slice(chunk * self.chunk_tokens, (chunk + 1) * self.chunk_tokens)
        try:
            if file.stat().st_size == 0:  # zarr takes an empty shard for one of fill values
                raise ValueError("it is empty")
            target[:] = self.arrays[name][place]
        except (ValueError, RuntimeError, OSError) as error:
            cause = str(error).splitlines()[0][:120]
            raise TunediffError(f"{file}: shard damaged ({cause}); {_rebuild(self.path)}") from error

    def _read_direct(self, file: Path, inside: int, target: NDArray[Any]) -> None:
        try:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                size = os.preadv(descriptor, [target.data.cast("B")], inside * (target.nbytes + CRC_BYTES))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TunediffError(f"{file}: shard missing or unreadable ({error}); {_rebuild(self.path)}") from error
        if size != target.nbytes:
            raise TunediffError(f"{file}: shard cut short in chunk {inside}; {_rebuild(self.path)}")


def _column(name: str) -> "cached_property[NDArray[Any]]":
    return cached_property(lambda store: np.concatenate([part.row_array(name) for part in store.parts]))


class ActivationStore:
    """All parts of a split as one long table of rows, in the order of the files.

    `TunediffError`: a part is missing, unfinished, damaged, made by other inputs than `key` says, of another width or
    layout than the first, or does not go on where the one before it ends.
    """

    # values per token, shape (token,), read when first asked for
    row = _column("row")  # of the token store
    token_id = _column("token_id")
    doc = _column("doc")  # of the token store
    pos = _column("pos")  # within the document
    mask = _column("mask")  # bits of `Mask`
    source = _column("source")  # index into `sources`

    def __init__(self, part_paths: Sequence[Path], *, key: str | None = None) -> None:
        if not part_paths:
            raise TunediffError("activations: no parts given; run snakemake to harvest them")
        self.parts = [_Part(Path(path), key) for path in part_paths]
        first = self.parts[0]
        for before, part in pairwise(self.parts):
            for name in ("d_model", "dtype", "chunk_tokens", "sources"):
                if getattr(part, name) != getattr(first, name):
                    raise TunediffError(
                        f"{part.path}: {name} {getattr(part, name)} differs from {getattr(first, name)} of "
                        f"{first.path}; {_rebuild(part.path)}"
                    )
            if part.first_row != before.first_row + before.n:
                raise TunediffError(
                    f"{part.path}: is of another place, its first token is {part.first_row} and should be "
                    f"{before.first_row + before.n}; {_rebuild(part.path)}"
                )
        self.d_model, self.dtype, self.chunk_tokens = int(first.d_model), first.dtype, first.chunk_tokens
        self.sources = first.sources
        self.n_tokens: int = sum(part.n for part in self.parts)
        self.n_chunks: int = self.n_tokens // self.chunk_tokens
        self._first_chunk = np.cumsum([0] + [part.n_chunks for part in self.parts])

    @property
    def outlier_norm(self) -> list[float] | None:
        """Largest norm that is no massive activation, per model (of the part where it is largest); None: no mask."""
        limits = [part.outliers["norm"] for part in self.parts if part.outliers is not None]
        return [max(limit[name] for limit in limits) for name in MODELS] if limits else None

    def kept(self, drop: Mask = LEFT_OUT) -> NDArray[np.bool_]:
        """Return which rows have none of the bits of `drop`."""
        return (self.mask & np.uint8(drop)) == 0

    def _buffer(self, n_chunks: int) -> NDArray[Any]:
        """Return room for stored rows [model, row, d_model]."""
        return np.empty((2, n_chunks * self.chunk_tokens, self.d_model), dtype=STORAGE[self.dtype].numpy)

    def _read(self, chunks: NDArray[Any], buffer: NDArray[Any]) -> NDArray[Any]:
        """Read whole chunks, as stored, into the first rows of a buffer [model, row, d_model]."""
        part_of = np.searchsorted(self._first_chunk, chunks, side="right") - 1
        for i, (chunk, p) in enumerate(zip(chunks.tolist(), part_of.tolist(), strict=True)):
            place = slice(i * self.chunk_tokens, (i + 1) * self.chunk_tokens)
            for m, name in enumerate(MODELS):
                self.parts[p].read_chunk(name, int(chunk - self._first_chunk[p]), buffer[m, place])
        return buffer

    def _of_rows(self, activations: Tensor, rows: NDArray[Any]) -> ActivationBatch:
        return ActivationBatch(activations, *(getattr(self, name)[rows] for name in ROW_ARRAYS))

    def _batch(self, activations: Tensor, rows: NDArray[Any], finite: bool) -> ActivationBatch:
        batch = self._of_rows(activations, rows)
        if not finite:
            self.require_finite(batch)
        return batch

    def require_finite(self, batch: ActivationBatch) -> None:
        """Raise for the first token that holds a NaN or an infinity, if there is one."""
        bad = batch.row[~batch.activations.cpu().isfinite().all(dim=2).all(dim=1).numpy()]
        if len(bad):
            chunk = np.flatnonzero(self.row == bad[0])[0] // self.chunk_tokens
            part = self.parts[int(np.searchsorted(self._first_chunk, chunk, side="right")) - 1]
            raise TunediffError(f"{part.path}: the residual of token {bad[0]} is not finite; {_rebuild(part.path)}")

    def _gather(self, buffer: NDArray[Any], chosen: NDArray[Any], out: Tensor) -> bool:
        """Write rows `chosen` of a buffer [model, row, d_model] to `out` [token, model, d_model].

        Return whether they are finite. `out` is float32 or of the stored type. numpy, not torch: on a shared machine
        torch's threads wait for one another (ten times slower when measured). Some rows at a time, so that what is
        picked, and looked at, stays in the cache.
        """
        widened = out.dtype == torch.float32 and self.dtype == "bfloat16"
        target = (out if out.dtype == torch.float32 else out.view(STORAGE[self.dtype].carrier)).numpy()
        if target.dtype != np.float32:
            target = target.view(buffer.dtype)
        exponent = STORAGE[self.dtype].exponent
        step = min(max(1, GATHERED_VALUES // self.d_model), len(chosen))
        picked = np.empty((step, self.d_model), dtype=buffer.dtype)
        bits, largest = np.empty(picked.shape, dtype=exponent.dtype), exponent.dtype.type(0)
        for start in range(0, len(chosen), max(1, step)):
            some = chosen[start : start + step]
            place = slice(start, start + len(some))
            for m in range(2):
                rows = np.take(buffer[m], some, axis=0, out=picked[: len(some)], mode="clip")
                if widened:  # the upper half of a float32
                    wide = target.view(np.uint32)[place, m]
                    np.left_shift(rows, np.uint32(16), out=wide, dtype=np.uint32)
                else:
                    target[place, m] = rows
                found = np.bitwise_and(rows.view(exponent.dtype), exponent, out=bits[: len(some)])
                largest = max(largest, found.max())
        return bool(largest < exponent)

    def _fill(self, threads: ThreadPoolExecutor, buffer: NDArray[Any], chosen: NDArray[Any], out: Tensor) -> bool:
        """Gather a batch, several threads a part each where it is large: numpy holds no lock while it copies."""
        if out.numel() < SHARED_FROM:
            return self._gather(buffer, chosen, out)
        parts = zip(np.array_split(chosen, GATHERERS), out.tensor_split(GATHERERS), strict=True)
        return all([each.result() for each in [threads.submit(self._gather, buffer, *part) for part in parts]])

    def chunks(self, drop: Mask = KEEP_ALL, chunks_per_batch: int = 1) -> Iterator[ActivationBatch]:
        """Yield every row once, in stored order, some chunks at a time, without rows that have a bit of `drop`."""
        return self.read_chunks(np.arange(self.n_chunks), drop, chunks_per_batch)

    def read_chunks(
        self, numbers: NDArray[Any], drop: Mask = KEEP_ALL, chunks_per_batch: int = 1
    ) -> Iterator[ActivationBatch]:
        """Yield the rows of the chunks `numbers`, in that order, some chunks at a time."""
        keep = self.kept(drop)
        buffer = self._buffer(min(chunks_per_batch, len(numbers)))
        for start in range(0, len(numbers), chunks_per_batch):
            chosen = numbers[start : start + chunks_per_batch]
            rows = (chosen[:, None] * self.chunk_tokens + np.arange(self.chunk_tokens)).reshape(-1)
            positions = np.flatnonzero(keep[rows])
            if len(positions) == 0:
                continue
            out = torch.empty((len(positions), 2, self.d_model))
            finite = self._gather(self._read(chosen, buffer[:, : len(rows)]), positions, out)
            yield self._batch(out, rows[positions], finite)

    def chunks_to(self, device: str, drop: Mask, chunks_per_batch: int) -> Iterator[ActivationBatch]:
        """Yield what `chunks` yields, its activations on a device; whether they are finite is not looked at.

        Threads read ahead. A GPU is sent what is stored, from pinned memory, and makes float32 of it.
        """
        keep, storage = self.kept(drop), STORAGE[self.dtype]
        groups = np.split(np.arange(self.n_chunks), range(chunks_per_batch, self.n_chunks, chunks_per_batch))
        rows_of = ((group[:, None] * self.chunk_tokens + np.arange(self.chunk_tokens)).reshape(-1) for group in groups)
        wanted = ((group, rows) for group, rows in zip(groups, rows_of, strict=True) if keep[rows].any())

        def read(chunks: NDArray[Any], rows: NDArray[Any]) -> tuple[Tensor, NDArray[Any]]:
            room = torch.empty((2, len(rows), self.d_model), dtype=storage.torch, pin_memory=on_gpu(device))
            self._read(chunks, room.view(storage.carrier).numpy().view(storage.numpy))
            return room, rows

        with ThreadPoolExecutor(READERS) as readers:
            reads = deque(readers.submit(read, *each) for each in islice(wanted, READ_AHEAD))
            while reads:
                room, rows = reads.popleft().result()
                reads.extend(readers.submit(read, *each) for each in islice(wanted, 1))
                positions = np.flatnonzero(keep[rows])
                stored, rows = room.to(device, non_blocking=True), rows[positions]
                if len(rows) < stored.shape[1]:
                    stored = stored.index_select(1, moved(positions, device))
                wide = stored.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
                yield self._of_rows(wide.contiguous(), rows)  # float32 is not copied above

    def batches(
        self,
        batch_size: int,
        seed: int,
        pool_chunks: int,
        start_step: int = 0,
        drop: Mask = LEFT_OUT,
        into: Iterator[Tensor] | None = None,
    ) -> Iterator[ActivationBatch]:
        """Yield shuffled batches for ever, from step `start_step` on; a pure function of (seed, step).

        Each epoch permutes the chunks, reads them in pools of `pool_chunks` and permutes the kept rows of each pool.
        Epochs follow one another without a gap, and each visits every kept row once. Nothing before `start_step` is
        read but the masks. Each batch is written to the next tensor of `into`, [batch_size, 2, d_model] in float32 or
        in the stored type, or to a new one in float32.
        """
        keep = self.kept(drop)
        if not keep.any():
            raise TunediffError(f"{self.parts[0].path}: every token is masked out; check `ignore_first_tokens`")
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(GATHERERS) as gatherers:
            pools = self._pools(seed, pool_chunks, start_step * batch_size, keep, reader)
            buffer, positions, rows = next(pools)
            while True:
                activations = torch.empty((batch_size, 2, self.d_model)) if into is None else next(into)
                taken: list[NDArray[Any]] = []
                filled, finite = 0, True
                while filled < batch_size:
                    if len(rows) == 0:
                        buffer, positions, rows = next(pools)
                    n = min(batch_size - filled, len(rows))
                    finite &= self._fill(gatherers, buffer, positions[:n], activations[filled : filled + n])
                    taken.append(rows[:n])
                    positions, rows = positions[n:], rows[n:]
                    filled += n
                yield self._batch(activations, np.concatenate(taken), finite)

    def _plan(
        self, seed: int, pool_chunks: int, skip: int, keep: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Yield (chunks, positions of kept rows in them, rows of the store) pool by pool, without the first rows."""
        per_chunk = keep.reshape(-1, self.chunk_tokens).sum(1)
        first, left = divmod(skip, int(per_chunk.sum()))
        for epoch in count(first):
            order = np.random.default_rng([seed, epoch]).permutation(self.n_chunks)
            for number, start in enumerate(range(0, self.n_chunks, pool_chunks)):
                chunks = order[start : start + pool_chunks]
                size = int(per_chunk[chunks].sum())
                if left >= size:
                    left -= size
                    continue
                rows = (chunks[:, None] * self.chunk_tokens + np.arange(self.chunk_tokens)).reshape(-1)
                positions = np.flatnonzero(keep[rows])
                shuffled = np.random.default_rng([seed, epoch, number]).permutation(positions)[left:]
                left = 0
                yield chunks, shuffled, rows[shuffled]

    def _pools(
        self, seed: int, pool_chunks: int, skip: int, keep: NDArray[np.bool_], reader: ThreadPoolExecutor
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Yield (buffer, positions in it, rows of the store) pool by pool, the next being read in the background."""
        # Two buffers take turns: fresh memory for every pool would cost a page fault per 4 KiB.
        room = min(pool_chunks, self.n_chunks)
        buffers = cycle([self._buffer(room), self._buffer(room)])
        planned = zip(self._plan(seed, pool_chunks, skip, keep), buffers, strict=False)
        reads = ((reader.submit(self._read, pool[0], buffer), *pool[1:]) for pool, buffer in planned)
        for (read, positions, rows), _following in pairwise(reads):
            yield read.result(), positions, rows


def counted_batches(
    store: ActivationStore, batch_size: int, device: str, name: str, limit: int | None = None
) -> Iterator[ActivationBatch]:
    """Yield every token of the store once but those left out, `batch_size` at a time (fewer at a read's end).

    Left out are BOS, ignored tokens and massive activations (`masks.LEFT_OUT`). `limit` stops the pass after that many
    counted tokens. Activations are on the device; a GPU never waits for them. Shows a progress bar called `name`, with
    tokens/s. `TunediffError`: a residual is not finite; on a GPU, its batch was yielded before.
    """
    remaining = int(store.kept().sum())
    if limit is not None:
        remaining = min(limit, remaining)
    read = LEFT_OUT, max(1, batch_size // store.chunk_tokens)
    chunks = store.chunks_to(device, *read) if on_gpu(device) else store.chunks(*read)
    with Progress(remaining, name, "tok") as bar:
        for chunk in chunks:
            finite = Later(chunk.activations.isfinite().all()) if on_gpu(device) else None
            for start in range(0, min(len(chunk.row), remaining), batch_size):
                part = slice(start, min(start + batch_size, remaining))
                yield ActivationBatch(chunk.activations[part], *(column[part] for column in chunk[1:]))
                bar.update(len(chunk.row[part]))
            if finite is not None and not finite.read():
                store.require_finite(chunk)
            remaining -= len(chunk.row)
            if remaining <= 0:
                return
