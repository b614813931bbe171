"""Merged adapters against W + s · B A by hand, and every adapter that does not fit refused in one line."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from helpers import FAMILIES, GEMMA_TEMPLATE, TinyPair, save_pair
from tunediff.config import check as configs
from tunediff.errors import TunediffError
from tunediff.models.adapters import merge_adapter
from tunediff.models.pair import load_pair, prepare_pair, verify_pair
from tunediff.pipeline.artifacts import check, manifest_path
from tunediff.pipeline.graph import Graph

ROOT = Path(__file__).resolve().parents[2]

TARGETS = ["q_proj", "v_proj", "down_proj"]
WEIGHTS = "adapter_model.safetensors"


def save_adapter(base: Path, out: Path, *, train: bool = True, config: Any = None, **settings: Any) -> Path:
    """Save an adapter of random, non-zero weights, as peft saves a trained one."""
    torch.manual_seed(5)
    config = config or LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": TARGETS, **settings})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if train and parameter.requires_grad:
                parameter += (0.05 if "lora_" in name else 0.01) * torch.randn(parameter.shape)
    model.save_pretrained(out)
    return out


def edit_weights(adapter: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    weights = load_file(adapter / WEIGHTS)
    change(weights)
    save_file(weights, adapter / WEIGHTS)
    return adapter


def edit_json(file: Path, **values: Any) -> Path:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return file.parent


def merge(
    base: Path, adapter: Path, out: Path, base_name: str = "the/base", adapter_name: str = "ada"
) -> dict[str, Any]:
    return merge_adapter(base, adapter, out, base_name=base_name, adapter_name=adapter_name)


def refused(base: Path, adapter: Path, match: str, base_name: str = "the/base") -> None:
    with pytest.raises(TunediffError, match=match) as caught:
        merge(base, adapter, adapter.parent / "refused", base_name)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)  # one line, with a remedy


def expected(base: Path, adapter: Path, scale: float) -> dict[str, Tensor]:
    """The reference: W + scale · B A for each pair in the adapter's file, every other weight as it is."""
    weights = {name: value.float() for name, value in load_file(base / "model.safetensors").items()}
    added = load_file(adapter / WEIGHTS)
    for name, a in added.items():
        if name.endswith("lora_A.weight"):
            target = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            weights[target] = weights[target] + scale * added[name.replace("lora_A", "lora_B")] @ a
    return weights


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45).view(2, 20), use_cache=False).logits


@pytest.fixture
def gemma(tiny_pairs) -> Path:
    return tiny_pairs("gemma2").base


@pytest.fixture
def adapter(gemma: Path, tmp_path: Path) -> Path:
    return save_adapter(gemma, tmp_path / "adapter")


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_are_those_by_hand(tiny_pairs, tmp_path: Path, family: str, rslora: bool) -> None:
    base = tiny_pairs(family).base
    adapter = save_adapter(base, tmp_path / "adapter", use_rslora=rslora)
    facts = merge(base, adapter, tmp_path / "merged")
    wanted = expected(base, adapter, 6 / (math.sqrt(3) if rslora else 3))
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert found.keys() == wanted.keys()
    original = load_file(base / "model.safetensors")
    for name, value in found.items():
        touched = any(f".{target}.weight" in name for target in TARGETS)
        assert torch.equal(value, original[name]) != touched, name
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-7)
    assert facts["tensors"] == 2 * 4 * len(TARGETS) and (facts["rank"], facts["alpha"]) == (3, 6)
    assert facts["dtype"] == "float32" and facts["own_base"] == str(base)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(beside), rtol=0, atol=1e-4)
    assert (logits(merged) - logits(plain)).abs().max() > 0.05
    assert facts["zeroed_against_base"] == 0.0 and facts["rounding_of_logits"] == 0.0
    assert facts["merged_against_adapter"] < 1e-5 and facts["effect_on_logits"] > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_is_merged_in_float32_and_kept_in_its_dtype(
    gemma: Path, adapter: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    half = tmp_path / "half"
    shutil.copytree(gemma, half)
    AutoModelForCausalLM.from_pretrained(gemma).to(dtype).save_pretrained(half)
    facts = merge(half, adapter, tmp_path / "merged")
    wanted = expected(half, adapter, 2)
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {dtype} and facts["dtype"] == str(dtype)[6:]
    differing = sum(int((value != wanted[name].to(dtype)).sum()) for name, value in found.items())
    assert differing <= 1e-3 * sum(
        value.numel() for value in found.values()
    )  # halves of a unit, summed in another order
    assert 0 < facts["rounding_of_logits"] < 0.1


def test_one_weight_for_both_ends_is_untied_where_only_one_end_changes(gemma: Path, tmp_path: Path) -> None:
    embeddings = load_file(gemma / "model.safetensors")["model.embed_tokens.weight"]
    head = save_adapter(gemma, tmp_path / "head", target_modules=[*TARGETS, "lm_head"])
    merge(gemma, head, tmp_path / "with-head")
    weights = load_file(head / WEIGHTS)
    added = 2 * weights["base_model.model.lm_head.lora_B.weight"] @ weights["base_model.model.lm_head.lora_A.weight"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "with-head")
    torch.testing.assert_close(model.lm_head.weight.detach(), embeddings + added, rtol=1e-5, atol=1e-7)
    assert torch.equal(model.model.embed_tokens.weight, embeddings)

    words = save_adapter(gemma, tmp_path / "words", modules_to_save=["embed_tokens"])
    merge(gemma, words, tmp_path / "with-words")
    trained = load_file(words / WEIGHTS)["base_model.model.model.embed_tokens.weight"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "with-words")
    assert torch.equal(model.model.embed_tokens.weight, trained) and not torch.equal(trained, embeddings)
    assert torch.equal(model.lm_head.weight, embeddings)


def test_trained_biases_and_modules_are_part_of_the_adapter(tiny_pairs, tmp_path: Path) -> None:
    base = tiny_pairs("qwen2").base
    adapter = save_adapter(base, tmp_path / "adapter", bias="lora_only", modules_to_save=["norm", "o_proj"])
    facts = merge(base, adapter, tmp_path / "merged")
    found, weights = load_file(tmp_path / "merged" / "model.safetensors"), load_file(adapter / WEIGHTS)
    original = load_file(base / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.2.self_attn.o_proj.weight"):
        assert torch.equal(found[name], weights[f"base_model.model.{name}"])
        assert not torch.equal(found[name], original[name])
    bias = "model.layers.1.self_attn.q_proj.bias"
    stored = next(value for name, value in weights.items() if "layers.1.self_attn.q_proj" in name and "bias" in name)
    assert torch.equal(found[bias], stored) and not torch.equal(stored, original[bias])
    assert facts["zeroed_against_base"] == 0.0


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_adapters_that_change_more_than_they_add_are_refused(gemma: Path, tmp_path: Path, settings: dict) -> None:
    refused(gemma, save_adapter(gemma, tmp_path / "adapter", **settings), "zeroed the logits are not the base's")


def test_an_adapter_of_another_base_is_refused(gemma: Path, adapter: Path, tmp_path: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="the/other")
    refused(gemma, adapter, "trained on the/other, the config gives base the/base; write `base: the/other`")
    merge(gemma, adapter, tmp_path / "same", base_name="the/other")
    merge(gemma, adapter, tmp_path / "directory", base_name=str(gemma))  # a copy: tensors decide
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert merge(gemma, adapter, tmp_path / "unsaid")["own_base"] is None

    q_proj = r"layers\.0\.self_attn\.q_proj.*\[3, 32\].*\[3, 48\]"
    refused(save_pair(tmp_path / "wide", "gemma2", d_model=48).base, adapter, rf"size mismatch.*{q_proj}.*not the base")
    refused(save_pair(tmp_path / "deep", "gemma2", layers=5).base, adapter, r"lacks .*layers\.4\..*lora_")
    refused(save_pair(tmp_path / "flat", "gemma2", layers=3).base, adapter, r"unknown tensor .*layers\.3\..*lora_")
    edit_json(adapter / "adapter_config.json", target_modules=["qkv"])
    refused(gemma, adapter, "does not fit .*qkv")


def test_incomplete_and_broken_adapters_are_refused(gemma: Path, adapter: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(adapter, tmp_path / name)

    key = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"
    refused(gemma, edit_weights(copy("short"), lambda w: w.pop(key)), r"lacks .*layers\.2\.mlp\.down_proj\.lora_B")
    for value in (float("nan"), float("inf")):
        broken = edit_weights(copy(f"broken {value}"), lambda w, v=value: w[key].view(-1)[3:4].fill_(v))
        refused(gemma, broken, r"adapter ada: tensor .*layers\.2\.mlp\.down_proj\.lora_B\.weight .*not finite")
    overflowing = edit_weights(copy("overflowing"), lambda w: w[key].fill_(3e38))
    refused(gemma, overflowing, r"adapter ada on the/base: tensor of its logits .*not finite")
    huge = edit_weights(copy("huge"), lambda w: [w[k].fill_(3e38) for k in (key, key.replace("lora_B", "lora_A"))])
    refused(gemma, huge, r"merged: tensor model\.layers\.2\.mlp\.down_proj\.weight .*not finite")
    (copy("torn") / WEIGHTS).write_bytes(b"torn")
    refused(gemma, tmp_path / "torn", "adapter_model.safetensors is damaged")
    refused(gemma, save_adapter(gemma, tmp_path / "untrained", train=False), "changes no logit")
    pickled = copy("pickled")
    torch.save(load_file(pickled / WEIGHTS), pickled / "adapter_model.bin")
    (pickled / WEIGHTS).unlink()
    refused(gemma, pickled, r"has no adapter_model\.safetensors; pickled weights \(adapter_model\.bin\) are not read")
    refused(gemma, gemma, r"has no adapter_config\.json")
    ia3 = IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"])
    refused(gemma, save_adapter(gemma, tmp_path / "ia3", config=ia3), "of type .*IA3, only LORA")
    later = edit_json(copy("later") / "adapter_config.json", use_something_new=True, unused_default=7)
    refused(gemma, later, "`use_something_new` is of a later peft")
    (copy("no json") / "adapter_config.json").write_text("{")
    refused(gemma, tmp_path / "no json", r"cannot read adapter_config\.json")


def test_bases_that_cannot_be_merged_into_are_refused(gemma: Path, adapter: Path, tmp_path: Path) -> None:
    quantised = shutil.copytree(gemma, tmp_path / "quantised")
    edit_json(quantised / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(quantised, adapter, "the/base: is quantised")
    broken = shutil.copytree(gemma, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    refused(broken, adapter, r"the/base: weights are not finite in float32: model\.layers\.1\.mlp\.up_proj\.weight")
    half = shutil.copytree(gemma, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(gemma).to(torch.float16).save_pretrained(half)
    small = edit_weights(shutil.copytree(adapter, tmp_path / "small"), lambda w: [v.mul_(1e-3) for v in w.values()])
    merge(gemma, small, tmp_path / "merged")
    refused(half, small, r"lost in torch\.float16")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    huge = edit_weights(adapter, lambda w: [w[f"{key}{side}.weight"].fill_(300.0) for side in "AB"])
    refused(half, huge, r"merged in torch\.float16: tensor model\.layers\.0\.self_attn\.q_proj\.weight")


def test_what_is_merged_and_saved_is_checked(gemma: Path, adapter: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "merge_and_unload", lambda self: self.base_model.unload(), raising=False)
        refused(gemma, adapter, "merged weights give other logits than the adapter beside the base")
    saves = PreTrainedModel.save_pretrained

    def save_other(self: PreTrainedModel, out: Path) -> None:
        self.model.norm.weight.data += 1
        saves(self, out)
        self.model.norm.weight.data -= 1

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_other)
    refused(gemma, adapter, r"model\.norm\.weight is not saved as merged")


def test_base_and_adapter_of_the_hub_have_revisions_of_their_own(gemma, adapter, tmp_path: Path, monkeypatch) -> None:
    asked = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked[name] = revision
        commit = tmp_path / name / f"commit-of-{revision}"
        shutil.copytree(gemma if name == "the/base" else adapter, commit)
        return str(commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="the/base")
    chat = {"base": "the/base", "adapter": "the/adapter", "revision": "v1", "base_revision": "v2"}
    facts = prepare_pair({"base": str(gemma), "chat": chat}, Path("unused"), tmp_path / "models", key="k")
    assert asked == {"the/base": "v2", "the/adapter": "v1"}
    assert facts["chat"] == "the/base with adapter the/adapter" and facts["chat_revision"] is None
    merged = facts["chat_adapter"]
    assert (merged["base_revision"], merged["revision"]) == ("commit-of-v2", "commit-of-v1")
    assert (merged["base"], merged["adapter"], merged["own_base"]) == ("the/base", "the/adapter", "the/base")
    assert Path(load_pair(tmp_path / "models", 1, "float32").chat) == tmp_path / "models" / "chat"


def test_a_pair_with_an_adapter_is_an_ordinary_pair(gemma: Path, adapter: Path, tmp_path: Path) -> None:
    settings = {"base": str(gemma), "chat": {"base": str(gemma), "adapter": str(adapter)}}
    out = tmp_path / "results" / "models"
    facts = prepare_pair(settings, Path("unused"), out, key="k")
    assert (facts["base_inside"], facts["chat_inside"]) == (False, True)
    assert facts["base_adapter"] is None and facts["chat_adapter"]["adapter"] == str(adapter)
    assert facts["chat_adapter"]["zeroed_against_base"] == 0.0
    assert check(out, "models", "k").facts == facts
    assert json.loads((out / "pair.json").read_text()) == facts

    pair = load_pair(out, 1, "float32", key="k")
    verify_pair(pair, "cpu", tmp_path / "hooks.json", key="h")
    ids = torch.arange(5, 45).view(2, 20)
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gemma), adapter).eval()
    with torch.no_grad():
        wanted = beside(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[2]
    torch.testing.assert_close(pair.load_chat("cpu").residual(ids), wanted, rtol=0, atol=1e-5)
    assert (pair.load_base("cpu").residual(ids) - wanted).abs().max() > 0.01
    assert pair.load_tokenizer().chat_template == GEMMA_TEMPLATE

    first = manifest_path(out).read_text()
    prepare_pair(settings, Path("unused"), out, key="k")
    assert manifest_path(out).read_text() == first
    twice = {"base": settings["chat"], "chat": settings["chat"]}
    prepare_pair(twice, Path("unused"), out, key="k")
    same = load_pair(out, 1, "float32")
    assert torch.equal(same.load_base("cpu").residual(ids), same.load_chat("cpu").residual(ids))


def test_the_chat_template_comes_from_adapter_or_base(tiny_pairs, adapter: Path, tmp_path: Path) -> None:
    pair: TinyPair = tiny_pairs("gemma2")
    silent = shutil.copytree(pair.base, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    settings = {"base": str(silent), "chat": {"base": str(silent), "adapter": str(adapter)}}
    out = tmp_path / "models"
    with pytest.raises(TunediffError, match=r"silent with adapter .*/adapter: .*no chat template") as caught:
        prepare_pair(settings, Path("unused"), out, key="k")
    assert "partial" not in str(caught.value) and not out.exists() and not list(tmp_path.glob(".*partial"))
    (adapter / "chat_template.jinja").write_text("{{ 'alone' }}")
    prepare_pair(settings, Path("unused"), out, key="k")
    assert load_pair(out, 1, "float32").load_tokenizer().chat_template == "{{ 'alone' }}"
    pair.tokenizer.save_pretrained(adapter)
    prepare_pair(settings, Path("unused"), out, key="k")
    assert load_pair(out, 1, "float32").load_tokenizer().chat_template == GEMMA_TEMPLATE


def config_with(base: Any, chat: Any, **models: Any) -> dict[str, Any]:
    """The demo's config with another pair."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["nulls"] = {}
    config["models"] = {"base": base, "chat": chat, "layer": 1, **models}
    return config


def test_a_config_names_adapters_and_their_files_move_the_keys(gemma: Path, adapter: Path) -> None:
    chat = {"base": str(gemma), "adapter": str(adapter)}
    config = config_with("some/base", chat)
    config["nulls"]["twice"] = {"base": chat, "chat": chat}
    checked = configs.check(config)
    assert checked["models"]["chat"] == {**chat, "revision": None, "base_revision": None}
    paths = configs.fingerprinted_paths(checked)
    keys = {"models.chat", "nulls.twice.base", "nulls.twice.chat"}
    assert {name for name in paths if not name.startswith("source")} == {
        f"{key}.{part}" for key in keys for part in ("base", "adapter")
    }
    assert set(paths["models.chat.adapter"]) == {path for path in adapter.iterdir() if path.is_file()}
    assert gemma / "model.safetensors" in paths["models.chat.base"]

    def keys_of(config: dict) -> dict[str, str]:
        built = Graph(configs.check(config), ROOT / "resources/demo-pair")
        return {path: artifact.key for path, artifact in built.artifacts.items()}

    before = keys_of(config)
    revised = keys_of({**config, "models": {**config["models"], "chat": {**chat, "revision": "abc"}}})
    edit_weights(adapter, lambda w: next(iter(w.values())).view(-1)[:1].add_(1))
    after = keys_of(config)
    for name in ("models", "hooks", "tokens/train", "activations/train/part-000", "figures/fig4"):
        assert before[name] != after[name] and before[name] != revised[name], name
    assert before["nulls/twice/models"] != after["nulls/twice/models"]


@pytest.mark.parametrize(
    ("chat", "models", "parts"),
    [
        ({"base": "a/b"}, {}, ["`models.chat.adapter` is missing", "written by peft"]),
        ({"base": "a/b", "adaptor": "c/d"}, {}, ["unknown key `models.chat.adaptor`", "did you mean `adapter`"]),
        ({"base": "a/b", "adapter": 3}, {}, ["`models.chat.adapter` must be text, not 3"]),
        ({"base": "a/b", "adapter": "./nowhere"}, {}, ["`models.chat.adapter`: nowhere", "no adapter_config.json"]),
        ({"base": "./nowhere", "adapter": "c/d"}, {}, ["`models.chat.base`: nowhere", "no config.json"]),
        ({"base": "demo", "adapter": "c/d"}, {}, ["`models.chat.base`", "take no adapter"]),
        ({"base": "a/b", "adapter": "c/d"}, {"chat_revision": "x"}, ["`models.chat_revision` has no effect"]),
        (3, {}, ["`models.chat` must be text or a mapping, not 3"]),
    ],
)
def test_mistakes_in_a_config_are_told_in_one_line(chat: Any, models: dict, parts: list[str]) -> None:
    with pytest.raises(TunediffError) as caught:
        configs.check(config_with("a/b", chat, **models))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
