"""Figure 3: how Δnorm is distributed, and how many latents pass both ν thresholds."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tunediff.latents.criterion import Criterion
from tunediff.latents.table import CLASSES, LatentTable
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/fig3",
    __name__,
    title="Δnorm per class, and latents under ν thresholds",
    caption=(
        "(a) Δnorm of all live latents per class, with the chat-specific ones among the chat-only hatched. (b) How "
        "many latents have both ν below a threshold π, of all latents and of the chat-only ones. Latents that are "
        "reversed or have a ν out of bounds count in neither; the note gives their number."
    ),
    reads=("latents",),
    by_norm=True,
)

BINS = 100
THRESHOLDS = np.linspace(0.0, 1.0, 101)


def below_thresholds(latents: pd.DataFrame, criterion: Criterion, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """Return, for each π, the number of latents with both ν^r < π and ν^ε < π, both within the criterion's bounds."""
    both = latents[["nu_reconstruction", "nu_error"]].to_numpy(np.float64)
    larger = both[criterion.bounded(both[:, 0], both[:, 1])].max(axis=1)
    return np.searchsorted(np.sort(larger), thresholds, side="left")


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw (a) the histogram of Δnorm per class and (b) the latents below a ν threshold (paper, figure 3)."""
    shown = look.selected(results.with_norms)
    criterion = look.one_criterion(shown)
    lower = (2.5, partial(_thresholds, shown=shown, criterion=criterion, style=style))
    return look.each_crosscoder(shown, partial(_norm_difference, style=style), 2.5, style, lower)


def _norm_difference(
    panel: SubFigure, label: str, latents: LatentTable, width: float, style: look.Style
) -> list[pd.DataFrame]:
    table = latents.frame
    axes = panel.subplots()
    axes.set_yscale("log")
    edges = np.linspace(0.0, 1.0, BINS + 1)
    pieces, handles, tallest = [], [], 1
    for class_name in CLASSES[:-1]:
        values = table.loc[table["class_name"] == class_name, "norm_difference"]
        heights = look.counts(values, edges)
        tallest = max(tallest, heights.max())
        if heights.any():
            axes.stairs(heights, edges, fill=True, color=look.CLASS_COLOURS[class_name], linewidth=0)
        handles.append(Patch(color=look.CLASS_COLOURS[class_name], label=f"{class_name} ({len(values):,})"))
        pieces.append(look.histogram_rows(heights, edges, item="norm_difference", class_name=class_name))
    chat_only = table["class_name"] == "chat-only"
    specific = table.loc[chat_only & table["chat_specific"].astype(bool), "norm_difference"]
    heights = look.counts(specific, edges)
    pieces.append(look.histogram_rows(heights, edges, item="norm_difference", class_name="chat-specific"))
    if heights.any():
        axes.stairs(heights, edges, fill=True, linewidth=0, **look.HATCHED)
    handles.insert(1, Patch(**look.HATCHED, label=f"chat-specific ({len(specific):,})"))
    dead = int((table["class_name"] == "dead").sum())
    room = 2 if chat_only.any() else 5  # for what is said of them above the bars
    axes.set(
        xlim=(0, 1), ylim=(0.7, max(12, room * tallest)), xlabel=f"{look.NORM_DIFFERENCE} (0 base-only, 1 chat-only)"
    )
    axes.set_ylabel("latents per bin of 0.01")
    ticks = (0, *latents.criterion.class_ends, 1)
    axes.set_xticks(ticks, labels=[f"{tick:g}".replace("0.", ".") for tick in ticks])
    if dead == len(table):
        axes.set_yticks([])
        axes.minorticks_off()
        look.statement(axes, f"no live latent (0 of {len(table):,})", style)
    elif not chat_only.any():
        look.statement(axes, "no chat-only latent (0)", style, height=0.92)
    handles.append(Patch(facecolor="none", label=f"dead, not drawn ({dead:,})"))
    look.legend(panel, handles, f"(a) {look.display_name(label)}")
    return pieces


def _thresholds(
    panel: SubFigure, shown: Mapping[str, LatentTable], criterion: Criterion, style: look.Style
) -> pd.DataFrame:
    axes = panel.subplots()
    axes.set_yscale("log")
    colours = look.crosscoder_colours(shown)
    pieces, handles, tallest = [], [], 1
    frames = {label: latents.frame for label, latents in shown.items()}
    for label, table in frames.items():
        for pool, line in zip(("all", "chat-only"), look.LINE_STYLES, strict=False):
            part = table if pool == "all" else table[table["class_name"] == "chat-only"]
            heights = below_thresholds(part, criterion)
            tallest = max(tallest, int(heights.max()))
            if heights.any():  # a logarithmic axis has no place for 0
                axes.plot(THRESHOLDS, np.where(heights > 0, heights, np.nan), color=colours[label], linestyle=line)
            bounded = int(criterion.bounded(part["nu_reconstruction"], part["nu_error"]).sum())
            name = f"{look.display_name(label)}: {pool} ({bounded:,})"
            handles.append(Line2D([], [], color=colours[label], linestyle=line, label=name))
            piece = pd.DataFrame({"threshold": THRESHOLDS, "count": heights, "bounds": criterion.range})
            pieces.append(piece.assign(crosscoder=label, item="below_threshold", class_name=pool))
    axes.set(xlim=(0, 1), ylim=(0.8, max(12, 1.6 * tallest)))
    axes.set_xlabel(f"threshold π, both ν also within {criterion.range}")
    axes.set_ylabel(f"latents with {look.NU_RECONSTRUCTION} < π\nand {look.NU_ERROR} < π")
    if tallest == 1 and not any(piece["count"].any() for piece in pieces):
        look.statement(axes, f"no latent has both ν below 1 and within {criterion.range} (0)", style)
    look.legend(panel, handles, f"(b) Latents with both ν below π, of those with both within {criterion.range}")
    turned = ", ".join(f"{int(frame['reversed'].sum()):,} ({label})" for label, frame in frames.items())
    look.note(
        panel.figure,
        f"Chat-specific: {criterion.math}. Reversed, a ν under {look.signed(criterion.lowest)}, so neither "
        f"chat-specific nor counted in (b): {turned}.",
        style,
    )
    return pd.concat(pieces, ignore_index=True)
