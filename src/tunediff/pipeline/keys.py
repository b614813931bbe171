"""Content keys: what an artifact depends on, as one short digest.

key = digest(config values the stage depends on, code of the modules its script imports, keys of upstream stages).
Snakemake compares keys as `params`, so a stage reruns exactly when one of these changes. Code is compared as a syntax
tree without docstrings: comments and formatting change no key. Nothing heavy is imported here: the Snakefile reads
this module at every start.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


def _module_path(name: str) -> Path | None:
    """Return the file of `tunediff.…`, or None where the name is not a module of this package."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if name.split(".")[0] == "tunediff" and candidate.is_file():
            return candidate
    return None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = node.body[1:]
    return tree


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if _module_path(name) is not None and name != "tunediff"}


@cache
def _read(path: Path) -> tuple[str, frozenset[str]]:
    tree = _without_docstrings(ast.parse(path.read_text(encoding="utf-8")))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(_imports(tree))


def code_digest(script: Path) -> str:
    """Return a digest of a script and of every module of this package that it imports, directly or not."""
    digest, pending = _read(script)
    digests, todo = {script.name: digest}, set(pending)
    while todo:
        name = todo.pop()
        path = _module_path(name)
        if name in digests or path is None:
            continue
        digests[name], imports = _read(path)
        todo |= imports
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def stage_key(script: Path, settings: Any, upstream: Mapping[str, str] | None = None) -> str:
    """Return the content key (16 hexadecimal digits) of a stage.

    `settings` is what the stage depends on in the config (any JSON value), `upstream` maps names of the stages it
    reads to their keys.
    """
    payload = json.dumps([code_digest(script), settings, dict(upstream or {})], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


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
