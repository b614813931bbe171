"""A newcomer's own pair: the template with its six values, two small local models, a JSONL and a Parquet."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from checkout import ROOT, Checkout, make_checkout

from helpers import SENTENCES, TinyPair

TITLE = "estimate of the whole run"


@pytest.fixture
def checkout(tiny_pairs: Callable[[str], TinyPair], tmp_path: Path) -> Checkout:
    """A checkout with the template as its config, models and texts where it names them."""
    pair, rng = tiny_pairs("llama3"), random.Random(0)
    words = [word for sentence in SENTENCES for word in sentence.split()]

    def text(n: int) -> str:
        return " ".join(rng.choices(words, k=n))

    checkout = make_checkout(tmp_path / "run", yaml.safe_load((ROOT / "config/template.yaml").read_text()))
    (checkout.root / "models").mkdir()
    for side in ("base", "chat"):
        (checkout.root / "models" / side).symlink_to(getattr(pair, side))
    texts = checkout.root / "texts"
    texts.mkdir()
    with (texts / "web.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text(rng.randint(20, 80))}) + "\n" for _ in range(1000))
    chats = [
        [{"role": "user", "content": text(8)}, {"role": "assistant", "content": text(rng.randint(10, 40))}]
        for _ in range(600)
    ]
    pq.write_table(pa.table({"messages": chats}), texts / "chat.parquet")
    return checkout


def test_the_template_plans_a_whole_run_and_says_what_it_derived(checkout: Checkout) -> None:
    done = checkout.run("-n")
    lines = done.stderr.splitlines()
    start = next(i for i, line in enumerate(lines) if TITLE in line)
    text = " ".join(" ".join(lines[start : start + 16]).split())
    for part in ("models: layer 2", "crosscoders.l1: dict_size 256", "tokens.budgets: train web", "epochs", "GFLOP/s"):
        assert part in text
    assert TITLE not in done.stdout
    planned = checkout.planned()
    assert {"models", "tokens", "conversations", "activations", "train", "latents", "causal", "drawing"} <= set(planned)
    assert planned["train"] == 2


def test_the_estimate_comes_once_and_only_with_a_run(checkout: Checkout) -> None:
    printed = checkout.run("results/tokens/train.json").stderr
    assert printed.count(TITLE) == 1  # two jobs read the Snakefile as well
    assert printed.index(TITLE) < printed.index("rule models")
    assert TITLE not in checkout.run("results/tokens/train.json").stderr  # nothing to be done
    for call in ("--summary", "--list-rules"):
        assert TITLE not in checkout.run(call).stderr


def test_steps_that_do_not_fit_warn_before_the_plan(checkout: Checkout) -> None:
    checkout.edit_config("training.steps", 97_656)
    text = " ".join(checkout.run("-n").stderr.split())
    assert "warning 97,656 steps of 256 read the" in text and "train tokens" in text
