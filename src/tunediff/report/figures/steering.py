"""Steering figure: the rate of a latent's own kind of answer while it is added, beside controls of equal dose."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from tunediff.interventions.steering_table import CELL, CONTROLS, verdicts
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing
from tunediff.report.tables.steering import steered_name

DRAWING = Drawing(
    "figures/steering",
    __name__,
    title="Answers steered by the latents most specific to the chat model",
    caption=(
        "The share of answers that are of a latent's own kind while its chat direction is added to the residuals, and "
        "how far the predictions move, beside other directions of the same norm. Lines are 95 % intervals: Wilson's of "
        "the rates, of a bootstrap over requests for KL. Filled marks are apart from the unsteered answers and from "
        "every control."
    ),
    reads=("steering",),
)

LINE = 0.36  # inches
MARKS = {
    "unsteered": look.Mark("unsteered", look.BLACK, "|"),
    "steered": look.Mark("latent", look.VERMILLION, "o"),
    "sign_flip": look.Mark("sign flip", look.BLUE, "v"),
    "base_row": look.Mark("base direction", look.GREEN, "s"),
    "shared": look.Mark("shared latent", look.ORANGE, "D"),
    "random": look.Mark("random", look.GREY, "x"),
}


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw one line per latent, α and positions: rates on the left, KL on the right; of the first seed of each kind."""
    table = results.steering
    lines = verdicts(table)
    shown = look.selected({label: lines[lines["crosscoder"] == label] for label in lines["crosscoder"].unique()})
    wanted = table["arm"].isin(MARKS) & (table["model"] == "chat")
    numbers = table[wanted & ((table["measure"] == "kl") | (table["measure"] == "rate"))].reset_index(drop=True)
    heights = [LINE * len(own) + 0.62 for own in shown.values()]
    with style.context():
        figure = style.figure(sum(heights) + 1.3)
        for part, (label, own) in zip(look.stacked(figure, heights), shown.items(), strict=True):
            part.suptitle(look.display_name(label), x=0.02, ha="left", fontweight="bold")
            rates, kl = part.subplots(1, 2, sharey=True, width_ratios=[1.5, 1])
            rows = own.to_dict("records")
            for y, row in enumerate(rows):
                _rates(rates, table, row, y)
                _kl(kl, table, row, y)
            names = [f"{steered_name(row)}\n{row['kind'].replace('_', ' ') or 'of no kind'}" for row in rows]
            rates.set_yticks(range(len(rows)), names)
            rates.tick_params(axis="y", length=0)
            rates.set(xlim=(-3, 103), xlabel="answers of its kind, %", ylim=(len(rows) - 0.4, -0.6))
            kl.tick_params(axis="y", length=0)
            kl.set(xscale="log", xlabel="KL, nats a token")
            kl.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            kl.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            kl.xaxis.set_minor_formatter(NullFormatter())
            for axes in (rates, kl):
                for y in range(1, len(rows)):
                    axes.axhline(y - 0.5, color=look.GREY, linewidth=0.3)
            if not own["kind"].any():
                look.statement(rates, "no latent fires in answers\nof one labelled kind", style)
        look.legend(figure, [look.point(m.marker, m.colour, m.name) for m in MARKS.values()], None, columns=6)
        n = int(table.loc[table["arm"] == "unsteered", "n"].max())
        note = (
            f"The chat model's greedy answers to {n} requests with α times the largest activation of a latent times "
            "its chat direction added after the block; controls: other directions of the same norm. Its kind: the kind "
            "of answer in which the latent fires on other requests. Filled: apart from the unsteered answers and from "
            "all controls. KL: KL(chat ‖ steered) on the unsteered answers."
        )
        look.note(figure, note, style)
    return look.Drawn(figure, numbers)


def _cell(table: pd.DataFrame, row: Mapping[str, Any]) -> pd.DataFrame:
    same = np.logical_and.reduce([table[name] == row[name] for name in CELL])
    return table[same]


def _rates(axes: Axes, table: pd.DataFrame, row: Mapping[Any, Any], y: float) -> None:
    """Draw the rates of a latent's own kind at one dose, the arms below one another."""
    if not row["kind"]:
        return
    own = _cell(table, row)
    rates = own[(own["measure"] == "rate") & own["own"]]
    unsteered = table[(table["arm"] == "unsteered") & (table["model"] == "chat") & (table["kind"] == row["kind"])]
    for place, (arm, mark) in enumerate(MARKS.items()):
        at = y + 0.13 * (place - (len(MARKS) - 1) / 2)
        for one in (unsteered if arm == "unsteered" else rates[rates["arm"] == arm]).to_dict("records"):
            axes.plot([100 * one["low"], 100 * one["high"]], [at, at], color=mark.colour, linewidth=0.8)
            face = mark.colour if arm in CONTROLS or row["moves"] else "white"
            axes.plot(100 * one["value"], at, mark.marker, color=mark.colour, markersize=3.4, markerfacecolor=face)


def _kl(axes: Axes, table: pd.DataFrame, row: Mapping[Any, Any], y: float) -> None:
    """Draw the KL of a latent at one dose and of its controls."""
    own = _cell(table, row)
    for place, (arm, mark) in enumerate(MARKS.items()):
        at = y + 0.13 * (place - (len(MARKS) - 1) / 2)
        for one in own[(own["measure"] == "kl") & (own["arm"] == arm)].to_dict("records"):
            axes.plot([one["low"], one["high"]], [at, at], color=mark.colour, linewidth=0.8)
            axes.plot(one["value"], at, mark.marker, color=mark.colour, markersize=3.4)
