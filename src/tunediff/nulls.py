"""False positives: what is called chat-specific in pairs of models where nothing is (config `nulls`)."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from tunediff.figures import style as look
from tunediff.figures.style import Drawing, Style
from tunediff.tables import table1, typeset

CALLS = {
    "chat_only": f"chat-only\n({look.NORM_DIFFERENCE} ≥ 0.9)",
    "chat_specific": f"chat-specific\n({look.NU_RECONSTRUCTION}, {look.NU_ERROR})",
    "chat_specific_interval": "chat-specific\n(95 % intervals)",
}


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


def draw_nulls(table: pd.DataFrame, models: Mapping[str, tuple[str, str]], style: Style) -> Drawing:
    """Typeset `null_rates`, one line per pair and crosscoder; `models` names both models of each pair."""
    cells: list[list[str]] = []
    rules: set[int] = set()
    for pair in dict.fromkeys(table["pair"]):
        rules.add(len(cells))
        for row in table[table["pair"] == pair].to_dict("records"):
            line = [f"{pair or 'the pair itself'}, {look.display_name(row['crosscoder'])}", f"{row['live']:,}"]
            for name in CALLS:
                share, low, high = (100 * row[f"{name}_share{end}"] for end in ("", "_low", "_high"))
                line.append(f"{row[name]:,}   {share:.1f} % [{low:.1f}, {high:.1f}]")
            line += [f"{row['fve_base']:.3f} / {row['fve_chat']:.3f}", f"{row['l0']:.1f}"]
            cells.append(line)
    heads = ["", "live\nlatents", *CALLS.values(), "FVE\nbase / chat", "L0\n"]
    against = "; ".join(f"{pair}: {base} and {chat}" for pair, (base, chat) in models.items() if pair)
    note = (
        f"Pairs (as base, as chat): {against}. The second of these learned no concept that the first lacks, so every "
        "call is a false positive; the pair itself stands for comparison. Calls over latents of any class, as a share "
        "of the live ones with Wilson's 95 % interval (as if latents were independent). FVE, L0: held-out tokens."
    )
    title = "Chat-specific latents where nothing is chat-specific"
    return Drawing(typeset(heads, cells, rules - {0}, title, note, style), table)
