"""Content keys change with version, settings and upstream; fingerprints with content."""

from pathlib import Path

import pytest

from tunediff.pipeline.keys import content_key, fingerprint, stored_key


def test_key_depends_on_version_settings_and_upstream() -> None:
    base = content_key(1, {"k": 1, "b": 2}, {"up": "x"})
    assert base == content_key(1, {"b": 2, "k": 1}, {"up": "x"})
    assert (
        len({base, content_key(2, {"k": 1, "b": 2}, {"up": "x"}), content_key(1, {"k": 2, "b": 2}, {"up": "x"})}) == 3
    )
    assert base != content_key(1, {"k": 1, "b": 2}, {"up": "y"})
    assert len(base) == 16


@pytest.mark.parametrize(("text", "key"), [('{"key": "a"}', "a"), ("{}", None), ("[1]", None), ("not JSON", None)])
def test_stored_key(tmp_path: Path, text: str, key: str | None) -> None:
    path = tmp_path / "x.json"
    assert stored_key(path) is None
    path.write_text(text)
    assert stored_key(path) == key


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
