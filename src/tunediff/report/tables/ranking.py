"""The ranking: the latents of every crosscoder that are most specific to the chat model, by both ν."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tunediff.latents.table import LatentTable
from tunediff.markup import firing_share, per_cent
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.layout import ruled, typeset
from tunediff.report.registry import Drawing
from tunediff.report.tables.table1 import SPECIFIC

DRAWING = Drawing(
    "tables/ranking",
    __name__,
    title="The latents most specific to the chat model",
    caption=(
        "The first twenty latents of every crosscoder by rank(ν^r) + rank(ν^ε), with 95 % intervals of both ν, on "
        "which sources they fire, and how much of it falls on template tokens. The last column says whether a latent "
        "is called chat-specific on train tokens and confirmed on validation tokens. Where no latent has both ν within "
        "the bounds, the order is that of Δnorm."
    ),
    reads=("latents",),
    by_norm=True,
)
RANKED = 20  # latents of each crosscoder


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Typeset the ranking of the first seed of each crosscoder; the numbers are `ranking`, with every seed."""
    latents = results.with_norms
    table, shown = ranking(latents), look.selected(latents)
    sources = [name.removeprefix("frequency_") for name in map(str, table) if name.startswith("frequency_")]
    heads = ["", "class", look.NORM_DIFFERENCE, f"{look.NU_RECONSTRUCTION} [95 %]", f"{look.NU_ERROR} [95 %]"]
    heads += [f"fires on\n{source}" for source in sources] + ["template\nshare", "chat-\nspecific"]
    parts = []
    for label in shown:
        rows = table[table["crosscoder"] == label].to_dict("records")
        said = f"{look.display_name(label)}: {passing_text(latents[label])}{unranked_text(rows)}"
        part = [[look.mathematical(said), *("" for _ in heads[1:])]]
        for row in rows:
            cells = [f"{row['place']}.  latent {row['latent']}", row["class_name"], f"{row['norm_difference']:.2f}"]
            cells += nu_texts(row)
            cells += [firing_share(row[f"frequency_{source}"]) for source in sources]
            part.append([*cells, per_cent(row["template_share"]), verdict(row)])
        parts.append(part)
    criterion = look.one_criterion(latents)
    note = (
        f"Latents by rank({look.NU_RECONSTRUCTION}) + rank({look.NU_ERROR}), the first {RANKED} of each crosscoder"
        + (" (the CSV has every seed)" if len(shown) < len(latents) else "")
        + f". Chat-specific: {criterion.math}, fitted on train tokens; confirmed: so on validation tokens too. Fires "
        "on: share of validation tokens. Template share: of its firings, those on template tokens."
    )
    title = "The ranking: latents most specific to the chat model"
    return look.Drawn(typeset(heads, *ruled(parts), title, note, style, first_width=1.0), table)


def ranking(latents: Mapping[str, LatentTable]) -> pd.DataFrame:
    """Return the first twenty latents of every crosscoder's ranking, with their numbers and what they are called.

    Where no latent has a `rank_sum` (NaN then), the order is that of Δnorm.
    """
    criterion = look.one_criterion(latents)
    intervals = [f"nu_{target}{end}" for target in ("reconstruction", "error") for end in ("", "_low", "_high")]
    pieces = []
    for label, table in latents.items():
        sources = [f"frequency_{source}" for source in table.sources]
        columns = ["latent", "class_name", "norm_difference", *intervals, *sources, "template_share", *SPECIFIC]
        first = table.first(RANKED)[[*columns, "rank_sum"]].reset_index(drop=True)
        first.insert(0, "place", np.arange(1, len(first) + 1))
        first.insert(0, "crosscoder", label)
        pieces.append(first)
    return pd.concat(pieces, ignore_index=True).assign(criterion=criterion.text)


def unranked_text(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Return what is said of the order of a ranking's rows where it is not that of `rank_sum`."""
    return "; none has both ν within the bounds, so by Δnorm" if rows and np.isnan(rows[0]["rank_sum"]) else ""


def nu_texts(row: Mapping[Any, Any]) -> list[str]:
    """Return ν^r and ν^ε of a row of the ranking with their 95 % intervals, in print."""
    return [_with_interval(*(row[f"{nu}{end}"] for end in ("", "_low", "_high"))) for nu in look.NU_NAMES]


def _with_interval(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "–"
    value, low, high = (round(float(x), 2) + 0.0 for x in (value, low, high))  # + 0: no −0.00
    ends = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) and np.isfinite(high) else ""
    return f"{value:.2f}{ends}".replace("-", "−")


def verdict(row: Mapping[Any, Any]) -> str:
    """Return whether a latent of the ranking is called chat-specific, and confirmed on validation tokens."""
    if not row["chat_specific"]:
        return "no"
    return "confirmed" if row["chat_specific_validation"] else "not confirmed"


def passing_text(table: LatentTable) -> str:
    """Return how many of the live latents are chat-specific, in words where none is."""
    live = int((~table.frame["dead"]).sum())
    passing = int(table.frame["chat_specific"].sum())
    if not live:
        return f"no live latent (0 of {len(table):,})"
    if not passing:
        return f"none of {live:,} live latents is chat-specific"
    return f"{passing:,} of {live:,} live latents {'is' if passing == 1 else 'are'} chat-specific"
