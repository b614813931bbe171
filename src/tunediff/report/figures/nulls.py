"""Nulls figure: the share of latents called chat-specific in pairs of the nulls, beside the run's own pair."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import Transform

from tunediff.latents.criterion import Criterion
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.nulls import model_name, null_kind, null_rates
from tunediff.report.registry import Drawing
from tunediff.report.tables.table1 import CALLS, NULL_KINDS

DRAWING = Drawing(
    "nulls/summary",
    __name__,
    title="Latents called chat-specific in the nulls",
    caption=(
        "The share of live latents that each rule calls chat-specific in null pairs, beside the run's own pair. In "
        "an exact null, one model stands twice and every call is false; a contaminated null bounds the false calls "
        "from above. Lines are Wilson's 95 % intervals."
    ),
    reads=("pairs",),
    requires=lambda graph: bool(graph.config["nulls"]),
)

ROW = 0.32  # inches per crosscoder


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw the calls of every rule, one line per pair and crosscoder; the numbers are those of `null_rates`."""
    kinds = {pair: null_kind(models) for pair, models in results.models.items() if pair}
    models = {pair: (model_name(of["base"]), model_name(of["chat"])) for pair, of in results.models.items()}
    criterion = look.one_criterion(results.pairs[""][0])
    return shown(null_rates(results.pairs, kinds), criterion, models, style)


def shown(
    table: pd.DataFrame, criterion: Criterion, models: Mapping[str, tuple[str, str]], style: look.Style
) -> look.Drawn:
    """Draw `null_rates`; `criterion` is that of the latent tables, `models` names both models of each pair."""
    rows = table.to_dict("records")
    marks = dict(zip(CALLS, look.rule_marks(criterion).values(), strict=True))
    with style.context():
        figure = style.figure(ROW * len(rows) + 1.75)
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.1])
        for n, (name, mark) in enumerate(marks.items()):
            y = [line + 0.24 * (n - 1) for line in range(len(rows))]
            share, low, high = (100 * table[f"{name}_share{end}"] for end in ("", "_low", "_high"))
            axes.hlines(y, low, high, color=mark.colour, linewidth=1.0)
            axes.plot(share, y, mark.marker, color=mark.colour, markersize=3.5, clip_on=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("live latents called chat-specific, %")
        axes.set_yticks(range(len(rows)), [_name(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -1.4)
        axes.tick_params(axis="y", length=0)
        beside.axis("off")
        columns = {0.02: "called", 0.66: "of", 0.84: "FVE", 1.0: "L0"}
        for x, head in columns.items():
            beside.text(x, -0.9, head, ha="left" if x < 0.1 else "right", va="center", transform=_across(beside))
        for line, row in enumerate(rows):
            fve = (row["fve_base"] + row["fve_chat"]) / 2
            called = ", ".join(f"{row[name]:,}" for name in CALLS)
            for x, text in zip(columns, (called, f"{row['live']:,}", f"{fve:.2f}", f"{row['l0']:.1f}"), strict=True):
                beside.text(x, line, text, ha="left" if x < 0.1 else "right", va="center", transform=_across(beside))
            if line and row["pair"] != rows[line - 1]["pair"]:
                axes.axhline(line - 0.5, color=look.GREY, linewidth=0.4)
        handles = [look.point(mark.marker, mark.colour, mark.name) for mark in marks.values()]
        look.legend(figure, handles, "Latents called chat-specific, by", columns=1)
        kinds = dict(zip(table["pair"], table["null_kind"], strict=True))
        named = {pair: f"{pair}: {base} and {chat}" for pair, (base, chat) in models.items()}
        against = {kind: "; ".join(named[pair] for pair in named if kinds[pair] == kind) for kind in NULL_KINDS}
        text = "Models in the places of base and chat. "
        if against["exact"]:
            text += f"Exact nulls (one model twice; every call is false, so there must be none): {against['exact']}. "
        if against["contaminated"]:
            text += (
                "Contaminated nulls (both models differ in something real; an upper bound of the false-positive rate): "
                f"{against['contaminated']}. "
            )
        text += (
            "The pair itself stands for comparison. Lines: Wilson's 95 % intervals, as if latents were independent. "
            "FVE (mean of both models) and L0 on held-out tokens."
        )
        look.note(figure, text, style)
    return look.Drawn(figure, table)


def _name(row: Mapping[Any, Any]) -> str:
    seed = look.seed_of(row["crosscoder"])
    pair = f"{row['pair']} ({NULL_KINDS[row['null_kind']]})" if row["pair"] else "the pair itself"
    return f"{pair}\n{look.kind_name(row['crosscoder'])}" + ("" if seed is None else f", seed {seed}")


def _across(axes: Axes) -> Transform:
    """Return the transform of x as a share of the panel's width and y as a line."""
    return axes.get_yaxis_transform()
