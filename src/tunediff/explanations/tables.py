"""Explanations, judgements and their windows, as tables that are written once and read afterwards.

Explanations (kind `explanations`) are a folder of two tables: `windows` (`contexts.WINDOWS`) and `explanations`, a row
per latent and explainer. Judgements (kind `judgements`) are a row per window, judge and order. Nothing here imports
torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tunediff.errors import TunediffError
from tunediff.explanations import contexts
from tunediff.explanations.contexts import EXPLAIN, MIN_WINDOWS, SCORE, SUBJECT
from tunediff.pipeline.artifacts import check

KIND, JUDGED = "explanations", "judgements"
LEXICAL, LABEL, LLM, GENERIC = "lexical", "label", "llm", "generic"
OTHER = " of another"  # after an explainer's name: the explanation is another latent's
OK, NO_RULE, NO_REPLY, REFUSED, UNREADABLE = "ok", "no rule", "not asked: token budget", "refused", "unreadable reply"
EXPLANATIONS = pa.schema(
    {
        "group": pa.string(),
        "latent": pa.int32(),
        "explainer": pa.string(),  # lexical, label, llm, generic; with OTHER after it a control
        "of": pa.int32(),  # whose explanation it is
        "text": pa.string(),  # what a language model is told
        "rule": pa.string(),  # JSON: {"clauses": [[kind, token, other, weight], …]}, {"label": i}, {"always": true}
        "status": pa.string(),  # ok, or why there is none
    }
)

RULE, MODEL = "rule", "llm"  # judges
JUDGEMENTS = pa.schema(
    {
        "group": pa.string(),
        "latent": pa.int32(),
        "explainer": pa.string(),
        "judge": pa.string(),  # rule or llm
        "number": pa.int16(),  # of the window, see `contexts.WINDOWS`
        "rotation": pa.int8(),  # which of the orders; 0 of the rule
        "slot": pa.int8(),  # place of the window in its call; 0 of the rule
        "p": pa.float32(),  # that the latent fires in the window; NaN without a readable reply
        "status": pa.string(),  # ok, or why there is no number
    }
)


class Row(NamedTuple):
    """A row of `EXPLANATIONS`."""

    group: str
    latent: int
    explainer: str
    of: int
    text: str
    rule: str
    status: str


@dataclass
class Explanations:
    """The explanations of one dictionary and the windows they were made from and are scored on."""

    path: Path
    facts: dict[str, Any]
    windows: pd.DataFrame
    rows: pd.DataFrame

    @classmethod
    def open(cls, path: Path, *, key: str | None = None) -> "Explanations":
        """Read finished explanations. `TunediffError`: missing, damaged, or made by other inputs than `key` says."""
        facts = check(path, KIND, key).facts
        frames = []
        for name, schema in (("windows", contexts.WINDOWS), ("explanations", EXPLANATIONS)):
            table = pq.read_table(path / f"{name}.parquet")
            if table.schema.remove_metadata() != schema:
                raise TunediffError(
                    f"{path / name}.parquet: not the table '{name}' of explanations; "
                    f"delete {path} and run snakemake again"
                )
            frames.append(table.to_pandas())
        return cls(path, facts, *frames)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        return map(Row._make, self.rows.itertuples(index=False))

    @cached_property
    def scored_on(self) -> dict[tuple[str, int], pd.DataFrame]:
        """The windows that each group's latents are scored on, in order; of latents that can be scored alone."""
        return {of: own for of, own in self._windows(SCORE).items() if not self.unscorable(*of)}

    @cached_property
    def _counts(self) -> "pd.Series[int]":
        kind = np.where(
            self.windows["use"] == EXPLAIN, EXPLAIN, np.where(contexts.fires(self.windows), "fires", "silent")
        )
        return self.windows.groupby([*SUBJECT, kind], sort=False).size()

    def unscorable(self, group: str, latent: int) -> str:
        """Return why a latent cannot be scored, or nothing."""
        kinds = {EXPLAIN: "to explain from", "fires": "in which it fires", "silent": "of silence"}
        counts = {told: int(self._counts.get((group, latent, kind), 0)) for kind, told in kinds.items()}
        return next((f"{n} windows {told}, {MIN_WINDOWS} needed" for told, n in counts.items() if n < MIN_WINDOWS), "")

    def _windows(self, use: str) -> dict[tuple[str, int], pd.DataFrame]:
        own = self.windows[self.windows["use"] == use].sort_values([*SUBJECT, "number"], kind="stable")
        groups: Any = own.groupby(SUBJECT, sort=False)
        return dict(iter(groups))


def read_judgements(path: Path, *, key: str | None = None) -> pd.DataFrame:
    """Read judgements. `TunediffError`: missing, damaged, of other columns, or made by other inputs than `key` says."""
    check(path, JUDGED, key)
    table = pq.read_table(path)
    if table.schema.remove_metadata() != JUDGEMENTS:
        raise TunediffError(f"{path}: not a table of judgements; delete it and run snakemake again")
    return table.to_pandas()
