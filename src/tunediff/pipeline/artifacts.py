"""How artifacts reach the disk: built under a hidden name, renamed whole, sealed by a manifest written last.

An artifact is a *store* (a file or a directory) and, beside it, ``NAME.json``, its manifest: the content key of the
stage that made it, size and sha256 of every file, and the facts a reader needs. The manifest holds nothing that
differs between two runs of the same work; what does (wall time, device, versions) is in ``NAME.provenance.json``.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tunediff.errors import TunediffError

if TYPE_CHECKING:
    from pandas import DataFrame

STORE_SUFFIXES = (".zarr", ".parquet", ".csv", ".txt", "")
RECORDED_PACKAGES = (
    *("tunediff", "torch", "transformers", "peft", "nnsight"),
    *("datasets", "zarr", "numpy", "pandas", "snakemake"),
)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(stream: IO[Any]) -> bool | None:
    """Lock an open file for as long as this process has it open; its death lets go of it.

    Return False where another process has the lock, None where the file system knows none.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_left_over(target: Path) -> None:
    """Remove what dead processes left of builds of `target`: what has a lock that nobody holds."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.lock")
    for path in [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]:
        with suppress(FileNotFoundError, PermissionError), path.open("r+b") as stream:  # NFS locks what may be written
            if lock(stream):
                for suffix in (".partial", ".retired", ".lock"):
                    _remove(path.with_suffix(suffix))


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield a hidden path beside `target` to build a file or directory at; rename it to `target` on success.

    The name is unique, so two processes building the same target cannot touch each other's files; on any error the
    partial result is removed and an existing `target` stays as it was. What a killed process left, the next build of
    the same target removes: a lock beside it dies with its process. A full disk becomes a `TunediffError`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(target)
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    held, retired = partial.with_suffix(".lock"), partial.with_suffix(".retired")
    try:
        with held.open("xb") as stream:
            if not lock(stream):  # no locks here: then nobody takes what is left for dead
                held.unlink(missing_ok=True)
            kept = held.exists()
            yield partial
            for path in (partial, *sorted(partial.rglob("*"))):
                if path.is_file():
                    _fsync(path)
            if kept and not held.exists():  # locks that do not reach another machine
                raise TunediffError(f"{target}: another process builds it and took this build for dead; run again")
            if partial.is_dir() and target.exists():
                target.rename(retired)
            partial.replace(target)
            _remove(retired)
            _fsync(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TunediffError(
                f"{target}: the disk is full; free some space, or set `results` to another disk, and run again "
                "(finished artifacts are kept)"
            ) from error
        raise
    finally:
        _remove(partial)
        held.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with building(target) as partial:
        partial.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Manifest:
    """What is known of a finished artifact, equal for every run of the same work."""

    kind: str  # "tokens", "activations", "crosscoder", …
    key: str  # content key of the stage that made it (see `tunediff.pipeline.keys`)
    files: dict[str, dict[str, Any]]  # path relative to the store ("" for a single file) -> {"bytes", "sha256"}
    facts: dict[str, Any] = field(default_factory=dict)  # shapes, dtypes, seeds, counts

    @property
    def total_bytes(self) -> int:
        """Size of all files of the store, in bytes."""
        return sum(entry["bytes"] for entry in self.files.values())


def manifest_path(store: Path) -> Path:
    """Return the manifest of a store: `part-000.zarr` -> `part-000.json`, `l1-seed0/` -> `l1-seed0.json`."""
    return store.with_suffix(".json")


def store_of(manifest: Path) -> Path:
    """Return the store that a manifest NAME.json stands for: what exists of NAME.zarr, NAME.parquet, …, else NAME/."""
    stores = [manifest.with_suffix(suffix) for suffix in STORE_SUFFIXES]
    return next((store for store in stores if store.exists()), stores[-1])


def seal(
    store: Path, kind: str, key: str, facts: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest (last) and the provenance of a finished store; this is what makes it complete."""
    inside = sorted(p for p in store.rglob("*") if p.is_file() and not p.name.startswith(".snakemake"))
    files = {}
    for path in [store] if store.is_file() else inside:
        name = "" if path == store else path.relative_to(store).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = Manifest(kind, key, files, dict(facts))
    if provenance is not None:
        write_text(store.with_suffix(".provenance.json"), json.dumps(dict(provenance), indent=1, sort_keys=True) + "\n")
    write_text(manifest_path(store), json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
    return manifest


def write_frame(
    frame: "DataFrame", out: Path, kind: str, key: str, facts: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write a table as Parquet and seal it."""
    with building(out) as partial:
        frame.to_parquet(partial, index=False)
    seal(out, kind, key, facts, provenance)


def read_manifest(store: Path, kind: str | None = None, key: str | None = None) -> Manifest:
    """Read the manifest of a store, checking its kind and content key where given.

    Raises
    ------
    TunediffError
        The artifact is missing, unfinished, of another kind, or was made by other inputs.
    """
    path = manifest_path(store)
    if not path.is_file() or not store.exists():
        lacking = path if not path.is_file() else store
        raise TunediffError(f"{lacking}: missing, so the artifact is not complete; run snakemake again to make it")
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(manifest.files, dict) or not isinstance(manifest.facts, dict):
            raise TypeError("files and facts must be objects")
    except (ValueError, TypeError, RecursionError) as error:
        raise TunediffError(f"{path}: not a manifest ({error}); delete it and run snakemake again") from error
    if kind is not None and manifest.kind != kind:
        raise TunediffError(f"{path}: is of kind '{manifest.kind}', not '{kind}'; give the path of a {kind} artifact")
    if key is not None and manifest.key != key:
        raise TunediffError(
            f"{path}: made by other inputs (key {manifest.key}, expected {key}); delete it and run snakemake again"
        )
    return manifest


def damage(store: Path, manifest: Manifest, checksums: bool = True) -> list[str]:
    """Return one line per file of the store that is missing, of the wrong size or of the wrong content."""
    lines = []
    for name, entry in manifest.files.items():
        path = store / name if name else store
        if not path.is_file():
            lines.append(f"{path}: missing")
        elif path.stat().st_size != entry["bytes"]:
            lines.append(f"{path}: {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif checksums and file_sha256(path) != entry["sha256"]:
            lines.append(f"{path}: checksum differs from the manifest")
    return lines


def check(store: Path, kind: str, key: str | None = None, checksums: bool = False) -> Manifest:
    """Read a store's manifest and check that every file it lists is there, whole and (optionally) unchanged.

    Raises
    ------
    TunediffError
        As `read_manifest`, or a file is damaged; the first one is named.
    """
    manifest = read_manifest(store, kind, key)
    lines = damage(store, manifest, checksums)
    if lines:
        raise TunediffError(
            f"{lines[0]} ({len(lines)} of {len(manifest.files)} files damaged); "
            f"delete {manifest_path(store)} and run snakemake again to rebuild the store"
        )
    return manifest


def provenance(started: float, device: str = "cpu", **facts: Any) -> dict[str, Any]:
    """Return what made an artifact and may differ between runs: versions, machine, device, wall time in seconds."""
    versions = {}
    for package in RECORDED_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "packages": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": device,
        "wall_seconds": round(time.time() - started, 2),
        **facts,
    }
