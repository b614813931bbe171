"""Weights that are missing, unknown, misshapen or not finite end the load with their names; tied ones do not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from helpers import TinyPair
from tunediff.errors import TunediffError
from tunediff.models.hooks import verify_hooks
from tunediff.models.pair import prepare_pair
from tunediff.models.residual import ResidualModel
from tunediff.models.weights import load_model

BLOCK = "model.layers.2.mlp.down_proj.weight"  # above the layer that is read


def edited(model: Path, out: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Copy a model's directory and change its weights."""
    shutil.copytree(model, out)
    weights = load_file(out / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


def refused(path: Path, match: str) -> None:
    for upper in (True, False):
        with pytest.raises(TunediffError, match=match) as caught:
            ResidualModel.load(path, 1, upper=upper)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def fill(value: float) -> Callable[[dict[str, Tensor]], object]:
    def change(weights: dict[str, Tensor]) -> None:
        weights[BLOCK].view(-1)[7] = value

    return change


def test_a_missing_weight_is_named(tiny_pair: TinyPair, tmp_path: Path) -> None:
    refused(edited(tiny_pair.chat, tmp_path / "lacks", lambda w: w.pop(BLOCK)), f"weights are missing: {BLOCK};")
    more = tmp_path / "lacks more"
    edited(tiny_pair.chat, more, lambda w: [w.pop(name) for name in list(w) if ".layers.1." in name])
    refused(more, r"missing: model\.layers\.1\.\S+, model\.layers\.1\.\S+, model\.layers\.1\.\S+ and \d+ more;")


def test_an_unknown_weight_and_one_of_another_shape_are_named(tiny_pair: TinyPair, tmp_path: Path) -> None:
    unknown = edited(tiny_pair.chat, tmp_path / "more", lambda w: w.update({"value_head.weight": torch.zeros(2)}))
    refused(unknown, r"weights are unknown to \w+ForCausalLM: value_head\.weight;")
    small = edited(tiny_pair.chat, tmp_path / "small", lambda w: w.update({BLOCK: torch.zeros(3, 4)}))
    refused(small, rf"another shape than config\.json says: {BLOCK} \(\(3, 4\), not \(32, 48\)\);")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(tiny_pair: TinyPair, tmp_path: Path, value: float) -> None:
    refused(edited(tiny_pair.chat, tmp_path / "bad", fill(value)), f"weights are not finite in float32: {BLOCK};")


def test_a_weight_too_large_for_its_type_is_named(tiny_pair: TinyPair, tmp_path: Path) -> None:
    large = edited(tiny_pair.chat, tmp_path / "large", fill(1e6))
    assert load_model(large, torch.float32) is not None
    with pytest.raises(TunediffError, match=f"not finite in float16: {BLOCK};"):
        load_model(large, torch.float16)


def test_activations_that_are_not_finite_are_not_taken_for_an_unknown_architecture(
    tiny_pair: TinyPair, tmp_path: Path
) -> None:
    loud = edited(tiny_pair.chat, tmp_path / "loud", lambda w: w["model.layers.0.mlp.down_proj.weight"].mul_(1e38))
    with pytest.raises(TunediffError, match=r"residual stream is not finite in float32, though its weights are"):
        verify_hooks(ResidualModel.load(loud, 1))


SHAPE = {
    **{"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64},
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}


def gemma3() -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, sliding_window=16, query_pre_attn_scalar=8))


def tied_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))


def old_buffers(weights: dict[str, Tensor]) -> None:
    """Add the rotary frequencies of every Llama block, which transformers 4 saved once."""
    weights.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)})


@pytest.mark.parametrize("make", [gemma3, tied_llama])
def test_tied_weights_and_old_buffers_are_not_errors(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    made, paths = make(), [tmp_path / "new"]
    made.save_pretrained(paths[0])
    assert "lm_head.weight" not in load_file(paths[0] / "model.safetensors")  # tied: saved once
    if make is tied_llama:
        paths.append(edited(paths[0], tmp_path / "old", old_buffers))
    for path in paths:
        loaded = load_model(path, torch.float32).state_dict()
        assert all(torch.equal(loaded[name], weight) for name, weight in made.state_dict().items())


def test_pickled_weights_are_refused_with_the_remedy(tiny_pair: TinyPair, tmp_path: Path) -> None:
    pickled = shutil.copytree(tiny_pair.chat, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused(pickled, r"no weights in \*\.safetensors, and pickled ones .* save_pretrained$")
    for pair in ((pickled, tiny_pair.chat), (tiny_pair.base, pickled)):
        with pytest.raises(TunediffError, match=r"pickled: has no weights in \*\.safetensors"):
            prepare_pair(
                dict(zip(("base", "chat"), map(str, pair), strict=True)), tmp_path, tmp_path / "models", key="k"
            )


@pytest.mark.parametrize(
    ("file", "key", "value", "what"),
    [
        ("tokenizer_config.json", "", "x", "tokenizer"),
        ("config.json", "num_key_value_heads", [], "model"),
        ("config.json", "num_attention_heads", 0, "model"),
    ],
)
def test_whatever_a_damaged_directory_makes_libraries_raise_is_one_line(
    tiny_pair: TinyPair, tmp_path: Path, file: str, key: str, value: object, what: str
) -> None:
    model = shutil.copytree(tiny_pair.chat, tmp_path / "model")
    own = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**own, key: value} if key else value))
    with pytest.raises(TunediffError, match=f"cannot read the {what} \\(") as caught:
        prepare_pair({"base": str(tiny_pair.base), "chat": str(model)}, Path("unused"), tmp_path / "out", key="k")
        load_model(model, torch.float32)
    assert str(caught.value).startswith(f"{model}: ") and "\n" not in str(caught.value)
