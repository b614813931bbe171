"""Which windows an explanation is made from, and which others it is scored on (method.md section 13).

A latent's windows are those of its examples. Ten drawn at random from each band, and the windows of silence, score.
Every second of the strongest ones explains, and what is left of the bands. The two share no document: what an
explanation has seen never scores it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from tunediff.latents.examples import BAND_FROM, SILENT, STRONGEST, Examples, lists
from tunediff.latents.table import LatentTable

EXPLAIN, SCORE = "explain", "score"
# Groups of explained latents. Directions are no latents: their number is that of the latent they are matched with.
RANKED, SHARED, LISTED = "ranked", "shared", "listed"
RANDOM, UNTRAINED = "random", "untrained"
DIRECTIONS = (RANDOM, UNTRAINED)
PER_BAND = 10  # windows of a band that a latent is scored on, at most
MIN_WINDOWS = 5  # windows of a kind (to explain, in which it fires, in which it does not), below which none is scored
SUBJECT = ["group", "latent"]

WINDOWS = pa.schema(
    {
        "group": pa.string(),
        "latent": pa.int32(),
        "use": pa.string(),  # explain or score
        "number": pa.int16(),  # within latent and use, in the order in which they are shown
        "band": pa.string(),  # of `examples.BANDS`
        "document": pa.int32(),
        "start": pa.int64(),  # position of the first token
        "peak": pa.int64(),  # position of the largest activation; the centre of a silent window
        "activation": pa.list_(pa.float32()),  # per token
    }
)


class Context(NamedTuple):
    """A row of `WINDOWS`."""

    group: str
    latent: int
    use: str
    number: int
    band: str
    document: int
    start: int
    peak: int
    activation: NDArray[np.float32]

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + len(self.activation)


def each(windows: pd.DataFrame) -> Iterator[Context]:
    """Yield the rows of some windows."""
    return map(Context._make, windows[WINDOWS.names].itertuples(index=False))


def chosen(table: LatentTable, n_ranked: int, n_shared: int, only: list[int] | None, seed: int) -> dict[int, str]:
    """Return the latents to explain and the group of each, in the order in which they are worked on.

    The `n_ranked` of lowest `rank_sum` and `n_shared` shared ones at random; or those of `only`. Dead ones are left
    out, as they have no examples.
    """
    frame = table.frame
    live = ~frame["dead"].to_numpy()
    if only is not None:
        return {latent: LISTED for latent in only if live[latent]}
    ranked = frame[live & frame["rank_sum"].notna()].sort_values("rank_sum", kind="stable")["latent"].head(n_ranked)
    result = {int(latent): RANKED for latent in ranked}
    shared = frame["latent"][live & (frame["class_name"] == "shared")].to_numpy()
    for latent in np.random.default_rng([seed, 1]).permutation(shared)[:n_shared].tolist():
        result.setdefault(latent, SHARED)
    return result


def windows_to_use(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return use and number of every window of ONE latent that is used, in order; `frame` is its rows of `windows`.

    Explained from are the strongest windows of even place, and those of a band from place `PER_BAND` on. Scored on are
    the others of bands, and those of silence, whose document is not among those, in random order.
    """
    strongest, silent = frame["band"] == STRONGEST, frame["band"].isin(SILENT)
    rest = ~strongest & ~silent & (frame["place"] >= PER_BAND)
    explain = frame[(strongest & (frame["place"] % 2 == 0)) | rest]
    score = frame[~strongest & ~rest & ~frame["document"].isin(explain["document"])]
    order = np.random.default_rng([seed, int(frame["latent"].iloc[0])]).permutation(len(score))
    parts = []
    for use, part in ((EXPLAIN, explain), (SCORE, score.iloc[order])):
        parts.append(part.assign(use=use, number=np.arange(len(part))))
    return pd.concat(parts, ignore_index=True)


def contexts(windows: pd.DataFrame, group_of: Mapping[int, str], seed: int) -> pd.DataFrame:
    """Return the windows to use of all latents, given their rows of the examples' table `windows`."""
    parts = []
    for latent in sorted(set(windows["latent"])):
        own = windows[windows["latent"] == latent]
        parts.append(windows_to_use(own, seed).assign(group=group_of[latent]))
    columns = [*windows.columns, "use", "number", "group"]
    every = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return every[WINDOWS.names]


def of_latents(examples: Examples, latents: Mapping[int, str], seed: int) -> pd.DataFrame:
    """Return the windows to use of a dictionary's latents."""
    rows = pd.concat([examples.of("windows", latent) for latent in sorted(latents)], ignore_index=True)
    return contexts(rows, latents, seed)


def fires(windows: pd.DataFrame) -> NDArray[np.bool_]:
    """Return in which windows the latent fires."""
    return ~windows["band"].isin(SILENT).to_numpy()


def as_table(windows: pd.DataFrame) -> pa.Table:
    """Return windows as the table that is written."""
    columns: list[Any] = [pa.array(windows[name].to_numpy(), WINDOWS.field(name).type) for name in WINDOWS.names[:-1]]
    values = list(windows["activation"])
    lengths = np.array([len(each) for each in values], dtype=np.int64)
    joined = np.concatenate([np.zeros(0, dtype=np.float32), *values])
    return pa.Table.from_arrays([*columns, lists(joined.astype(np.float32), lengths)], schema=WINDOWS)


BANDS = tuple(BAND_FROM)  # in which a latent fires, the highest first
