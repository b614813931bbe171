"""Figure 4b: KL reduction against the energy of the edit, and the paired differences that decide between rankings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from tunediff.interventions.registry import AREA, PREFIX, RANDOM, RANKINGS, differences
from tunediff.report import style as look
from tunediff.report.figures.fig4 import halves_text, of_shown
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/fig4b",
    __name__,
    title="KL reduction against edit energy per ranking",
    caption=(
        "Left: the KL reduction while all live latents are added in the order of each ranking, against the energy "
        "of the edit, beside random orders. Right: paired differences between the halves of a ranking, as they are "
        "and at equal energy. Intervals are 95 %, over {conversations[count]} conversations."
    ),
    reads=("kl", "sets"),
)

LOOKS = {  # colour and marker of a ranking
    "norm_difference": (look.VERMILLION, "o"),
    "latent_scaling": (look.BLUE, "s"),
    "nu_activation": (look.PURPLE, "D"),
    "energy": (look.GREEN, "^"),
}
OTHER = (look.BLACK, "v")  # of another ranking, or of none
RANDOM_COLOUR = look.DARK_GREY
TICKS = (0.02, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the energy axis
COLUMNS = (
    *("crosscoder", "intervention", "ranking", "draw", "positions", "reduction", "reduction_low", "reduction_high"),
    *("energy_share", "n_conversations", "n_tokens"),
)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw, per crosscoder, the curves of all rankings over the edit energy, and differences at raw and equal energy.

    The numbers are the rows of causal/summary.parquet that are points of curves, comparisons, or their ends (None,
    All), for all and for the first 9 response tokens.
    """
    summary, shown = of_shown(results.kl, COLUMNS)
    wanted = summary["intervention"].isin(["none", "all", PREFIX, AREA, *differences()])
    numbers = summary[wanted].reset_index(drop=True)
    drawn = marks(numbers)
    with style.context():
        figure = style.figure(1.0 + 2.8 * len(shown))
        parts = look.stacked(figure, [1.0] * len(shown))
        for part, label in zip(parts, shown, strict=True):
            part.suptitle(look.display_name(label), x=0.02, ha="left", fontweight="bold")
            curves, compared = part.subplots(1, 2, width_ratios=[1.15, 1])
            own = numbers[numbers["crosscoder"] == label]
            _curves(curves, own[own["positions"] == "all"], drawn, style)
            _differences(compared, own, drawn, style)
        look.legend(figure, _legend(drawn), None, columns=4)
        look.note(figure, _caption(numbers, results.sets, shown), style)
    return look.Drawn(figure, numbers)


def marks(numbers: pd.DataFrame) -> dict[str, look.Mark]:
    """Return how the rankings that have rows are printed and drawn; "" is for differences that belong to none."""
    found = set(numbers.loc[~numbers["intervention"].isin(["none", "all"]), "ranking"])
    names = {name: f"by {look.mathematical(ranking.label)}" for name, ranking in RANKINGS.items()}
    names[""] = "by no ranking"
    return {name: look.Mark(text, *LOOKS.get(name, OTHER)) for name, text in names.items() if name in found}


def curve(rows: pd.DataFrame, ranking: str, draw: int = 0) -> pd.DataFrame:
    """Return the points of a curve by rising energy share, from nothing added (0) to all latents (1)."""
    points = rows[(rows["intervention"] == PREFIX) & (rows["ranking"] == ranking) & (rows["draw"] == draw)]
    columns = ["energy_share", "reduction", "reduction_low", "reduction_high"]
    nothing = pd.DataFrame([dict.fromkeys(columns, 0.0)])
    whole = rows[rows["intervention"] == "all"]
    return pd.concat([nothing, points[columns], whole[columns]], ignore_index=True).sort_values("energy_share")


def _curves(axes: Axes, rows: pd.DataFrame, marks: Mapping[str, look.Mark], style: look.Style) -> None:
    """Draw the curves of one crosscoder over a root scale, which shows small doses; areas are of the plain one."""
    prefixes = rows[rows["intervention"] == PREFIX]
    draws = sorted(prefixes.loc[prefixes["ranking"] == RANDOM, "draw"].unique())
    if draws:
        grid = np.linspace(0, 1, 401)
        random = [curve(rows, RANDOM, int(draw)) for draw in draws]
        heights = 100 * np.array([np.interp(grid, points["energy_share"], points["reduction"]) for points in random])
        axes.fill_between(grid, heights.min(0), heights.max(0), color=RANDOM_COLOUR, alpha=0.25, linewidth=0)
        axes.plot(grid, heights.mean(0), color=RANDOM_COLOUR, linestyle="--")
    handles = []
    for ranking, mark in marks.items():
        if not (prefixes["ranking"] == ranking).any():
            continue
        points = curve(rows, ranking)
        x, y = points["energy_share"], 100 * points["reduction"]
        axes.fill_between(
            x, 100 * points["reduction_low"], 100 * points["reduction_high"], color=mark.colour, alpha=0.15, linewidth=0
        )
        axes.plot(x, y, color=mark.colour, marker=mark.marker, markersize=3)
        area = rows[(rows["intervention"] == AREA) & (rows["ranking"] == ranking)].to_dict("records")
        if area:
            handles.append(Line2D([], [], color=mark.colour, marker=mark.marker, markersize=3, label=_area(area[0])))
    axes.axhline(0, color=look.BLACK, linewidth=0.6)
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.clip(x, 0, None)), np.square))
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.set_xticks(TICKS, labels=[f"{100 * tick:.0f}" for tick in TICKS])
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])
    axes.set(xlim=(0, 1.02), ylim=(low, high + 0.35 * (high - low)))  # room for the legend
    axes.set(xlabel="E: energy of the edit (% of All)", ylabel="KL reduction (%)")
    if handles:
        axes.legend(
            handles=handles, loc="upper left", title="area over random orders (points)", title_fontsize=style.small_size
        )
    else:
        look.statement(axes, "no curve: the edits\nhave no energy", style)


def _area(row: Mapping[Any, Any]) -> str:
    value, low, high = (100 * row[name] for name in ("reduction", "reduction_low", "reduction_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def _differences(axes: Axes, rows: pd.DataFrame, marks: Mapping[str, look.Mark], style: look.Style) -> None:
    """Draw the paired differences of KL reduction, rankings of one comparison together."""
    ticks, half = [], (max(1, len(marks)) - 1) / 2
    for group, name in enumerate(differences()):
        ticks.append(group * (2 * half + 2.2) + half)
        if not (rows["intervention"] == name).any():
            axes.text(0, ticks[-1], " none", va="center", fontsize=style.small_size)
        for i, (ranking, mark) in enumerate(marks.items()):
            for positions, shift, filled in (("all", -0.17, True), ("first", 0.17, False)):
                at = (rows["intervention"] == name) & (rows["ranking"] == ranking) & (rows["positions"] == positions)
                for row in rows[at].to_dict("records"):
                    y = ticks[-1] - half + i + shift
                    low, high = 100 * row["reduction_low"], 100 * row["reduction_high"]
                    axes.plot([low, high], [y, y], color=mark.colour, linewidth=0.9, solid_capstyle="butt")
                    axes.plot(
                        100 * row["reduction"], y, marker=mark.marker, markersize=3.2, color=mark.colour,
                        markerfacecolor=mark.colour if filled else "white", linestyle="",
                    )  # fmt: skip
    axes.axvline(0, color=look.BLACK, linewidth=0.6)
    axes.set_yticks(ticks, labels=[each.label for each in differences().values()])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(ticks[-1] + half + 1, -1), xlabel="difference in reduction (points)")


def _legend(marks: Mapping[str, look.Mark]) -> list[Any]:
    return [
        *(Line2D([], [], color=m.colour, marker=m.marker, markersize=3.2, label=m.name) for m in marks.values()),
        Line2D([], [], color=RANDOM_COLOUR, linestyle="--", label="random orders: mean, range"),
        look.point("o", look.BLACK, "all response tokens", 3.2),
        look.point("o", look.BLACK, "first 9", 3.2, markerfacecolor="white"),
    ]


def _caption(numbers: pd.DataFrame, sets: Mapping[str, Mapping[str, Any]], shown: Sequence[str]) -> str:
    tokens = numbers.groupby("positions")["n_tokens"].max()
    text = "Left: all live latents are added in the order of each ranking; all response tokens "
    text += f"({int(tokens.get('all', 0)):,}); root scale of E, areas over the plain one. Right: paired differences, "
    text += f"hollow: of the first 9 response tokens ({int(tokens.get('first', 0)):,}). {halves_text(sets, shown)} "
    text += "E is equal over all response tokens, not over the first 9. "
    text += f"95 % intervals: bootstrap over {int(numbers['n_conversations'].max()):,} different conversations."
    return text
