"""Passes of Gemma 2 2B on a fake GPU (forward.py): the harvest waits for nothing, and none takes more than its time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Launches and milliseconds on an H100 at most, by the cost model: nothing here is measured. 80,000 pairs a second are
# 410 ms a batch; 33 interventions on 128 batches of 4 conversations, and three minutes, are 42 ms each.
BUDGETS = {"bf16-harvest": (2300, 410), "bf16-kl": (1050, 17), "bf16-generate": (2100, 19)}


@pytest.fixture(scope="module")
def costs() -> dict[str, dict[str, Any]]:
    """What every case costs, or the error it ends in, from one process."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (g++): the fake GPU is not built, so nothing says what a pass costs on a GPU")
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(Path(__file__).with_name("forward.py")), *BUDGETS, "bf16-wait"]
    made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert made.returncode == 0, made.stderr[-3000:]
    return {line["case"]: line for line in map(json.loads, made.stdout.splitlines())}


@pytest.mark.parametrize("case", BUDGETS)
def test_a_pass_waits_for_nothing_and_is_within_its_budget(costs: dict[str, dict[str, Any]], case: str) -> None:
    seen = costs[case]
    assert "error" not in seen and seen["waits"] == [], seen
    launches, milliseconds = BUDGETS[case]
    assert seen["launches"] <= launches and 0.8 * milliseconds < seen["ms"]["H100"] <= milliseconds, seen
    assert seen["other_teraflop"] < 0.001 * seen["teraflop"], seen  # products are in bfloat16


def test_a_wait_is_found(costs: dict[str, dict[str, Any]]) -> None:
    assert costs["bf16-wait"]["error"] == "DataDependentOutputException"
