"""Every kind of config mistake is one line that names the key and the remedy."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tunediff.config.check import check
from tunediff.config.settings import EvaluationSettings
from tunediff.errors import TunediffError

ROOT = Path(__file__).resolve().parents[2]
DEMO = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def changed(path: str, value: object) -> dict:
    config = copy.deepcopy(DEMO)
    *parents, last = path.split(".")
    node = config
    for step in parents:
        node = node[step]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("training.stepz", 3, ["unknown key `training.stepz`", "did you mean `steps`"]),
        ("crosscoders.l1.kk", 3, ["unknown key `crosscoders.l1.kk`", "dict_size"]),
        ("training.steps", "many", ["`training.steps`", "whole number", "'many'"]),
        ("training.steps", 0, ["`training.steps`", "at least 1"]),
        ("training.learning_rate", -1.0, ["`training.learning_rate`", "above 0"]),
        ("training.learning_rate", float("nan"), ["`training.learning_rate`", "a number, not nan"]),
        ("crosscoders.batchtopk.aux_weight", float("inf"), ["`crosscoders.batchtopk.aux_weight`", "a number, not inf"]),
        ("crosscoders.l1.mu", float("nan"), ["`crosscoders.l1.mu`", "a number or auto, not nan"]),
        ("training.steps", 200.0, ["`training.steps`", "a whole number, not 200.0"]),
        ("tokens.budgets.train.web", 262144.0, ["`tokens.budgets.train.web`", "a whole number, not 262144.0"]),
        ("models.layer", 5, ["`models.layer` is 5, the models have 6 blocks; write 0 to 4"]),
        ("models.layer", 99, ["`models.layer` is 99, the models have 6 blocks; write 0 to 4"]),
        ("models.chat", KeyError, ["`models.chat` is missing", "Chat-tuned"]),
        ("models.layer", None, ["`models.layer`", "whole number"]),
        ("tokens.sources", KeyError, ["`tokens.sources` is missing", "Named text sources"]),
        ("models.dtype", "float8", ["`models.dtype`", "bfloat16"]),
        ("models.device", "gpu", ["`models.device`", "gpu"]),
        ("crosscoders.l1.kind", "l2", ["`crosscoders.l1.kind`", "batchtopk"]),
        ("crosscoders.l1.mu", "high", ["`crosscoders.l1.mu`", "auto"]),
        ("crosscoders.l1.target_l0", None, ["`crosscoders.l1.target_l0`", "mu: auto"]),
        ("crosscoders.batchtopk.k", 4096, ["`crosscoders.batchtopk.k`", "2048"]),
        ("crosscoders.batchtopk.k_max", 40, ["`crosscoders.batchtopk.k_max`", "k_anneal_steps"]),
        ("models.base", "./nowhere", ["both be `demo`"]),
        ("models.demo", {"layers": 2}, ["retrain"]),
        ("tokens.sources.web", {"from": "hub", "column": "text"}, ["`tokens.sources.web.path` is missing"]),
        ("tokens.sources.web", {"from": "disk"}, ["`tokens.sources.web.from`", "local"]),
        (
            "tokens.sources.web",
            {"from": "local", "path": "nowhere/*.jsonl", "column": "text"},
            ["`tokens.sources.web.path`", "nowhere/*.jsonl"],
        ),
        ("tokens.budgets.train", {"web": 65536}, ["`tokens.budgets.train`", "every source"]),
        ("tokens.budgets.train.web", 1000, ["multiple of `activations.shard_tokens`", "write 262144"]),
        ("activations.chunk_tokens", 1000, ["`activations.shard_tokens`", "multiple of `activations.chunk_tokens`"]),
        ("conversations.max_prompt_tokens", 2000, ["`conversations.max_prompt_tokens`", "answer"]),
        ("causal.reference", "l3", ["`causal.reference`", "l1, batchtopk"]),
        ("crosscoders.l1.kind", KeyError, ["`crosscoders.l1.kind` is missing"]),
        ("nulls.same.chat", "some/model", ["`nulls.same.base` and `nulls.same.chat` must both be `demo`"]),
        ("nulls.other", {"base": "some/model", "chat": "some/model"}, ["`nulls.other`", "tokenizer of `models`"]),
        ("nulls.same", {"base": "demo"}, ["`nulls.same.chat` is missing"]),
        (
            "crosscoders",
            {"l1": {"kind": "published", "path": "some/dictionary"}},
            ["`nulls` need crosscoders to train", "remove `nulls`"],
        ),
        ("models", {"base": "demo-chat", "chat": "demo-chat", "layer": 3, "demo": {"retrain": True}}, ["retrain"]),
    ],
)
def test_mistakes_are_told_in_one_line(path: str, value: object, expected: list[str]) -> None:
    with pytest.raises(TunediffError) as caught:
        check(changed(path, value))
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize("name", ["a" * 300, f"org/{'a' * 300}", f"/{'é' * 150}/model"])
@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("models.base", lambda name: name),
        ("models.chat", lambda name: {"base": "some/model", "adapter": name}),
        ("nulls.same.chat", lambda name: name),
        ("tokens.sources.web", lambda name: {"from": "local", "path": name, "column": "text"}),
        ("tokens.sources.web", lambda name: {"from": "hub", "path": name, "column": "text"}),
        ("crosscoders.other", lambda name: {"kind": "published", "path": name}),
        ("explanations", lambda name: {"model": {"from": "local", "path": name}}),
        ("results", lambda name: name),
    ],
)
def test_names_no_file_system_takes_are_told(path: str, make: Callable[[str], object], name: str) -> None:
    with pytest.raises(TunediffError, match=rf"`{path}[a-z.]*`: .{{20}}… has a name of 300 bytes") as caught:
        check(changed(path, make(name)))
    assert len(str(caught.value)) < 200


def test_long_keys_are_told() -> None:
    with pytest.raises(TunediffError, match=r"`crosscoders\.aaa.*…` has 300 characters; write 100 at most"):
        check(changed(f"crosscoders.{'a' * 300}", {"kind": "l1"}))


def test_model_directory_must_hold_a_model(tmp_path: Path) -> None:
    config = changed("models.base", str(tmp_path))
    config["models"]["chat"] = str(tmp_path)
    with pytest.raises(TunediffError, match=r"not a model directory.*save_pretrained"):
        check(config)


def test_defaults_come_from_the_settings_and_given_values_win() -> None:
    config = check(DEMO)
    assert config["crosscoders"]["batchtopk"]["aux_weight"] == 1 / 32
    assert config["crosscoders"]["batchtopk"]["aux_k"] == DEMO["crosscoders"]["batchtopk"]["aux_k"]
    assert config["evaluation"]["documents"] == EvaluationSettings.documents
    assert "aux_weight" not in DEMO["crosscoders"]["batchtopk"]  # the input is not edited


PARTS = ("seeds.yaml", "template.yaml")  # goes on top of another; names files that are to be there
WHOLE = sorted(path for path in (ROOT / "config").glob("*.yaml") if path.name not in PARTS)


@pytest.mark.parametrize("path", WHOLE, ids=lambda p: p.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    check(yaml.safe_load(path.read_text()))


def test_seeds_go_on_top_of_another_config() -> None:
    more = yaml.safe_load((ROOT / "config/seeds.yaml").read_text())
    assert list(more) == ["training"]
    config = check({**DEMO, "training": {**DEMO["training"], **more["training"]}})
    assert config["training"]["seeds"] == [0, 1, 2]
