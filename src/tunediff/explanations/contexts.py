"""Which windows an explanation is made from, and which others it is scored on (method.md section 8).

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
from tunediff.latents.examples import BANDS as BANDS_IN_ORDER
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


def contexts(windows: pd.DataFrame, group_of: Mapping[int, str], seed: int) -> pd.DataFrame:
    """Return the windows to use of all latents, given their rows of the examples' table `windows`.

    Explained from are the strongest windows of even place, and those of a band from place `PER_BAND` on. Scored on are
    the others of bands, and those of silence, whose document is not among those, in random order.
    """
    band, place = windows["band"].to_numpy(), windows["place"].to_numpy()
    strongest, silent = band == STRONGEST, np.isin(band.astype(str), SILENT)
    explain = np.where(strongest, place % 2 == 0, ~silent & (place >= PER_BAND))
    latent, document = (windows[name].to_numpy(np.int64) for name in ("latent", "document"))
    pair = latent << 32 | document
    score = ~strongest & ~explain & ~np.isin(pair, pair[explain])
    turn = place.astype(np.float64)
    for one in np.unique(latent).tolist():  # from a seed of its own, so that no latent depends on the others
        own = (latent == one) & score
        turn[own] = np.random.default_rng([seed, one]).random(int(own.sum()))
    rank = np.array([BANDS_IN_ORDER.index(each) for each in band], dtype=np.int64)
    used = np.flatnonzero(explain | score)
    used = used[np.lexsort((turn[used], np.where(explain, rank, 0)[used], score[used], latent[used]))]
    result = windows.iloc[used].reset_index(drop=True)
    result["use"] = np.where(explain[used], EXPLAIN, SCORE)
    result["number"] = result.groupby(["latent", "use"], sort=False).cumcount()
    result["group"] = [group_of[one] for one in result["latent"].tolist()]
    return result[WINDOWS.names]


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
