"""The data of the report: shards, which the page loads one by one when it needs them.

A browser refuses `fetch` from `file://`, but it loads scripts. So a shard is a script that hands a key and a text to
the page: JSON, compressed (zlib) and in base64. No character of a corpus stands in it as itself: none can end it.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

LEVEL = 6  # of zlib; 9 takes three times as long for 1 %


def encoded(value: Any) -> str:
    """Return a JSON value as a shard holds it; not-a-number is an error."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("ascii"), LEVEL)).decode("ascii")


def decoded(text: str) -> Any:
    """Return the value of `encoded`."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def read_shard(path: Path) -> tuple[str, Any]:
    """Return key and value of a shard."""
    key, text = json.loads(f"[{path.read_text(encoding='ascii').removeprefix('tunediff.data(').rstrip(');')}]")
    return key, decoded(text)


class Shards:
    """Writes the shards of a report under `folder`, and counts their bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_bytes = folder, 0

    def write(self, key: str, value: Any) -> None:
        """Write one shard; its key is its path: `table/l1-seed0`."""
        path = self.folder / f"{key}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.n_bytes += path.write_text(f'tunediff.data("{key}","{encoded(value)}")', encoding="ascii")


def rounded(values: ArrayLike, digits: int = 3) -> NDArray[np.float64]:
    """Return numbers rounded to significant digits, so that they are short in JSON."""
    x = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.floor(np.log10(np.abs(x)))
        scale = 10.0 ** (digits - 1 - magnitude)
        result = np.where(scale >= 1, np.round(x * scale) / scale, np.round(x / (1 / scale)) * (1 / scale))
    return np.where(np.isfinite(result), result, x)


def column(values: ArrayLike, digits: int = 3) -> list[Any]:
    """Return a column as a JSON list: floats rounded, None where there is no number."""
    x = np.asarray(values)
    if x.dtype.kind != "f":
        return x.tolist()
    short = rounded(x, digits)
    return short.tolist() if np.isfinite(short).all() else [v if np.isfinite(v) else None for v in short.tolist()]


def counts(latent: ArrayLike, first: int, size: int) -> list[int]:
    """Return how many rows each of the latents `first` to `first + size − 1` has."""
    return np.bincount(np.asarray(latent, dtype=np.int64) - first, minlength=size).tolist()


def ragged(rows: pd.DataFrame, first: int, size: int, names: dict[str, str]) -> dict[str, Any]:
    """Return some latents' rows (sorted by latent) by columns: `count` says how many are of each latent.

    `names` maps columns to the names that the page knows them by.
    """
    columns = {short: column(rows[name]) for name, short in names.items()}
    return {"count": counts(rows["latent"], first, size), **columns}
