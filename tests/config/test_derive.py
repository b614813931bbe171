"""Derived values: by hand from shapes and files, and the same as if they were written."""

import copy
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from helpers import SENTENCES, TinyPair
from tunediff.config.check import Checked, complete
from tunediff.config.derive import largest_divisor, model_config, part_size, shard_size, survey, whole_shards
from tunediff.data.corpora import documents, in_split
from tunediff.data.sampling import tokenize_split
from tunediff.errors import TunediffError
from tunediff.models.tokenizers import load_tokenizer
from tunediff.pipeline.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "resources/demo-pair"
SHAPE = {"num_hidden_layers": 18, "hidden_size": 640, "vocab_size": 262_144}


def checked(config: dict[str, Any]) -> Checked:
    return complete(config, SHIPPED)


def words(rng: random.Random, characters: int) -> str:
    """A text of that many characters, single spaces between words."""
    text = " ".join("".join(rng.choices("abcdefgh", k=7)) for _ in range(characters // 8 + 1))
    return text[: characters - 1] + "z"


def chat(rng: random.Random, characters: int) -> list[dict[str, str]]:
    half = characters // 2
    turns = [("user", words(rng, half)), ("assistant", words(rng, characters - half))]
    return [{"role": role, "content": content} for role, content in turns]


def write_jsonl(path: Path, column: str, rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({column: row}) + "\n" for row in rows)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The template's six values, filled in: two model directories, a JSONL of texts and a Parquet of chats."""
    monkeypatch.chdir(tmp_path)
    for side in ("base", "chat"):
        Path(f"models/{side}").mkdir(parents=True)
        Path(f"models/{side}/config.json").write_text(json.dumps(SHAPE))
    Path("texts").mkdir()
    rng = random.Random(0)
    write_jsonl(Path("texts/web.jsonl"), "text", [words(rng, 600) for _ in range(2000)])
    chats = [chat(rng, 600) for _ in range(1000)]
    pq.write_table(pa.table({"messages": chats}), "texts/chat.parquet")
    return yaml.safe_load((ROOT / "config/template.yaml").read_text())


def expected(name: str, source: dict[str, Any]) -> dict[str, int]:
    """Tokens per split of texts that are all of 600 characters, 100 tokens each."""
    rows = list(documents(source, "train", 0, whole=True))
    return {split: 100 * sum(in_split(row, split, 0.1) for row in rows) for split in ("train", "validation")}


def test_template_asks_for_six_values() -> None:
    def leaves(node: Any) -> int:
        return sum(map(leaves, node.values())) if isinstance(node, dict) else node != "local"

    assert leaves(yaml.safe_load((ROOT / "config/template.yaml").read_text())) == 6


def test_everything_else_follows(own: dict[str, Any]) -> None:
    config, derived = checked(own)
    assert config["models"]["layer"] == 9  # of 18
    sources = config["tokens"]["sources"]
    found = {name: expected(name, source) for name, source in sources.items()}
    train, validation = ({name: tokens[split] for name, tokens in found.items()} for split in ("train", "validation"))
    # about 270 k and 30 k tokens: shards of 2,048 leave at least eight for validation
    assert 2048 * 8 <= sum(validation.values()) < 4096 * 8
    for split, whole in (("train", train), ("validation", validation)):
        budget = config["tokens"]["budgets"][split]
        assert budget["chat"] == whole["chat"]
        assert budget["web"] == whole["web"] - sum(whole.values()) % 2048  # the largest source gives what is too much
    total = sum(config["tokens"]["budgets"]["train"].values())
    acts = config["activations"]
    assert acts["shard_tokens"] % 2048 == 0 and total % acts["shard_tokens"] == 0
    assert acts["shard_tokens"] % acts["chunk_tokens"] == 0 and acts["chunk_tokens"] <= 1024
    assert acts["part_tokens"] % acts["shard_tokens"] == 0 and acts["part_tokens"] >= 65536

    assert config["conversations"]["source"] == sources["chat"]
    requests = sum(in_split(row, "validation", 0.1) for row in documents(sources["chat"], "train", 0, whole=True))
    assert config["conversations"]["count"] == int(0.9 * requests)

    training = config["training"]
    assert training["batch_size"] == 1024 and training["steps"] == 4 * total // 1024  # 2,048 gave fewer than 1,000
    assert 1000 <= training["steps"] < 1100
    assert (training["learning_rate"], training["warmup_steps"]) == (0.002, training["steps"] // 10)
    assert (training["checkpoint_every"], training["log_every"]) == (training["steps"] // 5, 10)
    assert training["normalization"] == "mean_scale" and acts["outlier_factor"] == 5

    dead = training["steps"] * 1024 // 5
    l1, batchtopk = config["crosscoders"]["l1"], config["crosscoders"]["batchtopk"]
    assert (l1["dict_size"], l1["mu"], l1["target_l0"], l1["dead_after_tokens"]) == (8 * 640, "auto", 50, dead)
    assert (batchtopk["dict_size"], batchtopk["k"], batchtopk["aux_k"]) == (8 * 640, 50, 512)
    assert (batchtopk["threshold_start"], batchtopk["dead_after_tokens"]) == (training["steps"] // 3, dead)
    assert (config["causal"]["reference"], config["causal"]["set_size"]) == ("l1", None)
    assert config["causal"]["batch_size"] == config["evaluation"]["batch_size"] == 1  # 1,024 × 262,144 × 4 B = 1 GiB
    assert set(derived) >= {"models.layer", "tokens.budgets.train", "crosscoders.l1.dict_size", "conversations.count"}


def keys(config: dict[str, Any]) -> dict[str, str]:
    built = Graph(checked(config).config, SHIPPED)
    return {path: artifact.key for path, artifact in built.artifacts.items()}


def test_derived_values_written_out_give_the_same_keys(own: dict[str, Any]) -> None:
    derived, before = checked(own).derived, keys(own)

    def written(names: list[str]) -> dict[str, Any]:
        config = copy.deepcopy(own)
        for name in names:
            *parents, last = name.split(".")
            node = config
            for step in parents:
                node = node.setdefault(step, {})
            node[last] = copy.deepcopy(derived[name])
            if name.startswith("crosscoders."):  # a crosscoder is written with its kind, and then all of them are
                for kind in ("l1", "batchtopk"):
                    config["crosscoders"].setdefault(kind, {})["kind"] = kind
        return config

    assert keys(written(list(derived))) == before
    assert checked(written(list(derived))).derived == {}
    for name in derived:
        assert keys(written([name])) == before, name
    changed = written(["training.steps"])
    changed["training"]["steps"] += 1
    assert keys(changed) != before


def test_configs_of_the_project_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> str:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    for name in ("gemma2-2b", "gemma2-2b-published", "gemma3-270m", "llama32-1b"):
        config = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
        layer = config["models"].pop("layer")
        assert checked(config).config["models"]["layer"] == layer
        width = {"gemma2-2b": 2304, "gemma3-270m": 640, "llama32-1b": 2048}.get(name)
        if width is not None:
            factor = 8 if name == "gemma3-270m" else 32  # 2 M train tokens, or 100 M
            for own in config["crosscoders"].values():
                size = own.pop("dict_size")
                assert size == factor * width
            assert {own["dict_size"] for own in checked(config).config["crosscoders"].values()} == {size}


# -- models ------------------------------------------------------------------------------------------------------------


def test_config_json_is_read_from_the_cache_then_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": {"num_hidden_layers": 34, "hidden_size": 2560}}))
    asked: list[tuple[str, str | None]] = []

    def cached(model: str, file: str, revision: str | None = None) -> str | None:
        return str(path) if model == "some/cached" else None

    def fetched(model: str, file: str, revision: str | None = None, **options: Any) -> str:
        asked.append((model, revision))
        if model == "some/gone":
            raise OSError("404")
        return str(path)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    shape = {"num_hidden_layers": 34, "hidden_size": 2560}
    assert model_config({"base": "some/cached"}, SHIPPED) == shape and not asked
    assert model_config({"base": "some/model", "base_revision": "v2"}, SHIPPED) == shape
    adapted = {"base": {"base": "some/other", "adapter": "some/adapter", "base_revision": "v3", "revision": "v4"}}
    assert model_config(adapted, SHIPPED) == shape
    assert asked == [("some/model", "v2"), ("some/other", "v3")]
    assert model_config({"base": "some/model"}, SHIPPED, fetch=False) is None and len(asked) == 2
    assert model_config({"base": "some/gone"}, SHIPPED) is None

    config = yaml.safe_load((ROOT / "config/gemma2-2b.yaml").read_text())
    config["models"] = {"base": "some/gone", "chat": "some/gone"}
    with pytest.raises(TunediffError, match=r"`models.layer` is missing.*some/gone.*write `models.layer`") as caught:
        checked(config)
    assert "\n" not in str(caught.value)


def test_shapes_of_the_demo_and_of_other_names(tmp_path: Path) -> None:
    own = json.loads((SHIPPED / "base/config.json").read_text())
    assert model_config({"base": "demo"}, SHIPPED) == own and own["num_hidden_layers"] == 6
    demo = {"retrain": True, "layers": 4, "d_model": 64}
    retrained = model_config({"base": "demo-base", "demo": demo}, SHIPPED)
    assert retrained is not None and (retrained["num_hidden_layers"], retrained["hidden_size"]) == (4, 64)
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 12, "n_embd": 768}))
    config = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    config["models"] = {"base": str(tmp_path), "chat": str(tmp_path)}
    del config["crosscoders"]["l1"]["dict_size"]
    config = checked(config).config
    assert (config["models"]["layer"], config["crosscoders"]["l1"]["dict_size"]) == (6, 8 * 768)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TunediffError, match="is not JSON"):
        model_config({"base": str(tmp_path)}, SHIPPED)


# -- texts -------------------------------------------------------------------------------------------------------------

MOST = {"train": 10**9, "validation": 10**9}
ASKED = {"answers": "generate", "max_prompt_tokens": 896}


def source(path: str, column: str, **more: Any) -> dict[str, Any]:
    return {"from": "local", "path": path, "column": column, "validation_path": None, "validation_share": 0.1} | more


def test_tokens_are_a_sixth_of_the_characters_at_most_max_length_and_copies_count_once(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [words(rng, n) for n in (60, 66, 71, 600, 6000)]
    spaced = "\n ".join(texts[3].upper().split(" "))  # a copy, to a reader
    write_jsonl(tmp_path / "a.jsonl", "text", [*texts, texts[0], spaced, " "])
    own = source(str(tmp_path / "a.jsonl"), "text", validation_share=0.5)
    found = survey(own, 200, MOST, 0, ASKED)
    reference: dict[str, int] = {"train": 0, "validation": 0}
    for text, tokens in zip(texts, (10, 11, 11, 100, 200), strict=True):
        row = next(d for d in documents(own, "train", 0, whole=True) if d.messages[0].content == text)
        reference["validation" if in_split(row, "validation", 0.5) else "train"] += tokens
    assert found.tokens == reference
    assert all(found.tokens.values()) and sum(found.tokens.values()) == 332


def test_reading_stops_at_the_cap(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [words(rng, 600) for _ in range(300)]
    path = tmp_path / "a.jsonl"
    write_jsonl(path, "text", rows)
    with path.open("a") as stream:
        stream.write("not JSON\n" * 100)  # an error, were they read
    own = source(str(path), "text", validation_share=0.5)
    assert survey(own, 1024, {"train": 5_000, "validation": 4_950}, 0, ASKED).tokens == {
        "train": 5_000,
        "validation": 4_950,
    }
    with pytest.raises(TunediffError, match="not JSON"):
        survey(own, 1024, MOST, 0, ASKED)


def test_compressed_files_and_files_for_validation(tmp_path: Path) -> None:
    rng = random.Random(3)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"text": words(rng, 600)}) + "\n" for _ in range(7))
    pq.write_table(pa.table({"text": [words(rng, 300) for _ in range(5)]}), tmp_path / "b.parquet")
    own = source(str(tmp_path / "*.gz"), "text", validation_path=str(tmp_path / "b.parquet"))
    assert survey(own, 1024, MOST, 0, ASKED).tokens == {"train": 700, "validation": 250}


def test_system_prompts_count_only_where_there_are_no_others(tmp_path: Path) -> None:
    rng = random.Random(4)
    plain, others = chat(rng, 600), [{"role": "system", "content": words(rng, 60)}, *chat(rng, 540)]
    write_jsonl(tmp_path / "mixed.jsonl", "messages", [plain, others])
    write_jsonl(tmp_path / "others.jsonl", "messages", [others])
    for name in ("mixed", "others"):
        own = source(str(tmp_path / f"{name}.jsonl"), "messages")
        assert sum(survey(own, 1024, MOST, 0, ASKED).tokens.values()) == 100


def test_requests_are_short_different_and_answered_where_asked(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "Who pays?"}, {"role": "assistant", "content": "You."}
    again = {"role": "user", "content": "WHO  pays?"}
    rows = [
        [user, answer],
        [again],  # the same request
        [{"role": "user", "content": "x" * 833}],  # 832 characters may be 832 tokens, and 64 go to the template
        [{"role": "user", "content": "y" * 832}],
        [{"role": "system", "content": "z"}, user],
    ]
    write_jsonl(tmp_path / "a.jsonl", "messages", rows)
    own = source(str(tmp_path / "a.jsonl"), "messages")
    assert survey(own, 1024, MOST, 512, ASKED, whole=True).requests == 2
    assert survey(own, 1024, MOST, 512, ASKED | {"answers": "given"}, whole=True).requests == 1


def test_conversations_of_their_own_file_are_all_used(own: dict[str, Any]) -> None:
    rng = random.Random(5)
    write_jsonl(Path("texts/requests.jsonl"), "request", [words(rng, 40) for _ in range(200)])
    asked = {"from": "local", "path": "texts/requests.jsonl", "column": "request"}
    assert checked(own | {"conversations": {"source": asked}}).config["conversations"]["count"] == 180
    write_jsonl(Path("texts/requests.jsonl"), "request", [words(rng, 40) for _ in range(2000)])
    assert checked(own | {"conversations": {"source": asked}}).config["conversations"]["count"] == 512
    write_jsonl(Path("texts/requests.jsonl"), "request", ["one"])
    with pytest.raises(TunediffError, match=r"`conversations.source` has 1 different requests"):
        checked(own | {"conversations": {"source": asked}})


def test_budgets_are_within_their_sources(
    own: dict[str, Any], tiny_pairs: Callable[[str], TinyPair], tmp_path: Path
) -> None:
    """Budgets from files with copies, long documents and system prompts are there when tokenised."""
    rng = random.Random(6)

    def prose() -> str:
        return " ".join(rng.choice(rng.choice(SENTENCES).split()) for _ in range(rng.randint(20, 400)))

    texts = [prose() for _ in range(200)]
    write_jsonl(Path("texts/web.jsonl"), "text", [*texts, *texts[:100]])
    turns = [[{"role": "user", "content": prose()}, {"role": "assistant", "content": prose()}] for _ in range(150)]
    system = [[{"role": "system", "content": "Be kind."}, *turn] for turn in turns[:50]]
    pq.write_table(pa.table({"messages": turns + system}), "texts/chat.parquet")
    pair = tiny_pairs("gemma2")
    own["models"] = {"base": str(pair.base), "chat": str(pair.chat)}
    config = checked(own).config
    tokens = config["tokens"]
    for split in ("train", "validation"):
        store = tokenize_split(
            tokens["sources"], tokens["budgets"][split], split, load_tokenizer(pair.chat), tokens["max_length"],
            0, 42, tmp_path / f"{split}.zarr", key="k",
        )  # fmt: skip
        assert store.n_tokens == sum(tokens["budgets"][split].values())


PRIMES = {"train": {"web": 1_000_003, "chat": 1_000_004}, "validation": {"web": 5_000, "chat": 5_000}}
TEXTS = {"from": "local", "path": "texts/web.jsonl", "column": "text"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens.sources.chat": TEXTS}, "`conversations.source` is missing"),
        ({"tokens.sources.web.column": "body"}, "`tokens.sources.web`.*no column 'body'"),
        ({"tokens.sources.web.path": "texts/empty.jsonl"}, "`tokens.sources.web`: no text for train"),
        ({"activations": {"shard_tokens": 65536}}, "about .* tokens for validation, less than a shard of 65536"),
        ({"tokens.budgets": PRIMES}, "common divisor up to 65536 is 1"),
        ({"tokens.budgets": {"train": {"web": 65536}}}, "give every source a budget"),
    ],
)
def test_what_cannot_be_derived_is_one_line(own: dict[str, Any], change: dict[str, Any], message: str) -> None:
    Path("texts/empty.jsonl").write_text("")
    for path, value in change.items():
        *parents, last = path.split(".")
        node = own
        for step in parents:
            node = node[step]
        node[last] = value
    with pytest.raises(TunediffError, match=message) as caught:
        checked(own)
    assert "\n" not in str(caught.value)


def test_planted_pairs_have_no_width_to_derive_from() -> None:
    config = yaml.safe_load((ROOT / "config/planted.yaml").read_text())
    steps, batch = config["training"].pop("steps"), config["training"]["batch_size"]
    derived = checked(config).config["training"]["steps"]
    assert derived == max(4 * 196_608 // batch, 1000) != steps
    del config["crosscoders"]
    with pytest.raises(TunediffError, match=r"`crosscoders.l1.dict_size` is missing.*planted"):
        checked(config)


def test_hub_sources_get_stated_budgets(own: dict[str, Any]) -> None:
    own["tokens"]["sources"] = {
        "web": {"from": "hub", "path": "some/web", "column": "text"},
        "chat": {"from": "hub", "path": "some/chats", "column": "conversation"},
    }
    config = checked(own).config
    assert config["tokens"]["budgets"] == {
        "train": {"web": 5_242_880, "chat": 5_242_880},
        "validation": {"web": 524_288, "chat": 524_288},
    }
    acts, training = config["activations"], config["training"]
    assert (acts["shard_tokens"], acts["chunk_tokens"], acts["part_tokens"]) == (65_536, 1_024, 1_048_576)
    assert (training["batch_size"], training["steps"], training["learning_rate"]) == (2_048, 10_240, 0.0003)
    assert config["conversations"]["source"]["path"] == "some/chats" and config["conversations"]["count"] == 512
    assert config["crosscoders"]["batchtopk"]["dead_after_tokens"] == 10_240 * 2_048 // 5


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation", "shard", "part"),
    [
        (10_485_760, 1_048_576, 65_536, 1_048_576),  # 10 parts
        (100_000_000, 10_000_000, 62_500, 6_250_000),  # 16 parts; 62,500 = 2² 5⁶ divides both
        (524_288, 131_072, 65_536, 131_072),  # 4 parts
        (131_072, 16_384, 16_384, 65_536),  # 2 parts of the least size
        (32_768, 8_192, 8_192, 32_768),  # one part of all
    ],
)
def test_layout(train: int, validation: int, shard: int, part: int) -> None:
    assert shard_size(train, validation) == shard
    assert part_size(train, shard) == part
    assert train % shard == validation % shard == part % shard == 0


def test_layout_respects_what_is_written() -> None:
    assert shard_size(120_000, 60_000, chunk=1_000) == 60_000
    assert shard_size(120_000, 60_000, chunk=1_000, part=40_000) == 20_000
    assert [largest_divisor(n, 1024) for n in (62_500, 65_536, 997, 2 * 997)] == [625, 1024, 997, 997]
    assert whole_shards({"a": 700, "b": 900, "c": 500}, 1000) == {"a": 700, "b": 800, "c": 500}
    assert whole_shards({"a": 70, "b": 90}, 100) == {"a": 70, "b": 30}


@pytest.mark.parametrize(
    ("train", "batch", "steps", "rate"),
    [
        (20_480, 256, 1_000, 0.002),  # 12.5 epochs: as many as make 1,000 steps
        (4_096, 256, 256, 0.002),  # no more than 16 epochs
        (262_144, 1_024, 1_024, 0.002),
        (524_288, 2_048, 1_024, 0.002),
        (6_000_000, 2_048, 5_859, 0.0003),  # two epochs
        (100_000_000, 2_048, 97_656, 0.0001),  # the paper's
    ],
)
def test_training(train: int, batch: int, steps: int, rate: float) -> None:
    config = yaml.safe_load((ROOT / "config/planted.yaml").read_text())
    config["planted"] |= {"train_tokens": train, "validation_tokens": train}
    config["activations"] = {"dtype": "float32"}
    config["training"] = {}
    for arm in config["planted"]["arms"].values():
        arm["document_tokens"] = 16 if train % 64 == 0 and train < 6e6 else 50
    training = checked(config).config["training"]
    assert (training["batch_size"], training["steps"], training["learning_rate"]) == (batch, steps, rate)
    assert training["warmup_steps"] == min(1_000, steps // 10)


def test_without_an_l1_crosscoder_the_sets_are_four_percent(own: dict[str, Any]) -> None:
    own["crosscoders"] = {"topk": {"kind": "batchtopk", "k": 20}}
    config = checked(own).config
    assert config["causal"]["set_size"] == round(0.04 * 5120) and config["causal"]["reference"] == "topk"
    own["crosscoders"] |= {"sparse": {"kind": "l1"}, "fixed": {"kind": "l1", "mu": 0.1}}
    config = checked(own).config
    assert (config["causal"]["set_size"], config["causal"]["reference"]) == (None, "sparse")
    assert config["crosscoders"]["sparse"]["target_l0"] == 20  # the same L0 as the other kind
    assert config["crosscoders"]["fixed"]["target_l0"] is None
