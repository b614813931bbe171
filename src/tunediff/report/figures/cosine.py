"""Cosine figure: how alike a latent's two decoder directions are, and whether ν ranks latents as Δnorm does."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from tunediff.latents.table import CLASSES, LatentTable
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/cosine",
    __name__,
    title="Decoder directions per class, and the two rankings",
    caption=(
        "Upper: the cosine between the base and the chat decoder direction of every live latent, per class. Lower: "
        "the rank sum of both ν against Δnorm, with Pearson's correlation over all ranked latents and over the "
        "chat-only ones. Latents that are reversed have no rank; the note gives their number."
    ),
    reads=("latents",),
    by_norm=True,
)

BINS = 20
MIN_CORRELATED = 3  # latents needed for a correlation


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's r, NaN with fewer than three points or no variance."""
    if len(x) < MIN_CORRELATED or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw cos(d_base, d_chat) per class in 20 bins, and rank_sum against Δnorm with Pearson's r."""
    shown = look.selected(results.with_norms)
    look.one_criterion(shown)
    return look.each_crosscoder(shown, partial(_panel, style=style), 5.0, style)


def _panel(panel: SubFigure, label: str, latents: LatentTable, width: float, style: look.Style) -> list[pd.DataFrame]:
    table, bounds = latents.frame, latents.criterion.range
    upper, lower = panel.subplots(2, 1)
    handles = []
    for class_name in CLASSES[:-1]:
        name = f"{class_name} ({(table['class_name'] == class_name).sum():,})"
        handles.append(Line2D([], [], color=look.CLASS_COLOURS[class_name], marker="o", markersize=3, label=name))
    look.legend(panel, handles, look.display_name(label))
    ranks = _ranks(lower, table, bounds, style)
    turned = int(table["reversed"].sum())
    look.note(panel, f"Ranked: latents with both ν within {bounds}. Reversed, so unranked: {turned:,}.", style, width)
    return [_cosines(upper, table, style), ranks]


def _cosines(axes: Axes, table: pd.DataFrame, style: look.Style) -> pd.DataFrame:
    edges = np.linspace(-1.0, 1.0, BINS + 1)
    pieces = []
    for class_name in CLASSES[:-1]:
        values = table.loc[table["class_name"] == class_name, "cosine"].astype(np.float64)
        # rounding can put a cosine a little beyond ±1
        heights = look.counts(values.clip(-1.0, 1.0), edges)
        shares = heights / max(heights.sum(), 1)
        if heights.any():
            axes.stairs(shares, edges, color=look.CLASS_COLOURS[class_name], linewidth=style.line_width)
        pieces.append(look.histogram_rows(heights, edges, item="cosine", class_name=class_name).assign(share=shares))
    axes.set(
        xlim=(-1.02, 1.02), xlabel=r"$\cos(d^{\mathrm{base}}, d^{\mathrm{chat}})$", ylabel="share of the class per bin"
    )
    axes.set_ylim(bottom=0)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    if not any(piece["count"].any() for piece in pieces):
        axes.set_yticks([])
        look.statement(axes, f"no live latent (0 of {len(table):,})", style)
    return pd.concat(pieces, ignore_index=True)


def _ranks(axes: Axes, table: pd.DataFrame, bounds: str, style: look.Style) -> pd.DataFrame:
    ranked = table[np.isfinite(table["rank_sum"]) & np.isfinite(table["norm_difference"])]
    pieces = []
    for class_name in ("shared", "other", "base-only", "chat-only"):
        group = ranked[ranked["class_name"] == class_name]
        axes.scatter(
            group["norm_difference"], group["rank_sum"], s=5, color=look.CLASS_COLOURS[class_name], alpha=0.6,
            linewidth=0, rasterized=True,
        )  # fmt: skip
        pieces.append(group[["class_name", "latent", "norm_difference", "rank_sum"]].assign(item="rank"))
    lines = []
    for pool in ("all", "chat-only"):
        group = ranked if pool == "all" else ranked[ranked["class_name"] == pool]
        r = pearson(group["norm_difference"].to_numpy(np.float64), group["rank_sum"].to_numpy(np.float64))
        printed = f"{r:.2f}".replace("-", "−") if np.isfinite(r) else "undefined"
        lines.append(f"{pool}: r = {printed} (n = {len(group):,})")
        pieces.append(pd.DataFrame({"item": ["pearson_r"], "class_name": [pool], "count": [len(group)], "value": [r]}))
    axes.set_title("Pearson, " + "\nPearson, ".join(lines), loc="left", fontsize=style.small_size)
    axes.set(xlim=(-0.02, 1.02), xlabel=look.NORM_DIFFERENCE)
    axes.set_ylabel(f"rank({look.NU_RECONSTRUCTION}) + rank({look.NU_ERROR})")
    if ranked.empty:
        axes.set_yticks([])
        look.statement(axes, f"no latent has both ν within {bounds} (0)", style)
    return pd.concat([piece for piece in pieces if len(piece)], ignore_index=True)
