"""What every Snakemake script does around its one library call: log, threads, one-line errors."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tunediff.errors import TunediffError


class _Tee:
    """Writes to the log, and to the terminal where there is one (progress bars)."""

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self.log, self.terminal = log, terminal if terminal.isatty() else None

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


def usable_threads(wanted: int) -> int:
    """Return the threads to use: those granted, but no more than this process may run on (oversubscribing is slow)."""
    return max(1, min(wanted, len(os.sched_getaffinity(0))))


def resolve_device(device: str) -> str:
    """Return `device`, with "auto" replaced by "cuda" where a GPU is usable and by "cpu" elsewhere."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run a script's work: output goes to `snakemake.log`, threads are set, a TunediffError ends it in one line."""
    Path(snakemake.log[0]).parent.mkdir(parents=True, exist_ok=True)
    stdout, stderr = sys.stdout, sys.stderr
    with Path(snakemake.log[0]).open("w", buffering=1, encoding="utf-8") as log:
        sys.stdout, sys.stderr = _Tee(log, stdout), _Tee(log, stderr)
        try:
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(usable_threads(snakemake.threads))
            yield
        except TunediffError as error:
            print(f"error: {error}", file=log)
            print(f"error: {error}", file=stderr)
            raise SystemExit(1) from None
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            sys.stdout, sys.stderr = stdout, stderr
