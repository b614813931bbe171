"""How far a long pass is: a bar on a terminal, and where output is redirected a plain line a minute.

A job's lines go to its log and, without a terminal, to Snakemake's stderr too: `nohup snakemake > log 2>&1` shows them.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

EVERY = 60.0  # seconds between two lines
SCALED_FROM = 100_000  # totals from here on are written as 131k, 4.2M


class Tee:
    """A job's stdout or stderr: writes to its log, and to the terminal where there is one."""

    def __init__(self, log: TextIO, stream: TextIO, job: str) -> None:
        self.log, self.stream, self.job = log, stream, job  # `job` is how lines on a shared stream name it
        self.terminal = stream if stream.isatty() else None

    def write(self, text: str) -> int:
        if self.terminal is not None:
            self.terminal.write(text)
        return self.log.write(text)

    def flush(self) -> None:
        self.log.flush()
        if self.terminal is not None:
            self.terminal.flush()

    def isatty(self) -> bool:
        return self.terminal is not None


class Progress(AbstractContextManager["Progress"]):
    """Counts what is done of `total`; `update` shows it when it is due.

    The first line comes after `EVERY` seconds. A job's log also gets a last line, with the time that the pass took.
    """

    def __init__(self, total: int | None, name: str, unit: str, initial: int = 0) -> None:
        self.total, self.name, self.unit, self.initial = total, name, unit, initial
        self.done, self.note = initial, ""  # `note` stands at the end of a line
        self._started = self._shown = time.monotonic()
        self._stream: Any = sys.stderr
        self._job = self._stream if isinstance(self._stream, Tee) else None
        self._terminal = self._stream.isatty()
        self._scaled = (total or 0) >= SCALED_FROM
        self._bar: Any = None
        if self._terminal:
            shown = self._job.terminal if self._job else self._stream
            options: dict[str, Any] = {"unit": f" {unit}", "unit_scale": self._scaled, "mininterval": 5, "file": shown}
            self._bar = tqdm(total=total, desc=name, initial=initial, **options)

    def update(self, n: int = 1) -> None:
        """Count `n` more."""
        self.done += n
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(n)
        now = time.monotonic()
        if now - self._shown >= EVERY:
            self._shown = now
            self._write(self.line(now - self._started), everywhere=True)

    def line(self, seconds: float) -> str:
        """Return what is done after so many seconds: count, rate, time taken, time left."""
        rate = (self.done - self.initial) / seconds if seconds > 0 else 0.0
        whole = "" if self.total is None else f"/{self._count(self.total)}"
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        parts = [f"{self.name}: {self._count(self.done)}{whole} {self.unit}{share}"]
        parts += [f"{tqdm.format_sizeof(rate)} {self.unit}/s", f"{tqdm.format_interval(seconds)} so far"]
        if self.total is not None and self.done < self.total:
            left = tqdm.format_interval((self.total - self.done) / rate) if rate else "?"
            parts.append(f"{left} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    def _count(self, n: int) -> str:
        return tqdm.format_sizeof(n) if self._scaled else f"{n:,}"

    def _write(self, line: str, everywhere: bool) -> None:
        if self._job is not None:
            self._job.log.write(f"{line}\n")
        if everywhere and not self._terminal:
            stream = self._job.stream if self._job else self._stream
            stream.write(f"{self._job.job}: {line}\n" if self._job else f"{line}\n")
            stream.flush()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._write(self.line(time.monotonic() - self._started), everywhere=self._shown > self._started)


def tracked(items: Iterable[Item], name: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show how many are done, of `total` or of as many as the items say they are."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(total, name, unit) as counter:
        for item in items:
            yield item
            counter.update()
