"""The inference object against dense algebra, and its files."""

from pathlib import Path

import pytest
import torch

from tunediff.dictionaries import build, dictionary_settings, sparse
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError


def random_crosscoder(dict_size: int = 24, d_model: int = 6, max_block: int = 2**20) -> Crosscoder:
    torch.manual_seed(0)
    return Crosscoder(
        torch.randn(dict_size, 2, d_model),
        torch.randn(dict_size),
        torch.randn(dict_size, 2, d_model),
        torch.randn(2, d_model),
        torch.rand(dict_size),
        {"kind": "l1", "layer": 3},
        max_block=max_block,
    )


def dense_code(crosscoder: Crosscoder, x: torch.Tensor) -> torch.Tensor:
    f = torch.relu(torch.einsum("nmd,lmd->nl", x, crosscoder.encoder_weight) + crosscoder.encoder_bias)
    return f * (f > crosscoder.threshold)


@pytest.mark.parametrize("dense_from", [2.0, -1.0])
@pytest.mark.parametrize("max_block", [1, 24 * 7, 2**20])
def test_encode_and_decode_equal_dense_algebra(
    max_block: int, dense_from: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sparse.DENSE_FROM, "cpu", dense_from)
    monkeypatch.setattr(sparse, "DENSE_ENTRIES", max_block)
    crosscoder = random_crosscoder(max_block=max_block)
    x = torch.randn(23, 2, 6)
    expected = dense_code(crosscoder, x)
    code = crosscoder.encode(x)
    assert torch.allclose(code.to_dense(24), expected, atol=1e-5)
    assert torch.equal(code.token, code.token.sort().values)
    reconstruction = torch.einsum("nl,lmd->nmd", expected, crosscoder.decoder_weight) + crosscoder.decoder_bias
    assert torch.allclose(crosscoder(x), reconstruction, atol=1e-4)


def test_no_token_gives_an_empty_code() -> None:
    code = random_crosscoder().encode(torch.zeros(0, 2, 6))
    assert code.n_tokens == 0
    assert len(code.value) == 0
    assert random_crosscoder().decode(code).shape == (0, 2, 6)


def test_norm_difference_is_one_for_chat_only_latents() -> None:
    crosscoder = random_crosscoder(dict_size=4)
    crosscoder.decoder_weight[0, 0] = 0  # chat-only
    crosscoder.decoder_weight[1, 1] = 0  # base-only
    crosscoder.decoder_weight[2, 1] = 2 * crosscoder.decoder_weight[2, 0]
    crosscoder.decoder_weight[3] = 0
    assert crosscoder.norm_difference.tolist() == pytest.approx([1, 0, 0.75, 0.5])


def difference_dictionary() -> Crosscoder:
    g = torch.Generator().manual_seed(1)
    weights = (torch.randn(shape, generator=g) for shape in ((24, 1, 6), (24,), (24, 1, 6), (1, 6)))
    return Crosscoder(*weights, torch.full((24,), 0.3), {"kind": "diff_sae"})


def test_a_dictionary_of_the_difference_against_dense_algebra(tmp_path: Path) -> None:
    difference_dictionary().save(tmp_path)
    dictionary = Crosscoder.load(tmp_path)
    x = torch.randn(50, 2, 6, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    delta = x[:, 1].float() - x[:, 0].float()
    f = torch.relu(delta @ dictionary.encoder_weight[:, 0].T + dictionary.encoder_bias)
    kept = f * (f > 0.3)
    assert torch.allclose(dictionary.encode(x).to_dense(24), kept, atol=1e-5)
    expected = (kept @ dictionary.decoder_weight[:, 0] + dictionary.decoder_bias)[:, None]
    assert dictionary(x).shape == (50, 1, 6) and torch.allclose(dictionary(x), expected, atol=1e-5)
    assert torch.allclose(dictionary.inputs(x.float())[:, 0], delta)
    dictionary.config["outlier_norm"] = [3.0, 2.0]  # of each model, not of the difference
    norms = x.float().norm(dim=2)
    assert dictionary.covers(x).tolist() == ((norms[:, 0] <= 3) & (norms[:, 1] <= 2)).tolist()


def test_what_a_dictionary_can_do_follows_from_its_weights() -> None:
    both, one = random_crosscoder(), difference_dictionary()
    assert (both.reconstructs, both.has_norm_taxonomy) == ("models", True)
    assert (one.reconstructs, one.has_norm_taxonomy) == ("difference", False)
    assert torch.equal(both.difference_directions, both.decoder_weight[:, 1] - both.decoder_weight[:, 0])
    assert torch.equal(one.difference_directions, one.decoder_weight[:, 0])
    assert torch.equal(both.difference_bias, both.decoder_bias[1] - both.decoder_bias[0])
    assert torch.equal(one.difference_bias, one.decoder_bias[0])
    assert one.norm_difference.isnan().all() and one.norm_difference.shape == (24,)
    assert both.groups == []
    both.config["groups"] = [{"name": "own", "start": 0, "stop": 24, "k": 3}]
    assert both.groups[0]["name"] == "own"


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    crosscoder = random_crosscoder()
    crosscoder.save(tmp_path / "l1-seed0")
    loaded = Crosscoder.load(tmp_path / "l1-seed0")
    assert loaded.config == {"kind": "l1", "layer": 3, "d_model": 6, "dict_size": 24}
    for name, tensor in crosscoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias", "threshold"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    crosscoder = random_crosscoder()
    getattr(crosscoder, name).view(-1)[3] = value
    crosscoder.save(tmp_path)
    if (name, value) == ("threshold", torch.inf):  # of a latent that never fires
        assert not (Crosscoder.load(tmp_path).encode(100 * torch.randn(50, 2, 6)).latent == 3).any()
        return
    with pytest.raises(TunediffError, match=rf"1 of \d+ values of {name} are not finite; delete") as error:
        Crosscoder.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_tokens_with_a_larger_norm_than_the_limits_are_not_covered() -> None:
    crosscoder = random_crosscoder()
    x = torch.ones(4, 2, 6) * torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [2.0, 2.0]])[..., None]
    assert crosscoder.covers(x).tolist() == [True] * 4
    crosscoder.config["outlier_norm"] = [2.5 * 6**0.5, 2.01 * 6**0.5]
    assert crosscoder.covers(x).tolist() == [True, False, False, True]


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    crosscoder = random_crosscoder()
    with pytest.raises(TunediffError, match=r"activations have shape \(3, 2, 5\), expected \(token, 2, 6\)"):
        crosscoder.encode(torch.zeros(3, 2, 5))
    with pytest.raises(TunediffError, match=r"decoder_bias has shape \(2, 7\)"):
        Crosscoder(torch.zeros(4, 2, 6), torch.zeros(4), torch.zeros(4, 2, 6), torch.zeros(2, 7), torch.zeros(4))
    with pytest.raises(TunediffError, match="not a readable crosscoder"):
        Crosscoder.load(tmp_path / "nothing")
    crosscoder.save(tmp_path)
    weights = tmp_path / "crosscoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TunediffError, match="not a readable crosscoder"):
        Crosscoder.load(tmp_path)


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
def test_folded_crosscoder_on_raw_inputs_equals_the_training_object_on_normalised_ones(kind: str) -> None:
    section = {"kind": "l1", "mu": 0.1} if kind == "l1" else {"kind": "batchtopk", "k": 4}
    dictionary = build(dictionary_settings({"dict_size": 40, **section}), 8, seed=1)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    mean, scale = torch.randn(2, 8, dtype=torch.float64) * 5, torch.tensor([0.2, 3.0], dtype=torch.float64)
    raw = torch.randn(200, 2, 8) / scale.float()[:, None] + mean.float()
    x = (raw - mean.float()) * scale.float()[:, None]
    if kind == "batchtopk":
        dictionary.last_smallest.fill_(1.3)
    crosscoder = Crosscoder.from_training(dictionary, mean, scale)

    f = torch.relu(torch.einsum("nmd,lmd->nl", x, dictionary.encoder_weight) + dictionary.encoder_bias)
    s = dictionary.decoder_weight.norm(dim=-1).sum(dim=1)  # training-space norms
    kept = f * (f * s > (1.3 if kind == "batchtopk" else 0))
    reconstruction = torch.einsum("nl,lmd->nmd", kept, dictionary.decoder_weight) + dictionary.decoder_bias
    expected = reconstruction / scale.float()[:, None] + mean.float()
    assert 0 < int((kept > 0).sum()) < int((f > 0).sum()) + (kind == "l1")
    assert torch.allclose(crosscoder.encode(raw).to_dense(40), kept, atol=2e-4)
    assert torch.allclose(crosscoder(raw), expected, atol=1e-3)
