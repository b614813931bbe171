"""Nulls figure: the share of latents called chat-specific in pairs where nothing is, beside the run's own pair."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import Transform

from tunediff.figures import style as look
from tunediff.figures.style import Drawing, Style
from tunediff.nulls import CALLS

MARKS = dict(zip(CALLS, look.RULES.values(), strict=True))
ROW = 0.27  # inches per crosscoder


def draw(table: pd.DataFrame, models: Mapping[str, tuple[str, str]], style: Style) -> Drawing:
    """Draw `nulls.null_rates`, one line per pair and crosscoder; `models` names both models of each pair."""
    rows = table.to_dict("records")
    with style.context():
        figure = style.figure(ROW * len(rows) + 1.75)
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=[1, 0.95])
        for n, (name, mark) in enumerate(MARKS.items()):
            y = [line + 0.24 * (n - 1) for line in range(len(rows))]
            share, low, high = (100 * table[f"{name}_share{end}"] for end in ("", "_low", "_high"))
            axes.hlines(y, low, high, color=mark.colour, linewidth=1.0)
            axes.plot(share, y, mark.marker, color=mark.colour, markersize=3.5, clip_on=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("live latents called chat-specific, %")
        axes.set_yticks(range(len(rows)), [_name(row["pair"], row["crosscoder"]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -1.4)
        axes.tick_params(axis="y", length=0)
        beside.axis("off")
        columns = {0.02: "called", 0.6: "of", 0.82: "FVE", 1.0: "L0"}
        for x, head in columns.items():
            beside.text(x, -1, head, ha="left" if x < 0.1 else "right", va="center", transform=_across(beside))
        for line, row in enumerate(rows):
            fve = (row["fve_base"] + row["fve_chat"]) / 2
            called = ", ".join(f"{row[name]:,}" for name in MARKS)
            for x, text in zip(columns, (called, f"{row['live']:,}", f"{fve:.2f}", f"{row['l0']:.1f}"), strict=True):
                beside.text(x, line, text, ha="left" if x < 0.1 else "right", va="center", transform=_across(beside))
            if line and row["pair"] != rows[line - 1]["pair"]:
                axes.axhline(line - 0.5, color=look.GREY, linewidth=0.4)
        handles = [
            Line2D([], [], linestyle="", marker=mark.marker, markersize=4, color=mark.colour, label=mark.name)
            for mark in MARKS.values()
        ]
        look.legend(figure, handles, "Latents called chat-specific where nothing is chat-specific, by", columns=3)
        against = "; ".join(f"{pair}: {base} and {chat}" for pair, (base, chat) in models.items() if pair)
        look.note(
            figure,
            f"Pairs, in the places of base and chat: {against}. The second of these was taught no concept that the "
            "first lacks; the pair itself stands for comparison. Lines: Wilson's 95 % intervals, as if latents were "
            "independent. FVE (mean of both models) and L0 on held-out tokens.",
            style,
        )
    return Drawing(figure, table)


def _name(pair: str, label: str) -> str:
    seed = look.seed_of(label)
    return f"{pair or 'the pair itself'}, {look.kind_name(label)}" + ("" if seed is None else f", seed {seed}")


def _across(axes: Axes) -> Transform:
    """Return the transform of x as a share of the panel's width and y as a line."""
    return axes.get_yaxis_transform()
