"""Residuals and continued logits against plain hooks and `output_hidden_states`, for three architectures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers import TinyPair
from tunediff.errors import TunediffError
from tunediff.models.hooks import verify_hooks
from tunediff.models.pair import PairInfo, load_pair, prepare_pair, verify_pair
from tunediff.models.residual import ResidualModel, find_blocks, replace_tokens
from tunediff.models.tokenizers import load_tokenizers
from tunediff.pipeline.artifacts import manifest_path

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


def pair_settings(base: Path, chat: Path) -> dict:
    return {"base": str(base), "chat": str(chat)}


def test_prepare_pair_and_hook_record(prepared_pair: PairInfo, tiny_pairs, tmp_path: Path) -> None:
    pair = tiny_pairs("gemma2")
    assert (prepared_pair.base, prepared_pair.chat) == (str(pair.base), str(pair.chat))  # read where they are
    assert (prepared_pair.d_model, prepared_pair.n_layers, prepared_pair.layer) == (32, 4, 1)
    assert prepared_pair.vocab_size == len(pair.tokenizer) == prepared_pair.tokenizer["size"]
    verify_pair(prepared_pair, "cpu", tmp_path / "hooks.json", key="h")
    facts = json.loads((tmp_path / "hooks.json").read_text())
    assert facts["key"] == "h" and facts["base"]["logits_from_own_residual"] <= 1e-5
    assert facts["chat"]["layer"] == 1


def test_prepare_demo_copies_the_shipped_pair(tiny_pairs, tmp_path: Path) -> None:
    shipped = tiny_pairs("gemma2").base.parent
    demo = {"base": "demo-base", "chat": "demo-chat", "demo": {"retrain": False}}
    out = tmp_path / "models"
    facts = prepare_pair(demo, shipped, out, key="k")
    assert facts["base_inside"] and facts["chat_inside"] and facts["base"] == "demo-base"
    first = manifest_path(out).read_text()
    assert Path(load_pair(out, 1, "float32", key="k").base) == out / "base"
    moved = tmp_path / "elsewhere"
    shutil.move(out, moved)
    shutil.move(out.with_suffix(".json"), moved.with_suffix(".json"))
    assert load_pair(moved, 1, "float32").load_base("cpu").d_model == 32
    prepare_pair(demo, shipped, out, key="k")
    assert manifest_path(out).read_text() == first  # nothing in it depends on the run
    with pytest.raises(TunediffError, match="demo pair is missing"):
        prepare_pair(demo, tmp_path / "no", out, key="k")
    with pytest.raises(TunediffError, match="must both be models of the demo"):
        prepare_pair({"base": "demo-base", "chat": "x/y"}, shipped, out, key="k")


def test_a_demo_pair_may_be_one_model_twice(tiny_pairs, tmp_path: Path) -> None:
    shipped = tiny_pairs("gemma2").base.parent
    facts = prepare_pair({"base": "demo-chat", "chat": "demo-chat"}, shipped, tmp_path / "models", key="k")
    assert facts["base_digest"] == facts["chat_digest"]
    pair = load_pair(tmp_path / "models", 1, "float32")
    ids = torch.arange(6)[None]
    assert torch.equal(pair.load_base("cpu").residual(ids), pair.load_chat("cpu").residual(ids))


def test_load_pair_checks_key_layer_and_weights(tiny_pairs, tmp_path: Path) -> None:
    shipped = tiny_pairs("gemma2").base.parent
    out = tmp_path / "models"
    prepare_pair({"base": "demo-base", "chat": "demo-chat"}, shipped, out, key="k")
    with pytest.raises(TunediffError, match="made by other inputs"):
        load_pair(out, 1, "float32", key="other")
    with pytest.raises(TunediffError, match="must be 0 to 2"):
        load_pair(out, 3, "float32")
    with pytest.raises(TunediffError, match="dtype 'int8'"):
        load_pair(out, 1, "int8")
    (out / "chat" / "model.safetensors").unlink()
    with pytest.raises(TunediffError, match=r"model\.safetensors: missing"):
        load_pair(out, 1, "float32")


def test_pair_errors_name_the_cause(tiny_pairs, tmp_path: Path) -> None:
    gemma, llama = tiny_pairs("gemma2"), tiny_pairs("llama3")
    out = tmp_path / "models"

    def fails(base: Path, chat: Path, match: str) -> None:
        with pytest.raises(TunediffError, match=match) as caught:
            prepare_pair(pair_settings(base, chat), tmp_path, out, key="k")
        assert "\n" not in str(caught.value)

    fails(gemma.base, llama.chat, "ids differ")
    fails(Path("/nowhere/at/all"), llama.chat, "no such directory")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(empty, llama.chat, r"has no config\.json")
    silent = shutil.copytree(gemma.chat, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    fails(gemma.base, silent, "no chat template")
    wide = shutil.copytree(gemma.base, tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    fails(wide, gemma.chat, "width")
    (wide / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    fails(wide, gemma.chat, "embeds only 100")
    assert not out.exists() and not list(tmp_path.glob(".*partial"))
    torn = shutil.copytree(gemma.base, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(TunediffError, match="cannot read the model"):
        ResidualModel.load(torn, LAYER)


def test_differing_tokens_need_a_replacement(tiny_pairs, tmp_path: Path) -> None:
    pair = tiny_pairs("qwen2")
    chat = shutil.copytree(pair.chat, tmp_path / "chat")
    text = (chat / "tokenizer.json").read_text().replace("<|im_end|>", "<|done|>")
    (chat / "tokenizer.json").write_text(text)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (chat / name).write_text((chat / name).read_text().replace("<|im_end|>", "<|done|>"))
    end = pair.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(TunediffError, match=rf"1 ids differ.*{end}: '<\|im_end\|>' / '<\|done\|>'"):
        load_tokenizers(pair.base, chat, {})
    assert load_tokenizers(pair.base, chat, {end: 5}).convert_tokens_to_ids("<|done|>") == end


def test_direct_logits_are_those_of_the_plain_norm_and_output_matrix(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root mean square norm makes γ ⊙ d / rms(d) of d: times rms(d), what the output matrix makes of it is exact."""
    monkeypatch.setattr("tunediff.models.residual.LOGITS_AT_ONCE", 32 * 50)  # the vocabulary in pieces
    model = ResidualModel.load(tiny_pair.chat, 1)
    rows = torch.randn(5, model.d_model, generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(tiny_pair.chat)
    assert plain.model.norm.weight.std() > 0.01  # a scale that matters
    with torch.no_grad():
        wanted = plain.lm_head(plain.model.norm(rows)) * rows.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(model.direct_logits(rows), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(TunediffError, match="loaded without its upper half"):
        ResidualModel.load(tiny_pair.chat, 1, upper=False).direct_logits(rows)


def test_a_model_without_a_norm_beside_its_blocks_has_no_direct_logits(tiny_pair: TinyPair) -> None:
    hf = AutoModelForCausalLM.from_pretrained(tiny_pair.chat)
    del hf.model.norm
    model = ResidualModel(hf, tiny_pair.tokenizer, 1)
    with pytest.raises(TunediffError, match="no final norm found beside its blocks"):
        model.direct_logits(torch.zeros(1, model.d_model))
