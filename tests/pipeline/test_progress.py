"""Progress: a bar on a terminal, a plain line a minute in the log and on Snakemake's stderr elsewhere."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunediff.pipeline import progress as module
from tunediff.pipeline.job import job
from tunediff.pipeline.progress import Progress, tracked


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands until a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def run_job(tmp_path: Path, clock: SimpleNamespace, seconds: float) -> str:
    """Run four updates of 25 tokens, `seconds` apart, in a job; return its log."""
    log = tmp_path / "logs" / "logs/crosscoders/l1-seed0.log"  # the last folder of logs counts
    config = {"models": {"device": "cpu"}}
    params = SimpleNamespace(content_keys={"own": "0"})
    made = SimpleNamespace(log=[str(log)], threads=1, input={}, params=params, config=config, wildcards=None)
    with job(made), Progress(100, "l1-seed0", "tok") as bar:
        for _ in range(4):
            clock.now += seconds
            bar.note = "loss 3"
            bar.update(25)
    return log.read_text()


def test_a_job_writes_a_line_a_minute_to_its_log_and_to_snakemake(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    log = run_job(tmp_path, clock, 40)  # lines are due after 60 s: at 80 s, 160 s; the last at the end
    lines = [
        "l1-seed0: 50/100 tok (50%), 0.62 tok/s, 01:20 so far, 01:20 left, loss 3",
        "l1-seed0: 100/100 tok (100%), 0.62 tok/s, 02:40 so far, loss 3",
    ]
    assert log.splitlines() == [*lines, lines[-1]]
    assert stderr.getvalue().splitlines() == [f"crosscoders/l1-seed0: {line}" for line in [*lines, lines[-1]]]
    assert "\r" not in log + stderr.getvalue()


def test_a_short_pass_says_in_its_log_alone_how_long_it_took(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert run_job(tmp_path, clock, 1) == "l1-seed0: 100/100 tok (100%), 25.0 tok/s, 00:04 so far, loss 3\n"
    assert stderr.getvalue() == ""


def test_a_terminal_gets_a_bar_and_the_log_plain_lines(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log = run_job(tmp_path, clock, 40)
    assert "l1-seed0: 100%|" in terminal.getvalue() and "100/100" in terminal.getvalue()
    assert "so far" not in terminal.getvalue()
    assert "\r" not in log and len(log.splitlines()) == 3


def test_what_was_done_before_is_counted_but_not_in_the_rate(clock: SimpleNamespace) -> None:
    bar = Progress(4_000_000, "l1", "tok", 3_000_000)
    bar.done += 500_000
    assert bar.line(100) == "l1: 3.50M/4.00M tok (88%), 5.00k tok/s, 01:40 so far, 01:40 left"
    assert Progress(4, "kl", "conv").line(0) == "kl: 0/4 conv (0%), 0.00 conv/s, 00:00 so far, ? left"
    assert Progress(None, "energy", "batch").line(60) == "energy: 0 batch, 0.00 batch/s, 01:00 so far"


def test_items_pass_and_are_counted_without_a_job(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(items: list[str]) -> None:
        for _ in tracked(items, "seeds", "crosscoder"):
            clock.now += 61

    assert list(tracked(["a", "b"], "seeds", "crosscoder")) == ["a", "b"]
    assert capsys.readouterr().err == ""  # took less than a minute
    slow(["a", "b"])
    assert capsys.readouterr().err.splitlines()[0].startswith("seeds: 1/2 crosscoder (50%), 0.02 crosscoder/s, 01:01")
