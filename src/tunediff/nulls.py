"""False positives: what is called chat-specific in pairs of models where nothing is (config `nulls`)."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from tunediff.tables import table1

CALLS = ("chat_only", "chat_specific", "chat_specific_interval")  # by Δnorm, by ν, by ν with its intervals


def null_rates(
    pairs: Mapping[str, tuple[Mapping[str, pd.DataFrame], Mapping[str, Mapping[str, Any]]]],
) -> pd.DataFrame:
    """Return per pair (`""` is the run's own) and crosscoder how many of the live latents each rule calls.

    A pair has its latent tables and its held-out metrics, by crosscoder. Chat-specific latents count in any class; the
    ends of a share are Wilson's 95 % interval, as if latents were independent.
    """
    rows = []
    for pair, (tables, metrics) in pairs.items():
        for found in table1(tables, metrics).to_dict("records"):
            live = found["latents"] - found["dead"]
            calls = {name: found[name if name == "chat_only" else f"{name}_any_class"] for name in CALLS}
            row = {"pair": pair, "crosscoder": found["crosscoder"], "live": live}
            for name, called in calls.items():
                share = binomtest(called, live).proportion_ci(method="wilson") if live else (float("nan"),) * 2
                row |= {name: called, f"{name}_share": called / live if live else float("nan")}
                row |= dict(zip((f"{name}_share_low", f"{name}_share_high"), share, strict=True))
            rows.append(row | {name: found[name] for name in ("fve_base", "fve_chat", "l0", "dead")})
    return pd.DataFrame(rows)
