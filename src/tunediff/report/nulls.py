"""Nulls: what is called chat-specific in pairs of models where nothing should be (config `nulls`).

A model paired with itself is an *exact* null: nothing is chat-specific, so a count above 0 is an error. In any other
pair both models differ in something real (another seed, more training): its count is *contaminated* by true calls, and
bounds the false positives from above.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import LatentTable
from tunediff.report import style as look
from tunediff.report.tables.table1 import CALLS, table1


def null_kind(pair: Mapping[str, Any]) -> str:
    """Return "exact" where both models of a pair of the config are one, fed the same tokens, else "contaminated"."""
    same = pair["base"] == pair["chat"] and pair.get("base_revision") == pair.get("chat_revision")
    return "exact" if same and not pair.get("base_token_replacements") else "contaminated"


def model_name(model: str | Mapping[str, Any]) -> str:
    """Return how a model of the config is printed: the last part of its id or directory, or of its adapter's."""
    return Path(model if isinstance(model, str) else model["adapter"]).name


def null_rates(
    pairs: Mapping[str, tuple[Mapping[str, LatentTable], Mapping[str, Evaluation]]], kinds: Mapping[str, str]
) -> pd.DataFrame:
    """Return per pair (`""` is the run's own) and crosscoder how many of the live latents each rule calls.

    A pair has its latent tables and its held-out metrics, by crosscoder; `kinds` are the `null_kind` of all pairs but
    the run's own. Chat-specific latents count in any class; the ends of a share are Wilson's 95 % interval, as if
    latents were independent.

    Raises
    ------
    TunediffError
        Two tables, of any of the pairs, state different criteria.
    """
    from scipy.stats import binomtest  # takes half a second; only nulls need it

    look.one_criterion(
        {f"{pair} {name}": table for pair, (tables, _) in pairs.items() for name, table in tables.items()}
    )
    rows = []
    for pair, (tables, metrics) in pairs.items():
        for found in table1(tables, metrics).to_dict("records"):
            live = found["latents"] - found["dead"]
            calls = {name: found[column] for name, column in CALLS.items()}
            row = {"pair": pair, "null_kind": kinds.get(pair, ""), "crosscoder": found["crosscoder"], "live": live}
            for name, called in calls.items():
                share = binomtest(called, live).proportion_ci(method="wilson") if live else (float("nan"),) * 2
                row |= {name: called, f"{name}_share": called / live if live else float("nan")}
                row |= dict(zip((f"{name}_share_low", f"{name}_share_high"), share, strict=True))
            kept = ("reversed", "fve_base", "fve_chat", "fve_difference", "l0", "dead", "criterion")
            rows.append(row | {name: found[name] for name in kept})
    return pd.DataFrame(rows)
