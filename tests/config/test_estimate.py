"""Estimates: parameters against published counts, memory and disk by hand, warnings where things do not fit."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from tunediff.config.check import complete
from tunediff.config.derive import KNOWN_MODELS, NUMBERS
from tunediff.config.estimate import (
    MB,
    Rates,
    Setting,
    Work,
    calibrate,
    disk_bytes,
    interventions,
    memory_mb,
    model_shape,
    parameters,
    report,
    setting,
    stages,
    warnings,
)
from tunediff.config.settings import CausalSettings

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "resources/demo-pair"


def run_of(name: str, *changes: tuple[str, Any]) -> Setting:
    config = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    for path, value in changes:
        *parents, last = path.split(".")
        node = config
        for step in parents:
            node = node.setdefault(step, {})
        node[last] = value
    return setting(complete(config, SHIPPED).config, SHIPPED, fetch=False)


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("google/gemma-2-2b", 2_614_341_888),
        ("google/gemma-3-270m", 268_098_176),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
    ],
)
def test_parameters_of_known_models(model: str, published: int) -> None:
    shape = model_shape(dict(zip(NUMBERS, KNOWN_MODELS[model], strict=True)), 9)
    assert shape.parameters == pytest.approx(published, rel=1e-4)  # the norms differ between families


def test_parameters_of_the_shipped_pair_and_of_its_lower_half() -> None:
    with safe_open(SHIPPED / "base/model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    shape = model_shape(json.loads((SHIPPED / "base/config.json").read_text()), 3)
    assert shape.parameters == sum(sizes.values())
    lower = [n for name, n in sizes.items() if not any(f".layers.{i}." in name for i in (4, 5))]
    assert shape.lower == sum(lower)
    block = sum(n for name, n in sizes.items() if ".layers.0." in name)
    assert shape.flops(0, 4) == 8 * block
    assert shape.flops(4, 6, logits=True) == 4 * block + 2 * 1319 * 128


def test_untied_output_matrix_and_experts_count() -> None:
    config = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 10,
    }
    block = 4 * 8 * 8 + 3 * 8 * 16 + 4 * 8
    assert model_shape(config, 0).parameters == 2 * block + 10 * 8 + 8
    assert model_shape(config | {"tie_word_embeddings": False}, 0).parameters == 2 * block + 2 * 10 * 8 + 8
    assert model_shape(config | {"num_local_experts": 4}, 0).block == block + 3 * 3 * 8 * 16


def test_a_model_out_of_reach_is_taken_as_a_large_one_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments, **options: None)
    config = yaml.safe_load((ROOT / "config/gemma2-2b.yaml").read_text())
    config["models"] |= {"base": "some/model", "chat": "some/model-it"}
    run = setting(complete(config, SHIPPED).config, SHIPPED, fetch=False)
    assert not run.known and run.shape.parameters == pytest.approx(8.03e9, rel=1e-3)
    assert any("no config.json of some/model in reach" in text for text in warnings(run))


# -- memory and disk ---------------------------------------------------------------------------------------------------


def test_memory_of_training_by_hand() -> None:
    run = run_of("gemma2-2b")
    states = 16 * (4 * 2304 * 73_728 + 73_728 + 2 * 2304)  # weights, gradients and two moments of one dictionary
    batch = 2_048 * (16 * 73_728 + 5 * 2 * 4 * 2_304)  # four float32 arrays of all latents, five batches in memory
    pool = 2 * 256 * 1_000 * 2 * 2_304 * 2  # two pools of 256 chunks of 1,000 tokens, bfloat16
    assert memory_mb(run)["train"] == pytest.approx(1.15 * (500 * MB + states + batch + pool) / MB, abs=100)
    assert memory_mb(run)["train"] > 11_000
    three = run_of("gemma2-2b", ("training.seeds", [0, 1, 2]))
    assert memory_mb(three)["train"] == memory_mb(run)["train"]  # a job each
    decoder = 8 * 2304 * 73_728  # of a seed; beside three, a whole dictionary as it is read
    assert memory_mb(three)["seeds"] == pytest.approx(1.15 * (500 + 600 + 5 * decoder / MB), rel=0.01)
    eight = run_of("gemma2-2b", ("training.devices", 8))  # states once, batches and pools each, and a copy at the end
    more = 7 * (500 * MB + 2_048 * 5 * 2 * 4 * 2_304 + pool) + states / 4
    assert memory_mb(eight)["train"] - memory_mb(run)["train"] == pytest.approx(1.15 * more / MB, abs=100)


def test_memory_of_models_by_hand() -> None:
    run = run_of("gemma2-2b")
    weights, tokenizer = 2 * 2_614_341_888, 1_400 * 256_000
    lower = 2 * (14 * 77_865_984 + 256_000 * 2304 + 2304)
    assert memory_mb(run)["hooks"] == pytest.approx(1.15 * (500 * MB + weights + tokenizer) / MB, rel=0.02)
    forward = 2 * 32_768 * (3 * 9_216 + 6 * 2_304)
    window = 2 * 2_304 * 2 * 1_000_000  # a part is larger than what is held: 4 GiB
    assert window > 4 << 30
    shards = 8 * 50_000 * 2_304 * 2
    harvest = 500 * MB + weights + lower + 2 * tokenizer + forward + (4 << 30) + shards
    assert memory_mb(run)["activations"] == pytest.approx(1.15 * harvest / MB, abs=100)


def test_memory_asked_is_what_was_measured_on_the_smallest_real_pair() -> None:
    """Largest resident sizes of jobs on Gemma 3 270M in float32, with parts of 65,536 tokens, from their benchmarks."""
    run = run_of("gemma3-270m", ("activations.part_tokens", 65_536))
    for job, measured in (("hooks", 1_954), ("activations", 4_079), ("tokens", 848), ("models", 1_064)):
        assert measured <= memory_mb(run)[job] <= 1.5 * measured, job
    assert max(memory_mb(run).values()) < 12_000


def test_memory_asked_is_what_was_measured_on_the_demo() -> None:
    """Largest resident sizes (MB) of its jobs, from their benchmarks; of KL since its sums lie in one block."""
    measured = {
        **{"models": 475, "hooks": 500, "tokens": 507, "conversations": 536, "activations": 840, "train": 725},
        **{"latents": 493, "evaluation": 665, "examples": 1136, "losses": 898, "concepts": 634, "causal": 926},
        **{"steering": 823, "explanations": 857, "report": 835},
    }
    asked = memory_mb(run_of("config"))
    for job, resident in measured.items():
        assert resident <= asked[job] <= 2.5 * resident, job


def test_the_demo_stays_small() -> None:
    assert max(memory_mb(run_of("config")).values()) <= 2_500
    assert max(memory_mb(run_of("planted")).values()) <= 2_000


def test_an_adapter_asks_for_its_merge() -> None:
    adapted = {"base": "google/gemma-3-270m", "adapter": "some/adapter"}
    plain, merged = run_of("gemma3-270m"), run_of("gemma3-270m", ("models.chat", adapted))
    more = memory_mb(merged)["models"] - memory_mb(plain)["models"]
    assert more == pytest.approx(1.15 * 3 * 4 * 268_098_176 / MB, abs=200)


def test_disk_by_hand() -> None:
    run, size = run_of("gemma2-2b"), 4 * 2304 * 73_728 + 73_728 + 2 * 2304
    assert parameters(2304, 73_728) == size
    assert disk_bytes(run) == {
        "activations": 110_000_000 * (2 * 2304 * 2 + 22),
        "tokens": 110_000_000 * 21,
        "dictionaries": 2 * 4 * size,
        "checkpoints": 2 * 12 * size,
    }
    published = disk_bytes(run_of("gemma2-2b-published"))
    assert (published["dictionaries"], published["checkpoints"]) == (2 * 4 * size, 0)
    blosc = disk_bytes(run_of("gemma2-2b", ("activations.codec", "blosc")))
    assert blosc["activations"] == pytest.approx(110e6 * (2 / 3 * 2 * 2304 * 2 + 22))
    sizes = [round(factor * 144) for factor in (1, 1, 0.5, 4, 1)]  # arms, each with five seeds
    assert disk_bytes(run_of("planted"))["dictionaries"] == 5 * 2 * 4 * sum(parameters(96, n) for n in sizes)


# -- time --------------------------------------------------------------------------------------------------------------


def test_work_by_hand() -> None:
    run = run_of("gemma2-2b")
    work = stages(run, 100)
    product = 4 * 2304 * 73_728  # operations of one encoder product, a token
    tokens = 97_656 * 2048
    assert work["training"].dictionary == (2 + 4) * product * tokens
    assert work["training"].traffic == 2 * 28 * parameters(2304, 73_728) * 97_656
    assert work["latent tables"].dictionary == 2 * 2 * product * (50e6 + 10e6)
    assert work["activations"].model == 110e6 * 2 * 2 * 14 * run.shape.block
    assert work["starts of jobs"].seconds == 400
    assert Rates(2.0, 5.0, 10.0).seconds(Work(4, 10, 30, 7)) == 2 + 2 + 3 + 7


def test_several_gpus_share_the_training_and_nothing_else() -> None:
    one, eight = (run_of("gemma2-2b", ("models.device", "cuda"), ("training.devices", n)) for n in (1, 8))
    alone, shared = stages(one, 100), stages(eight, 100)
    for done in ("dictionary", "traffic"):
        assert getattr(shared["training"], done) == getattr(alone["training"], done) / 8
    assert shared["training"].seconds == alone["training"].seconds
    assert {name: work for name, work in shared.items() if name != "training"} == {
        name: work for name, work in alone.items() if name != "training"
    }
    assert "on an H100, 8 in training, about" in " ".join(report(eight, {}, 100, 2).split())
    on_cpu = run_of("gemma2-2b", ("models.device", "cpu"), ("training.devices", 8))
    assert stages(on_cpu, 100)["training"] == alone["training"]


def test_interventions_are_those_of_the_experiment() -> None:
    """Per crosscoder: All, Error, three rankings' halves, four additive, four matched, reversed, random, curves."""
    defaults = CausalSettings()
    config = {
        "causal": {
            "include_bias": False,
            "random_sets": defaults.random_sets,
            "random_orders": defaults.random_orders,
            "curve_energies": defaults.curve_energies,
        }
    }
    own = 2 + 3 * 2 + 4 + 4 + 1 + 3 * 5 + (3 + 3) * 6
    assert interventions(config, 2) == 3 + 2 * own
    config["causal"]["include_bias"] = True
    assert interventions(config, 1) == 3 + own + 1


def test_calibration_is_short_and_scales_with_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunediff.config.estimate.usable_cores", lambda: 2)
    monkeypatch.setattr("tunediff.config.estimate.slow_in", lambda dtype: dtype == "bfloat16")
    rates = calibrate(2, "float32", seconds=0.02)
    assert rates.dictionary > 1e8 and rates.traffic > 1e7
    assert rates.model == pytest.approx(0.5 * rates.dictionary)
    half = calibrate(2, "bfloat16", seconds=0.02)
    assert half.model == pytest.approx(half.dictionary / 14)


# -- warnings and report -----------------------------------------------------------------------------------------------


def small(steps: int) -> Setting:
    """The paper's steps on 40,000 tokens."""
    budgets = {"train": {"web": 20_000, "chat": 20_000}, "validation": {"web": 4_000, "chat": 4_000}}
    layout = {"chunk_tokens": 1_000, "shard_tokens": 8_000, "part_tokens": 8_000}
    changes = [("tokens.budgets", budgets), ("training.steps", steps), ("models.dtype", "float32")]
    return run_of("config", *changes, *((f"activations.{name}", n) for name, n in layout.items()))


def test_steps_that_do_not_fit_the_tokens_warn() -> None:
    (text,) = warnings(small(97_656))
    assert "97,656 steps of 2,048 read the 40,000 train tokens 5,000 times" in text and "to 78 (4 epochs)" in text
    (text,) = warnings(small(10))
    assert "read only 51 % of the 40,000 train tokens" in text and "to 20 (1 epoch)" in text
    assert warnings(small(20)) == warnings(small(390)) == []  # 1.02 and 19.97 epochs


def test_a_full_disk_warns_unless_the_files_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small(100)
    run = run._replace(config={**run.config, "results": str(tmp_path / "new/results")})
    need = sum(disk_bytes(run).values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
    (text,) = warnings(run)
    assert "of disk are needed" in text and str(tmp_path) in text
    (tmp_path / "new/results/part").mkdir(parents=True)
    (tmp_path / "new/results/part/file").write_bytes(b"12")
    assert warnings(run) == []


def test_slow_dtype_warns_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunediff.config.estimate.slow_in", lambda dtype: dtype == "bfloat16")
    for device, warned in (("cpu", True), ("cuda", False)):
        run = run_of("config", ("models.dtype", "bfloat16"), ("models.device", device))
        assert any("write `models.dtype: float32`" in text for text in warnings(run)) == warned


@pytest.mark.parametrize("name", ["config", "planted", "gemma2-2b", "gemma2-2b-published", "gemma3-270m", "llama32-1b"])
def test_report_is_short(name: str) -> None:
    config, derived = complete(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()), SHIPPED)
    before = copy.deepcopy(config)
    run = setting(config, SHIPPED, fetch=False)
    lines = report(run, derived, 40, 2).splitlines()
    assert len(lines) <= 15 and max(map(len, lines)) <= 118
    text = " ".join(" ".join(lines).split())
    for part in (" tokens ", " disk ", " memory ", " time ", " all "):
        assert part in text
    for key, value in derived.items():
        if isinstance(value, int) and not isinstance(value, bool):
            assert f"{key.rpartition('.')[2]} {value:,}" in text
    assert config == before
