"""Changed code is seen unless the record or the version changed with it."""

import json
import shutil
from pathlib import Path

import pytest

from tunediff.pipeline import record as recording
from tunediff.pipeline.record import Unit, code_digest, differences, record

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow/scripts"


def test_the_record_is_that_of_this_code() -> None:
    recorded = json.loads((ROOT / "workflow/stages.json").read_text())
    assert not list(differences(recorded, record(SCRIPTS)))


def test_a_changed_stage_is_named_with_the_ways_out() -> None:
    before = {"stage latents": {"version": 1, "code": "a"}, "kind l1": {"version": 1, "code": "b"}}
    (line,) = differences(before, {**before, "stage latents": {"version": 1, "code": "c"}})
    assert line.startswith("stage latents: ") and "raise its version" in line and line.count("make stages") == 2
    (line,) = differences(before, {**before, "kind l1": {"version": 2, "code": "c"}})
    assert line.startswith("kind l1: version 2, 1 is recorded")
    (line,) = differences(before, {"stage latents": before["stage latents"]})
    assert line.startswith("kind l1: gone")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "tunediff"
    root.mkdir()
    (root / "a.py").write_text('"""A."""\nfrom tunediff.b import f\n\n\ndef g():\n    """Doc."""\n    return f()\n')
    (root / "b.py").write_text("def f():\n    from tunediff.kind import h\n    return 1\n")
    (root / "kind.py").write_text("x = 1\n")
    (tmp_path / "script.py").write_text("from tunediff.a import g\ng()\n")
    monkeypatch.setattr(recording, "PACKAGE", root)
    return root


def digest(package: Path) -> str:
    recording._read.cache_clear()
    return code_digest(Unit(1, (package.parent / "script.py",)), frozenset({package / "kind.py"}))


def test_comments_docstrings_and_the_code_of_other_units_do_not_count(package: Path) -> None:
    before = digest(package)
    (package / "a.py").write_text('"""Another."""\n# a comment\nfrom tunediff.b import f\n\ndef g():\n  return f()\n')
    (package / "kind.py").write_text("x = 2\n")
    (package / "b.py").touch()
    assert digest(package) == before


@pytest.mark.parametrize("name", ["a.py", "b.py", "../script.py"])
def test_real_edits_count_also_through_imports(package: Path, name: str) -> None:
    before = digest(package)
    with (package / name).open("a") as stream:
        stream.write("y = 3\n")
    assert digest(package) != before


@pytest.mark.parametrize(
    ("module", "changed", "spared"),
    [
        ("demo/lexicon.py", {"demo"}, {"stage tokens", "stage models", "kind l1"}),
        ("dictionaries/l1.py", {"kind l1"}, {"kind batchtopk", "stage train", "stage latents"}),
        ("latents/scaling.py", {"stage latents"}, {"stage train", "stage activations"}),
        ("report/figures/fig2.py", {"drawing figures/fig2"}, {"drawing figures/fig3", "stage latents"}),
    ],
)
def test_a_constant_added_to_a_module_is_a_change_of_its_units(
    module: str, changed: set[str], spared: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "src/tunediff", tmp_path / "tunediff")
    monkeypatch.setattr(recording, "PACKAGE", tmp_path / "tunediff")
    recording._read.cache_clear()

    def digests() -> dict[str, str]:
        recording._read.cache_clear()
        found = {
            name: unit._replace(start=tuple(moved(path) for path in unit.start))
            for name, unit in recording.units(SCRIPTS).items()
        }
        starts = frozenset(path for unit in found.values() for path in unit.start)
        return {name: code_digest(unit, starts - set(unit.start)) for name, unit in found.items()}

    def moved(path: Path) -> Path:
        inside = path.is_relative_to(ROOT / "src/tunediff")
        return tmp_path / "tunediff" / path.relative_to(ROOT / "src/tunediff") if inside else path

    before = digests()
    with (tmp_path / "tunediff" / module).open("a") as stream:
        stream.write("\nEXTRA = 1\n")
    after = digests()
    names = {name for name in before if before[name] != after[name]}
    assert changed <= names and not names & spared


def test_the_page_of_the_report_counts() -> None:
    names = {path.name for path in recording.units(SCRIPTS)["stage report"].start}
    assert {"report.py", "app.js", "style.css", "index.html.j2"} <= names
