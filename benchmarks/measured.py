"""What the benchmarks of a CPU share: times of several sides in turn, and peak memory in a process of its own.

Other programs share most machines. So the sides take turns, repetition by repetition, and a ratio is the median of the
ratios within a repetition. Peak memory is the largest resident memory of a fresh process that does nothing else
(VmHWM of Linux), less what it held when it began, torch and the package imported; mapped files that it reads count.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple


class Side(NamedTuple):
    """How long one side took, in seconds, and how it compares with the first side of its run."""

    seconds: float  # median
    ratio: float  # median of this side's time over the first side's, repetition by repetition
    low: float  # quartiles of that ratio
    high: float


def in_turn(sides: Mapping[str, Callable[[], object]], repetitions: int, warmup: int = 1) -> dict[str, Side]:
    """Run all sides in turn, `warmup` + `repetitions` times; return what each took."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(warmup + repetitions):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if repetition >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return compared(seconds)


def compared(seconds: Mapping[str, list[float]]) -> dict[str, Side]:
    """Return medians, and ratios to the first side, of times taken in turn."""
    first = next(iter(seconds.values()))
    found = {}
    for name, values in seconds.items():
        ratios = [own / other for own, other in zip(values, first, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        found[name] = Side(statistics.median(values), middle, low, high)
    return found


def _most_resident() -> int:
    """Return the largest resident memory of this process so far, in bytes (`ru_maxrss` counts the parent's too)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _peak(function: Callable[..., object], arguments: tuple[object, ...], answer: "multiprocessing.Queue[int]") -> None:
    before = _most_resident()
    function(*arguments)
    answer.put(_most_resident() - before)


def peak_memory(function: Callable[..., object], *arguments: object) -> float:
    """Return by how many GB a fresh process grows at most while it calls a function of a module.

    `RuntimeError`: the process failed; its traceback is on the terminal.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_peak, args=(function, arguments, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")
    return answer.get() / 1e9
