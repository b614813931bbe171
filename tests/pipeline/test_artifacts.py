"""Nothing is written half; manifests see every damage."""

import errno
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import (
    building,
    check,
    damage,
    file_sha256,
    manifest_path,
    provenance,
    read_manifest,
    seal,
    store_of,
    write_json,
)


def make_store(root: Path, files: dict[str, bytes]) -> Path:
    store = root / "part-000.zarr"
    with building(store) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
    return store


def leftovers(root: Path) -> list[str]:
    return [p.name for p in root.rglob("*") if p.name.endswith((".partial", ".retired", ".lock"))]


def test_an_error_keeps_the_old_artifact_and_leaves_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a": b"old"})
    with pytest.raises(ValueError, match="stop"), building(store) as partial:
        partial.mkdir()
        (partial / "a").write_bytes(b"new")
        raise ValueError("stop")
    assert (store / "a").read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TunediffError, match=r"disk is full; free some space"), building(tmp_path / "x") as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


BUILDER = """
import sys, time
from pathlib import Path
from tunediff.pipeline.artifacts import building

with building(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "a").write_text("half")
    print("built", flush=True)
    time.sleep(60)
"""


@contextmanager
def builder(target: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the midst of building `target`."""
    with subprocess.Popen([sys.executable, "-c", BUILDER, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "built\n"
        yield process
        process.kill()


def test_what_a_killed_process_left_is_removed_by_the_next_build_of_the_same(tmp_path: Path) -> None:
    others = [tmp_path / "part-000.zarr.old", tmp_path / ".part-000.zarr.x.partial"]
    for other in others:
        other.write_text("kept")
    with builder(tmp_path / "part-000.zarr") as dead:
        dead.kill()
        dead.wait()
    assert {Path(name).suffix for name in leftovers(tmp_path)} == {".partial", ".lock"}
    with builder(tmp_path / "part-000.zarr") as alive:
        (half,) = [path for path in tmp_path.glob(".part-000.zarr.????????.partial")]  # the dead one's is gone
        with building(tmp_path / "part-001.zarr") as partial:
            partial.write_text("another artifact")
        assert (make_store(tmp_path, {"a": b"2"}) / "a").read_bytes() == b"2"
        assert (half / "a").read_text() == "half" and alive.poll() is None
    make_store(tmp_path, {"a": b"3"})
    assert leftovers(tmp_path) == [others[1].name]
    assert all(other.read_text() == "kept" for other in others)


def test_a_build_that_was_taken_for_dead_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(TunediffError, match="took this build for dead"), building(tmp_path / "x") as partial:
        partial.write_text("half")
        next(tmp_path.glob(".x.*.lock")).unlink()
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_nothing_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with building(tmp_path / "x") as first:
        first.write_text("1")
        with building(tmp_path / "x") as second:
            second.write_text("2")
        assert first.read_text() == "1"
    assert (tmp_path / "x").read_text() == "1" and leftovers(tmp_path) == []


def test_other_system_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), building(tmp_path / "x"):
        raise PermissionError("no")


def test_a_new_directory_replaces_an_old_one_whole(tmp_path: Path) -> None:
    make_store(tmp_path, {"a": b"1", "c/b": b"2"})
    store = make_store(tmp_path, {"a": b"3"})
    assert [p.name for p in store.rglob("*")] == ["a"]
    assert leftovers(tmp_path) == []


@given(files=st.dictionaries(st.sampled_from(["a", "c/0", "c/1/2", "z.json"]), st.binary(max_size=50), min_size=1))
def test_manifest_round_trip(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    store = make_store(tmp_path_factory.mktemp("m"), files)
    seal(store, "activations", "k1", {"n": 3}, provenance(0.0))
    manifest = check(store, "activations", "k1")
    assert manifest.facts == {"n": 3}
    assert set(manifest.files) == set(files)


def test_every_damage_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a": b"1234", "b": b"1234", "c": b"1234"})
    manifest = seal(store, "activations", "k1", {})
    (store / "a").unlink()
    (store / "b").write_bytes(b"12")
    (store / "c").write_bytes(b"1235")
    assert [line.split(": ")[1] for line in damage(store, manifest)] == [
        "missing",
        "2 bytes instead of 4",
        "checksum differs from the manifest",
    ]
    assert len(damage(store, manifest, later=["*"])) == len(damage(store, manifest, ["a", "c"])) == 2
    with pytest.raises(TunediffError, match=r"a: missing \(3 of 3 files damaged\); delete"):
        check(store, "activations")
    with pytest.raises(TunediffError, match=r"\(2 of 3 files damaged\); delete"):
        check(store, "activations", later=["c"])


def test_wrong_kind_key_or_missing_manifest(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a": b"1"})
    with pytest.raises(TunediffError, match="not complete; run snakemake"):
        read_manifest(store)
    seal(store, "tokens", "k1", {})
    with pytest.raises(TunediffError, match="of kind 'tokens', not 'activations'"):
        read_manifest(store, kind="activations")
    with pytest.raises(TunediffError, match="made by other inputs"):
        read_manifest(store, key="k2")
    for content, told in (("{}", "states no digest"), ("[", "not a JSON object"), ('{"digest": "0"}', "damaged")):
        manifest_path(store).write_text(content)
        with pytest.raises(TunediffError, match=told):
            read_manifest(store)
    write_json(manifest_path(store), {"key": "k"})
    with pytest.raises(TunediffError, match="not a manifest"):
        read_manifest(store)


def test_single_files_have_manifests_too(tmp_path: Path) -> None:
    table = tmp_path / "kl.parquet"
    with building(table) as partial:
        partial.write_bytes(b"rows")
    seal(table, "kl", "k", {}, provenance(0.0, device="cpu", seed=3))
    assert read_manifest(table).files[""] == {"bytes": 4, "sha256": file_sha256(table)}
    record = json.loads((tmp_path / "kl.provenance.json").read_text())
    assert record["seed"] == 3 and record["device"] == "cpu" and "torch" in record["packages"]


@pytest.mark.parametrize("name", ["part-000.zarr", "kl.parquet", "fig4.csv", "summary.txt", "l1-seed0"])
def test_a_manifest_stands_for_its_store(tmp_path: Path, name: str) -> None:
    store = tmp_path / name
    assert store_of(manifest_path(store)) == tmp_path / name.split(".")[0]  # nothing is there
    store.write_text("x")
    assert store_of(manifest_path(store)) == store
