"""How tables are set: lines of cells with rules between their parts, drawn as a figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from tunediff.report import style as look


def ruled(parts: Sequence[Sequence[Sequence[str]]]) -> tuple[list[Sequence[str]], set[int]]:
    """Return the lines of all parts, and the lines before which a rule stands: the first of each part but the first."""
    lines: list[Sequence[str]] = []
    rules = set()
    for part in parts:
        if lines and part:
            rules.add(len(lines))
        lines += part
    return lines, rules


def cell(value: float, form: str) -> str:
    if not np.isfinite(value):
        return "–"
    if form == "share":
        return f"{100 * value:.1f} %".replace("-", "−")
    if form == "nats":
        return f"{value:.3f}"
    if form == "ratio":
        return f"{value:.2f}".replace("-", "−")
    return f"{value:,.0f}" if form == "count" or float(value).is_integer() else f"{value:,.1f}"


def typeset(
    heads: Sequence[str],
    cells: Sequence[Sequence[str]],
    rules: set[int],
    title: str,
    note: str,
    style: look.Style,
    first_width: float = 2.95,
) -> Figure:
    """Set a table with rules above, below the head, before the rows of `rules`, and at the end.

    The first column has `first_width` inches, others what they need; what is left of the text width is shared out.
    """
    line_height = 0.175  # inches
    needed = [_width(heads[n], [line[n] for line in cells], style) for n in range(1, len(heads))]
    spare = max(0.0, style.width - first_width - sum(needed)) / max(1, len(needed))
    right = first_width + np.cumsum([width + spare for width in needed]) - 0.06
    width = float(right[-1]) + 0.06
    head_height = 2 * line_height if any(heads) else 0.0
    note = look.wrapped(note, int(0.98 * width * 72 / (0.58 * style.small_size)))
    height = (
        0.27 + head_height + line_height * len(cells) + 0.12 + (note.count("\n") + 1) * style.small_size * 1.25 / 72
    )
    with style.context():
        figure = style.figure(height, width)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        axes.text(0.05, 0.14, title, fontweight="bold", va="center")
        y = 0.27
        axes.plot([0.05, width - 0.05], [y, y], color="black", linewidth=1.0)
        for x, head in zip(right, heads[1:], strict=True):
            for row, part in enumerate(head.split("\n")):
                baseline = y + line_height * (0.8 + 0.85 * row)
                axes.text(x, baseline, part, ha="right", va="baseline", fontsize=style.small_size)
        y += head_height
        axes.plot([0.05, width - 0.05], [y, y], color="black", linewidth=0.6)
        for n, line in enumerate(cells):
            if n in rules:
                axes.plot([0.05, width - 0.05], [y, y], color="black", linewidth=0.4)
            axes.text(0.05, y + line_height / 2, line[0], va="center")
            for x, text in zip(right, line[1:], strict=True):
                axes.text(x, y + line_height / 2, text, ha="right", va="center")
            y += line_height
        axes.plot([0.05, width - 0.05], [y, y], color="black", linewidth=1.0)
        axes.text(0.05, y + 0.06, note, va="top", fontsize=style.small_size, color=look.DARK_GREY)
    return figure


def _width(head: str, cells: Sequence[str], style: look.Style) -> float:
    """Return the inches that a column needs."""
    plain = look.MATHTEXT.sub(lambda math: "ν" * look.printed_length(math.group()), head)
    needed = [_points(part) * style.small_size for part in plain.split("\n")]
    return max(needed + [_points(cell) * style.font_size for cell in cells]) / 72 + 0.15


def _points(text: str) -> float:
    """Return the width of a text of font size 1."""
    return sum(0.36 if letter in " .,:;[]()|'-" else 0.66 for letter in text)
