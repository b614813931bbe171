"""How artifacts reach the disk: built under a hidden name, renamed whole, sealed by a manifest written last.

An artifact is a *store* (a file or a directory), perhaps more files ``NAME.more.suffix`` beside it, and ``NAME.json``,
its manifest: the content key of the stage that made it, size and sha256 of every file, and the facts a reader needs.
The manifest holds nothing that differs between two runs of the same work; what does (wall time, device, versions) is in
``NAME.provenance.json``. These JSON files state a digest of their own content. So no damaged byte is read unnoticed.
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
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
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


def append_sha256(path: Path) -> None:
    """Append to a file the sha256 of what it holds, for `ends_in_sha256`; readers of zip archives pass over it."""
    digest = bytes.fromhex(file_sha256(path))
    with path.open("ab") as stream:
        stream.write(digest)


def ends_in_sha256(path: Path) -> bool:
    """Return whether a file ends in the sha256 of what comes before."""
    digest = hashlib.sha256()
    left = path.stat().st_size - digest.digest_size
    with path.open("rb") as stream:
        while block := stream.read(min(max(left, 0), 1 << 20)):
            digest.update(block)
            left -= len(block)
        return left == 0 and stream.read() == digest.digest()


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


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_json(target: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object that states a digest of its content (`digest`), whole or not at all."""
    plain = json.loads(json.dumps(values))  # as it will be read
    write_text(target, json.dumps({**plain, "digest": _digest(plain)}, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote.

    `TunediffError`: the file is missing, holds no JSON object, or another content than its digest says.
    """
    remedy = "delete it and run snakemake again"
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise TunediffError(f"{path}: missing; run snakemake again to make it") from error
    except (OSError, ValueError, TypeError) as error:
        raise TunediffError(f"{path}: not a JSON object ({error}); {remedy}") from error
    stated = values.pop("digest", None)
    if stated != _digest(values):
        wrong = (
            "states no digest of its content" if stated is None else "damaged: its content is not that of its digest"
        )
        raise TunediffError(f"{path}: {wrong}; {remedy}")
    return values


@dataclass(frozen=True)
class Manifest:
    """What is known of a finished artifact, equal for every run of the same work."""

    kind: str  # "tokens", "activations", "crosscoder", …
    key: str  # content key of the stage that made it (see `tunediff.pipeline.keys`)
    # Path relative to the store ("" for a single file), or of a file beside it "*" and its suffix -> "bytes", "sha256",
    # and of a shard of activations "chunks": the crc32c of the values of each, eight hexadecimal digits.
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)  # shapes, dtypes, seeds, counts


def manifest_path(path: Path) -> Path:
    """Return the manifest of a store or of a file beside one: NAME.json of NAME/, NAME.parquet, NAME.sets.json."""
    return path.with_name(f"{path.name.partition('.')[0]}.json")


def _file(store: Path, name: str) -> Path:
    """Return the file that a manifest calls `name`."""
    if name.startswith("*"):
        return manifest_path(store).with_suffix(name[1:])
    return store / name if name else store


def store_of(manifest: Path) -> Path:
    """Return the store that a manifest NAME.json stands for: what exists of NAME.zarr, NAME.parquet, …, else NAME/."""
    stores = [manifest.with_suffix(suffix) for suffix in STORE_SUFFIXES]
    return next((store for store in stores if store.exists()), stores[-1])


def seal(
    store: Path,
    kind: str,
    key: str,
    facts: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    *,
    beside: Collection[str] = (),
    chunks: Mapping[str, str] | None = None,
    digests: Mapping[str, str] | None = None,
) -> Manifest:
    """Write the manifest (last) and the provenance of a finished store; this is what makes it complete.

    `beside` are the suffixes of the artifact's other files; `chunks` go to the entries of these files, see `Manifest`.
    `digests` are the sha256 of files as they were written; the other files are read.
    """
    inside = sorted(p for p in store.rglob("*") if p.is_file() and not p.name.startswith(".snakemake"))
    names = [""] if store.is_file() else [path.relative_to(store).as_posix() for path in inside]
    files: dict[str, dict[str, Any]] = {}
    for name in (*names, *(f"*{suffix}" for suffix in beside)):
        path = _file(store, name)
        files[name] = {"bytes": path.stat().st_size, "sha256": (digests or {}).get(name) or file_sha256(path)}
    for name, checksums in (chunks or {}).items():
        files[name]["chunks"] = checksums
    manifest = Manifest(kind, key, files, dict(facts))
    if provenance is not None:
        write_json(store.with_suffix(".provenance.json"), provenance)
    write_json(manifest_path(store), asdict(manifest))
    return manifest


def write_frame(
    frame: "DataFrame",
    out: Path,
    kind: str,
    key: str,
    facts: Mapping[str, Any],
    provenance: Mapping[str, Any],
    beside: Collection[str] = (),
) -> None:
    """Write a table as Parquet and seal it, with the files that lie beside it."""
    with building(out) as partial:
        frame.to_parquet(partial, index=False)
    seal(out, kind, key, facts, provenance, beside=beside)


def manifest_at(path: Path) -> Manifest:
    """Read a manifest; `TunediffError` where it is none, or is damaged."""
    values = read_json(path)
    try:
        return Manifest(**values)
    except TypeError as error:
        raise TunediffError(f"{path}: not a manifest ({error}); delete it and run snakemake again") from error


def read_manifest(store: Path, kind: str | None = None, key: str | None = None) -> Manifest:
    """Read the manifest of a store, or of a file beside one, checking its kind and content key where given.

    Raises
    ------
    TunediffError
        The artifact is missing, unfinished, of another kind, or was made by other inputs, or its manifest is damaged.
    """
    path = manifest_path(store)
    if not path.is_file() or not store.exists():
        lacking = path if not path.is_file() else store
        raise TunediffError(f"{lacking}: missing, so the artifact is not complete; run snakemake again to make it")
    manifest = manifest_at(path)
    if kind is not None and manifest.kind != kind:
        raise TunediffError(f"{path}: is of kind '{manifest.kind}', not '{kind}'; give the path of a {kind} artifact")
    if key is not None and manifest.key != key:
        raise TunediffError(
            f"{path}: made by other inputs (key {manifest.key}, expected {key}); delete it and run snakemake again"
        )
    return manifest


def damage(
    store: Path, manifest: Manifest, names: Collection[str] | None = None, later: Collection[str] = ()
) -> list[str]:
    """Return one line per file of an artifact that is missing, of the wrong size or of the wrong content.

    Only `names` are looked at, where given. Of files that match a pattern of `later` the size alone is.
    """
    lines = []
    for name in manifest.files if names is None else names:
        entry, path = manifest.files[name], _file(store, name)
        if not path.is_file():
            lines.append(f"{path}: missing")
        elif path.stat().st_size != entry["bytes"]:
            lines.append(f"{path}: {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif not any(fnmatch(name, pattern) for pattern in later) and file_sha256(path) != entry["sha256"]:
            lines.append(f"{path}: checksum differs from the manifest")
    return lines


def own_files(path: Path, manifest: Manifest) -> list[str]:
    """Return which files of a manifest a store is made of; of a file beside one, itself."""
    beside = f"*{path.name.removeprefix(manifest_path(path).stem)}"
    return [beside] if beside in manifest.files else [name for name in manifest.files if not name.startswith("*")]


def require(store: Path, manifest: Manifest, names: Collection[str], later: Collection[str] = ()) -> None:
    """Raise a `TunediffError` that names the first of these files that is damaged, see `damage`."""
    lines = damage(store, manifest, names, later)
    if lines:
        raise TunediffError(
            f"{lines[0]} ({len(lines)} of {len(names)} files damaged); "
            f"delete {manifest_path(store)} and run snakemake again to rebuild the store"
        )


def check(path: Path, kind: str, key: str | None = None, later: Collection[str] = ()) -> Manifest:
    """Read the manifest of a store, or of a file beside one, and check that it is whole and unchanged.

    Every reader begins with this. Size and sha256 of all its files are compared; of files that match a pattern of
    `later`, the size: their reader compares the content when it comes to them.

    Raises
    ------
    TunediffError
        As `read_manifest`, or a file is damaged; the first one is named.
    """
    manifest = read_manifest(path, kind, key)
    require(path, manifest, own_files(path, manifest), later)
    return manifest


def is_finished(store: Path, kind: str, key: str) -> bool:
    """Return whether a store is there, made by the inputs that `key` says, with all its files at their size."""
    try:
        return not damage(store, read_manifest(store, kind, key), later=["*"])
    except TunediffError:
        return False


def move(store: Path, target: Path) -> None:
    """Move a store with its provenance and, last, its manifest to a place on the same disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(target)
    for path in (store, store.with_suffix(".provenance.json"), manifest_path(store)):
        path.replace(target.parent / path.name)


def set_aside(parts: Mapping[Path, str], work: Path) -> None:
    """Move finished parts of activations, given with their keys, to where `tunediff.data.harvest` looks for them.

    Snakemake deletes all outputs of a job before it runs; so a job that lacks one part keeps the others.
    """
    for path, key in parts.items():
        if is_finished(path, "activations", key):
            move(path, work / key / path.name)


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
