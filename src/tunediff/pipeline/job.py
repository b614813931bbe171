"""What every Snakemake script does around its one library call: log, threads, keys of its inputs, one-line errors."""

import errno
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TextIO, TypeVar

from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import manifest_path
from tunediff.pipeline.keys import stored_key
from tunediff.pipeline.progress import Tee

T = TypeVar("T")
FULL = ("No space left on device", "Disk quota exceeded")
WRITING = "failed writing file"  # of torch, which does not say why
LEAST_FREE = 16 << 20  # bytes


def usable_threads(wanted: int) -> int:
    """Return the threads to use: those granted, but no more than this process may run on (oversubscribing is slow)."""
    return max(1, min(wanted, len(os.sched_getaffinity(0))))


def resolve_device(device: str) -> str:
    """Return `device`, with "auto" replaced by "cuda" where a GPU is usable and by "cpu" elsewhere."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Job:
    """What a script is given: its inputs by role with the keys they must have, its own key, config and device."""

    def __init__(self, snakemake: Any) -> None:
        self.snakemake, self.input, self.params = snakemake, snakemake.input, snakemake.params
        self.config, self.wildcards = snakemake.config, snakemake.wildcards
        self.own_key: str = snakemake.params.content_keys["own"]

    @property
    def out(self) -> Path:
        """The store of the artifact to make; its manifest where it has no other file."""
        return Path(self.snakemake.output.get("store") or self.snakemake.output.manifest)

    def paths(self, role: str) -> list[Path]:
        """Return the stores of a role."""
        return [Path(path) for path in self.input[role]]

    def path(self, role: str) -> Path:
        """Return the one store of a role."""
        return self.paths(role)[0]

    def key(self, role: str) -> str:
        """Return the key that the (first) store of a role must have."""
        return self.params.content_keys[self.input[role][0]]

    def each(self, role: str) -> Iterator[tuple[str, Path, str]]:
        """Yield name, path and key of every store of a role; the name is that of its manifest."""
        for path in self.paths(role):
            yield manifest_path(path).stem, path, self.params.content_keys[str(path)]

    def open(self, reader: Callable[..., T], role: str, *arguments: Any) -> T:
        """Return what a reader, which is given the key, makes of the one store of a role."""
        return reader(self.path(role), *arguments, key=self.key(role))

    def open_each(self, reader: Callable[..., T], role: str, *arguments: Any) -> dict[str, T]:
        """Return the same of every store of a role, by name."""
        return {name: reader(path, *arguments, key=key) for name, path, key in self.each(role)}

    @property
    def device(self) -> str:
        """The device of the config, "auto" resolved."""
        return resolve_device(self.config["planted" if "planted" in self.config else "models"]["device"])

    @property
    def precision(self) -> str:
        """The precision of large products on a GPU: that in which the dictionaries are trained."""
        return self.config["training"]["matmul_precision"]

    def check_inputs(self) -> None:
        """Raise a `TunediffError` where an input's manifest has no key, or not the one expected of this config."""
        for path, key in self.params.content_keys.items():
            manifest = manifest_path(Path(path))
            if path != "own" and (found := stored_key(manifest)) != key:
                what = "states no key" if found is None else f"was made by other inputs (key {found}, expected {key})"
                raise TunediffError(f"{manifest}: {what}; delete it and run snakemake again")


def _name(log: Path) -> str:
    """Return how lines on a shared stream name the job of a log: what follows the folder of logs."""
    _, folder, name = log.with_suffix("").as_posix().rpartition("/logs/")
    return name if folder else log.stem


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Return whether an error came of a full disk: as libraries say it in many ways, also by what is free now."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    if any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in chain):
        return True
    if any(text in str(each) for each in chain for text in FULL):
        return True
    return WRITING in str(error) and shutil.disk_usage(folder).free < LEAST_FREE


def _end(line: str, log: TextIO | None, stderr: TextIO) -> NoReturn:
    """End a job with a line on its log and on stderr."""
    print(line, file=stderr)
    with suppress(OSError):  # the log may be on a full disk
        if log is not None:
            print(line, file=log)
    raise SystemExit(1) from None


def _close(log: TextIO | None, path: Path) -> None:
    """Close a job's log; where a full disk has no room for its last lines, say so."""
    try:
        if log is not None:
            log.close()
    except OSError as error:
        print(f"{path}: the log is not whole ({error.strerror})", file=sys.stderr)


def from_shell(values: str, log: str, threads: str) -> SimpleNamespace:
    """Return what Snakemake gives a script, for one that a rule's `shell:` starts with it.

    `values` is a JSON object of input, output, params, config and wildcards.
    """
    given = json.loads(values)
    params = SimpleNamespace(**given.pop("params"))
    return SimpleNamespace(**given, params=params, log=[log], threads=int(threads))


@contextmanager
def job(snakemake: Any, first: bool = True, tells: Callable[[], bool] = lambda: True) -> Iterator[Job]:
    """Run a script's work: output goes to `snakemake.log`, threads are set, a TunediffError ends it in one line.

    The keys in the manifests of its inputs are compared with the expected ones first. Where several processes do a
    job, only the `first` prints, and that whose `tells` answers yes says why the job ends.
    """
    path, log = Path(snakemake.log[0]), None
    name, stdout, stderr = _name(path), sys.stdout, sys.stderr
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("w" if first else "a", buffering=1, encoding="utf-8")
        sys.stdout, sys.stderr = Tee(log, stdout, name), Tee(log, stderr, name)
        if not first:
            sys.stdout = sys.stderr = io.StringIO()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(usable_threads(snakemake.threads))
        work = Job(snakemake)
        work.check_inputs()
        yield work
    except TunediffError as error:
        if not tells():
            raise SystemExit(1) from None
        _end(f"error: {error}", log, stderr)
    except Exception as error:
        if not tells():
            raise SystemExit(1) from None
        if disk_is_full(error, path.parent):
            cause = " ".join(str(error).split())[:200]
            full = f"the disk is full ({cause}); free some space, or set `results` to another disk"
            _end(f"error: {name}: {full}", log, stderr)
        with suppress(OSError):
            traceback.print_exc(file=log)
        raise
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        _close(log, path)
