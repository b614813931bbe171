"""The parts of the soak that start Snakemake: killed runs, full disks, two heads, folders of results as links.

Every run works in a throw-away copy of this checkout. "Equal" means: every manifest and every JSON artifact is that of
an undisturbed run, and with it the sha256 of every file, and nothing is damaged. Some hold wall times: provenances,
which are not compared, the report, whose key is, and histories of trainings, whose other columns are.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tunediff.inspection import inspect
from tunediff.pipeline.artifacts import read_json

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "workflow", "report", "profiles", "config", "envs", "src", "resources")
RESULTS = "results/ci"
HISTORY = "*.history.parquet"
HIDDEN = (".partial", ".retired", ".lock")  # what builds leave beside their targets when they are killed
LONGEST_RUN = 3600.0  # seconds


class SoakError(Exception):
    """Something a run must not do."""


def require(condition: bool, message: str) -> None:
    """Raise a `SoakError` unless the condition holds."""
    if not condition:
        raise SoakError(message)


@dataclass(frozen=True)
class Copy:
    """A throw-away copy of the checkout, which runs config/ci.yaml."""

    root: Path
    cores: int

    @property
    def results(self) -> Path:
        """Its folder of results."""
        return self.root / RESULTS

    @property
    def log(self) -> Path:
        """What its runs print."""
        return self.root / "soak.log"

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a run in a process group of its own."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(self.root / "src"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "snakemake", *arguments]
        command += ["--cores", str(self.cores), "--configfile", "config/ci.yaml"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run to the end; return the exit status and what was printed."""
        start = self.log.stat().st_size if self.log.exists() else 0
        process = self.start(*arguments)
        try:
            process.wait(LONGEST_RUN)
        finally:
            kill(process)
        return process.returncode, self.log.read_bytes()[start:].decode(errors="replace")

    def finish(self) -> None:
        """Run to the end; a `SoakError` where it fails."""
        status, said = self.run()
        require(status == 0, f"{self.root}: an undisturbed run ended with {status}: {last(said)}")


def copied(root: Path, cores: int) -> Copy:
    """Return a fresh copy of the checkout at `root`, without results."""
    shutil.rmtree(root, ignore_errors=True)
    return refreshed(root, cores)


def refreshed(root: Path, cores: int) -> Copy:
    """Return a copy of the checkout at `root`; results that are there stay."""
    root.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        source, target = ROOT / name, root / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    return Copy(root, cores)


def reference(work: Path, cores: int) -> Copy:
    """Return an undisturbed finished run; made where it is not there."""
    copy = refreshed(work / "reference", cores)
    copy.finish()
    return copy


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def traced(said: str) -> bool:
    """Return whether a traceback is in what a run printed; Snakemake writes them without their first line."""
    return "Traceback" in said or re.search(r'^ *File ".*", line [0-9]+, in ', said, re.MULTILINE) is not None


def last(said: str) -> str:
    """Return the end of what a run printed, on one line."""
    return " | ".join(said.strip().splitlines()[-8:])[-1500:]


def digests(results: Path) -> dict[str, Any]:
    """Return what every artifact of a folder of results is, by the path of its JSON file."""
    found: dict[str, Any] = {}
    for path in sorted(results.rglob("*.json")):
        relative = path.relative_to(results)
        inside = any(parent.with_suffix(".json").is_file() for parent in path.parents if results in parent.parents)
        if inside or path.name.endswith(".provenance.json") or relative.parts[0] in (".work", "logs", "benchmarks"):
            continue
        if path.name.count(".") > 1:  # NAME.sets.json: its manifest has its sha256
            continue
        values = read_json(path)
        if HISTORY in values.get("files", {}):
            del values["files"][HISTORY]
            history = pd.read_parquet(path.with_suffix(HISTORY[1:])).drop(columns="tokens_per_second")
            values["history"] = history.to_json(double_precision=15)
        found[str(relative)] = values["key"] if relative.name == "report.json" else values
    return found


def left_over(folder: Path) -> list[Path]:
    """Return hidden files and folders of builds, and folders of checkpoints."""
    hidden = [path for path in folder.rglob(".*") if path.suffix in HIDDEN]
    return hidden + [path for path in (folder / ".work").glob("*") if path.is_dir()]


def require_equal(copy: Copy, wanted: Copy) -> int:
    """Raise a `SoakError` unless a finished run is whole and equal to another; return the number of artifacts."""
    problems = inspect(copy.results.resolve()).problems
    require(not problems, f"{copy.results}: {problems[:3]}")
    own, other = digests(copy.results.resolve()), digests(wanted.results)
    differing = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
    require(not differing, f"{copy.results}: {len(differing)} artifacts differ, first: {differing[:3]}")
    return len(own)


# -- a: killed runs ----------------------------------------------------------------------------------------------------


def killed_runs(work: Path, count: int, seed: int, cores: int, seconds: float) -> str:
    """Kill the process group of the run at `count` random moments, at most `seconds` after its start."""
    rng, wanted = random.Random(f"kill {seed}"), reference(work, cores)
    copy, kills, ended, locks = copied(work / "killed", cores), 0, 0, 0
    while kills < count:
        process = copy.start()
        try:
            process.wait(rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
            print(f"  kill {kills} of {count}: {len(digests_now(copy.results))} artifacts are there", flush=True)
            continue
        require(process.returncode == 0, f"run {ended} of {copy.root} ended with {process.returncode}, see {copy.log}")
        ended, locks = ended + 1, locks + compared(copy, wanted)
        shutil.rmtree(copy.root / "results")
        shutil.rmtree(copy.root / ".snakemake", ignore_errors=True)
    copy.finish()
    locks += compared(copy, wanted)
    require(not traced(copy.log.read_text(errors="replace")), f"a traceback in {copy.log}")
    return f"{kills} kills in {ended + 1} runs, all runs equal to an undisturbed one, {locks} files left over"


def digests_now(results: Path) -> list[Path]:
    """Return the manifests that are there, whole or not."""
    return [path for path in results.rglob("*.json") if ".work" not in path.parts and not path.name.startswith(".")]


def compared(copy: Copy, wanted: Copy) -> int:
    """Compare a run that ended with an undisturbed one; return the number of files left over: none."""
    require_equal(copy, wanted)
    found = left_over(copy.results)
    require(not found, f"left over in {copy.results}: {[str(path.relative_to(copy.results)) for path in found][:5]}")
    return len(found)


# -- c: full disks -----------------------------------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system in memory of so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "soak", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: int) -> None:
    """Give a mounted file system in memory another size in bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def used(folder: Path) -> int:
    """Return the bytes that files take on a disk, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def full_disks(work: Path, count: int, seed: int, cores: int) -> str:
    """Let one run meet a full disk `count` times: each time it gets more room and goes on, and the end is equal."""
    require(os.geteuid() == 0, "disk: only root may mount a file system of a given size")
    rng, wanted = random.Random(f"disk {seed}"), reference(work, cores)
    most = used(wanted.results)
    small = [4096 * pages for pages in (1, 8, 40)][: count // 4]
    sizes = sorted(small + [rng.randrange(1 << 18, most) for _ in range(count - len(small))])
    copy = copied(work / "full", cores)
    with mounted(copy.results, sizes[0]):
        for number, size in enumerate(sizes, 1):
            resize(copy.results, size)
            status, said = copy.run()
            told = [line for line in said.splitlines() if "the disk is full" in line]
            print(f"  disk {number} of {count}: {size:,} bytes, {len(told)} lines: {told[:1]}", flush=True)
            require(status != 0, f"a run on {size} bytes ended well, see {copy.log}")
            require(bool(told), f"a run on {size} bytes did not say that the disk is full: {last(said)}")
            require(not traced(said), f"a traceback on a disk of {size} bytes, see {copy.log}")
        resize(copy.results, 1 << 30)
        copy.finish()
        compared(copy, wanted)
    return f"full at {len(sizes)} sizes ({sizes[0]:,} to {sizes[-1]:,} bytes, tmpfs), told in a line; then equal"


# -- d: two heads ------------------------------------------------------------------------------------------------------


def two_heads(work: Path, count: int, seed: int, cores: int) -> str:
    """Start a second run beside one, `count` times; kill the first; the next one starts."""
    rng, copy = random.Random(f"heads {seed}"), copied(work / "heads", cores)
    held = copy.results / ".work/running"
    for _ in range(count):
        held.unlink(missing_ok=True)
        first = copy.start()
        try:
            end = time.monotonic() + 120
            while not (held.is_file() and held.read_text()) and time.monotonic() < end:
                require(first.poll() is None, f"the first run ended, see {copy.log}")
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 3))
            os.killpg(first.pid, signal.SIGSTOP)  # it must not end before the second one has looked
            status, said = copy.run("results/ci/tokens/validation.json")
            told = [line for line in said.splitlines() if "another run works in this folder" in line]
            require(status == 1 and len(told) == 1, f"the second run ended with {status}: {last(said)}")
            require(not traced(said), f"a traceback of the second run, see {copy.log}")
        finally:
            kill(first)
    status, said = copy.run("results/ci/models.json")
    require(status == 0, f"after kill -9 of the first the next run ended with {status}: {last(said)}")
    return f"{count} second runs stopped with a line; the run after kill -9 of the first worked"


# -- e: folders of results ---------------------------------------------------------------------------------------------


def folders(work: Path, count: int, seed: int, cores: int) -> str:
    """Run where the folder of results may not be written, and where it is a link; `count` is not used."""
    wanted, copy = reference(work, cores), copied(work / "folders", cores)
    with mounted(copy.results, 1 << 20):
        subprocess.run(["mount", "-o", "remount,ro", str(copy.results)], check=True)
        status, said = copy.run()
    told = [line for line in said.splitlines() if "read-only" in line.lower()]
    require(status != 0 and bool(told), f"read-only results, empty: {status}, {last(said)}")
    require(not traced(said), f"read-only results: a traceback, see {copy.log}")
    print(f"  read-only, empty: {told[0]}", flush=True)

    shutil.copytree(wanted.results, copy.results, dirs_exist_ok=True)
    (copy.results / "figures/fig4.csv").unlink()
    subprocess.run(["mount", "--bind", str(copy.results), str(copy.results)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(copy.results)], check=True)
        status, said = copy.run()
    finally:
        subprocess.run(["umount", "-l", str(copy.results)], check=True)
    told = [line for line in said.splitlines() if "Write-protected output files" in line]  # Snakemake sees it first
    require(status != 0 and bool(told), f"read-only results, one figure missing: {status}, {last(said)}")
    require(not traced(said), f"read-only results: a traceback, see {copy.log}")
    print(f"  read-only, a figure missing: {told[0]}", flush=True)

    elsewhere = work / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    shutil.move(copy.results, elsewhere)
    copy.results.symlink_to(elsewhere, target_is_directory=True)
    for path in ("latents", "figures", "tables", "causal", "report.json", "crosscoders/l1-seed0.json"):
        shutil.rmtree(elsewhere / path) if (elsewhere / path).is_dir() else (elsewhere / path).unlink()
    copy.finish()
    compared(copy, wanted)
    require(copy.results.is_symlink(), "the link to the results was replaced by a folder")
    return "read-only results end in a line (2 runs); a run through a link to results is equal"
