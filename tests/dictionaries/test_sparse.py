"""Sparse kernels against dense algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunediff.dictionaries.sparse import (
    SparseCode,
    _select_fixed,
    above_threshold,
    flat_positions,
    latent_order,
    merge,
    select_largest,
    selected_encoder_outputs,
    sparse_decode,
    sparse_dots,
)


def random_code(n_tokens: int, dict_size: int, density: float, seed: int) -> tuple[SparseCode, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n_tokens, dict_size, generator=generator)
    dense = dense * (torch.rand(n_tokens, dict_size, generator=generator) < density)
    return above_threshold(dense), dense


@pytest.mark.parametrize("ends", [[7], [2, 7], [1, 1, 5, 7]])
def test_codes_of_consecutive_latents_merge_to_the_code_of_all(ends: list[int]) -> None:
    code, dense = random_code(9, 7, 0.4, 1)
    starts = [0, *ends[:-1]]
    merged = merge([above_threshold(dense[:, a:b]) for a, b in zip(starts, ends, strict=True)], starts)
    assert merged.n_tokens == code.n_tokens
    assert all(torch.equal(a, b) for a, b in zip(merged[:3], code[:3], strict=True))


shapes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.floats(0, 1), st.integers(0, 1000))


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_decode_and_its_gradients_equal_dense_algebra(shape: tuple[int, int, int, float, int]) -> None:
    n_tokens, dict_size, width, density, seed = shape
    code, dense = random_code(n_tokens, dict_size, density, seed)
    weight = torch.randn(dict_size, 2, width, dtype=torch.float64, requires_grad=True)
    value = code.value.double().requires_grad_()
    reference_weight, reference_dense = weight.detach().clone().requires_grad_(), dense.double().requires_grad_()
    result = sparse_decode(code._replace(value=value), weight)
    reference = torch.einsum("nl,lmd->nmd", reference_dense, reference_weight)
    assert torch.allclose(result, reference)
    gradient = torch.randn_like(reference)
    result.backward(gradient)
    reference.backward(gradient)
    assert torch.allclose(weight.grad, reference_weight.grad)
    assert torch.allclose(value.grad, reference_dense.grad[code.token, code.latent])


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_encoder_outputs_have_the_dense_gradient(shape: tuple[int, int, int, float, int]) -> None:
    n_tokens, dict_size, width, density, seed = shape
    rows = torch.randn(n_tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weight, bias = torch.randn(dict_size, width).double().requires_grad_(), torch.randn(dict_size).double()
    bias.requires_grad_()
    reference = torch.relu(rows @ weight.T + bias)
    kept = torch.rand(n_tokens, dict_size) < density
    position = ((reference > 0) & kept).nonzero(as_tuple=True)
    code = SparseCode(*position, reference[position].detach(), n_tokens)
    weighting = torch.randn(len(code.value), dtype=torch.float64)
    expected = torch.autograd.grad((reference[position] * weighting).sum(), (weight, bias))
    live = selected_encoder_outputs(code, rows, weight, bias, latent_order(code, dict_size))
    assert torch.equal(live.value, reference[position])
    actual = torch.autograd.grad((live.value * weighting).sum(), (weight, bias))
    assert torch.allclose(actual[0], expected[0])
    assert torch.allclose(actual[1], expected[1])


def test_padding_of_a_selection_has_no_gradient() -> None:
    code = SparseCode(torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([1.5, 0.0]), 2)
    weight, bias = torch.ones(3, 4, requires_grad=True), torch.zeros(3, requires_grad=True)
    selected_encoder_outputs(code, torch.ones(2, 4), weight, bias, latent_order(code, 3)).value.sum().backward()
    assert bias.grad.tolist() == [0, 0, 1]
    assert weight.grad[:, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("model", [0, 1])
def test_dots_take_strided_rows(model: int) -> None:
    code, _ = random_code(50, 30, 0.2, seed=3)
    rows, weight = torch.randn(50, 2, 17), torch.randn(30, 2, 17)
    expected = (rows[code.token, model] * weight[code.latent, model]).sum(-1)
    assert torch.allclose(sparse_dots(code, rows[:, model], weight[:, model]), expected, atol=1e-5)


def test_an_empty_code_decodes_to_zeros() -> None:
    code = above_threshold(torch.zeros(4, 6))
    assert code.value.numel() == 0
    assert torch.equal(sparse_decode(code, torch.randn(6, 2, 3)), torch.zeros(4, 2, 3))
    assert sparse_dots(code, torch.randn(4, 3), torch.randn(6, 3)).shape == (0,)


def by_sorting(preactivations: torch.Tensor, count: int, scale: torch.Tensor) -> list[tuple[int, int]]:
    """The definition: stable sort of all positive scores, the first `count`, in row-major order."""
    score = (preactivations * scale).flatten().tolist()
    ranked = sorted((i for i, v in enumerate(score) if v > 0), key=lambda i: (-score[i], i))[:count]
    return [divmod(i, preactivations.shape[1]) for i in sorted(ranked)]


@given(
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1e-3, 0.4, 1.0, 1.5, 50.0]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_selection_is_the_sorted_one_whatever_the_guess(
    n_tokens: int, dict_size: int, count: int, seed: int, guess: float, tied: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    preactivations = torch.randn(n_tokens, dict_size, generator=generator)
    scale = torch.rand(dict_size, generator=generator)
    if tied:  # many equal scores, exactly representable
        preactivations, scale = (preactivations * 2).round() / 2, torch.ones(dict_size)
    count = min(count, preactivations.numel())
    code, smallest = select_largest(preactivations, count, scale, guess)
    expected = by_sorting(preactivations, count, scale)
    assert list(zip(code.token.tolist(), code.latent.tolist(), strict=True)) == expected
    assert torch.equal(code.value, preactivations[code.token, code.latent])
    score = (preactivations * scale)[code.token, code.latent]
    assert float(smallest) == (float(score.min()) if len(score) else 0.0)


def test_large_selection_equals_sorting_through_every_path() -> None:
    preactivations, scale = torch.randn(300, 400), torch.rand(400) + 0.1
    score = preactivations * scale
    expected = score.flatten().topk(3000).indices.sort().values
    for guess in (0.0, 0.5, 1.5, 100.0):
        code, _ = select_largest(preactivations, 3000, scale, guess)
        assert torch.equal(code.token * 400 + code.latent, expected)


def test_fixed_size_selection_agrees_and_pads_with_zero() -> None:
    preactivations, scale = torch.randn(20, 30), torch.rand(30) + 0.1  # blocks of 4 tokens
    position, kept, smallest = _select_fixed(preactivations, 60, scale)
    code, expected_smallest = select_largest(preactivations, 60, scale)
    assert torch.equal(position, code.token * 30 + code.latent)
    assert smallest == expected_smallest
    negative = preactivations.clamp(max=0)
    negative[3, 4] = 2.0
    position, kept, smallest = _select_fixed(negative, 5, scale)
    assert (len(position), int((kept > 0).sum())) == (5, 1)
    assert float(smallest) == pytest.approx(2 * float(scale[4]))


@given(st.integers(1, 64), st.integers(1, 9), st.integers(1, 200), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_fixed_size_selection_is_the_sorted_one(n_tokens: int, dict_size: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    preactivations = torch.randn(n_tokens, dict_size, generator=generator)
    scale = torch.rand(dict_size, generator=generator)
    position, kept, _ = _select_fixed(preactivations, count, scale)
    assert len(position) == min(count, preactivations.numel())
    chosen = [divmod(i, dict_size) for i in position[kept > 0].tolist()]
    assert chosen == by_sorting(preactivations, count, scale)


def test_threshold_is_strict_and_never_negative() -> None:
    preactivations = torch.tensor([[0.5, 0.2, -0.1, 0.0]])
    code = above_threshold(preactivations, torch.tensor([0.5, 0.1, -1.0, -1.0]))
    assert code.latent.tolist() == [1]


@pytest.mark.parametrize("density", [0.0, 0.002, 0.3, 1.0])
def test_flat_positions_are_those_of_nonzero(density):
    mask = torch.rand(37, 101, generator=torch.Generator().manual_seed(0)) < density
    found = flat_positions(mask)
    assert found.dtype == torch.int64
    torch.testing.assert_close(found, mask.view(-1).nonzero().squeeze(1), rtol=0, atol=0)
    code = above_threshold(torch.where(mask, 2.0, -1.0))
    torch.testing.assert_close(torch.stack([code.token, code.latent], dim=1), mask.nonzero(), rtol=0, atol=0)
