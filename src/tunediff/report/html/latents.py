"""The latents of a dictionary in the report: the table of all, and shards with the examples of a block of latents.

A window is not stored as text: it points into the validation tokens, which are in the report once, and brings the
tokens on which its latent fires. So every latent of a large dictionary has its examples in a report that can be sent.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tunediff.latents.examples import Examples
from tunediff.latents.table import LatentTable
from tunediff.report.html.shards import Shards, column, counts, ragged, rounded

if TYPE_CHECKING:
    from tunediff.report.html.explanations import Told

BLOCK = 256  # latents per shard
FLAGS = ("dead", "chat_specific", "chat_specific_validation", "chat_specific_interval", "reversed")  # bits, 1 first
ENDS = ("", "_low", "_high", "_validation")
FLOATS = {  # columns of the latent table -> names of the page
    "norm_difference": "delta", "cosine": "cosine", "frequency": "frequency", "template_share": "template",
    "max_activation": "max", "nu_activation": "nu_a",
    **{f"nu_{name}{end}": f"nu_{name[0]}{end}" for name in ("reconstruction", "error") for end in ENDS},
}  # fmt: skip
BANDS = ("strongest", "high", "middle", "low", "inactive", "inactive_hard")
CODES: dict[str, Sequence[str]] = {  # names that stand in shards as their number
    "band": BANDS,
    "token": ("peak", "next"),
    "neighbour": ("cosine", "coactivation"),
    "direction": ("chat", "base", "difference"),
    "end": ("highest", "lowest"),
}
FIRST_RANKED = 1000  # latents of a dictionary's ranking that are shown with all their windows, whatever the size


class Detail(NamedTuple):
    """How many windows a latent is shown with, per band."""

    strongest: int
    band: int  # of high, middle and low each
    inactive: int  # of both kinds each

    def keeps(self, windows: pd.DataFrame) -> NDArray[np.bool_]:
        """Return which rows are shown."""
        most = np.array([self.strongest, *(self.band,) * 3, *(self.inactive,) * 2])
        return windows["place"].to_numpy() < most[coded(windows, "band", BANDS)]


EVERYTHING = Detail(20, 10, 15)
DETAILS = (EVERYTHING, Detail(20, 10, 0), Detail(15, 5, 0), Detail(10, 3, 0), Detail(5, 2, 0), Detail(3, 1, 0))


class Dictionary(NamedTuple):
    """What the report reads of one dictionary; None and empty are what a run has not."""

    name: str
    table: LatentTable
    examples: Examples | None
    twins: pd.DataFrame | None
    seeds: pd.DataFrame | None  # its rows of seeds/matches.parquet, of its own seed
    told: "Told | None" = None  # its explanations

    def __len__(self) -> int:
        return len(self.table)

    def ranks(self) -> NDArray[np.int64]:
        """Return the place of each latent, 1 first, 0 without one: that of `LatentTable.first`."""
        first = self.table.first(len(self))["latent"].to_numpy()
        found = np.zeros(len(self), dtype=np.int64)
        found[first] = np.arange(1, len(first) + 1)
        return found

    def shown_whole(self) -> NDArray[np.bool_]:
        """Return which latents are shown with all their windows: the chat-specific and the first of the ranking."""
        rank = self.ranks()
        return ((rank > 0) & (rank <= FIRST_RANKED)) | self.table.frame["chat_specific"].to_numpy()


def write_table(dictionary: Dictionary, names: Sequence[str], shards: Shards) -> None:
    """Write the table of all latents, by columns; `names` are the latents' labels."""
    frame, table = dictionary.table.frame, dictionary.table
    classes = sorted(set(frame["class_name"]))
    flags = sum(frame[name].to_numpy().astype(int) << bit for bit, name in enumerate(FLAGS))
    columns: dict[str, Any] = {
        "rank": dictionary.ranks().tolist(),
        "class": frame["class_name"].map(classes.index).tolist(),
        "flags": np.asarray(flags).tolist(),
        **{short: column(frame[name]) for name, short in FLOATS.items()},
        **{f"frequency_{source}": column(frame[f"frequency_{source}"]) for source in table.sources},
        **{f"max_{source}": column(frame[f"max_{source}"]) for source in table.sources},
    }
    twins = dictionary.twins
    if twins is not None:
        columns["twin"], columns["twin_cosine"], columns["twin_divergence"] = _twins(twins, len(frame))
    if dictionary.seeds is not None:
        own = dictionary.seeds.sort_values(["latent", "cosine"], kind="stable")
        worst = own.groupby("latent")["cosine"].min().reindex(range(len(frame)))
        columns["seed_cosine"] = column(worst)
        stable = own.groupby("latent")["stable"].first().reindex(range(len(frame)), fill_value=False)
        columns["stable"] = stable.astype(int).tolist()
    value = {"classes": classes, "columns": columns, "label": list(names)}
    if dictionary.told is not None:
        value["explained"] = dictionary.told.table()
    shards.write(f"table/{dictionary.name}", value)


def _twins(twins: pd.DataFrame, size: int) -> tuple[list[int], list[Any], list[Any]]:
    """Return per latent its most similar twin (−1: none), their cosine and activation divergence."""
    near = twins[twins["cosine"] > twins.attrs["twin_cosine"]]
    ends = ("chat_only_latent", "base_only_latent")
    both = pd.concat(
        [near.rename(columns={a: "latent", b: "twin"}) for a, b in (ends, ends[::-1])], ignore_index=True
    ).sort_values("cosine", ascending=False, kind="stable")
    best = both.drop_duplicates("latent").set_index("latent").reindex(range(size))
    return best["twin"].fillna(-1).astype(int).tolist(), column(best["cosine"]), column(best["divergence"])


# -- examples ----------------------------------------------------------------------------------------------------------


def fired(windows: pd.DataFrame) -> dict[str, Any]:
    """Return the tokens of windows on which their latent fires: how many per window, how far apart, how strongly."""
    lengths = np.fromiter(map(len, windows["activation"]), dtype=np.int64, count=len(windows))
    values = np.concatenate([*windows["activation"], np.zeros(0, dtype=np.float32)])
    window, at = np.repeat(np.arange(len(windows)), lengths), _within(lengths)
    on = np.flatnonzero(values > 0)
    window, at = window[on], at[on]
    first = np.r_[True, window[1:] != window[:-1]] if len(on) else np.zeros(0, dtype=bool)
    steps = np.where(first, at, np.diff(at, prepend=0))
    return {
        "length": lengths.tolist(),
        "active": counts(window, 0, len(windows)),
        "step": steps.tolist(),
        "activation": rounded(values[on]).tolist(),
    }


def _within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, … within each of the given lengths: [2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def coded(rows: pd.DataFrame, name: str, known: Sequence[str]) -> NDArray[np.int64]:
    """Return a column of names as their places in `known`."""
    return pd.Categorical(rows[name], categories=list(known)).codes.astype(np.int64)


class Block(NamedTuple):
    """The shard of some latents, and the validation positions that its windows cover."""

    value: dict[str, Any]
    start: NDArray[np.int64]
    length: NDArray[np.int64]


def block(
    tables: Mapping[str, pd.DataFrame], first: int, size: int, kept: NDArray[np.bool_], of: Sequence[str]
) -> Block:
    """Return the shard of the latents `first` to `first + size − 1`.

    `tables` are their rows of the examples' tables, `kept` says which windows are shown, `of` are the sources.
    """
    windows = tables["windows"][kept]
    rows = {name: tables[name] for name in ("tokens", "histogram", "neighbours", "logits")}
    start = windows["start"].to_numpy(np.int64)
    found = fired(windows)
    value = {
        "first": first,
        "windows": {
            "count": counts(windows["latent"], first, size),
            "band": coded(windows, "band", BANDS).tolist(),
            "source": coded(windows, "source", of).tolist(),
            "document": windows["document"].tolist(),
            "start": start.tolist(),
            "peak": (windows["peak"].to_numpy(np.int64) - start).tolist(),
            "value": column(windows["value"]),
            **found,
        },
        "tokens": {
            **ragged(rows["tokens"], first, size, {"token_id": "token", "share": "share", "lift": "lift"}),
            "kind": coded(rows["tokens"], "kind", CODES["token"]).tolist(),
        },
        "histogram": {
            **ragged(rows["histogram"], first, size, {"bin": "bin", "count": "tokens"}),
            "source": coded(rows["histogram"], "source", of).tolist(),
        },
        "neighbours": {
            **ragged(rows["neighbours"], first, size, {"neighbour": "latent", "value": "value"}),
            "kind": coded(rows["neighbours"], "kind", CODES["neighbour"]).tolist(),
        },
        "logits": {
            **ragged(rows["logits"], first, size, {"token_id": "token", "value": "value"}),
            "direction": coded(rows["logits"], "direction", CODES["direction"]).tolist(),
            "end": coded(rows["logits"], "end", CODES["end"]).tolist(),
        },
    }
    return Block(value, start, np.asarray(found["length"], dtype=np.int64))


def blocks(size: int) -> Iterator[tuple[int, int]]:
    """Yield first latent and number of latents of each shard."""
    for first in range(0, size, BLOCK):
        yield first, min(BLOCK, size - first)
