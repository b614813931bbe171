"""The record of every stage's code: a change of code without a change of version does not pass unseen.

workflow/stages.json holds the version and a digest of the code of every stage, dictionary kind, drawing and of the
demo. The digest is over the syntax trees, without docstrings, of the modules that the stage's script imports, directly
or not (of the report, over its page as well). Kinds, drawings and the demo have versions of their own, so a stage's
code ends where theirs begins; config and pipeline decide what is computed and where it lies, not how, and belong to no
stage. Write it: make stages
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]
NO_RESULTS = ("tunediff.config", "tunediff.pipeline", "tunediff.errors", "tunediff.cli")


class Unit(NamedTuple):
    """A piece of code with a version of its own."""

    version: int
    start: tuple[Path, ...]  # files its digest starts from


def _module_path(name: str) -> Path | None:
    """Return the file of `tunediff.…`, or None where the name is not a module of this package."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if name.split(".")[0] == "tunediff" and candidate.is_file():
            return candidate
    return None


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


@cache
def _read(path: Path) -> tuple[str, frozenset[Path]]:
    """Return the digest of a file's code and the modules of this package that it imports."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":  # what a browser runs
        return hashlib.sha256(text.encode()).hexdigest(), frozenset()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = node.body[1:]
    imported = {_module_path(name) for name in _imports(tree) if name != "tunediff" and not name.startswith(NO_RESULTS)}
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(path for path in imported if path)


def code_digest(unit: Unit, others: frozenset[Path]) -> str:
    """Return a digest of a unit's code; `others` are files at which other units start, where its own ends."""
    digests: dict[str, str] = {}
    todo = list(unit.start)
    while todo:
        path = todo.pop()
        digests["/".join(path.parts[-2:])], imports = _read(path)
        todo += [path for path in imports - others if "/".join(path.parts[-2:]) not in digests]
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:16]


def units(scripts: Path) -> dict[str, Unit]:
    """Return every unit by name; `scripts` is workflow/scripts."""
    from tunediff.config.dictionaries import CrosscoderSettings
    from tunediff.demo import VERSION
    from tunediff.pipeline.graph import STAGES
    from tunediff.report.registry import drawings

    demo = tuple(sorted((PACKAGE / "demo").glob("*.py")))
    found = {"demo": Unit(VERSION, demo)}
    found |= {f"stage {name}": Unit(stage.version, (scripts / f"{stage.script}.py",)) for name, stage in STAGES.items()}
    page = tuple(sorted(path for path in (PACKAGE / "report/html").glob("*/*") if path.suffix != ".pyc"))
    found["stage report"] = found["stage report"]._replace(start=(*found["stage report"].start, *page))
    for kind, settings in CrosscoderSettings.kinds.items():
        path = _module_path(f"tunediff.dictionaries.{kind}")
        if path is not None:  # a published one has no code that trains it
            found[f"kind {kind}"] = Unit(settings.version, (path,))
    return found | {f"drawing {path}": Unit(own.version, (own.file,)) for path, own in drawings().items()}


def record(scripts: Path) -> dict[str, dict[str, int | str]]:
    """Return version and code digest of every unit, as workflow/stages.json holds them."""
    found = units(scripts)
    starts = frozenset(path for unit in found.values() for path in unit.start)
    return {
        name: {"version": unit.version, "code": code_digest(unit, starts - set(unit.start))}
        for name, unit in sorted(found.items())
    }


def differences(recorded: dict[str, dict[str, int | str]], now: dict[str, dict[str, int | str]]) -> Iterator[str]:
    """Yield one line per unit whose code or version is not the recorded one, with the ways out."""
    for name in sorted(recorded.keys() | now.keys()):
        before, after = recorded.get(name), now.get(name)
        if before is None or after is None:
            yield f"{name}: {'new' if before is None else 'gone'}; run `make stages`"
        elif before != after and before["version"] == after["version"]:
            yield (
                f"{name}: its code changed, its version did not. If its results change, raise its version and run "
                "`make stages`; if they stay the same, run `make stages`"
            )
        elif before != after:
            yield f"{name}: version {after['version']}, {before['version']} is recorded; run `make stages`"


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    target = root / "workflow/stages.json"
    target.write_text(json.dumps(record(root / "workflow/scripts"), indent=1) + "\n", encoding="utf-8")
