"""Detection figure: how well the best chat-specific latent of each dictionary detects each planted concept."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from tunediff.documents import ANSWER_ONSET, ONSET
from tunediff.figures import style as look
from tunediff.figures.style import Drawing, Style

ROW = 0.15  # inches per concept
MARKERS = "os^D"  # per kind of crosscoder
PANELS = {
    "auroc": "AUROC,\nall tokens",
    "auroc_among_onsets": "AUROC,\nonsets only",
    "precision": "precision",
    "recall": "recall",
    "rank": "rank in\nthe list",
}


def draw(concepts: pd.DataFrame, style: Style) -> Drawing:
    """Draw one line per planted concept and one mark per dictionary; `concepts` is concepts.parquet.

    Concepts at the onset of answers stand first, then those that cover whole answers or requests.
    """
    look.require(concepts, ["concept", "planted", "crosscoder", "pool", "latent", *PANELS], "concepts")
    shown = concepts[concepts["planted"] & (concepts["pool"] == "chat-specific")]
    names = list(dict.fromkeys(shown["concept"]))
    onsets = [name for name in names if name.endswith(ONSET)]
    order = [*onsets, *(name for name in names if name not in onsets)]
    colours = look.crosscoder_colours(shown["crosscoder"])
    kinds = list(dict.fromkeys(map(look.kind_of, colours)))
    seeds = len(colours) // max(1, len(kinds))
    with style.context():
        if not order:
            figure = style.figure(1.0)
            look.statement(figure.subplots(), "no chat concept is labelled in these corpora", style)
            return Drawing(figure, shown)
        figure = style.figure(ROW * len(order) + 1.9)
        axes = figure.subplots(1, len(PANELS), sharey=True)
        for panel, column in zip(axes, PANELS, strict=True):
            _panel(panel, shown, column, order, colours, kinds)
        first = axes[0]
        first.set_yticks(range(len(order)), [_printed(name) for name in order])
        first.set_ylim(len(order) - 0.4, -0.6)
        handles = [
            Line2D([], [], linestyle="", marker=MARKERS[n % 4], color=colour, label=look.kind_name(kind))
            for n, (kind, colour) in enumerate({look.kind_of(label): c for label, c in colours.items()}.items())
        ]
        look.legend(figure, handles, "Planted chat concepts and the best chat-specific latent for each")
        look.note(
            figure,
            (f"One mark per seed ({seeds}). " if seeds > 1 else "")
            + "Validation tokens. Onset: the position that predicts an answer's first token; its best latent is the "
            "one of highest AUROC among the onsets of all answers, that of other concepts the one of highest AUROC "
            "over all tokens. Precision and recall of the latent firing. Rank: place of that latent in the "
            f"dictionary's list by rank({look.NU_RECONSTRUCTION}) + rank({look.NU_ERROR}), 1 is the most "
            "chat-specific. No mark: too few labelled tokens, or no chat-specific latent.",
            style,
        )
    return Drawing(figure, shown.drop(columns=["planted", "pool"]).reset_index(drop=True))


def _printed(name: str) -> str:
    if name == ANSWER_ONSET:
        return "onset of any answer"
    return f"{name.removesuffix(ONSET)}, onset".replace("_", " ") if name.endswith(ONSET) else name.replace("_", " ")


def _panel(
    axes: Axes, table: pd.DataFrame, column: str, order: list[str], colours: dict[str, str], kinds: list[str]
) -> None:
    n_onsets = sum(name.endswith(ONSET) for name in order)
    for label, colour in colours.items():
        kind = kinds.index(look.kind_of(label))
        own = table[table["crosscoder"] == label].set_index("concept")[column].reindex(order)
        shift = 0.36 * ((kind + 0.5) / len(kinds) - 0.5)  # kinds side by side within a line
        axes.plot(own, np.arange(len(order)) + shift, MARKERS[kind % 4], color=colour, markersize=2.6, alpha=0.8, mew=0)
    for line in range(0, len(order), 2):
        axes.axhspan(line - 0.5, line + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
    axes.axhline(n_onsets - 0.5, color=look.DARK_GREY, linewidth=0.6)
    axes.set_xlabel(PANELS[column])
    axes.tick_params(axis="y", length=0)
    if column == "rank":
        axes.set_xscale("log")
        axes.set_xlim(left=0.8)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    elif column.startswith("auroc"):
        axes.set(xlim=(0.45, 1.03), xticks=[0.5, 0.75, 1.0])
    else:
        axes.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
