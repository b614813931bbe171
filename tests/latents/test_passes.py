"""The parts of a pass on a GPU, run on a CPU: they give what the plain loop gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from analysis_fixtures import activation_store, random_crosscoder, token_store
from tunediff.data import activations
from tunediff.data.activations import ActivationStore, counted_batches
from tunediff.data.masks import LEFT_OUT
from tunediff.errors import TunediffError
from tunediff.latents.passes import Encoder, one_ahead

N_TOKENS = 320


def store(folder: Path, not_finite: tuple[int, ...] = ()) -> ActivationStore:
    tokens = token_store(folder / "tokens.zarr", [20] * 16)
    h = np.random.default_rng(0).normal(size=(N_TOKENS, 2, 6)).astype(np.float32)
    h[list(not_finite), 1, 3] = np.inf
    return activation_store(folder / "part-000.zarr", tokens, h, outliers=[9, 33], shards=4)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read ahead and check later, on the CPU."""
    monkeypatch.setattr(activations, "on_gpu", lambda device: True)
    plain = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **how: plain(*size, **how))


def same(left: activations.ActivationBatch, right: activations.ActivationBatch) -> bool:
    facts = zip(left[1:], right[1:], strict=True)
    return torch.equal(left.activations, right.activations) and all(np.array_equal(a, b) for a, b in facts)


@pytest.mark.parametrize("chunks_per_batch", [1, 3, 100])
def test_what_is_read_ahead_is_what_is_read(tmp_path: Path, as_on_a_gpu: None, chunks_per_batch: int) -> None:
    read = store(tmp_path)
    ahead = list(read.chunks_to("cpu", LEFT_OUT, chunks_per_batch))
    plain = list(read.chunks(LEFT_OUT, chunks_per_batch))
    assert len(ahead) == len(plain) == -(-read.n_chunks // chunks_per_batch)
    assert all(map(same, ahead, plain)) and ahead[0].activations.is_contiguous()


@pytest.mark.parametrize("limit", [None, 1, 75])
def test_batches_for_a_gpu_end_where_those_for_a_cpu_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, limit: int | None
) -> None:
    read = store(tmp_path)
    plain = list(counted_batches(read, 33, "cpu", "plain", limit))
    request.getfixturevalue("as_on_a_gpu")
    ahead = list(counted_batches(read, 33, "cpu", "ahead", limit))
    assert len(ahead) == len(plain) and all(map(same, ahead, plain))


@pytest.mark.parametrize("limit", [None, 300])
def test_a_residual_that_is_not_finite_is_named_also_at_the_end(
    tmp_path: Path, as_on_a_gpu: None, limit: int | None
) -> None:
    last = [row for row in store(tmp_path / "a").row[store(tmp_path / "b").kept()] if row != 0][-30]
    with pytest.raises(TunediffError, match=rf"part-000.zarr: the residual of token {last} is not finite; delete"):
        list(counted_batches(store(tmp_path / "c", (int(last),)), 33, "cpu", "ahead", limit))


def test_codes_that_are_one_ahead_are_those_of_encode(tmp_path: Path) -> None:
    """A latent of infinite threshold and a batch on which nothing fires are among them."""
    crosscoder = random_crosscoder()
    crosscoder.threshold[4] = torch.inf
    batches = list(store(tmp_path).chunks(LEFT_OUT))
    batches[2].activations.zero_()
    crosscoder.encoder_bias.clamp_(max=0)
    found = list(one_ahead(crosscoder, batches))
    assert [batch for batch, _ in found] == batches
    for batch, code in found:
        expected = crosscoder.encode(batch.activations)
        assert torch.equal(code.token, expected.token) and torch.equal(code.latent, expected.latent)
        torch.testing.assert_close(code.value, expected.value)
        assert code.n_tokens == expected.n_tokens and code.token.is_contiguous()
    assert len(found[2][1].value) == 0 and list(one_ahead(crosscoder, [])) == []


def test_the_encoder_follows_the_precision_of_its_crosscoder(tmp_path: Path) -> None:
    """bf16 rounds both factors, and nothing else: sums are exact to float32."""
    crosscoder, x = random_crosscoder(), next(store(tmp_path).chunks()).activations
    crosscoder.precision = "bf16"
    started = Encoder(crosscoder).start(x)
    low, weight = (each.flatten(1).bfloat16().double() for each in (x, crosscoder.encoder_weight))
    expected = low @ weight.T + crosscoder.encoder_bias.double()
    torch.testing.assert_close(started.preactivations.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.get_float32_matmul_precision() == "highest"
