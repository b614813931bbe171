"""Every kind of config mistake is one line that names the key and the remedy."""

import copy
import datetime
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tunediff.config.check import check
from tunediff.config.settings import EvaluationSettings
from tunediff.config.written import check_files, load
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


def test_the_model_that_explains_gets_its_defaults() -> None:
    assert check(changed("explanations", {"model": None}))["explanations"]["model"] is None
    found = check(changed("explanations", {"model": {"from": "local", "path": "m"}}))["explanations"]["model"]
    assert found == {"from": "local", "path": "m", "revision": None, "dtype": "bfloat16", "batch_size": 8}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("explanations", {"model": {"from": "local", "batch": 3}}, ["unknown key `explanations.model.batch`"]),
        ("explanations", {"model": {"from": "cloud"}}, ["`explanations.model.from`", "endpoint, local"]),
        ("training.stepz", 3, ["unknown key `training.stepz`", "did you mean `steps`"]),
        ("crosscoders.l1.kk", 3, ["unknown key `crosscoders.l1.kk`", "dict_size"]),
        ("training.steps", "many", ["`training.steps`", "whole number", "'many'"]),
        ("training.steps", 0, ["`training.steps`", "at least 1"]),
        ("training.learning_rate", -1.0, ["`training.learning_rate`", "above 0"]),
        ("training.learning_rate", float("nan"), ["`training.learning_rate`", "write a finite number"]),
        ("crosscoders.batchtopk.aux_weight", float("inf"), ["`crosscoders.batchtopk.aux_weight`", "a finite number"]),
        ("crosscoders.l1.mu", float("nan"), ["`crosscoders.l1.mu`", "write a finite number"]),
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


def told(config: dict) -> str:
    with pytest.raises(TunediffError) as caught:
        check(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("results", "/", ["`results`", "holds the folder this run starts in"]),
        ("results", "..", ["`results`", "holds the folder"]),
        ("results", ".", ["`results`", "holds the folder"]),
        ("results", str(ROOT / "Snakefile"), ["`results`", "is a file"]),
        ("results", str(ROOT / "Snakefile/deeper"), ["`results`", "is a file"]),
        ("results", "~nobody_of_this_name/x", ["`results`", "home folder"]),
        ("results", "a\0b", ["`results`", "U+0000"]),
        ("results", "{split}", ["`results`", "braces"]),
        ("models.base", "demo\0", ["`models.base`", "U+0000"]),
        ("models.base", "\ud800", ["`models.base`", "U+D800"]),
        ("tokens.sources.web.part\n", "web", ["`tokens.sources.web.'part\\n'`", "U+000A"]),
        (
            "tokens.sources.web",
            {"from": "hub", "path": "a/b\u2028", "column": "x"},
            ["`tokens.sources.web.path`", "U+2028"],
        ),
        (
            "tokens.sources.web",
            {"from": "hub", "path": "/", "column": "text"},
            ["`tokens.sources.web.path`: / is a folder of this machine", "from: local"],
        ),
        ("training.learning_rate", 10**400, ["`training.learning_rate` has a size of 2^63"]),
        ("seed", 2**63, ["`seed` has a size of 2^63 or more", "smaller"]),
        (
            "models.dtype",
            {f"k{i}": i for i in range(20_000)},
            ["`models.dtype` must be one of float32", "'k1': 1", "…"],
        ),
        ("crosscoders.nan", {"kind": "l1"}, ["`crosscoders.nan`", "missing value", "another name"]),
        ("nulls.summary", {"base": "demo-chat", "chat": "demo-chat"}, ["`nulls.summary`", "another name"]),
        ("nulls.null", {"base": "demo-chat", "chat": "demo-chat"}, ["`nulls.null`", "another name"]),
        ("seed", datetime.date(2024, 1, 1), ["`seed` is a date", "2024-01-01", "write a number"]),
        ("seed", float("nan"), ["`seed` is nan", "finite"]),
        ("training.learning_rate", float("inf"), ["`training.learning_rate` is inf", "finite"]),
        ("training.learning_rate", "1e-3", ["`training.learning_rate`", "text to YAML; write 1.0e-3"]),
        ("crosscoders.l1.mu", "2.5e2", ["`crosscoders.l1.mu`", "write 2.5e+2"]),
        ("crosscoders", {True: {"kind": "l1"}}, ["a key of `crosscoders`", "true or false", "quotes"]),
        ("tokens.budgets.train", {"web": 10**18, "chat": 1}, ["`tokens.budgets.train.web`", "at most 100000000000"]),
        (
            "tokens.budgets.train",
            {"web": 1_000_000 * 65_536, "chat": 500_000 * 65_536},
            ["`tokens.budgets.train`", "750,000 parts", "more than 10,000", "parts of 9,830,400 tokens"],
        ),
    ],
)
def test_odd_values_are_told_in_one_line(path: str, value: object, expected: list[str]) -> None:
    message = told(changed(path, value))
    assert len(message) < 1_000
    for part in expected:
        assert part in message


@pytest.mark.parametrize("tokens", [10**15, 10**18])
def test_an_immense_budget_takes_no_memory_and_no_time(tokens: int) -> None:
    tracemalloc.start()
    begun = time.process_time()
    for derived in (False, True):
        config = changed("tokens.budgets.train", {"web": tokens, "chat": 65_536})
        if derived:
            config["activations"] = {}
        assert "`tokens.budgets.train.web`" in told(config)
    most = 65_536 * 10**6  # allowed of a source, and planned in 16 parts
    config = changed("tokens.budgets.train", {"web": most, "chat": 65_536})
    config["activations"] = {}
    assert check(config)["activations"]["part_tokens"] == -(-(most + 65_536) // 65_536 // 16) * 65_536
    assert time.process_time() - begun < 10
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_results_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check(changed("results", "~/runs/"))["results"] == f"{tmp_path}/runs"


def test_aliases_are_not_written_out_without_end() -> None:
    bomb: list = ["x"] * 10
    for _ in range(12):
        bomb = [bomb] * 10
    assert "`training` has more than 100,000 values" in told(changed("training.seeds", bomb))
    endless: dict = {}
    endless["a"] = endless
    assert "levels deep" in told(changed("training", endless))


def test_a_key_that_stands_twice_is_named_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("results: a\ntraining:\n  steps: 3\n  seeds: [0]\n  steps: 4\n")
    for read in (lambda: load(path), lambda: check_files([path], tmp_path / "results")):
        with pytest.raises(TunediffError, match=r"`training.steps` is written twice .*lines 3 and 5"):
            read()
    path.write_text('{"results": "a", "results": "b"}')
    with pytest.raises(TunediffError, match="`results` is written twice"):
        load(path)
    path.write_text("a: &a [1]\nb: [*a, *a]\n")
    assert load(path) == {"a": [1], "b": [[1], [1]]}
    for text in ("- 1\n", "a: [", "\x00"):
        path.write_text(text)
        with pytest.raises(TunediffError, match="give a config"):
            load(path)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("results: a\nseed: 1\n" + "".join(f"k{i}: {i}\n" for i in range(60_000)))
    begun = time.process_time()
    for read in (lambda: load(path), lambda: check_files([path], tmp_path / "results")):
        with pytest.raises(TunediffError, match=r"c\.yaml: has [0-9,]+ bytes, a config has 524,288 at most"):
            read()
    assert time.process_time() - begun < 1


def test_aliases_of_mappings_end_tunediff_check(tmp_path: Path) -> None:
    levels = ["a0: &a0 {x: 1}"]
    for level in range(1, 12):
        levels.append(f"a{level}: &a{level} {{{', '.join(f'k{i}: *a{level - 1}' for i in range(9))}}}")
    path = tmp_path / "c.yaml"
    path.write_text("\n".join(levels))
    assert "more than 100,000 values, aliases (*) written out" in told(load(path))


def test_a_target_that_was_read_as_a_config_is_named(tmp_path: Path) -> None:
    target = tmp_path / "results/latents/l1-seed0.json"
    with pytest.raises(TunediffError, match=r"l1-seed0\.json: was read as a config.*targets go first"):
        check_files([target], tmp_path / "results")
    check_files([str(ROOT / "config/config.yaml"), tmp_path / "results/own.yaml"], tmp_path / "results")
