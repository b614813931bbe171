"""Training figure: loss, FVE, L0 and dead latents of every crosscoder against the tokens it has seen."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/training",
    __name__,
    title="Loss, FVE, L0 and dead latents during training",
    caption=(
        "The training curves of every crosscoder and seed against the tokens it has seen. The losses are those "
        "that each crosscoder minimises, so they compare between seeds and not between kinds. FVE here is of "
        "training batches; held-out numbers are in table 1."
    ),
    reads=("histories",),
    requires=lambda graph: bool(graph.trained),
)

PANELS = {  # column -> axis label, logarithmic
    "loss": ("loss (as minimised)", True),
    "reconstruction": ("reconstruction loss", True),
    "fve_base": ("FVE, base model", False),
    "fve_chat": ("FVE, chat model", False),
    "l0": ("L0 (latents per token)", True),
    "dead_fraction": ("dead fraction of latents", False),
}
MAX_POINTS = 2000  # drawn per curve; more cannot be told apart in print


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw the training curves of all crosscoders, every seed, against training tokens.

    The numbers are the points drawn: each history, thinned evenly to 2,000 rows if it is longer.
    """
    shown = results.histories
    colours = look.crosscoder_colours(shown)
    seeds: dict[str, int] = {}
    pieces, handles = [], []
    with style.context():
        figure = style.figure(5.6)
        axes = figure.subplots(3, 2, sharex=True).ravel()
        for label, history in shown.items():
            look.require(history, ["step", "tokens", *PANELS], f"history of {label}")
            stride = -(-max(len(history), 1) // MAX_POINTS)
            points = history.iloc[::stride] if stride > 1 else history
            nth = seeds[look.kind_of(label)] = seeds.get(look.kind_of(label), -1) + 1
            line = look.LINE_STYLES[nth % len(look.LINE_STYLES)]
            for panel, column in zip(axes, PANELS, strict=True):
                marker = "o" if len(points) == 1 else ""
                panel.plot(
                    points["tokens"], points[column], color=colours[label], linestyle=line, marker=marker, markersize=3
                )
            name = look.display_name(label) + ("" if len(history) else ": no history (0 rows)")
            handles.append(Line2D([], [], color=colours[label], linestyle=line, label=name))
            pieces.append(points[["step", "tokens", *PANELS]].assign(crosscoder=label))
        numbers = pd.concat(pieces, ignore_index=True)
        largest = float(numbers["tokens"].max()) if len(numbers) else 1.0
        unit, scale = ("millions", 1e6) if largest >= 2e6 else ("thousands", 1e3) if largest >= 2e3 else ("", 1.0)
        for panel, (column, (name, logarithmic)) in zip(axes, PANELS.items(), strict=True):
            values = numbers[column].dropna()
            if values.empty:
                look.statement(panel, f"{column}: no value recorded (0)", style)
            elif logarithmic and (values > 0).all() and values.max() > 5 * values.min():
                _logarithmic(panel, float(values.max() / values.min()))
            elif column.startswith("fve"):
                # the first steps are far below 0 and would flatten the rest
                panel.set_ylim(max(-0.05, float(values.min()) - 0.02), 1.0)
            elif column == "dead_fraction":
                top = max(0.05, 1.08 * float(values.max()))
                panel.set_ylim(-0.02 * top, top)
            panel.set_ylabel(name)
            panel.margins(x=0.01)
            panel.xaxis.set_major_formatter(lambda value, _: f"{value / scale:g}")
            panel.grid(axis="y", color="#DDDDDD", linewidth=0.5)
        for panel in axes[-2:]:
            panel.set_xlabel(f"training tokens ({unit})" if unit else "training tokens")
        look.legend(figure, handles)
    numbers.insert(0, "crosscoder", numbers.pop("crosscoder"))
    return look.Drawn(figure, numbers)


def _logarithmic(panel: Axes, ratio: float) -> None:
    """Set a logarithmic axis with plain numbers at 1, 2, 5 (or at powers of ten beyond three decades)."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 1e3 else (1.0,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
