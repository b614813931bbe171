"""Twins figure: do a chat-only and a base-only latent of the same direction fire on the same tokens?"""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/twins",
    __name__,
    title="Activation divergence of twins",
    caption=(
        "Activation divergence of twins, a chat-only and a base-only latent of the same direction, on validation "
        "tokens: 0 where they always fire together, 1 where they never do. Random pairs of a chat-only and a "
        "base-only latent stand beside them as the control. The legend counts the pairs."
    ),
    reads=("twins",),
    by_norm=True,
)

BINS = 20


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw the activation divergence of twins (decoder cosine above `twin_cosine`) beside that of random pairs.

    A table has one row per pair: chat_only_latent, base_only_latent, cosine, divergence (0 always fire together,
    1 never; NaN where neither fires high).
    """
    return look.each_crosscoder(look.selected(results.twins), partial(_panel, style=style), 2.6, style)


def _panel(panel: SubFigure, label: str, table: pd.DataFrame, width: float, style: look.Style) -> list[pd.DataFrame]:
    look.require(table, ["chat_only_latent", "base_only_latent", "cosine", "divergence"], f"twins of {label}")
    axes = panel.subplots()
    edges = np.linspace(0.0, 1.0, BINS + 1)
    threshold = table.attrs["twin_cosine"]
    is_twin = table["cosine"] > threshold
    pieces, handles = [], []
    for pool, name, colour, rows in (
        ("random", "random pairs", look.GREY, table[~is_twin]),
        ("twins", f"twins, cosine > {threshold:g}", look.PURPLE, table[is_twin]),
    ):
        values = rows["divergence"].astype(np.float64)
        heights = look.counts(values, edges)
        shares = heights / max(heights.sum(), 1)
        text = f"{name} (n = {heights.sum():,})"
        if heights.any():
            look.steps(axes, shares, edges, colour)
            median = float(values.median())
            axes.axvline(median, color=colour, linestyle="--", linewidth=0.9)
            text = f"{name} (n = {heights.sum():,}, median {median:.2f})"
        handles.append(Line2D([], [], color=colour, linewidth=2, label=text))
        piece = look.histogram_rows(heights, edges, item="divergence", pool=pool).assign(share=shares)
        undefined = {"item": ["without_divergence"], "pool": [pool], "count": [int(values.isna().sum())]}
        pieces += [piece, pd.DataFrame(undefined)]
    axes.set(xlim=(-0.01, 1.02), xlabel="activation divergence of the pair", ylabel="share of pairs per bin")
    axes.set_ylim(bottom=0)
    if table.empty:
        axes.set_yticks([])
        look.statement(axes, "no pair of a chat-only and\na base-only latent (0)", style)
    elif not is_twin.any():
        highest = float(table["cosine"].max())
        said = f"no twins: 0 of {len(table):,} pairs have\ncosine > {threshold:g} (highest {highest:.2f})"
        look.statement(axes, said, style, height=0.85)
    look.legend(panel, handles, look.display_name(label), columns=1)
    return pieces
