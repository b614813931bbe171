"""What a config alone does not tell is found before anything runs: one line per mistake, in seconds."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from helpers import TinyPair
from tunediff.cli import main
from tunediff.config import preflight as module
from tunediff.config.check import check
from tunediff.config.preflight import preflight
from tunediff.data.corpora import opened

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "resources/demo-pair"
TURNS = [{"role": "user", "content": "Who pays?"}, {"role": "assistant", "content": "You do."}]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tiny_pairs: Callable[[str], TinyPair], tmp_path: Path) -> dict[str, Any]:
    """A config of one's own, with every number written: nothing is read to derive one."""
    pair = tiny_pairs("gemma2")
    for side in ("base", "chat"):
        shutil.copytree(getattr(pair, side), tmp_path / side)
    write(tmp_path / "web-1.jsonl", [{"text": "one"}] * 40)
    write(tmp_path / "web-2.jsonl", [{"text": "two"}] * 40)
    pq.write_table(pa.table({"messages": [TURNS] * 4}), tmp_path / "chat.parquet")
    web = {"from": "local", "path": str(tmp_path / "web-*.jsonl"), "column": "text"}
    chat = {"from": "local", "path": str(tmp_path / "chat.parquet"), "column": "messages"}
    return {
        "models": {"base": str(tmp_path / "base"), "chat": str(tmp_path / "chat"), "layer": 1, "device": "cpu"},
        "tokens": {
            "sources": {"web": web, "chat": chat},
            "budgets": {"train": {"web": 512, "chat": 512}, "validation": {"web": 256, "chat": 256}},
        },
        "conversations": {"source": dict(chat), "count": 4},
    }


def problems(config: dict[str, Any], jobs: set[str] | None = None, **where: bool) -> list[str]:
    return preflight(check(config), SHIPPED, jobs, **where).problems


def test_a_good_config_is_told_what_was_looked_at(config: dict[str, Any], tmp_path: Path) -> None:
    found = preflight(check(config), SHIPPED)
    assert found.problems == []
    assert f"`models.base`: {tmp_path}/base" in found.right
    assert "`models`: block 1 is there, and not the last" in found.right
    assert [line for line in found.right if "rows" in line] == [
        "`tokens.sources.web`: first rows",
        "`tokens.sources.chat`: first rows",
        "`conversations.source`: first rows",
    ]


def test_misspelt_columns_and_malformed_rows_are_found_in_every_file(config: dict[str, Any], tmp_path: Path) -> None:
    config["tokens"]["sources"]["chat"]["column"] = "mesages"
    config["conversations"]["source"]["column"] = "turns"
    write(tmp_path / "web-2.jsonl", [{"text": "two"}, {"text": 3}])
    wrong = f"{tmp_path}/chat.parquet: no column '{{}}'; it has messages; set `column`"
    assert problems(config) == [
        f"config: `tokens.sources.web`: {tmp_path}/web-2.jsonl line 2: holds int, neither a text nor a list of turns; "
        "fix or drop it",
        f"config: `tokens.sources.chat`: {wrong.format('mesages')}",
        f"config: `conversations.source`: {wrong.format('turns')}",
    ]
    del config["tokens"]["sources"]["chat"]["column"]
    config["tokens"]["sources"]["chat"] |= {"column": "messages", "validation_path": str(tmp_path / "web-1.jsonl")}
    assert "web-1.jsonl line 1: no column 'messages'; it has text" in problems(config)[1]


def test_a_hub_data_set_is_opened_at_both_of_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def load(self: Any, split: str) -> Any:
        for number in range(1000):
            read.append((split, number))
            yield {"text": "words"}

    monkeypatch.setattr("tunediff.data.corpora.Hub._load", load)
    source = {"from": "hub", "path": "some/texts", "column": "text", "split": "train[:9]"}
    opened(source).glance()
    assert {split for split, _ in read} == {"train[:9]"} and len(read) == 20
    opened({**source, "validation_split": "test"}).glance()
    assert {split for split, _ in read} == {"train[:9]", "test"}


def test_models_out_of_reach_of_other_shapes_or_pickled_are_found(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)

    def out_of_reach(*arguments: Any, **options: Any) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", out_of_reach)
    about = tmp_path / "chat/config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"hidden_size": 64}))
    (tmp_path / "base/model.safetensors").rename(tmp_path / "base/pytorch_model.bin")
    config["nulls"] = {"same": {"base": str(tmp_path / "chat"), "chat": "nobody/nothing"}}
    base, shape, null = problems(config)
    assert base.startswith(f"config: `models.base`: {tmp_path}/base: has no weights in *.safetensors, and pickled ones")
    assert shape == "config: `models`: the width differs, base 32, chat 64; give a base and its own tune"
    assert null.startswith("config: `nulls.same.chat`: no config.json of nobody/nothing is in reach; check the id")
    assert problems(config, {"models"}) == [base, shape]
    assert problems(config, {"nulls/same/models"}) == [null]
    assert problems(config, {"tokens", "train"}) == []


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[]", "is no mapping"),
        ('{"text_config": ["x"]}', "is no mapping"),
        ("[" * 100_000, "is not JSON"),
        ('{"hidden_size": "{{}}"}', "`hidden_size` must be a whole number from 1 to 100000000, not {{}}"),
        ('{"num_hidden_layers": {"a": 1}}', "`num_hidden_layers` must be a whole number"),
        ('{"vocab_size": -1}', "`vocab_size` must be a whole number"),
        ('{"hidden_size": 1e400}', "`hidden_size` must be a whole number"),
    ],
)
def test_an_odd_config_json_is_told_in_one_line(
    config: dict[str, Any], tmp_path: Path, written: str, expected: str
) -> None:
    (tmp_path / "chat/config.json").write_text(written)
    found = problems(config)
    assert found[0].startswith("config: `models.chat`: ") and expected in found[0] and found[0].endswith("replace it")
    assert all("\n" not in line for line in found)


def test_what_the_environment_and_this_machine_lack_is_found(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNT_GPUS", "print(2)")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "wandb" else object())
    monkeypatch.delenv("SOME_KEY", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    model = {"from": "endpoint", "url": "http://localhost/v1", "model": "m", "key_variable": "SOME_KEY"}
    config |= {"training": {"log_to": "wandb"}, "explanations": {"model": model}}
    config["models"]["device"] = "cuda:2"
    package = "config: `training.log_to`: wandb is not installed; pip install wandb, or write `none`"
    key = "config: `explanations.model.key_variable`: the environment has no SOME_KEY; set it to the key"
    device = "config: `models.device`: is cuda:2, but torch sees 2 GPU here; write `auto`, `cpu` or one that it sees"
    assert problems(config) == [package, key, device]
    assert problems(config, {"latents"}) == [device]
    assert problems(config, {"train"}, device=False) == [package]
    assert problems(config, environment=False) == []
    config["models"]["device"] = "cuda:1"
    config["training"]["log_to"] = "tensorboard"
    monkeypatch.setenv("SOME_KEY", "x")
    assert problems(config) == []
    config["models"]["device"], config["training"]["devices"] = "cuda", 4
    processes = "config: `training.devices`: is 4, but torch sees 2 GPU here; write 2, or set `device: cpu`"
    assert problems(config) == problems(config, {"train"}) == [processes]
    assert problems(config, {"latents"}) == problems(config, device=False) == []
    config["models"]["device"] = "auto"
    assert problems(config) == [processes]
    monkeypatch.setattr(module, "COUNT_GPUS", "print(0)")
    assert problems(config) == []  # all on the CPU
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (line,) = problems(config)
    assert line.startswith("config: `explanations.model.url`: HF_HUB_OFFLINE is set") and "unset it" in line


def test_the_command_prints_mistakes_or_what_it_looked_at(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["check", str(path)]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[:2] == [f"{path}: nothing wrong; looked at", "  every key"] and not told.err
    config["tokens"]["sources"]["web"]["column"] = config["tokens"]["sources"]["chat"]["column"] = "txt"
    path.write_text(yaml.safe_dump(config))
    assert main(["check", str(path)]) == 1
    told = capsys.readouterr()
    assert not told.out and len(told.err.splitlines()) == 2 and told.err.count("no column 'txt'") == 2
    config["training"] = {"learning_rate": float("nan")}
    path.write_text(yaml.safe_dump(config))
    assert main(["check", str(path)]) == 1
    assert "tunediff: config: `training.learning_rate` is nan; write a finite number" in capsys.readouterr().err
    path.write_text("- a list")
    assert main(["check", str(path)]) == 1 and "holds no keys" in capsys.readouterr().err


def test_the_demo_is_looked_at_without_anything_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'nnsight', 'pandas'} & set(sys.modules)"
    code = f"import sys; from tunediff.cli import main; rc = main(['check', 'config/config.yaml']); print(rc, {heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"
