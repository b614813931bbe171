"""What a run on SLURM must know and SLURM does not say by itself.

Without accounting, `sacct` answers nothing and the run waits for ever. A killed run leaves its jobs on the cluster, and
the next run would start them a second time. A job that no partition can ever take stays pending.
"""

import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tunediff.errors import TunediffError

# Reasons that no waiting changes (`man squeue`, JOB REASON CODES); the limits of a user or a group pass by themselves.
NEVER = re.compile(
    r"PerJob|^Partition|NotAllowed|^Invalid|^BadConstraints|[Hh]eld|^DependencyNever|^ReservationDeleted|^JobLaunchFail"
)
WATCH_SECONDS = 20
WAIT_SECONDS = 5


class ClusterJob(NamedTuple):
    """A job that is pending or runs."""

    number: str
    state: str
    reason: str
    partition: str
    rule: str  # of this workflow, with its wildcards


def _ask(*command: str) -> str:
    """Return what a command of SLURM prints; nothing where it fails: the cluster may be busy."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def check_accounting(status_command: str) -> None:
    """Raise a `TunediffError` where `sacct` gives the state of jobs and the cluster keeps no accounting."""
    found = re.search(r"^AccountingStorageType\s*=\s*(\S+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    if status_command == "sacct" and found and found[1].endswith("none"):
        raise TunediffError(
            "this cluster keeps no accounting (AccountingStorageType is none), so a run would wait for ever for its "
            "first job; set `slurm-status-command: squeue` in profiles/slurm/profile.yaml"
        )


def jobs_of(folder: Path) -> list[ClusterJob]:
    """Return this user's pending and running jobs that were submitted from a folder."""
    rows = _ask("squeue", "--me", "--noheader", "--format=%i|%T|%r|%P|%k|%Z").splitlines()
    fields = [row.split("|", 5) for row in rows if row.count("|") >= 5]
    return [
        ClusterJob(number, state, reason, partition, rule.removeprefix("rule_").replace("_wildcards_", " "))
        for number, state, reason, partition, rule, workdir in fields
        if Path(workdir) == folder
    ]


def wait_for(folder: Path, say: Callable[[str], None]) -> bool:
    """Wait until no job of an earlier run in this folder is left; return whether there was one."""
    told: set[str] = set()
    while left := jobs_of(folder):
        if {job.number for job in left} - told:
            told |= {job.number for job in left}
            names = ", ".join(f"{job.number} ({job.rule})" for job in left)
            say(
                f"jobs of an earlier run are still on the cluster: {names}; this run goes on when they have ended "
                f"(or end them: scancel {' '.join(job.number for job in left)})"
            )
        time.sleep(WAIT_SECONDS)
    return bool(told)


def stuck_lines(jobs: list[ClusterJob]) -> list[str]:
    """Return one line for each job that can never start."""
    return [
        f"job {job.number} ({job.rule}) can never start: {job.reason} in partition {job.partition}; state what "
        f"partitions allow in profiles/slurm/partitions.yaml, or what the rule asks for by `set-resources` in "
        f"profiles/slurm/profile.yaml, then scancel {job.number}"
        for job in jobs
        if job.state == "PENDING" and NEVER.search(job.reason)
    ]


def watch(folder: Path, say: Callable[[str], None]) -> None:
    """Say of each job of this folder that can never start, once, in a thread that ends with the process."""

    def look() -> None:
        told: set[str] = set()
        while True:
            for line in stuck_lines(jobs_of(folder)):
                if line not in told:
                    told.add(line)
                    say(line)
            time.sleep(WATCH_SECONDS)

    threading.Thread(target=look, name="watch", daemon=True).start()
