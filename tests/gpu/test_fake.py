"""Whole training steps at full scale (d 2304, F 73,728, N 2,048) on a fake GPU: device-clean, no waits, few bytes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunediff.dictionaries import DICTIONARIES

# Gigabytes and launches of a step at most, by kind and case: what they are now, and less than one array of a weight's
# size (1.36 GB) more. They come down when the step does.
BUDGETS = {
    ("batchtopk", "alive"): (50.5, 115),
    ("batchtopk", "dead"): (53.5, 165),
    ("diff_sae", "alive"): (23.0, 115),
    ("diff_sae", "dead"): (25.0, 165),
    ("batchtopk", "kernels"): (26.0, 125),
    ("batchtopk", "deadkernels"): (29.0, 180),
    ("diff_sae", "kernels"): (14.5, 125),
    ("l1", "alive"): (46.5, 110),
    # one of eight processes; entries of other processes' latents are padding, which is decoded and summed as zeros
    ("batchtopk", "shardedkernels"): (8.5, 175),
    ("batchtopk", "shardeddeadkernels"): (12.5, 245),
    ("l1", "sharded"): (7.5, 110),
}
# Milliseconds on an H100 and an H200 at most.
TIMES = {("batchtopk", "kernels"): (9.2, 7.5), ("batchtopk", "alive"): (16.5, 13.1), ("l1", "alive"): (20.8, 18.0)}
MISTAKES = {"item": "DataDependentOutputException", "cpu": "FakeTensorDeviceMismatchError"}
CASES = [f"{kind}-bf16-{case}" for kind, case in BUDGETS]
LOGGED = [f"{kind}-high-logged" for kind in DICTIONARIES]
PLANTED = [f"batchtopk-bf16-{mistake}" for mistake in (*MISTAKES, "zeros")]


@pytest.fixture(scope="module")
def costs() -> dict[str, dict[str, Any]]:
    """What every case costs, or the error it ends in, from one process."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (g++): the fake GPU is not built, so nothing says what a step costs on a GPU")
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(Path(__file__).with_name("fake.py")), *CASES, *LOGGED, *PLANTED]
    made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert made.returncode == 0, made.stderr[-3000:]
    return {line["case"]: line for line in map(json.loads, made.stdout.splitlines())}


def test_every_kind_has_a_budget() -> None:
    assert {kind for kind, _ in BUDGETS} == set(DICTIONARIES)


@pytest.mark.parametrize(("kind", "case"), BUDGETS)
def test_a_step_is_clean_and_within_its_budget(costs: dict[str, dict[str, Any]], kind: str, case: str) -> None:
    seen = costs[f"{kind}-bf16-{case}"]
    assert "error" not in seen, seen
    assert seen["waits"] == []
    gigabytes, launches = BUDGETS[kind, case]
    assert gigabytes - 1.36 < seen["gigabytes"] <= gigabytes, seen
    assert seen["launches"] <= launches, seen
    for gpu, most in zip(("H100", "H200"), TIMES.get((kind, case), ()), strict=False):
        assert seen["ms"][gpu] <= most
    assert seen["teraflop"] > 0 and seen["other_teraflop"] == 0  # no product escapes bf16


@pytest.mark.parametrize("case", LOGGED)
def test_what_a_step_logs_stays_on_the_device(costs: dict[str, dict[str, Any]], case: str) -> None:
    assert "error" not in costs[case] and costs[case]["waits"] == [], costs[case]


@pytest.mark.parametrize(("mistake", "error"), MISTAKES.items())
def test_a_planted_mistake_is_found(costs: dict[str, dict[str, Any]], mistake: str, error: str) -> None:
    assert costs[f"batchtopk-bf16-{mistake}"]["error"] == error


def test_a_planted_array_of_a_weights_size_breaks_the_budget(costs: dict[str, dict[str, Any]]) -> None:
    assert costs["batchtopk-bf16-zeros"]["gigabytes"] > BUDGETS["batchtopk", "alive"][0]
