"""One run at a time in a folder of results.

Two would do all work twice: artifacts have unique names while they are built, so neither sees the other. Snakemake's
own lock is switched off in the profiles (`nolock`): a killed run leaves it behind, and it only knows one checkout. The
lock here is held by the main process and dies with it.
"""

import os
import platform
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import IO

from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import lock

KILLED = re.compile(r"died with <Signals\.SIGKILL|non-zero exit status 137")


def killed_lines(log: str, memory: int) -> list[str]:
    """Return what to say of jobs that were killed, given Snakemake's log and the bytes of memory of this machine."""
    found = []
    for killed in KILLED.finditer(log):
        failed = re.search(r"Error in rule (\w+):", log[killed.end() :])
        rule = failed[1] if failed else "a job"
        asked = re.findall(rf"rule {rule}:\n(?:    .*\n)*?    resources: .*mem_mb=(\d+)", log[: killed.start()])
        limit = f", the job had asked for {int(asked[-1]):,} MB" if asked else ""
        found.append(
            f"{rule}: killed by signal 9, as the kernel does where memory runs out (this machine has "
            f"{memory / 1e9:.1f} GB{limit}); run fewer jobs at a time (--cores, --resources mem_mb=…) and start again: "
            "finished results are kept"
        )
    return list(dict.fromkeys(found))


class Running:
    """The lock of the run that works in a folder of results; it is held until the process ends."""

    def __init__(self, results: Path) -> None:
        self.results, self.path = results, results / ".work/running"
        self._stream: IO[str] | None = None

    def start(self) -> None:
        """Take the lock.

        Raises
        ------
        TunediffError
            Another run has it, and the message says which; or the folder cannot be written.
        """
        try:
            self._lock()
        except OSError as error:
            raise TunediffError(
                f"{self.results}: cannot be written ({error.strerror}: {error.filename or self.path}); make room or "
                "get the right to write there, or set `results` to another folder"
            ) from error

    def _lock(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("a+", encoding="utf-8")
        taken = lock(self._stream)
        if taken is False:
            self._stream.seek(0)
            raise TunediffError(
                f"{self.results}: another run works in this folder ({self._stream.read().strip()}); wait for its end, "
                "or stop it (what is finished is kept); -n and --report work meanwhile"
            )
        if taken is None:
            print(f"{self.results}: no locks on this file system: a second run would not be noticed", file=sys.stderr)
        self._stream.truncate(0)
        self._stream.write(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M}\n")
        self._stream.flush()
