"""What all figures share: sizes, colour-blind safe colours, names, panels and the files a figure is saved as."""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.lines import Line2D

from tunediff.config.dictionaries import CrosscoderSettings
from tunediff.config.settings import FigureSettings
from tunediff.errors import TunediffError
from tunediff.latents.criterion import Criterion
from tunediff.pipeline.artifacts import building

T = TypeVar("T")

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/)
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, DARK_GREY = "#999999", "#555555"

CLASS_COLOURS = {"chat-only": BLUE, "shared": ORANGE, "base-only": GREEN, "other": GREY, "dead": BLACK}
CROSSCODER_COLOURS = (VERMILLION, BLACK, PURPLE, SKY)
LINE_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")

NU_ERROR = r"$\nu^{\epsilon}$"
NU_RECONSTRUCTION = r"$\nu^{r}$"
NU_ACTIVATION = r"$\nu^{\mathrm{act}}$"
NORM_DIFFERENCE = r"$\Delta_{\mathrm{norm}}$"
HATCHED: dict[str, Any] = {"facecolor": BLACK, "edgecolor": "white", "hatch": "//////"}  # part of what is beneath
MATHTEXT = re.compile(r"\$[^$]*\$")
START, PLACE = "\ue000", "\ue001"  # stand for mathtext while lines are broken: no text holds them
NU_NAMES = {"nu_reconstruction": NU_RECONSTRUCTION, "nu_error": NU_ERROR}


class Mark(NamedTuple):
    """How a rule or ranking is printed and drawn."""

    name: str
    colour: str
    marker: str


RULES = ("norm_difference", "nu_point", "nu_interval")  # by which a latent is called chat-specific


def rule_marks(criterion: Criterion) -> dict[str, Mark]:
    """Return how each of `RULES` is printed and drawn."""
    marks = (
        Mark(f"{NORM_DIFFERENCE} ≥ {criterion.class_ends[-1]:g}", VERMILLION, "o"),
        Mark(criterion.math, BLUE, "s"),
        Mark("the same of the upper ends of the 95 % intervals", SKY, "D"),
    )
    return dict(zip(RULES, marks, strict=True))


def rule_label(criterion: Criterion) -> str:
    """Return the criterion as a legend's entry of two lines."""
    return f"chat-specific: {criterion.math}".replace(", both", ",\nboth")


class Judged(Protocol):
    """A table whose latents were judged by a criterion."""

    @property
    def criterion(self) -> Criterion:
        """The rule by which a latent is called chat-specific."""


def one_criterion(tables: Mapping[str, Judged]) -> Criterion:
    """Return the criterion that all tables of a figure state.

    Raises
    ------
    TunediffError
        There is no table, or two of them state different criteria.
    """
    if not tables:
        raise TunediffError("figures: no latent table, so no criterion; list a crosscoder under `crosscoders`")
    first, criterion = next((label, table.criterion) for label, table in tables.items())
    for label, table in tables.items():
        if table.criterion != criterion:
            raise TunediffError(
                f"latents of {first} and of {label} state different criteria ({criterion.text}; "
                f"{table.criterion.text}): made under different `latents` thresholds; delete both tables and run "
                "snakemake again"
            )
    return criterion


def signed(value: float) -> str:
    """Return a number with a true minus sign."""
    return f"{value:g}".replace("-", "−")


def mathematical(text: str) -> str:
    """Return a plain text with its ν and Δnorm in mathtext."""
    named = text.replace("ν^r", NU_RECONSTRUCTION).replace("ν^ε", NU_ERROR).replace("ν^act", NU_ACTIVATION)
    return named.replace("Δnorm", NORM_DIFFERENCE)


SETTINGS: dict[Any, Any] = {  # of matplotlib, whatever the sizes
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same
    "mathtext.fontset": "dejavusans",
    "axes.labelpad": 2.0,
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width", "hatch.linewidth"), 0.6),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"legend.handlelength": 1.4, "legend.handletextpad": 0.5, "legend.columnspacing": 1.2},
    **{"legend.labelspacing": 0.3, "legend.borderaxespad": 0.2},
    **{"pdf.fonttype": 42, "pdf.compression": 6, "figure.dpi": 100},
}
LARGE = ("font.size", "axes.titlesize", "axes.labelsize", "figure.titlesize", "legend.title_fontsize")
SMALL = ("figure.labelsize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize")


@dataclass(frozen=True)
class Style(FigureSettings):
    """Sizes of a printed figure."""

    width: float = 5.5  # inches: the text width of a NeurIPS page
    line_width: float = 1.1  # points

    @property
    def small_size(self) -> float:
        """Points of ticks, legends, notes and printed values."""
        return 0.875 * self.font_size

    def context(self) -> AbstractContextManager[None]:
        """Return the matplotlib settings of these sizes; figures are drawn and saved inside it."""
        sizes: dict[Any, Any] = dict.fromkeys(LARGE, self.font_size) | dict.fromkeys(SMALL, self.small_size)
        return rc_context(SETTINGS | sizes | {"lines.linewidth": self.line_width, "savefig.dpi": self.dpi})

    def figure(self, height: float, width: float | None = None) -> Figure:
        """Return an empty figure of `height` inches and, by default, the text width."""
        return Figure(figsize=(self.width if width is None else width, height), layout="constrained")


class Drawn(NamedTuple):
    """A figure and the numbers it shows."""

    figure: Figure
    numbers: pd.DataFrame
    more: Mapping[str, pd.DataFrame] = {}  # further tables of the same drawing, by name


def save(drawn: Drawn, stem: Path, style: Style) -> list[Path]:
    """Write `stem`.pdf, .png, .csv (and _NAME.csv of further tables), each whole or not at all; return the paths.

    The bytes are reproducible.
    """
    forms: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "png": {"Software": None}}
    written = []
    for form, metadata in forms.items():
        written.append(stem.with_name(f"{stem.name}.{form}"))
        with style.context(), building(written[-1]) as partial:
            drawn.figure.savefig(partial, format=form, dpi=style.dpi, metadata=metadata)
    for suffix, table in {"": drawn.numbers, **{f"_{name}": table for name, table in drawn.more.items()}}.items():
        written.append(stem.with_name(f"{stem.name}{suffix}.csv"))
        with building(written[-1]) as partial:
            table.to_csv(partial, index=False, lineterminator="\n")
    return written


def kind_of(label: str) -> str:
    """Return a crosscoder's name without its seed: `l1-seed0` -> `l1`."""
    return re.sub(r"-seed\d+$", "", label)


def seed_of(label: str) -> int | None:
    """Return the seed in a crosscoder's name: `l1-seed0` -> 0, a published one's name -> None."""
    found = re.search(r"-seed(\d+)$", label)
    return int(found.group(1)) if found else None


def kind_name(label: str) -> str:
    """Return how a crosscoder's kind is printed: `l1-seed0` -> `L1`; a name that is no kind's stays as it is."""
    name = kind_of(label)
    return vars(CrosscoderSettings.kinds.get(name, CrosscoderSettings)).get("label", name)


def display_name(label: str) -> str:
    """Return a crosscoder's printed name: `l1-seed0` -> `L1 (l1-seed0)`."""
    return f"{kind_name(label)} ({label})"


def selected(tables: Mapping[str, T]) -> dict[str, T]:
    """Return the crosscoders a figure shows: the first seed of each kind, in order."""
    if not tables:
        raise TunediffError("figures: no crosscoder to draw; list at least one under `crosscoders` in the config")
    first: dict[str, str] = {}
    for label in tables:
        first.setdefault(kind_of(label), label)
    return {label: tables[label] for label in first.values()}


def require(table: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Raise `TunediffError` if a column of a table is missing."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise TunediffError(f"{what}: no column '{missing[0]}'; delete the table and run snakemake again to remake it")


def crosscoder_colours(labels: Iterable[str]) -> dict[str, str]:
    """Return one colour per crosscoder, the same for all seeds of a kind."""
    labels = list(labels)
    kinds = dict(zip(dict.fromkeys(map(kind_of, labels)), cycle(CROSSCODER_COLOURS), strict=False))
    return {label: kinds[kind_of(label)] for label in labels}


def stacked(figure: Figure, heights: Sequence[float]) -> list[SubFigure]:
    """Divide a figure into sub-figures below one another, of the given relative heights."""
    return list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])


def each_crosscoder(
    shown: Mapping[str, T],
    panel: Callable[[SubFigure, str, T, float], Sequence[pd.DataFrame]],
    height: float,
    style: Style,
    below: tuple[float, Callable[[SubFigure], pd.DataFrame]] | None = None,
) -> Drawn:
    """Draw a panel of `height` inches per crosscoder, in two columns if they fill them, and one `below` of its height.

    `panel` draws one, given its sub-figure, the crosscoder's name and table, and its width in inches; it returns parts
    of its numbers. `below` returns its own with a column `crosscoder`.
    """
    rows = len(shown) // 2 if len(shown) % 2 == 0 else len(shown)
    across = len(shown) // rows
    numbers = []
    with style.context():
        figure = style.figure(height * rows + (below[0] if below else 0.0))
        parts: list[Any] = stacked(figure, (height * rows, below[0])) if below else [figure]
        places = parts[0].subfigures(rows, across, squeeze=False).flat
        for place, (label, table) in zip(places, shown.items(), strict=True):
            pieces = [piece for piece in panel(place, label, table, style.width / across) if len(piece)]
            numbers.append(pd.concat(pieces, ignore_index=True))
            numbers[-1].insert(0, "crosscoder", label)
        if below:
            numbers.append(below[1](parts[1]))
    return Drawn(figure, pd.concat(numbers, ignore_index=True))


def empty(text: str, style: Style) -> Drawn:
    """Return a figure that says why there is nothing to see, and its one number: none."""
    with style.context():
        figure = style.figure(1.0)
        axes = figure.subplots()
        axes.axis("off")
        statement(axes, text, style)
    return Drawn(figure, pd.DataFrame({"item": [text], "count": [0]}))


def counts(values: Any, edges: np.ndarray) -> np.ndarray:
    """Return the number of finite values in each bin; those outside the edges are left out."""
    values = np.asarray(values, dtype=np.float64)
    return np.histogram(values[np.isfinite(values)], edges)[0]


def histogram_rows(heights: np.ndarray, edges: np.ndarray, **columns: Any) -> pd.DataFrame:
    """Return a histogram as rows `low`, `high`, `count`, with `columns` repeated on each row."""
    return pd.DataFrame({**columns, "low": edges[:-1], "high": edges[1:], "count": heights})


def steps(axes: Axes, heights: np.ndarray, edges: np.ndarray, colour: str, *, horizontal: bool = False) -> None:
    """Draw a histogram as a filled outline; `horizontal` bars grow to the right."""
    if not heights.any():
        return
    orientation: Literal["horizontal", "vertical"] = "horizontal" if horizontal else "vertical"
    axes.stairs(heights, edges, color=colour, alpha=0.25, fill=True, linewidth=0, orientation=orientation)
    axes.stairs(heights, edges, color=colour, linewidth=0.8, orientation=orientation)


def legend(panel: FigureBase, handles: Sequence[Any], title: str | None = None, columns: int = 2) -> None:
    """Put the legend, headed by a bold title, above a panel."""
    entries = panel.legend(handles=list(handles), loc="outside upper left", ncols=columns, title=title)
    entries.set_alignment("left")
    entries.get_title().set_fontweight("bold")


def point(marker: str, colour: str, label: str, size: float | None = 4, **more: Any) -> Line2D:
    """Return the entry of a legend for points."""
    return Line2D([], [], linestyle="", marker=marker, markersize=size, color=colour, label=label, **more)


def wrapped(text: str, characters: int) -> str:
    """Return a text broken into lines of at most `characters` in print, keeping its own line breaks.

    Mathtext counts as the characters it prints, about, and is never broken.
    """
    maths = MATHTEXT.findall(text)
    places = iter(START + PLACE * (printed_length(math) - 1) for math in maths)
    lines = [
        line
        for part in MATHTEXT.sub(lambda _: next(places), text).split("\n")
        for line in (textwrap.wrap(part, characters, break_on_hyphens=False) or [""])
    ]
    back = iter(maths)
    return re.sub(f"{START}{PLACE}*", lambda _: next(back), "\n".join(lines))


def printed_length(math: str) -> int:
    """Return how many characters a piece of mathtext is wide: one for its symbol, and its letters."""
    return max(2, 1 + len(re.sub(r"\\[a-zA-Z]+|[{}^_$]", "", math)))


def note(panel: FigureBase, text: str, style: Style, width: float | None = None) -> None:
    """Print a note below a panel, wrapped to `width` inches (by default the whole text width)."""
    # of an average letter's width, less the margins
    characters = int(0.96 * (style.width if width is None else width) * 72 / (0.57 * style.small_size))
    panel.supxlabel(wrapped(text, characters), x=0.02, ha="left", fontsize=style.small_size, color=DARK_GREY)


def statement(axes: Axes, text: str, style: Style, height: float = 0.5) -> None:
    """Say in a panel, at `height` of it, why there is nothing (or less than expected) to see."""
    box = {"facecolor": "white", "edgecolor": GREY, "linewidth": 0.5, "boxstyle": "round,pad=0.4"}
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center", "zorder": 9}
    axes.text(0.5, height, text, fontsize=style.small_size, bbox=box, **place)
