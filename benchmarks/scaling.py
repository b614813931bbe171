"""How the cost of a training step and of the passes grows with F, N, k and tokens: slopes, and docs/scaling.png.

One size changes at a time, from d 512, F 16,384, N 1,024, k 32; every point is a median of repeated runs. A slope is
that of the least-squares line through the logarithms: 1 is proportional. The whole of the last panel is the pass over
validation tokens and the examples of these tokens, encoding counted.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import passes
import torch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from measured import in_turn
from training_step import Shape, sides, synthetic

from tunediff.report.style import BLUE, GREEN, VERMILLION, Style, signed

SIZES: dict[str, list[int]] = {
    "dict_size": [4096, 8192, 16_384, 32_768],
    "n_tokens": [256, 512, 1024, 2048],
    "k": [8, 16, 32, 64, 128],
}
NAMES = {"dict_size": "latents F", "n_tokens": "tokens of a batch N", "k": "k (L0 of the passes)", "tokens": "tokens"}
TOKENS = [8192, 16_384, 32_768, 65_536]
STEP, ENCODING, VALIDATION, WHOLE = "training step", "encoding", "validation pass", "validation and examples"
MARKS = {STEP: (VERMILLION, "o"), ENCODING: (GREEN, "^"), VALIDATION: (BLUE, "s"), WHOLE: (BLUE, "D")}

Curves = dict[str, dict[str, list[float]]]  # seconds, by what changes and what is measured


def of_shape(shape: Shape, repetitions: int) -> dict[str, float]:
    """Return the median seconds of a step and of a batch of the passes."""
    (ours,), x = sides(shape, ("ours",)).values(), synthetic(shape.d_model, shape.n_tokens)()
    crosscoder, feed = passes.planted(shape)
    with torch.no_grad():
        drawn = next(feed)
        tokens, store = passes.tokens_of(passes.DOCUMENT * 8 * shape.n_tokens // 256)
        batch = passes.batch_of(drawn, tokens, store.row[: shape.n_tokens])
        into = passes.validating(crosscoder)

    def adding() -> None:
        with torch.no_grad():
            into.add(batch, crosscoder.encode(drawn))

    measured: dict[str, Callable[[], object]] = {
        STEP: lambda: ours.step(x), ENCODING: lambda: crosscoder.encode(drawn), VALIDATION: adding,
    }  # fmt: skip
    return {name: side.seconds for name, side in in_turn(measured, repetitions, 2).items()}


@torch.no_grad()
def of_tokens() -> list[float]:
    """Return the seconds of validation and examples, by number of tokens."""
    shape, seconds = Shape(), []
    crosscoder, feed = passes.planted(shape)
    firing = None
    for n in [TOKENS[0], *TOKENS]:  # the first warms up
        tokens, store = passes.tokens_of(n)
        batches = [
            passes.batch_of(next(feed), tokens, store.row[start : start + shape.n_tokens])
            for start in range(0, n, shape.n_tokens)
        ]
        if firing is None:
            firing = passes.firing_of([crosscoder.encode(batch.activations) for batch in batches], shape.dict_size)
        began, into, codes = time.perf_counter(), passes.validating(crosscoder), []
        for batch in batches:
            codes.append(crosscoder.encode(batch.activations))
            into.add(batch, codes[-1])
        passes.find_examples(crosscoder, codes, firing, n)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def run(repetitions: int = 5, threads: int = 2) -> Curves:
    """Measure all points."""
    torch.set_num_threads(threads)
    curves: Curves = {}
    for size, values in SIZES.items():
        points = [of_shape(Shape()._replace(**{size: value}), repetitions) for value in values]
        curves[size] = {name: [point[name] for point in points] for name in points[0]}
    return curves | {"tokens": {WHOLE: of_tokens()}}


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Return the slope of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def rows(curves: Curves) -> list[str]:
    """Return the rows of docs/speed.md."""
    table = []
    for size, by_name in curves.items():
        values = SIZES.get(size, TOKENS)
        slopes = "; ".join(f"{name} {signed(round(slope(values, seconds), 2))}" for name, seconds in by_name.items())
        what = f"Growth with {NAMES[size]}, {values[0]:,} to {values[-1]:,}"
        table.append(f"| {what} | slopes: {slopes} | 1: in proportion | [figure](scaling.png) |")
    return table


def draw(curves: Curves, path: Path) -> None:
    """Draw all curves, one panel for each size that changes."""
    style = Style()
    with style.context():
        figure = style.figure(4.6)
        for axes, (size, by_name) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
            values = SIZES.get(size, TOKENS)
            for name, seconds in by_name.items():
                colour, marker = MARKS[name]
                label = f"{name}, slope {signed(round(slope(values, seconds), 2))}"
                axes.loglog(values, seconds, color=colour, marker=marker, markersize=3, label=label)
            axes.set_xlabel(NAMES[size])
            axes.set_ylabel("seconds" if size == "tokens" else "seconds per step or batch")
            axes.set_xticks(values, [f"{value:,}" for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            low, high = axes.get_ylim()
            axes.set_ylim(low / 1.1, high * 2.2)  # room for the legend
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.legend(loc="upper left")
        figure.savefig(path, dpi=200, metadata={"Software": None})


def main() -> None:
    """Print the rows and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="runs of every point (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--figure", type=Path, help="draw here, a PNG (docs/scaling.png)")
    arguments = parser.parse_args()
    curves = run(arguments.repetitions, arguments.threads)
    print("\n".join(rows(curves)))
    if arguments.figure:
        draw(curves, arguments.figure)


if __name__ == "__main__":
    main()
