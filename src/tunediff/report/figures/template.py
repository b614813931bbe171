"""Template figure: are chat-only latents about the chat template?"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tunediff.latents.table import LatentTable
from tunediff.markup import per_cent
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/template",
    __name__,
    title="Chat-only latents and the chat template",
    caption=(
        "(a) Both ν of all chat-only latents, those that fire mainly on template tokens hatched; dashed lines are "
        "the criterion. (b) The share of chat-only latents with at least a given share of their activations on "
        "template tokens. The legends count the latents."
    ),
    reads=("latents",),
    by_norm=True,
)

RANGE = (-0.2, 1.6)  # of ν
BINS = 45
MAINLY = 0.5  # a latent with a larger share of its activations on template tokens fires mainly there
SHARES = np.linspace(0.0, 1.0, 101)


def share_at_least(template_share: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return, for each threshold, the share of latents with at least that share of activations on template tokens."""
    values = np.asarray(template_share, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.full(len(thresholds), np.nan)
    return (values[:, None] >= thresholds).mean(axis=0)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw ν of chat-only latents, those firing mainly on template tokens overlaid, and their template shares."""
    shown = look.selected(results.with_norms)
    look.one_criterion(shown)
    lower = (2.2, partial(_shares, shown=shown, style=style))
    return look.each_crosscoder(shown, partial(_panel, style=style), 3.5, style, lower)


def _panel(panel: SubFigure, label: str, latents: LatentTable, width: float, style: look.Style) -> list[pd.DataFrame]:
    table, criterion = latents.frame, latents.criterion
    below = {"nu_reconstruction": criterion.nu_reconstruction_below, "nu_error": criterion.nu_error_below}
    chat_only = table[table["class_name"] == "chat-only"]
    mainly = chat_only[chat_only["template_share"] > MAINLY]
    edges = np.linspace(*RANGE, BINS + 1)
    pieces = []
    for axes, name in zip(panel.subplots(2, 1), look.NU_NAMES, strict=True):
        outside = 0
        for pool, group in (("chat-only", chat_only), ("mainly template", mainly)):
            heights = look.counts(group[name], edges)
            if pool == "chat-only":
                axes.stairs(heights, edges, fill=True, color=look.BLUE, alpha=0.35, linewidth=0)
                axes.stairs(heights, edges, color=look.BLUE, linewidth=0.8)
                outside = int(np.isfinite(group[name]).sum() - heights.sum())
            else:
                axes.stairs(heights, edges, fill=True, linewidth=0, **look.HATCHED)
            pieces.append(look.histogram_rows(heights, edges, item=name, pool=pool))
        axes.axvline(below[name], color=look.DARK_GREY, linestyle="--", linewidth=0.8)
        axes.set(xlim=RANGE, xlabel=look.NU_NAMES[name], ylabel="latents per bin")
        axes.set_xticks([0, 0.5, 1, 1.5])
        axes.set_ylim(bottom=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
        if not np.isfinite(chat_only[name]).any():
            axes.set_yticks([])
            look.statement(axes, f"no chat-only latent has ν\n({len(chat_only)} chat-only)", style)
        elif outside:
            axes.text(
                0.99, 0.97, f"{outside} outside the axis", transform=axes.transAxes, ha="right", va="top",
                fontsize=style.small_size, color=look.DARK_GREY,
            )  # fmt: skip
    handles = [
        Patch(facecolor=look.BLUE, alpha=0.45, label=f"chat-only (n = {len(chat_only):,})"),
        Patch(**look.HATCHED, label=f"> 50 % on template (n = {len(mainly):,})"),
        Line2D([], [], color=look.DARK_GREY, linestyle="--", linewidth=0.8, label=look.rule_label(criterion)),
    ]
    look.legend(panel, handles, f"(a) {look.display_name(label)}", columns=1)
    return pieces


def _shares(panel: SubFigure, shown: Mapping[str, LatentTable], style: look.Style) -> pd.DataFrame:
    axes = panel.subplots()
    colours = look.crosscoder_colours(shown)
    pieces, handles = [], []
    for label, table in shown.items():
        chat_only = table.frame["class_name"] == "chat-only"
        values = table.frame.loc[chat_only, "template_share"].to_numpy(np.float64)
        shares = share_at_least(values, SHARES)
        third, half = share_at_least(values, np.array([1 / 3, MAINLY]))
        axes.plot(SHARES, shares, color=colours[label], drawstyle="steps-pre")
        name = f"{look.display_name(label)}, {len(values):,} chat-only: "
        name += f"{per_cent(third)} with ≥ 1/3 there, {per_cent(half)} with ≥ 1/2"
        if not np.isfinite(values).any():
            name = f"{look.display_name(label)}: no chat-only latent fires ({len(values):,} chat-only)"
        handles.append(Line2D([], [], color=colours[label], label=name))
        piece = pd.DataFrame({"threshold": SHARES, "share": shares})
        pieces.append(piece.assign(crosscoder=label, item="share_at_least", pool="chat-only"))
    for threshold in (1 / 3, MAINLY):
        axes.axvline(threshold, color=look.DARK_GREY, linestyle=":", linewidth=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="share of a latent's activations on template tokens, at least")
    axes.set_ylabel("share of\nchat-only latents")
    if all(piece["share"].isna().all() for piece in pieces):
        look.statement(axes, "no chat-only latent fires (0)", style)
    look.legend(panel, handles, "(b) Chat-only latents by template share", columns=1)
    return pd.concat(pieces, ignore_index=True)
