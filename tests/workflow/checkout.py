"""A checkout of its own for whole runs, so that tests may edit code, config and stores."""

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from helpers import SENTENCES, TinyPair

ROOT = Path(__file__).resolve().parents[2]
SIDE_BY_SIDE = (
    "models",
    "hooks",
    "tokens",
    "conversations",
    "activations",
    "latents",
    "evaluation",
    "concepts",
)
PARTS = ("Snakefile", "rules", "workflow", "report", "profiles", "config", "envs", "src", "resources")


@dataclass(frozen=True)
class Checkout:
    """A copy of the project with one config, run in processes of its own."""

    root: Path
    config: Path

    def environment(self) -> dict[str, str]:
        """The environment of its processes: its own sources first, nothing from a hub."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(self.root / "src"), "HF_HUB_OFFLINE": "1"}

    def command(self, *arguments: str) -> list[str]:
        """The command line of a run."""
        side_by_side = [f"{rule}=1" for rule in SIDE_BY_SIDE]  # tiny jobs: start-up is their cost
        options = ["--cores", "2", "--configfile", str(self.config), "--set-threads", *side_by_side]
        return [sys.executable, "-m", "snakemake", *arguments, *options]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run snakemake; with `check`, a failure fails the test with its output."""
        done = subprocess.run(
            self.command(*arguments), cwd=self.root, env=self.environment(), capture_output=True, text=True
        )
        if check and done.returncode:
            raise AssertionError(done.stdout[-6000:] + done.stderr[-6000:])
        return done

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return the number of jobs per rule that a run would do now."""
        done = self.run("-n", *arguments)
        text = done.stdout + done.stderr
        if "Nothing to be done" in text:
            return {}
        table = text.split("Job stats:")[1].split("Reasons:")[0]
        jobs = {name: int(n) for name, n in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}
        return {name: n for name, n in jobs.items() if name not in ("total", "all")}

    def edit_config(self, path: str, value: Any) -> None:
        """Set one key of the config, dots between levels."""
        config = yaml.safe_load(self.config.read_text())
        *parents, last = path.split(".")
        node = config
        for step in parents:
            node = node.setdefault(step, {})
        node[last] = value
        self.config.write_text(yaml.safe_dump(config, sort_keys=False))


def make_checkout(root: Path, config: Mapping[str, Any]) -> Checkout:
    """Copy the project to `root` and write its config."""
    root.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.exists():
            shutil.copy(source, root / name)
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return Checkout(root, path)


# Everything of a config but models and sources: as small as a whole run can be.
SMALL: dict[str, Any] = {
    "results": "results",
    "seed": 1,
    "activations": {"chunk_tokens": 128, "shard_tokens": 512, "part_tokens": 1024, "batch_tokens": 2048},
    "training": {
        "batch_size": 128,
        "steps": 60,
        "learning_rate": 0.003,
        "warmup_steps": 5,
        "normalization": "scale",
        "pool_chunks": 4,
        "checkpoint_every": 10,
        "log_every": 5,
    },
    "crosscoders": {
        "l1": {"kind": "l1", "dict_size": 64, "mu": 0.2},
        "batchtopk": {"kind": "batchtopk", "dict_size": 64, "k": 8, "aux_k": 8, "threshold_start": 10},
    },
    "latents": {"min_count": 4, "blocks": 8, "bootstrap_samples": 100},
    "evaluation": {"documents": 4},
    "causal": {"set_size": 16, "random_sets": 1, "bootstrap_samples": 100},
    "steering": {"latents": 1, "alphas": [1], "prompts": 3, "max_new_tokens": 4, "random_directions": 1},
}

QUESTIONS = ("What is a river?", "Tell me about the fox, please.", "How is the weather in Zürich today?", "Who pays?")


def write_texts(directory: Path) -> None:
    """Write web.jsonl.gz (column text), chat.parquet (column conversation) and requests.jsonl (column messages)."""
    directory.mkdir()
    rng = random.Random(0)

    def words(n: int) -> str:
        return " ".join(rng.choice(rng.choice(SENTENCES).split()) for _ in range(n))

    with gzip.open(directory / "web.jsonl.gz", "wt", encoding="utf-8") as stream:
        for _ in range(160):
            stream.write(json.dumps({"text": words(rng.randint(5, 40)), "url": "x"}) + "\n")
    chats = []
    for _ in range(160):
        chat = []
        for _ in range(rng.randint(1, 2)):
            chat += [{"role": "user", "content": rng.choice(QUESTIONS)}, {"role": "assistant", "content": words(12)}]
        chats.append(chat)
    pq.write_table(pa.table({"conversation": chats}), directory / "chat.parquet")
    with (directory / "requests.jsonl").open("w", encoding="utf-8") as stream:
        for _ in range(40):
            turns = [{"role": "user", "content": words(6)}, {"role": "assistant", "content": words(8)}]
            stream.write(json.dumps({"messages": turns}) + "\n")


def family_checkout(root: Path, pair: TinyPair, **models: Any) -> Checkout:
    """A checkout whose config runs a tiny pair on local files."""
    checkout = make_checkout(root, {})
    write_texts(root / "texts")
    config = {
        **SMALL,
        "models": {
            "base": str(pair.base),
            "chat": str(pair.chat),
            "layer": 1,
            "dtype": "float32",
            "device": "cpu",
            **models,
        },
        "tokens": {
            "max_length": 64,
            "sources": {
                "web": {"from": "local", "path": "texts/web.jsonl.gz", "column": "text", "validation_share": 0.3},
                "chat": {
                    "from": "local",
                    "path": "texts/*.parquet",
                    "column": "conversation",
                    "validation_share": 0.3,
                },
            },
            "budgets": {"train": {"web": 1024, "chat": 1024}, "validation": {"web": 512, "chat": 512}},
        },
        "conversations": {
            "source": {"from": "local", "path": "texts/requests.jsonl", "column": "messages", "validation_share": 0.9},
            "count": 6,
            "max_prompt_tokens": 100,
            "max_tokens": 130,
        },
    }
    checkout.config.write_text(json.dumps(config))
    return checkout


def assert_complete(checkout: Checkout, figures: tuple[str, ...], *targets: str) -> None:
    """The figures are there, KL of the unedited chat model is 0, and nothing is left to do."""
    results = checkout.root / "results"
    for name in figures:
        for suffix in ("pdf", "png", "csv"):
            assert (results / f"figures/{name}.{suffix}").stat().st_size > 100
    kl = pd.read_parquet(results / "causal/summary.parquet")
    chat = kl[kl["intervention"] == "chat"]
    assert (chat["mean"].abs() < 1e-5).all() and len(chat) == 2
    assert (kl[kl["intervention"] == "none"]["mean"] > 1e-3).all()
    for name in ("l1-seed0", "batchtopk-seed0"):
        assert len(pd.read_parquet(results / f"latents/{name}.parquet")) == 64
    assert checkout.planned(*targets) == {}
