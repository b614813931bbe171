"""Figure 4: how near the chat model's predictions each replacement of the base model's activations comes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tunediff.errors import TunediffError
from tunediff.figures import style as look
from tunediff.figures.style import Drawing, Style

PALE_VERMILLION = "#F0B48A"
GROUP_GAP = 0.7  # bar widths between groups
VALUE_HEIGHT = 0.2  # of a printed value of two lines, against the largest bar
BARS = {  # intervention -> printed name, colour, hatch
    "none": ("None", look.DARK_GREY, ""),
    "template": ("Tem-\nplate", look.GREY, ""),
    "all": ("All", look.ORANGE, ""),
    "error": ("Error", look.PURPLE, ""),
    "latent_scaling_best": ("LS\nbest", look.BLUE, ""),
    "latent_scaling_worst": ("LS\nworst", look.SKY, "////"),
    "norm_difference_best": (f"{look.NORM_DIFFERENCE}\nbest", look.VERMILLION, ""),
    "norm_difference_worst": (f"{look.NORM_DIFFERENCE}\nworst", PALE_VERMILLION, "////"),
}
RANDOM = (0, (2, 1.2))  # line of the random sets
PANELS = {"all": "(a) All response tokens", "first": "(b) First 9 response tokens"}
COLUMNS = ("crosscoder", "intervention", "positions", "mean", "low", "high", "reduction", "n_conversations", "n_tokens")


def draw(
    summary: pd.DataFrame, sets: Mapping[str, Mapping[str, Any]], style: Style, *, show: Sequence[str] | None = None
) -> Drawing:
    """Draw the KL divergence from the chat model per intervention, with 95 % intervals (paper, figure 4).

    `summary` is causal/summary.parquet, `sets` is causal/sets.json (crosscoder -> latents, size, rule). The numbers
    are the rows of `summary` for the crosscoders shown, additive variants included, with the mean of the random sets
    as intervention `random_mean`, and `drawn` telling what is on the figure.
    """
    look.require(summary, COLUMNS, "causal/summary.parquet")
    named = summary["crosscoder"].fillna("").astype(str)
    summary = summary.assign(crosscoder=named)
    shown = list(look.selected({label: None for label in dict.fromkeys(named) if label}, show))
    numbers = _with_random_mean(summary[named.isin(["", *shown])])
    positions, labels, groups = _layout(numbers, shown)
    with style.context():
        width = style.width * max(1.0, len(positions) / 14)
        figure = style.figure(5.3, width)
        for axes, (name, title) in zip(figure.subplots(2, 1), PANELS.items(), strict=True):
            _panel(axes, numbers[numbers["positions"] == name], positions, labels, groups, title, style)
        look.legend(figure, _legend(numbers), None, columns=3)
        look.note(figure, _caption(numbers, sets, shown), style, width)
    return Drawing(figure, numbers.reset_index(drop=True))


def _with_random_mean(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the mean over the sets of random latents (its range as low and high) and the column `drawn`."""
    random = rows[rows["intervention"].str.fullmatch(r"random_\d+")]
    means = [
        {
            "crosscoder": crosscoder,
            "intervention": "random_mean",
            "positions": name,
            "mean": group["mean"].mean(),
            "low": group["mean"].min(),
            "high": group["mean"].max(),
            "reduction": group["reduction"].mean(),
            "n_conversations": group["n_conversations"].iloc[0],
            "n_tokens": group["n_tokens"].iloc[0],
        }
        for (crosscoder, name), group in random.groupby(["crosscoder", "positions"], sort=False)
    ]
    rows = pd.concat([rows, pd.DataFrame(means)], ignore_index=True) if means else rows.copy()
    rows["drawn"] = rows["intervention"].isin([*BARS, "random_mean"])
    return rows


def _layout(
    numbers: pd.DataFrame, shown: Sequence[str]
) -> tuple[dict[tuple[str, str], float], list[str], dict[str, tuple[float, float]]]:
    """Return the x position of each bar, the tick labels, and the extent of each crosscoder's group."""
    present = set(zip(numbers["crosscoder"], numbers["intervention"], strict=True))
    positions: dict[tuple[str, str], float] = {}
    labels: list[str] = []
    groups: dict[str, tuple[float, float]] = {}
    x = 0.0
    for crosscoder in ("", *shown):
        bars = [name for name in BARS if (crosscoder, name) in present]
        for name in bars:
            positions[crosscoder, name] = x
            labels.append(BARS[name][0])
            x += 1
        if bars:
            groups[crosscoder] = (x - len(bars), x - 1)
            x += GROUP_GAP
    if not positions:
        raise TunediffError("causal/summary.parquet: no intervention to draw; delete it and run snakemake again")
    return positions, labels, groups


def _panel(
    axes: Axes,
    rows: pd.DataFrame,
    positions: Mapping[tuple[str, str], float],
    labels: Sequence[str],
    groups: Mapping[str, tuple[float, float]],
    title: str,
    style: Style,
) -> None:
    top = float(np.nanmax([*rows["high"], *rows["mean"], 1e-9])) if len(rows) else 1.0
    by_bar = {(row["crosscoder"], row["intervention"]): row for row in rows.to_dict("records")}
    for (crosscoder, name), x in positions.items():
        if (crosscoder, name) not in by_bar:
            axes.text(x, 0, "no\ndata", ha="center", va="bottom", fontsize=style.small_size)
            continue
        bar = by_bar[crosscoder, name]
        _, colour, hatch = BARS[name]
        axes.bar(x, bar["mean"], 0.8, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        axes.plot([x, x], [bar["low"], bar["high"]], color=look.BLACK, linewidth=0.9, solid_capstyle="butt")
        foot = max(bar["high"], bar["mean"])
        if name.endswith(("best", "worst")) and (crosscoder, "random_mean") in by_bar:
            # the line of the random sets runs over the bar it is compared with, and below the value if it would cut it
            random = by_bar[crosscoder, "random_mean"]["mean"]
            axes.plot([x - 0.4, x + 0.4], [random, random], color=look.BLACK, linewidth=1, linestyle=RANDOM, zorder=4)
            foot = random if foot <= random < foot + VALUE_HEIGHT * top else foot
        text = _number(bar["mean"])
        if name != "none":
            text += f"\n{_change(bar['reduction'])}"
        axes.annotate(
            text, (x, foot), (0, 1.5), textcoords="offset points",
            ha="center", va="bottom", fontsize=style.small_size, linespacing=1.05,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4}, zorder=5,
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
    hatched: dict[str, Any] = {"edgecolor": "white", "hatch": "////", "linewidth": 0}
    handles: list[Any] = [
        Patch(facecolor=look.BLUE, label="LS: Latent Scaling, best half"),
        Patch(facecolor=look.SKY, label="Latent Scaling, worst half", **hatched),
        Patch(facecolor=look.VERMILLION, label=f"{look.NORM_DIFFERENCE}, best half"),
        Patch(facecolor=PALE_VERMILLION, label=f"{look.NORM_DIFFERENCE}, worst half", **hatched),
        Line2D([], [], color=look.BLACK, linewidth=0.9, marker="|", markersize=5, linestyle="", label="95 % interval"),
    ]
    random = numbers["intervention"].str.fullmatch(r"random_\d+")
    if random.any():
        count = numbers.loc[random, "intervention"].nunique()
        name = f"random latents, mean of {count}"
        handles.append(Line2D([], [], color=look.BLACK, linewidth=1, linestyle=RANDOM, label=name))
    return handles


def _caption(numbers: pd.DataFrame, sets: Mapping[str, Mapping[str, Any]], shown: Sequence[str]) -> str:
    tokens = numbers.groupby("positions")["n_tokens"].max()
    text = f"{int(numbers['n_conversations'].max()):,} conversations; response tokens: "
    text += f"{int(tokens.get('all', 0)):,} in (a), {int(tokens.get('first', 0)):,} in (b)."
    sizes = {label: _size(sets[label]) for label in shown if label in sets}
    if sizes:
        if len(set(sizes.values())) == 1:
            size = next(iter(sizes.values()))
            text += f" Effective chat-only set: {size:,} latents per crosscoder, halves of {size // 2:,}."
        else:
            each = ", ".join(f"{size:,} ({label})" for label, size in sizes.items())
            text += f" Effective chat-only sets, each cut in halves: {each} latents."
    return text + " Bootstrap over conversations; percentages are changes against None."


def _size(entry: Mapping[str, Any]) -> int:
    return int(entry["size"]) if "size" in entry else len(entry["latents"])
