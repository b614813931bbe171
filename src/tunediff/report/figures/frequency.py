"""Frequency figure: how often the latents of each class fire."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from tunediff.latents.table import CLASSES, LatentTable
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/frequency",
    __name__,
    title="How often the latents of each class fire",
    caption=(
        "The share of validation tokens that a latent fires on, as log10, per class; every class sums to 1. The "
        "shared latents are what the chat-only ones compare with. Latents that never fire are counted in the "
        "legend."
    ),
    reads=("latents",),
    by_norm=True,
)

BIN_WIDTH = 0.25  # decades


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw log10 of the firing frequency (fraction of validation tokens) per class, each class summing to 1."""
    shown = look.selected(results.with_norms)
    fired = pd.concat([table.frame["frequency"] for table in shown.values()]).astype(np.float64)
    lowest = np.log10(fired[fired > 0]).min() if (fired > 0).any() else -1.0
    decades = -min(float(np.floor(lowest)), -1.0)
    edges = np.linspace(-decades, 0.0, round(decades / BIN_WIDTH) + 1)
    return look.each_crosscoder(shown, partial(_panel, edges=edges, style=style), 2.9, style)


def _panel(
    panel: SubFigure, label: str, latents: LatentTable, width: float, edges: np.ndarray, style: look.Style
) -> list[pd.DataFrame]:
    table = latents.frame
    axes = panel.subplots()
    pieces, handles = [], []
    for class_name, line in zip(CLASSES[:-1], look.LINE_STYLES, strict=True):
        values = table.loc[table["class_name"] == class_name, "frequency"].to_numpy(np.float64)
        logs = np.log10(values[values > 0])
        heights = look.counts(logs, edges)
        shares = heights / max(heights.sum(), 1)
        text = f"{class_name}: {len(values):,}"
        if len(logs):
            axes.stairs(shares, edges, color=look.CLASS_COLOURS[class_name], linestyle=line, linewidth=style.line_width)
            text += f", median {np.median(logs):.1f}".replace("-", "−")
        handles.append(Line2D([], [], color=look.CLASS_COLOURS[class_name], linestyle=line, label=text))
        piece = look.histogram_rows(heights, edges, item="log10_frequency", class_name=class_name)
        pieces.append(piece.assign(share=shares))
    silent = int((table["frequency"] == 0).sum())
    pieces.append(pd.DataFrame({"item": ["never_fires"], "count": [silent]}))
    axes.set(
        xlim=(edges[0], 0), xlabel=r"$\log_{10}$ share of tokens a latent fires on", ylabel="share of the class per bin"
    )
    axes.set_ylim(bottom=0)
    if silent == len(table):
        axes.set_yticks([])
        look.statement(axes, f"no latent fires ({silent:,} dead)", style)
    handles.append(Line2D([], [], linestyle="", label=f"never fire: {silent:,}, not drawn"))
    look.legend(panel, handles, look.display_name(label), columns=1)
    return pieces
