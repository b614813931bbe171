"""A second run in one folder of results stops with one line; what only looks goes on; a killed one leaves no lock."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from checkout import family_checkout

from helpers import TinyPair


def test_a_second_run_in_one_folder_stops(tiny_pairs: Callable[[str], TinyPair], tmp_path: Path) -> None:
    run = family_checkout(tmp_path / "run", tiny_pairs("gemma2"))
    held, wanted = run.root / "results/.work/running", "results/tokens/train.json"
    first = subprocess.Popen(
        run.command(wanted), cwd=run.root, env=run.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while not (held.is_file() and held.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # so that it does not end before the second starts
    try:
        second = run.run("results/tokens/validation.json", check=False)
        assert second.returncode == 1
        (line,) = [line for line in second.stderr.splitlines() if "another run" in line]
        assert line.startswith("results: another run works in this folder") and f"process {first.pid} on" in line
        assert "Traceback" not in second.stderr and not (run.root / "results/tokens/validation.json").exists()
        assert "tokens" in run.planned()
        assert run.run("--report", "report.zip", "results/hooks.json", check=False).returncode == 0
    finally:
        first.kill()
        first.wait()
    run.run("results/tokens/validation.json")
