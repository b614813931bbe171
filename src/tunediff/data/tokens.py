"""Token stores: every position of every document, with masks and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from tunediff.data.rendering import Encoding
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import check

FLAT = {"token_id": "int32", "doc": "int32", "pos": "int32", "mask": "uint8", "label": "uint64"}
PER_DOCUMENT = {"doc_start": "int64", "doc_source": "uint8"}
STORE_CHUNK = 1 << 20  # positions


def _array(name: str) -> "cached_property[NDArray[Any]]":
    return cached_property(lambda store: store.read(name))


@dataclass
class TokenStore:
    """A zarr group of flat arrays over all positions, and where each document starts."""

    path: Path
    attributes: dict[str, Any]
    _group: Any = field(repr=False)

    # arrays, read when first asked for: per position …
    token_id = _array("token_id")
    doc = _array("doc")  # number of the document
    pos = _array("pos")  # within the document
    mask = _array("mask")  # bits of `Mask`
    label = _array("label")  # bit i: concept i is active
    # … and per document
    doc_start = _array("doc_start")  # first position of each, and the number of positions
    doc_source = _array("doc_source")  # index into `sources`

    @classmethod
    def open(cls, path: Path, *, key: str | None = None) -> "TokenStore":
        """Open a finished store, having checked that its files are there and unchanged.

        `TunediffError`: missing, unfinished, damaged (the file is named), or made by other inputs than `key` says.
        """
        check(path, "tokens", key)
        group = zarr.open_group(str(path), mode="r")
        return cls(path, dict(group.attrs), group)

    @classmethod
    def create(
        cls, path: Path, encodings: Sequence[Encoding], doc_source: Sequence[int], attributes: Mapping[str, Any]
    ) -> None:
        """Write a store at `path` (inside `building`); the caller seals it."""
        lengths = np.array([len(e.token_id) for e in encodings], dtype=np.int64)
        arrays = {
            "token_id": np.concatenate([e.token_id for e in encodings]),
            "doc": np.repeat(np.arange(len(encodings)), lengths),
            "pos": np.concatenate([np.arange(n) for n in lengths]),
            "mask": np.concatenate([e.mask for e in encodings]),
            "label": np.concatenate([e.label for e in encodings]),
            "doc_start": np.concatenate([[0], np.cumsum(lengths)]),
            "doc_source": np.array(doc_source),
        }
        group = zarr.create_group(str(path), zarr_format=3, attributes=dict(attributes))
        for name, dtype in (FLAT | PER_DOCUMENT).items():
            array = group.create_array(
                name,
                shape=(len(arrays[name]),),
                chunks=(min(STORE_CHUNK, max(1, len(arrays[name]))),),
                dtype=dtype,
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
                config={"write_empty_chunks": True},
            )
            array[:] = arrays[name].astype(dtype)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read positions [start, stop) of one array; a damaged chunk is a `TunediffError`."""
        try:
            return np.asarray(self._group[name][slice(start, stop)])
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise TunediffError(
                f"{self.path / name}: damaged ({str(error).splitlines()[0][:120]}); delete "
                f"{self.path.with_suffix('.json')} and run snakemake again"
            ) from error

    @property
    def sources(self) -> list[str]:
        """Names of the sources."""
        return list(self.attributes["sources"])

    @property
    def concepts(self) -> list[str]:
        """Names of the labelled concepts, in the order of the label bits."""
        return list(self.attributes["concepts"])

    @property
    def n_tokens(self) -> int:
        """Number of positions."""
        return int(self._group["token_id"].shape[0])

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return int(self._group["doc_source"].shape[0])

    def document(self, i: int) -> slice:
        """Return the positions of document `i`."""
        return slice(int(self.doc_start[i]), int(self.doc_start[i + 1]))
