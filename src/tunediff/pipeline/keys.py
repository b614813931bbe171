"""Content keys: what an artifact depends on, as one short digest.

key = digest(format of manifests, version of its stage, config values that change its result, keys of the artifacts it
reads). A stage's version is raised by hand when its results change (`tunediff.pipeline.record` sees to it that this is
not forgotten), so comments, moves and fixes of readers rebuild nothing. Nothing heavy is imported here: the Snakefile
reads this module at every start.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 2  # of manifests; raised when older ones can no longer be read


def content_key(version: int, settings: Any, upstream: Mapping[str, str]) -> str:
    """Return the content key (16 hexadecimal digits) of an artifact.

    `settings` is any JSON value; `upstream` maps the paths of the artifacts that are read to their keys.
    """
    payload = json.dumps([FORMAT, version, settings, dict(upstream)], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


def stored_key(manifest: Path) -> str | None:
    """Return the content key in an artifact's manifest; None where there is no readable one."""
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def fingerprint(paths: list[Path], blocks: int = 16, block_bytes: int = 1 << 16) -> str:
    """Return a digest of files by content: whole where small, else their size and evenly spaced blocks.

    A model or a corpus of many gigabytes cannot be hashed at every start of Snakemake; blocks from its whole length see
    a replaced file, and no `touch` changes them.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as stream:
            if size <= blocks * block_bytes:
                digest.update(stream.read())
            else:
                for i in range(blocks):
                    stream.seek((size - block_bytes) * i // (blocks - 1))
                    digest.update(stream.read(block_bytes))
    return digest.hexdigest()
