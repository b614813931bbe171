"""Detection figure: how well the chat-specific latent that stands for a concept detects it, against a control."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from tunediff.data.documents import ANSWER_ONSET, ONSET
from tunediff.latents.concepts import ALL_TOKENS, CHAT_SPECIFIC
from tunediff.markup import per_cent
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/detection",
    __name__,
    title="Labelled chat concepts and the chat-specific latent for each",
    caption=(
        "How well the chat-specific latent that stands for a labelled concept detects it: AUROC, precision, "
        "recall, and its rank by Latent Scaling. A latent is chosen on one half of the documents; the numbers are "
        "from the other half. The grey bars are the control: latents that fire as often on chats but are not "
        "chat-specific."
    ),
    reads=("concepts",),
    requires=lambda graph: graph.labelled,
)

ROW = 0.15  # inches per line
SPREAD = 0.5  # of a line, over which the kinds of crosscoder lie side by side
MARKERS = "os^D"  # per kind of crosscoder
CONTROL, STRIPE = "#c4c4c4", "#f5f5f5"
PANELS = {
    "auroc_among": "AUROC among\nthese tokens",
    "auroc": "AUROC among\nall tokens",
    "precision": "precision",
    "recall": "recall",
    "rank": "rank among\nlive latents",
}
COLUMNS = (
    *("concept", "chat_concept", "among", "crosscoder", "pool", "n_live"),
    *("control_median", "control_high", "control_share", *PANELS),
)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw one line per chat concept and one mark per dictionary.

    Lines are grouped by the tokens among which a concept is scored, onsets of answers first. The control's range from
    the median to the 95th percentile lies behind each mark.
    """
    concepts = results.concepts
    look.require(concepts, COLUMNS, "concepts.parquet")
    shown = concepts[concepts["chat_concept"] & (concepts["pool"] == CHAT_SPECIFIC)]
    lines = _lines(shown)
    colours = look.crosscoder_colours(shown["crosscoder"])
    kinds = {look.kind_of(label): colour for label, colour in colours.items()}
    with style.context():
        if not lines:
            figure = style.figure(1.0)
            look.statement(figure.subplots(), "no chat concept is labelled in these corpora", style)
            return look.Drawn(figure, shown)
        figure = style.figure(ROW * len(lines) + 2.4)
        axes = figure.subplots(1, len(PANELS), sharey=True)
        for panel, column in zip(axes, PANELS, strict=True):
            _panel(panel, shown, column, [name for _, name in lines], colours, list(kinds))
        first = axes[0]
        places = [y for y, (_, concept) in enumerate(lines) if concept]
        first.set_yticks(places, [lines[y][0] for y in places])
        first.set_ylim(len(lines) - 0.4, -0.6)
        for y, (text, concept) in enumerate(lines):
            if not concept:
                heading = first.text(-0.02, y, text, transform=first.get_yaxis_transform(), va="center")
                heading.set(fontsize=style.small_size, fontweight="bold", in_layout=False)  # runs over the next panels
        hollow = f"more than {per_cent(shown.attrs['detected_share'])} of control draws do as well"
        handles = [
            *(look.point(MARKERS[n % 4], kinds[kind], look.kind_name(kind), None) for n, kind in enumerate(kinds)),
            look.point("o", look.DARK_GREY, hollow, None, mfc="white"),
            Patch(color=CONTROL, label="control, median to 95 %"),
        ]
        look.legend(figure, handles, "Chat concepts, and the chat-specific latent that stands for each", columns=4)
        look.note(figure, _note(len(colours) // len(kinds)), style)
    return look.Drawn(figure, shown.drop(columns=["chat_concept", "pool"]).reset_index(drop=True))


def _note(seeds: int) -> str:
    several = f"One mark per seed ({seeds}). " if seeds > 1 else ""
    return (
        f"{several}Validation tokens. A latent is chosen on one half of the documents; every number is from the other "
        "half. Each latent stands for one concept at most. An onset is the position that predicts an answer's first "
        "token. Precision and recall are those of the latent firing. The control chooses from as many latents that "
        "fire as often on chats but are not chat-specific, in many random draws. Rank is the place by Latent Scaling, "
        "1 is the most chat-specific; dotted: the number of live latents. No mark: too few labelled tokens, or no "
        "latent left."
    )


def _lines(shown: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Return text and concept of each line; the heading of concepts compared with the same tokens has none."""
    groups = shown.drop_duplicates("concept").groupby("among", sort=False)["concept"].agg(list)
    order = sorted(groups.index, key=lambda among: (not among.endswith(ONSET), among not in (ANSWER_ONSET, ALL_TOKENS)))
    of_group = {among: [(_printed(name), name) for name in groups[among]] for among in order}
    return [line for among in order for line in ((_heading(among), None), *of_group[among])]


def _heading(among: str) -> str:
    if among == ALL_TOKENS:
        return "Among all tokens"
    if among == ANSWER_ONSET:
        return "Onsets of answers, among the onsets of all answers"
    if among.endswith(ONSET):
        return f"Onsets of one kind of {_printed(among)}, among all onsets of {_printed(among)}"
    return f"One kind of {_printed(among)}, among all tokens of {_printed(among)}"


def _printed(name: str) -> str:
    return "onset of any answer" if name == ANSWER_ONSET else name.removesuffix(ONSET).replace("_", " ")


def _panel(
    axes: Axes, table: pd.DataFrame, column: str, names: list[str | None], colours: dict[str, str], kinds: list[str]
) -> None:
    y = np.arange(len(names))
    for label, colour in colours.items():
        kind = kinds.index(look.kind_of(label))
        own = table[table["crosscoder"] == label].set_index("concept").reindex(names)
        place = y + SPREAD * ((kind + 0.5) / len(kinds) - 0.5)
        if column == "auroc_among":
            width = own["control_high"] - own["control_median"]
            axes.barh(place, width, 0.9 * SPREAD / len(kinds), own["control_median"], color=CONTROL, zorder=1)
        if column == "rank":
            axes.axvline(own["n_live"].max(), color=colour, linewidth=0.6, linestyle=":", zorder=1)
        hollow = ~(own["control_share"] <= table.attrs["detected_share"])
        for rows, face in ((~hollow, colour), (hollow, "white")):
            axes.plot(own[column].where(rows), place, MARKERS[kind % 4], color=colour, mfc=face, ms=2.8, mew=0.6)
    for line, name in enumerate(names):
        if name and line % 2:
            axes.axhspan(line - 0.5, line + 0.5, color=STRIPE, linewidth=0, zorder=0)
    axes.patch.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(PANELS[column])
    axes.tick_params(axis="y", length=0)
    if column == "rank":
        axes.set_xscale("log")
        axes.set_xlim(0.8, 1.25 * table["n_live"].max())
        axes.xaxis.set_major_locator(LogLocator(numticks=3))
        axes.xaxis.set_minor_locator(LogLocator(numticks=9))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    elif column.startswith("auroc"):
        axes.set(xlim=(min(0.4, table[column].min() - 0.03), 1.03), xticks=[0.5, 0.75, 1.0])
    else:
        axes.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
