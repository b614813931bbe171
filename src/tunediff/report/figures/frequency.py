"""Frequency figure: how often the latents of each class fire."""

import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from tunediff.latents.table import CLASSES
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing
from tunediff.report.style import Drawn, Style

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
    requires=lambda graph: bool(graph.with_norms),
)

BIN_WIDTH = 0.25  # decades


def draw(results: Inputs, style: Style) -> Drawn:
    """Draw log10 of the firing frequency (fraction of validation tokens) per class, each class summing to 1."""
    shown = {label: table.frame for label, table in look.selected(results.with_norms).items()}
    rows = look.rows_of(len(shown))
    for label, table in shown.items():
        look.require(table, ["class_name", "frequency"], f"latents of {label}")
    positive = [table.loc[table["frequency"] > 0, "frequency"].to_numpy(np.float64) for table in shown.values()]
    lowest = min((float(np.log10(values.min())) for values in positive if len(values)), default=-1.0)
    decades = -min(float(np.floor(lowest)), -1.0)
    edges = np.linspace(-decades, 0.0, round(decades / BIN_WIDTH) + 1)
    with style.context():
        figure = style.figure(2.9 * rows)
        numbers = [
            _panel(panel, label, table, edges, style)
            for panel, (label, table) in zip(look.panels(figure, len(shown)), shown.items(), strict=True)
        ]
    return Drawn(figure, pd.concat(numbers, ignore_index=True))


def _panel(panel: SubFigure, label: str, table: pd.DataFrame, edges: np.ndarray, style: Style) -> pd.DataFrame:
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
    numbers = pd.concat(pieces, ignore_index=True)
    numbers.insert(0, "crosscoder", label)
    return numbers
