"""One run at a time in a folder of results.

Two would do all work twice: artifacts have unique names while they are built, so neither sees the other. Snakemake's
own lock is switched off in the profiles (`nolock`): a killed run leaves it behind, and it only knows one checkout. The
lock here is held by the main process and dies with it.
"""

import os
import platform
import sys
from datetime import datetime
from pathlib import Path
from typing import IO

from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import lock


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
            Another run has it; the message says which.
        """
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
