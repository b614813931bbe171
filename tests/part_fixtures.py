"""Parts of activation stores with known content, and every way in which a file of theirs may be damaged."""

from pathlib import Path

import numpy as np
import torch
import zarr

from tunediff.config.settings import HarvestSettings
from tunediff.data.activations import MODELS, ROW_ARRAYS, chunk_checksums, to_stored
from tunediff.data.harvest import _write_shard, create_part
from tunediff.pipeline.artifacts import building, seal

LAYOUT = HarvestSettings(shard_tokens=32, chunk_tokens=8)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    file.write_bytes(content)


DAMAGE = {
    "bit flip": flip,
    "truncation": lambda file: file.write_bytes(file.read_bytes()[:-300]),
    "missing": lambda file: file.unlink(),
    "zero length": lambda file: file.write_bytes(b""),
}


def seal_part(path: Path, facts: dict | None = None, key: str = "k") -> None:
    """Seal a part as it is on the disk."""
    group = zarr.open_group(str(path), mode="r")
    shard_tokens, chunk_tokens = group.attrs["shard_tokens"], group.attrs["chunk_tokens"]
    chunks = {}
    for name in MODELS:
        values = np.asarray(group[name][:])
        for i, shard in enumerate(np.split(values, len(values) // shard_tokens)):
            chunks[f"{name}/c/{i}/0"] = chunk_checksums(shard, chunk_tokens)
    seal(path, "activations", key, facts or {}, chunks=chunks)


def write_part(
    path: Path, n: int, d: int, layout: HarvestSettings, seed: int = 0, mask=None, first_row: int = 0
) -> torch.Tensor:
    """Write a part of random activations; returns what must be read back, [token, model, d_model]."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((n, 2, d), generator=generator) * 10
    values[:: max(1, n // 3)] = 0  # chunks of zeros must not be taken for empty ones
    attributes = {"sources": ["web", "chat"], "dtype": layout.dtype, "codec": layout.codec, "first_row": first_row}
    attributes |= {"shard_tokens": layout.shard_tokens, "chunk_tokens": layout.chunk_tokens}
    columns = {name: np.arange(n).astype(dtype) for name, dtype in ROW_ARRAYS.items()}
    columns["source"] = (np.arange(n) % 2).astype(np.uint8)
    columns["mask"] = np.zeros(n, np.uint8) if mask is None else mask
    with building(path) as partial:
        group = create_part(partial, n, d, layout, attributes)
        for shard in range(n // layout.shard_tokens):
            place = slice(shard * layout.shard_tokens, (shard + 1) * layout.shard_tokens)
            for m, name in enumerate(MODELS):
                stored = to_stored(values[place, m], layout.dtype)
                _write_shard(group[name], shard, layout.shard_tokens, stored)
            for name, column in columns.items():
                _write_shard(group[name], shard, layout.shard_tokens, column[place])
    seal_part(path)
    return values.to(getattr(torch, layout.dtype)).float()
