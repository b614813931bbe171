"""Training in two processes (`training.devices: 2`), as the rule starts them by torchrun."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from checkout import ROOT, make_checkout

from tunediff.dictionaries.crosscoder import Crosscoder

FOLDER, NAMES = "results/planted/main/seed5/crosscoders", ("batchtopk-seed5", "l1-seed5")


def config() -> dict[str, Any]:
    """A planted pair: its stores are made without models. Few steps, as rounding grows with every one."""
    small: dict[str, Any] = yaml.safe_load((ROOT / "config/planted.yaml").read_text())
    small["planted"] |= {"seeds": [5], "arms": {"main": {}}, "train_tokens": 16384, "validation_tokens": 2048}
    small["activations"] |= {"shard_tokens": 1024, "part_tokens": 16384}
    small["training"] |= {"batch_size": 256, "steps": 40, "warmup_steps": 5, "pool_chunks": 4, "log_every": 5}
    small["crosscoders"]["l1"] |= {"mu": 0.1, "target_l0": None}
    small["crosscoders"]["batchtopk"] |= {"dead_after_tokens": 1024, "threshold_start": 1000}
    return small


def test_two_processes_make_the_crosscoders_of_one(tmp_path: Path) -> None:
    run = make_checkout(tmp_path / "run", config())
    folder, targets = run.root / FOLDER, [f"{FOLDER}/{name}.json" for name in NAMES]
    run.run(*targets)
    alone = shutil.copytree(folder, run.root / "alone")
    (folder / f"{NAMES[0]}.json").unlink()
    run.edit_config("training.devices", 2)
    done = run.run(*targets)
    assert done.stderr.count("rule train:") == 1  # where it is computed does not change what the other one is
    assert "Traceback" not in done.stderr + done.stdout
    one, two = Crosscoder.load(alone / NAMES[0]), Crosscoder.load(folder / NAMES[0])
    for tensor, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[tensor], value, rtol=1e-3, atol=1e-4)
    manifests = [json.loads((each / f"{NAMES[0]}.json").read_text()) for each in (alone, folder)]
    assert manifests[0]["key"] == manifests[1]["key"]
    assert json.loads((folder / f"{NAMES[0]}.provenance.json").read_text())["processes"] == 2
    run.edit_config("planted.train_tokens", 8192)
    assert run.planned(*targets) == {"planted": 1, "train": 2}  # the stores of another config are made again
    run.edit_config("planted.train_tokens", 16384)
    run.edit_config("training.learning_rate", 1e30)  # an error of both is one line
    failed = run.run(targets[0], check=False)
    lines = [line for line in (failed.stdout + failed.stderr).splitlines() if line.startswith("error: ")]
    assert failed.returncode and len(set(lines)) == 1 and "lower training.learning_rate" in lines[0]
    assert "Traceback" not in failed.stdout + failed.stderr
