"""How fast shuffled batches are read, against a plain memory map of the same bytes in the same run.

A store of random activations is written to a temporary folder (or --folder) and read from the page cache: into one
block of float32, as training on a CPU reads it. The map's bytes are copied by one thread. One row of a markdown table
is printed. Peak memory is that of a process that reads an epoch alone; the shards it maps or reads are not part of it.
"""

import argparse
import os
import tempfile
import time
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured import peak_memory

from tunediff.config.settings import HarvestSettings
from tunediff.data.activations import MODELS, ROW_ARRAYS, ActivationStore, chunk_checksums, to_stored
from tunediff.data.harvest import create_part
from tunediff.pipeline.artifacts import building, seal

HEADER = (
    "| codec | d | token pairs | cores | batches, pairs/s | GB/s | memory map, GB/s | share of the map | peak, GB |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def write_store(path: Path, n: int, d_model: int, settings: HarvestSettings) -> None:
    """Write one part of `n` random token pairs."""
    attributes = {
        "sources": ["web", "chat"],
        "dtype": settings.dtype,
        "codec": settings.codec,
        "shard_tokens": settings.shard_tokens,
        "chunk_tokens": settings.chunk_tokens,
        "first_row": 0,
    }
    generator = torch.Generator().manual_seed(0)
    chunks = {}
    with building(path) as partial:
        group = create_part(partial, n, d_model, settings, attributes)
        for start in range(0, n, settings.shard_tokens):
            place = slice(start, start + settings.shard_tokens)
            for name in MODELS:
                values = to_stored(torch.randn((settings.shard_tokens, d_model), generator=generator), settings.dtype)
                group[name].with_config({"write_empty_chunks": True})[place] = values
                chunks[f"{name}/c/{start // settings.shard_tokens}/0"] = chunk_checksums(values, settings.chunk_tokens)
        for name, dtype in ROW_ARRAYS.items():
            column = np.zeros(n, dtype) if name in ("mask", "source") else np.arange(n).astype(dtype)
            group[name].with_config({"write_empty_chunks": True})[:] = column
    seal(path, "activations", "benchmark", {}, chunks=chunks)


def _memory_map(path: Path) -> tuple[float, int]:
    """Copy every byte of the shard files of both models through a memory map; return (seconds, bytes)."""
    files = sorted(file for name in MODELS for file in (path / name / "c").rglob("*") if file.is_file())
    block = 1 << 22
    target = np.empty(block, dtype=np.uint8)
    started, total = time.perf_counter(), 0
    for file in files:
        mapped = np.memmap(file, dtype=np.uint8, mode="r")
        for place in range(0, len(mapped), block):
            piece = mapped[place : place + block]
            np.copyto(target[: len(piece)], piece)
        total += len(mapped)
    return time.perf_counter() - started, total


def read_epoch(path: Path, batch_size: int, pool_chunks: int) -> None:
    """Read every batch of an epoch into one block."""
    store = ActivationStore([path])
    stream = store.batches(batch_size, 0, pool_chunks, into=repeat(torch.empty(batch_size, 2, store.d_model)))
    for _ in range(store.n_tokens // batch_size):
        next(stream)
    stream.close()


def run(
    n: int = 1_048_576,
    d_model: int = 128,
    batch_size: int = 2048,
    codec: str = "crc32c",
    pool_chunks: int = 128,
    chunk_tokens: int = 1024,
    shard_tokens: int = 65_536,
    rounds: int = 3,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure one layout; speeds are medians over `rounds` whole epochs."""
    settings = HarvestSettings(chunk_tokens=chunk_tokens, shard_tokens=shard_tokens, codec=codec)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "part-000.zarr"
        write_store(path, n, d_model, settings)
        store = ActivationStore([path])
        steps = n // batch_size
        plain, batches = [], []
        stream = store.batches(batch_size, 0, pool_chunks, into=repeat(torch.empty(batch_size, 2, d_model)))
        for epoch in range(rounds + 1):  # the first round warms the page cache
            seconds, total = _memory_map(path)
            started = time.perf_counter()
            for _ in range(steps):
                next(stream)
            elapsed = time.perf_counter() - started
            if epoch:
                plain.append(total / seconds / 1e9)
                batches.append(steps * batch_size / elapsed)
        stream.close()
        memory = peak_memory(read_epoch, path, batch_size, pool_chunks)
    pairs, mapped = float(np.median(batches)), float(np.median(plain))
    gigabytes = pairs * 2 * d_model * 2 / 1e9
    return {
        "codec": codec,
        "d_model": d_model,
        "token_pairs": n,
        "cores": len(os.sched_getaffinity(0)),
        "pairs_per_second": pairs,
        "gigabytes_per_second": gigabytes,
        "memory_map_gigabytes_per_second": mapped,
        "share_of_memory_map": gigabytes / mapped,
        "peak_gigabytes": memory,
    }


def row(result: dict[str, Any]) -> str:
    """Return one row of the markdown table."""
    return (
        f"| {result['codec']} | {result['d_model']} | {result['token_pairs']:,} | {result['cores']} "
        f"| {result['pairs_per_second']:,.0f} | {result['gigabytes_per_second']:.2f} "
        f"| {result['memory_map_gigabytes_per_second']:.2f} | {result['share_of_memory_map']:.0%} "
        f"| {result['peak_gigabytes']:.2f} |"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_048_576, help="token pairs, a multiple of 65,536 (1,048,576)")
    parser.add_argument("--d-model", type=int, default=128, help="activation width (128)")
    parser.add_argument("--batch-size", type=int, default=2048, help="token pairs per batch (2048)")
    parser.add_argument("--codec", choices=["crc32c", "blosc"], default="crc32c")
    parser.add_argument("--pool-chunks", type=int, default=128, help="chunks that batches are drawn from (128)")
    parser.add_argument("--folder", type=Path, help="where the temporary store is written")
    parser.add_argument("--header", action="store_true", help="print the table's header first")
    chosen = parser.parse_args()
    if chosen.header:
        print(HEADER)
    print(
        row(
            run(
                chosen.tokens,
                chosen.d_model,
                chosen.batch_size,
                chosen.codec,
                chosen.pool_chunks,
                folder=chosen.folder,
            )
        )
    )


if __name__ == "__main__":
    main()
