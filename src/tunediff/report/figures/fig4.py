"""Figure 4: how near the chat model's predictions each replacement of the base model's activations comes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tunediff.errors import TunediffError
from tunediff.interventions.registry import (
    AREA,
    INTERVENTIONS,
    PREFIX,
    RANDOM_MEAN,
    RANKINGS,
    Intervention,
    differences,
)
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/fig4",
    __name__,
    title="KL to the chat model per intervention",
    caption=(
        "How near the chat model's predictions each replacement of the base model's activations comes, on "
        "{conversations[count]} conversations: over all response tokens and over the first 9. Bars are mean KL "
        "with 95 % intervals over conversations. Beside the best halves stand the worst ones and, as a dashed "
        "line, random latents whose edit has the same energy."
    ),
    reads=("kl", "sets"),
)

PALE_VERMILLION, PALE_GREEN = "#F0B48A", "#8FD3BD"
GROUP_GAP = 0.7  # bar widths between groups
LINE_HEIGHT = 0.1  # of a printed line, against the largest bar
LOOKS = {  # colour and hatch of the paper's bars, in its order; other bars come after them
    "none": (look.DARK_GREY, ""),
    "template": (look.GREY, ""),
    "all": (look.ORANGE, ""),
    "all_with_bias": (look.YELLOW, ""),
    "error": (look.PURPLE, ""),
    "latent_scaling_best": (look.BLUE, ""),
    "latent_scaling_worst": (look.SKY, "////"),
    "norm_difference_best": (look.VERMILLION, ""),
    "norm_difference_worst": (PALE_VERMILLION, "////"),
    "nu_activation_best": (look.GREEN, ""),
    "nu_activation_worst": (PALE_GREEN, "////"),
}
OTHER = (look.GREEN, "")
RANDOM = (0, (2, 1.2))  # line of random latents
PANELS = {"all": "(a) All response tokens", "first": "(b) First 9 response tokens"}
COLUMNS = (
    *("crosscoder", "intervention", "ranking", "positions", "mean", "low", "high", "reduction", "energy_share"),
    *("n_conversations", "n_tokens"),
)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw the KL divergence from the chat model per intervention, with 95 % intervals (paper, figure 4).

    The numbers are the rows of causal/summary.parquet for the crosscoders shown, without the curves and comparisons of
    figure 4b, and `drawn` telling what is on the figure.
    """
    summary, shown = of_shown(results.kl, COLUMNS)
    curves = summary["intervention"].isin([PREFIX, AREA, *differences()])
    numbers = summary[~curves]
    numbers = numbers.assign(drawn=numbers["intervention"].isin([*bars(), RANDOM_MEAN])).reset_index(drop=True)
    positions, labels, groups = _layout(numbers, shown)
    with style.context():
        width = style.width * max(1.0, len(positions) / 14)
        figure = style.figure(5.7, width)
        for axes, (name, title) in zip(figure.subplots(2, 1), PANELS.items(), strict=True):
            _panel(axes, numbers[numbers["positions"] == name], positions, labels, groups, title, style)
        look.legend(figure, _legend(numbers), None, columns=3)
        look.note(figure, _caption(numbers, results.sets, shown), style, width)
    return look.Drawn(figure, numbers)


def of_shown(summary: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of causal/summary.parquet of the crosscoders shown and of none, and their names."""
    look.require(summary, columns, "causal/summary.parquet")
    summary = summary.fillna({"crosscoder": "", "ranking": ""})
    shown = list(look.selected({label: label for label in summary["crosscoder"] if label}))
    return summary[summary["crosscoder"].isin(["", *shown])], shown


def bars() -> dict[str, Intervention]:
    """Return the interventions that have a bar, in the order of the figure."""
    return {name: INTERVENTIONS[name] for name in dict.fromkeys((*LOOKS, *INTERVENTIONS)) if INTERVENTIONS[name].bar}


def _layout(
    numbers: pd.DataFrame, shown: Sequence[str]
) -> tuple[dict[tuple[str, str], float], list[str], dict[str, tuple[float, float]]]:
    """Return the x position of each bar, the tick labels, and the extent of each crosscoder's group."""
    present = set(zip(numbers["crosscoder"], numbers["intervention"], strict=True))
    positions: dict[tuple[str, str], float] = {}
    groups: dict[str, tuple[float, float]] = {}
    x = 0.0
    for crosscoder in ("", *shown):
        own = [name for name in bars() if (crosscoder, name) in present]
        positions |= {(crosscoder, name): x + n for n, name in enumerate(own)}
        if own:
            groups[crosscoder] = (x, x + len(own) - 1)
            x += len(own) + GROUP_GAP
    if not positions:
        raise TunediffError("causal/summary.parquet: no intervention to draw; delete it and run snakemake again")
    return positions, [look.mathematical(INTERVENTIONS[name].bar) for _, name in positions], groups


def _panel(
    axes: Axes,
    rows: pd.DataFrame,
    positions: Mapping[tuple[str, str], float],
    labels: Sequence[str],
    groups: Mapping[str, tuple[float, float]],
    title: str,
    style: look.Style,
) -> None:
    drawn = rows[rows["drawn"]]
    top = float(np.nanmax([*drawn["high"], *drawn["mean"], 1e-9])) if len(drawn) else 1.0
    by_bar = {(row["crosscoder"], row["intervention"]): row for row in drawn.to_dict("records")}
    random_means = drawn[drawn["intervention"] == RANDOM_MEAN].set_index(["crosscoder", "ranking"])["mean"]
    for (crosscoder, name), x in positions.items():
        if (crosscoder, name) not in by_bar:
            axes.text(x, 0, "no\ndata", ha="center", va="bottom", fontsize=style.small_size)
            continue
        bar = by_bar[crosscoder, name]
        colour, hatch = LOOKS.get(name, OTHER)
        axes.bar(x, bar["mean"], 0.8, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        axes.plot([x, x], [bar["low"], bar["high"]], color=look.BLACK, linewidth=0.9, solid_capstyle="butt")
        lines = [_number(bar["mean"])]
        if name != "none":
            lines.append(_change(bar["reduction"]))
        if np.isfinite(bar["energy_share"]) and name not in ("all", "error"):  # theirs is 100 % by definition
            lines.append(f"E {100 * bar['energy_share']:.0f}%")
        foot = max(bar["high"], bar["mean"])
        if INTERVENTIONS[name].control and (crosscoder, bar["ranking"]) in random_means.index:
            # the line runs over the bar it is compared with, and below the value if it would cut it
            random = random_means[crosscoder, bar["ranking"]]
            axes.plot([x - 0.4, x + 0.4], [random, random], color=look.BLACK, linewidth=1, linestyle=RANDOM, zorder=4)
            foot = random if foot <= random < foot + LINE_HEIGHT * len(lines) * top else foot
        axes.annotate(
            "\n".join(lines), (x, foot), (0, 1.5), textcoords="offset points",
            ha="center", va="bottom", fontsize=0.9 * style.small_size, linespacing=1.05,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.1}, zorder=5,
        )  # fmt: skip
    for crosscoder, (first, last) in groups.items():
        if crosscoder:
            axes.annotate(
                look.display_name(crosscoder), ((first + last) / 2, 0), (0, -25), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="top", fontweight="bold",
            )  # fmt: skip
    axes.set_xticks(list(positions.values()), labels=list(labels))
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.6, max(positions.values()) + 0.6), ylim=(0, 1.24 * top), ylabel="KL to the chat model (nats)")
    axes.set_title(title, loc="left", fontweight="bold")


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 9.995 else f"{value:.1f}"


def _change(reduction: float) -> str:
    """Return a reduction as the change it is: 0.59 -> −59%."""
    if not np.isfinite(reduction):
        return "–"
    change = round(-100 * reduction)
    return f"{'−' if change < 0 else '+' if change > 0 else '±'}{abs(change)}%"


def _legend(numbers: pd.DataFrame) -> list[Any]:
    present = set(numbers["intervention"])
    handles: list[Any] = []
    for name, each in bars().items():
        if each.ranking and name in present:
            short, label = RANKINGS[each.ranking].short, RANKINGS[each.ranking].label
            text = f"{each.label} half" if short == label else f"{short}: {each.label} half"
            colour, hatch = LOOKS.get(name, OTHER)
            edge: dict[str, Any] = {"edgecolor": "white", "hatch": hatch, "linewidth": 0} if hatch else {}
            handles.append(Patch(facecolor=colour, label=look.mathematical(text), **edge))
    handles.append(look.point("|", look.BLACK, "95 % interval", 5, linewidth=0.9))
    controls = {each.control for each in bars().values() if each.control}
    draws = numbers.loc[numbers["intervention"].isin(controls), "draw"].nunique()
    if draws:
        name = f"random latents of equal E, mean of {draws}"
        handles.append(Line2D([], [], color=look.BLACK, linewidth=1, linestyle=RANDOM, label=name))
    return handles


def _caption(numbers: pd.DataFrame, sets: Mapping[str, Mapping[str, Any]], shown: Sequence[str]) -> str:
    tokens = numbers.groupby("positions")["n_tokens"].max()
    text = f"{int(numbers['n_conversations'].max()):,} different conversations; response tokens: "
    text += f"{int(tokens.get('all', 0)):,} in (a), {int(tokens.get('first', 0)):,} in (b). "
    text += halves_text(sets, shown)
    text += " E: energy of the edit as a share of that of All; random latents have equal E over all response tokens. "
    return text + "Bootstrap over conversations; percentages: change against None."


def halves_text(sets: Mapping[str, Mapping[str, Any]], shown: Sequence[str]) -> str:
    """Say what the halves of each crosscoder are halves of; crosscoders with the same words together."""
    said = {label: look.mathematical(str(sets[label]["name"])) for label in shown}
    each = [f"{name} ({', '.join(x for x in shown if said[x] == name)})" for name in dict.fromkeys(said.values())]
    return f"Halves of {'; '.join(each)}."
