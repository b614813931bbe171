"""A script's output and errors reach its log, and an expected error is one line without a traceback."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tunediff.errors import TunediffError
from tunediff.pipeline.job import job, resolve_device, usable_threads


def fake(tmp_path: Path, threads: int = 1, keys: dict[str, str] | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        log=[str(tmp_path / "logs/step.log")],
        threads=threads,
        input={"train": [path for path in keys or {} if path != "own"]},
        params=SimpleNamespace(content_keys=keys or {"own": "0"}),
        config={"models": {"device": "cpu"}},
        wildcards=None,
    )


def test_inputs_made_by_another_config_end_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "part-000.zarr"
    store.with_suffix(".json").write_text('{"key": "right"}')
    with job(fake(tmp_path, keys={"own": "mine", str(store): "right"})) as work:
        assert (work.own_key, work.key("train"), work.device) == ("mine", "right", "cpu")
        assert list(work.each("train")) == [("part-000", store, "right")]
    for text, said in (('{"key": "other"}', "made by other inputs"), ("{}", "states no key")):
        store.with_suffix(".json").write_text(text)
        with pytest.raises(SystemExit), job(fake(tmp_path, keys={"own": "mine", str(store): "right"})):
            raise AssertionError("the job must not start")
        error = capsys.readouterr().err
        assert str(store.with_suffix(".json")) in error and said in error and error.count("\n") == 1


def test_output_goes_to_the_log_and_streams_come_back(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr
    with job(fake(tmp_path)):
        print("out")
        print("err", file=sys.stderr)
        assert not sys.stderr.isatty()
    assert (sys.stdout, sys.stderr) == before
    assert (tmp_path / "logs/step.log").read_text() == "out\nerr\n"


def test_an_expected_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, job(fake(tmp_path)):
        raise TunediffError("x.zarr: broken; delete it")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: x.zarr: broken; delete it\n"
    assert (tmp_path / "logs/step.log").read_text() == "error: x.zarr: broken; delete it\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_one_line_whoever_meets_it(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(SystemExit) as caught, job(fake(tmp_path)):
        try:
            raise error
        except Exception as inner:
            raise ValueError("while saving") if isinstance(inner, OSError) else inner from inner
    told = capsys.readouterr().err
    assert caught.value.code == 1 and told.count("\n") == 1 and "disk is full" in told and "results" in told
    assert (tmp_path / "logs/step.log").read_text() == told  # which Snakemake shows: without a traceback
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    with pytest.raises(RuntimeError), job(fake(tmp_path)):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")


@pytest.mark.parametrize("error", [TunediffError("x.zarr: the disk is full"), OSError(errno.ENOSPC, "No space"), None])
def test_a_log_on_a_full_disk_hides_no_error(
    error: Exception | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/step.log").symlink_to("/dev/full")  # opens, and takes nothing
    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit) as caught, job(fake(tmp_path)):
        if error is not None:
            raise error
        print("a line")  # meets the full disk itself
    told = capsys.readouterr().err.splitlines()
    assert caught.value.code == 1 and (sys.stdout, sys.stderr) == before
    assert told[0].startswith("error: ") and "the disk is full" in told[0]
    assert told[1:] in ([], [f"{tmp_path}/logs/step.log: the log is not whole (No space left on device)"])


def test_no_room_for_a_log_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(SystemExit), job(fake(tmp_path)):
        raise AssertionError("the job must not start")
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unexpected_error_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), job(fake(tmp_path)):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError" in (tmp_path / "logs/step.log").read_text()


def test_threads_are_set_but_never_oversubscribed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert [usable_threads(n) for n in (0, 2, 8)] == [1, 2, 3]
    before = torch.get_num_threads()
    with job(fake(tmp_path, threads=2)):
        assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cuda:1") == "cuda:1"
    for available, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        assert resolve_device("auto") == expected
