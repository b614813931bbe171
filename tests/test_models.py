"""Residuals and continued logits against plain hooks and `output_hidden_states`, for three architectures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers import TinyPair
from tunediff.errors import TunediffError
from tunediff.models import (
    DemoModels,
    ResidualModel,
    find_blocks,
    load_pair,
    load_tokenizers,
    prepare_pair,
    replace_tokens,
    verify_hooks,
)

LAYER = 1


def padded_batch(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, vocab, (3, 30), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    mask[2, 7:] = 0
    return ids, mask


def hooked(model, ids, mask, patch=None):
    """The reference: plain forward hooks; returns (residual after LAYER, logits), the residual patched if asked."""
    seen = []

    def hook(module, inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)
        return patch if patch is not None else output

    handle = model.model.layers[LAYER].register_forward_hook(hook)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    handle.remove()
    return seen[0], logits


def test_residual_and_logits_equal_plain_hooks(tiny_pair: TinyPair) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_pair.chat).eval()
    model = ResidualModel.load(tiny_pair.chat, LAYER)
    ids, mask = padded_batch(model.vocab_size)
    real = mask.bool()
    reference, logits = hooked(plain, ids, mask)
    residual = model.residual(ids, mask)
    torch.testing.assert_close(residual[real], reference[real], rtol=0, atol=1e-6)
    with torch.no_grad():
        states = plain(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    torch.testing.assert_close(residual[real], states[LAYER + 1][real], rtol=0, atol=1e-6)

    positions = torch.tensor([2, 5, 6])
    own = model.logits_from(residual, ids, mask, positions)
    torch.testing.assert_close(own, logits[:, positions], rtol=0, atol=1e-5)
    patch = residual + 0.3 * torch.randn(residual.shape, generator=torch.Generator().manual_seed(5))
    _, patched = hooked(plain, ids, mask, patch)
    continued = model.logits_from(patch, ids, mask, positions)
    torch.testing.assert_close(continued, patched[:, positions], rtol=0, atol=1e-5)
    assert (continued - own).abs().max() > 0.05
    if tiny_pair.family == "gemma2":  # the final cap of 5 is applied
        huge = model.logits_from(100 * patch, ids, mask, positions)
        assert huge.abs().max() <= 5 and own.abs().max() <= 5


def test_lower_half_equals_whole_and_refuses_logits(tiny_pair: TinyPair) -> None:
    whole = ResidualModel.load(tiny_pair.base, LAYER)
    lower = ResidualModel.load(tiny_pair.base, LAYER, upper=False)
    ids, mask = padded_batch(whole.vocab_size)
    assert len(lower.model.model.layers) == LAYER + 1
    assert torch.equal(lower.residual(ids, mask)[mask.bool()], whole.residual(ids, mask)[mask.bool()])
    with pytest.raises(TunediffError, match="upper half"):
        lower.logits_from(whole.residual(ids, mask), ids, mask, torch.tensor([0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hook_verification_passes_and_has_teeth(tiny_pair: TinyPair, dtype: str, monkeypatch) -> None:
    model = ResidualModel.load(tiny_pair.chat, LAYER, dtype)
    facts = verify_hooks(model)
    assert facts["residual_against_hidden_states"] <= facts["tolerance"] and facts["effect_of_scaled_residual"] > 0
    original = ResidualModel.residual
    monkeypatch.setattr(ResidualModel, "residual", lambda *a: original(*a) * 1.1)
    with pytest.raises(TunediffError, match="residual_against_hidden_states"):
        verify_hooks(model)


def test_generation_is_greedy_and_unaffected_by_left_padding(tiny_pair: TinyPair) -> None:
    model = ResidualModel.load(tiny_pair.chat, LAYER)
    prompt = torch.tensor([[9, 8, 7, 6, 5]])
    ids = prompt.clone()
    for _ in range(6):  # the reference: argmax, token by token
        with torch.no_grad():
            ids = torch.cat([ids, model.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    batch = torch.cat([torch.zeros((1, 3), dtype=torch.long), prompt], 1).repeat(2, 1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8])
    assert model.generate(batch, mask, 6, [0])[0].tolist() == ids[0, 5:].tolist()


@pytest.mark.parametrize("layer", [-1, 3, 9])
def test_layer_must_be_read_by_another_block(tiny_pairs, layer: int) -> None:
    with pytest.raises(TunediffError, match="must be 0 to 2"):
        ResidualModel.load(tiny_pairs("gemma2").base, layer)


def test_replace_tokens_is_simultaneous_and_copies() -> None:
    ids = torch.tensor([1, 2, 3, 2])
    assert replace_tokens(ids, {2: 7, 3: 8}).tolist() == [1, 7, 8, 7]
    assert ids.tolist() == [1, 2, 3, 2]
    assert replace_tokens(ids, {2: 3, 3: 2}).tolist() == [1, 3, 2, 3]


def test_unsupported_structure_is_named() -> None:
    with pytest.raises(TunediffError, match="Linear: no list of 4 blocks"):
        find_blocks(torch.nn.Linear(2, 2), 4)


def test_prepare_pair_records_what_was_verified(prepared_models: Path, tiny_pairs) -> None:
    pair = load_pair(prepared_models)
    assert (pair.d_model, pair.n_layers, pair.layer, pair.dtype) == (32, 4, 1, "float32")
    assert pair.verification["chat"]["logits_from_own_residual"] <= 1e-5
    assert pair.vocab_size == len(tiny_pairs("gemma2").tokenizer)
    assert pair.load_base("cpu").layer == 1


def test_prepare_demo_copies_the_shipped_pair(tiny_pairs, tmp_path: Path) -> None:
    shipped = tiny_pairs("gemma2").base.parent
    out = tmp_path / "models"
    pair = prepare_pair("demo", "demo", 1, "float32", "cpu", {}, DemoModels(shipped), out, key="k")
    assert Path(pair.base) == out / "base" and (out / "chat" / "config.json").is_file()
    moved = tmp_path / "elsewhere"
    shutil.move(out, moved)
    shutil.move(out.with_suffix(".json"), moved.with_suffix(".json"))
    assert Path(load_pair(moved).base) == moved / "base"
    with pytest.raises(TunediffError, match="demo pair is missing"):
        prepare_pair("demo", "demo", 1, "float32", "cpu", {}, DemoModels(tmp_path / "no"), out, key="k")


def test_pair_errors_name_the_cause(tiny_pairs, tmp_path: Path) -> None:
    gemma, llama = tiny_pairs("gemma2"), tiny_pairs("llama3")
    arguments = (1, "float32", "cpu", {}, None, tmp_path / "models")
    with pytest.raises(TunediffError, match="token ids|ids differ"):
        prepare_pair(str(gemma.base), str(llama.chat), *arguments, key="k")
    with pytest.raises(TunediffError, match="no such directory"):
        prepare_pair("/nowhere/at/all", str(llama.chat), *arguments, key="k")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TunediffError, match=r"has no config\.json"):
        prepare_pair(str(empty), str(llama.chat), *arguments, key="k")
    torn = shutil.copytree(gemma.base, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(TunediffError, match="cannot read the model"):
        prepare_pair(str(torn), str(gemma.chat), *arguments, key="k")
    silent = shutil.copytree(gemma.chat, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(TunediffError, match="no chat template"):
        prepare_pair(str(gemma.base), str(silent), *arguments, key="k")
    wide = shutil.copytree(gemma.base, tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(TunediffError, match="width"):
        prepare_pair(str(wide), str(gemma.chat), *arguments, key="k")
    assert not (tmp_path / "models").exists() and not list(tmp_path.glob(".*partial"))


def test_differing_tokens_need_a_replacement(tiny_pairs, tmp_path: Path) -> None:
    pair = tiny_pairs("qwen2")
    chat = shutil.copytree(pair.chat, tmp_path / "chat")
    text = (chat / "tokenizer.json").read_text().replace("<|im_end|>", "<|done|>")
    (chat / "tokenizer.json").write_text(text)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (chat / name).write_text((chat / name).read_text().replace("<|im_end|>", "<|done|>"))
    end = pair.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(TunediffError, match=rf"1 token ids|1 ids differ.*{end}: '<\|im_end\|>' / '<\|done\|>'"):
        load_tokenizers(pair.base, chat, {})
    assert load_tokenizers(pair.base, chat, {end: 5}).convert_tokens_to_ids("<|done|>") == end
