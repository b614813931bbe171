"""Whole stages on a pretend GPU (pretend.py): the results of the CPU, on the device of the config and no other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
TOLERANCE = {"training": 1e-3, "resume": 1e-3}  # relative to the largest value; else 1e-4. A GPU may take other paths
STAGES = {"harvest", "training", "resume", "latents", "evaluation", "conversations", "kl", "twins", "seeds"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if shutil.which("g++") is None or torch.version.cuda is not None:
        pytest.skip("the pretend GPU needs g++ and a torch without CUDA")
    folder = tmp_path_factory.mktemp("stages")
    path = os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE / "stages.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_stage_gives_what_it_gives_on_the_cpu(report: dict[str, Any]) -> None:
    assert report["stages"].keys() == STAGES
    for name, stage in report["stages"].items():
        assert stage["values"] > 0 and stage["launches"] > 0, name
        wrong = {key: by for key, by in stage["differences"].items() if not by <= TOLERANCE.get(name, 1e-4)}
        assert not wrong, name


def test_every_stage_uses_the_device_of_the_config_and_no_other(report: dict[str, Any]) -> None:
    for name, stage in report["stages"].items():
        assert stage["places"] == [[], ["cuda:1"]], name


def test_planted_mistakes_are_found(report: dict[str, Any]) -> None:
    assert report["mistakes"] == {
        "two devices": "MixedDevicesError",
        "host and device": "MixedDevicesError",
        "numpy": "TypeError",
        "generator": "MixedDevicesError",
        "value": "_local_scalar_dense elsewhere",
        "mask": "index elsewhere",
        "from the device": "copy to the host elsewhere",
        "to the device": "copy to the device elsewhere",
        "no mistake": "",
    }


def test_the_harvest_waits_for_nothing_but_batches_that_have_run(report: dict[str, Any]) -> None:
    """Beside loading the weights: a batch is fetched while the next one runs."""
    waits = report["stages"]["harvest"]["waits"]
    assert waits and all(wait.startswith(("copy to the device residual.py:", "event harvest.py:")) for wait in waits)
    loads = sum(n for wait, n in waits.items() if wait.startswith("copy"))
    assert loads == 2 * 27  # the weights of both lower halves, once for both parts


def test_kl_fetches_the_sums_of_an_intervention_once(report: dict[str, Any]) -> None:
    """They are kept in one block: arrays kept from every intervention made the process grow by gigabytes."""
    waits = report["stages"]["kl"]["waits"]
    fetched = sum(n for wait, n in waits.items() if wait.startswith("copy to the host kl.py"))
    edited = sum(n for wait, n in waits.items() if wait.startswith("index_put_ kl.py")) / 3  # three of each edit
    assert 0 < fetched <= edited
