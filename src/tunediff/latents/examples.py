"""Examples: what each latent fires on, as tables that are written once and read afterwards (method.md section 11).

Made by `tunediff.latents.windows` and `tunediff.latents.profile`; nothing here imports torch. An artifact is a folder
of Parquet tables, each sorted by latent and cut into row groups at latents, so that one latent is read alone.
Latents that fire on no counted validation token have no rows. Positions count the tokens of the validation store.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import building, check, seal

KIND = "examples"
# Bands by a document's largest activation of a latent, as a share of the latent's maximum on validation tokens: from
# this share on. What is below the lowest is in none.
BAND_FROM = {"high": 0.7, "middle": 0.4, "low": 0.1}
STRONGEST, INACTIVE, INACTIVE_HARD = "strongest", "inactive", "inactive_hard"
SILENT = (INACTIVE, INACTIVE_HARD)
BANDS = (STRONGEST, *BAND_FROM, *SILENT)
HISTOGRAM_BINS = 20  # of the latent's maximum
SCHEMAS = {
    "windows": pa.schema(
        {
            "latent": pa.int32(),
            "band": pa.string(),  # one of BANDS
            "place": pa.int16(),  # within the band, 0 first: by falling value of the strongest, else at random
            "document": pa.int32(),
            "start": pa.int64(),  # position of the first token
            "peak": pa.int64(),  # position of the document's largest activation; of an inactive window, its centre
            "value": pa.float32(),  # activation at the peak
            "source": pa.string(),
            "activation": pa.list_(pa.float32()),  # per token of the window; 0 on tokens that are not counted
        }
    ),
    "tokens": pa.schema(
        {
            "latent": pa.int32(),
            "kind": pa.string(),  # peak: the token it fires on; next: the one after it; by falling share · log lift
            "token_id": pa.int32(),
            "count": pa.int32(),  # among the latent's sampled firings
            "share": pa.float32(),  # of them
            "lift": pa.float32(),  # share over the token's share of the counted validation tokens, above 1
        }
    ),
    "histogram": pa.schema(
        {
            "latent": pa.int32(),
            "source": pa.string(),
            "bin": pa.int8(),  # of HISTOGRAM_BINS equal parts of the latent's maximum; empty ones have no row
            "count": pa.int64(),  # counted validation tokens
        }
    ),
    "neighbours": pa.schema(
        {
            "latent": pa.int32(),
            "kind": pa.string(),  # cosine: of the decoder rows of both models; coactivation: Jaccard index of firing
            "place": pa.int8(),  # 0 is the nearest
            "neighbour": pa.int32(),
            "value": pa.float32(),
        }
    ),
    "logits": pa.schema(
        {
            "latent": pa.int32(),
            "direction": pa.string(),  # chat, base or difference: the decoder row
            "end": pa.string(),  # highest or lowest
            "place": pa.int8(),  # 0 is the most extreme
            "token_id": pa.int32(),
            "value": pa.float32(),  # logit per unit of the latent's activation, before the final norm's division
        }
    ),
}

LOSSES = {  # of the documents that windows of chat-specific latents come from (`tunediff.latents.losses`), in nats
    "position": "int64",  # rising
    "kl": "float32",  # KL(chat ‖ base) of what the models predict after this token
    "loss_base": "float32",  # −log p of this token given those before it; NaN for the first of a document
    "loss_chat": "float32",
}


class Writer:
    """Writes the tables of one dictionary's examples, some latents at a time, in order."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._files = {
            name: stack.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd"))
            for name, schema in SCHEMAS.items()
        }
        self._last = dict.fromkeys(SCHEMAS, -1)

    def add(self, name: str, columns: Mapping[str, Any]) -> None:
        """Append the rows of some latents to a table, as one row group; of no rows nothing is written.

        `columns` holds an array per column. `ValueError`: not the columns of the table, or latents not in order.
        """
        schema = SCHEMAS[name]
        if list(columns) != schema.names:
            raise ValueError(f"{name}: columns {list(columns)} instead of {schema.names}")
        latent = np.asarray(columns["latent"])
        if not len(latent):
            return
        if latent[0] <= self._last[name] or (np.diff(latent) < 0).any():
            raise ValueError(f"{name}: latents are not in order after {self._last[name]}")
        self._last[name] = int(latent[-1])
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, type=entry.type)
            for column, entry in zip(columns.values(), schema, strict=True)
        ]
        self._files[name].write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(latent))


@contextmanager
def writing(
    out: Path, *, key: str, facts: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
) -> Iterator[Writer]:
    """Yield a writer of the examples at `out`; they are sealed when the block ends without an error.

    `facts` and `provenance` are read at the end, so the block may fill them.
    """
    with building(out) as partial:
        partial.mkdir()
        with ExitStack() as stack:
            yield Writer(partial, stack)
    seal(out, KIND, key, facts, provenance)


def lists(values: NDArray[np.float32], lengths: NDArray[np.integer]) -> pa.Array:
    """Return a column of lists, given the values of all and the length of each."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.float32, copy=False)))


@dataclass
class Examples:
    """The examples of one dictionary, read table by table or latent by latent."""

    path: Path
    facts: dict[str, Any]
    _files: dict[str, pq.ParquetFile] = field(repr=False)
    _bounds: dict[str, NDArray[np.int64]] = field(repr=False)  # first and last latent of every row group

    @classmethod
    def open(cls, path: Path, *, key: str | None = None) -> "Examples":
        """Open finished examples, having checked that all tables are there, whole and of the right columns.

        `TunediffError`: missing, unfinished, damaged (the file is named), of other columns or types, not sorted by
        latent, or made by other inputs than `key` says.
        """
        facts = check(path, KIND, key).facts
        files, bounds = {}, {}
        for name, schema in SCHEMAS.items():
            file, remedy = path / f"{name}.parquet", f"delete {path} and run snakemake again"
            try:
                files[name] = pq.ParquetFile(file)
                found = files[name].schema_arrow.remove_metadata()
            except (OSError, pa.ArrowException) as error:
                raise TunediffError(f"{file}: not a readable Parquet file ({_first_line(error)}); {remedy}") from error
            for entry in schema:
                if entry.name not in found.names:
                    raise TunediffError(f"{file}: column '{entry.name}' missing; {remedy}")
                if found.field(entry.name).type != entry.type:
                    is_type = found.field(entry.name).type
                    raise TunediffError(f"{file}: column '{entry.name}' is {is_type} instead of {entry.type}; {remedy}")
            if found.names != schema.names:
                unknown = [name for name in found.names if name not in schema.names]
                what = f"column '{unknown[0]}' is not of it" if unknown else "its columns are in another order"
                raise TunediffError(f"{file}: not the table '{name}' of examples: {what}; {remedy}")
            bounds[name] = _row_group_bounds(files[name])
            if any(after[0] <= before[1] for before, after in pairwise(bounds[name])):
                raise TunediffError(f"{file}: rows are not sorted by latent; {remedy}")
        return cls(path, facts, files, bounds)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return a whole table, or some of its columns."""
        return self._read(name, lambda file: file.read(columns=columns)).to_pandas()

    def of(self, name: str, latent: int, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the rows of one latent, numbered from 0; none of a latent that never fires."""
        first, last = self._bounds[name].T
        groups = np.flatnonzero((first <= latent) & (latent <= last)).tolist()
        wanted = None if columns is None else ["latent", *columns]
        table = self._read(name, lambda file: file.read_row_groups(groups, columns=wanted))
        return table.filter(pc.equal(table["latent"], latent)).to_pandas()

    def between(self, name: str, first: int, stop: int) -> pd.DataFrame:
        """Return the rows of the latents `first` to `stop` − 1, numbered from 0."""
        low, high = self._bounds[name].T
        groups = np.flatnonzero((low < stop) & (first <= high)).tolist()
        table = self._read(name, lambda file: file.read_row_groups(groups))
        inside = pc.and_(pc.greater_equal(table["latent"], first), pc.less(table["latent"], stop))
        return table.filter(inside).to_pandas()

    def _read(self, name: str, read: Any) -> pa.Table:
        try:
            return read(self._files[name])
        except (OSError, pa.ArrowException) as error:
            file = self.path / f"{name}.parquet"
            raise TunediffError(
                f"{file}: damaged ({_first_line(error)}); delete {self.path} and run snakemake again"
            ) from error


def read_losses(path: Path) -> pd.DataFrame:
    """Return both models' losses per position, having checked the columns (`LOSSES`) and that positions rise.

    `TunediffError`: the file is not Parquet, or holds something else.
    """
    remedy = f"delete {path} and run snakemake again"
    try:
        frame = pd.read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise TunediffError(f"{path}: not a readable Parquet file ({_first_line(error)}); {remedy}") from error
    found = {str(name): str(dtype) for name, dtype in frame.dtypes.items()}
    if found != LOSSES:
        raise TunediffError(f"{path}: columns {found} instead of {LOSSES}; {remedy}")
    if (np.diff(frame["position"]) <= 0).any():
        raise TunediffError(f"{path}: positions do not rise; {remedy}")
    return frame


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120]


def _row_group_bounds(file: pq.ParquetFile) -> NDArray[np.int64]:
    """Return the first and last latent of every row group, shape (row group, 2)."""
    found = [file.metadata.row_group(i).column(0).statistics for i in range(file.num_row_groups)]
    return np.array([(each.min, each.max) for each in found], dtype=np.int64).reshape(-1, 2)
