"""Content keys change with what a stage depends on, and with nothing else."""

from pathlib import Path

import pytest

from tunediff.pipeline import keys
from tunediff.pipeline.keys import code_digest, fingerprint, stage_key


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "tunediff"
    root.mkdir()
    (root / "a.py").write_text('"""A."""\nfrom tunediff.b import f\n\n\ndef g():\n    """Doc."""\n    return f()\n')
    (root / "b.py").write_text("def f():\n    return 1\n")
    (root / "other.py").write_text("x = 1\n")
    (tmp_path / "script.py").write_text("from tunediff.a import g\ng()\n")
    monkeypatch.setattr(keys, "PACKAGE", root)
    keys._read.cache_clear()
    yield root
    keys._read.cache_clear()


def digest(package: Path) -> str:
    keys._read.cache_clear()
    return code_digest(package.parent / "script.py")


def test_comments_docstrings_and_touch_change_no_key(package: Path) -> None:
    before = digest(package)
    (package / "a.py").write_text(
        '"""Another text."""\n# a comment\nfrom tunediff.b import f\n\ndef g():\n  return f()\n'
    )
    (package / "other.py").write_text("x = 2\n")
    (package / "b.py").touch()
    assert digest(package) == before


@pytest.mark.parametrize("name", ["a.py", "b.py", "../script.py"])
def test_real_edits_change_the_key_also_through_imports(package: Path, name: str) -> None:
    before = digest(package)
    with (package / name).open("a") as stream:
        stream.write("y = 3\n")
    assert digest(package) != before


def test_key_depends_on_settings_and_upstream(package: Path) -> None:
    script = package.parent / "script.py"
    base = stage_key(script, {"k": 1}, {"up": "x"})
    assert base == stage_key(script, {"k": 1}, {"up": "x"})
    assert base != stage_key(script, {"k": 2}, {"up": "x"})
    assert base != stage_key(script, {"k": 1}, {"up": "y"})
    assert len(base) == 16


def test_fingerprint_sees_content_and_not_times(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    large.write_bytes(bytes(3_000_000))
    before = fingerprint([small, large])
    small.touch()
    assert fingerprint([small, large]) == before
    with large.open("r+b") as stream:
        stream.seek(2_999_000)
        stream.write(b"x")
    assert fingerprint([small, large]) != before
    small.write_bytes(b"abd")
    assert fingerprint([small]) != before
