"""Sparse codes and the kernels that work on their nonzeros only, on CPU and CUDA.

A batch of latent activations is about 0.1 % dense, so decoding, every gradient and every statistic go through lists of
nonzeros. All kernels are gathers summed per bag (`embedding_bag`), over latents of a token or over tokens of a latent:
no (nonzero × d) array exists, and sums have a fixed order on every device.

Dimension names: token (N), latent (F), nonzero, width (a row's length, d or 2·d), model (2: base, chat), d_model (d).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

FLOOR_SLACK = 1e-5  # relative; float32 rounding of floor / scale must not lose a candidate
SAMPLED_ROWS = 32  # rows looked at to estimate a first lower bound of the selection

# Share of nonzeros from which dense products beat gathers, in a decode and in Latent Scaling's sums: on a CPU where
# benchmarks/latent_scaling.py --path sparse and --path dense take as long. The value for a GPU is an estimate.
DENSE_FROM = {"cpu": 0.06, "cuda": 0.06}
DENSE_ENTRIES = 1 << 27  # of a dense piece of a code: 512 MiB of float32


class SparseCode(NamedTuple):
    """Latent activations of `n_tokens` tokens, sorted by token and then latent (row-major)."""

    token: Int[Tensor, "nonzero"]  # int64
    latent: Int[Tensor, "nonzero"]  # int64
    value: Float[Tensor, "nonzero"]  # f_j(n) ≥ 0; 0 only as padding of a selection on CUDA
    n_tokens: int

    def offsets(self) -> Int[Tensor, "token_plus_1"]:
        """Return where each token's nonzeros start, and their number at the end."""
        boundaries = torch.arange(self.n_tokens + 1, device=self.token.device)
        return torch.searchsorted(self.token, boundaries)

    def to_dense(self, dict_size: int) -> Float[Tensor, "token latent"]:
        """Return the code as a dense array; for tests and small batches."""
        dense = self.value.new_zeros(self.n_tokens, dict_size)
        return dense.index_put_((self.token, self.latent), self.value, accumulate=True)

    def is_dense(self, dict_size: int) -> bool:
        """Return whether so many latents fire that dense products are faster."""
        return len(self.value) > DENSE_FROM[self.token.device.type] * self.n_tokens * dict_size

    def dense_pieces(self, dict_size: int) -> Iterator[tuple[slice, Float[Tensor, "token latent"]]]:
        """Yield the code as dense arrays of bounded size, each with its tokens."""
        size = max(1, DENSE_ENTRIES // dict_size)
        offsets = self.offsets()
        for start in range(0, self.n_tokens, size):
            end = min(start + size, self.n_tokens)
            own = slice(int(offsets[start]), int(offsets[end]))
            piece = SparseCode(self.token[own] - start, self.latent[own], self.value[own], end - start)
            yield slice(start, end), piece.to_dense(dict_size)


class LatentOrder(NamedTuple):
    """The nonzeros of a code grouped by latent: what the gradients of weight rows sum over."""

    position: Int[Tensor, "nonzero"]  # in the code
    token: Int[Tensor, "nonzero"]  # token of each
    offsets: Int[Tensor, "latent_plus_1"]  # where each latent's nonzeros start


class Selection(NamedTuple):
    """The largest entries of a batch and the score of the smallest one kept."""

    code: SparseCode
    smallest: Float[Tensor, ""]  # 0 where nothing is positive


def _wide(tensor: Tensor) -> Tensor:
    """Return at least float32: values of a code outlive the low-precision GEMM they come from."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def latent_order(code: SparseCode, dict_size: int) -> LatentOrder:
    """Group the nonzeros of a code by latent (stable: tokens stay in order)."""
    latent, position = torch.sort(code.latent, stable=True)
    boundaries = torch.arange(dict_size + 1, device=latent.device)
    return LatentOrder(position, code.token[position], torch.searchsorted(latent, boundaries))


def _bag_sums(index: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Return, per bag, Σ weight · rows[index]; an empty bag is a row of zeros."""
    return embedding_bag(
        index, rows, offsets, mode="sum", per_sample_weights=weight.to(rows.dtype), include_last_offset=True
    )


def _dots(code: SparseCode, rows: Tensor, weight: Tensor) -> Tensor:
    # The gradient kernel of embedding_bag's per_sample_weights is exactly this product; it reads strided rows as they
    # lie. sampled_addmm is as fast on contiguous rows, 15x slower on strided ones (it copies the weights).
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, weight, code.latent, code.offsets(), code.token, 0, -1
    )


def merge(codes: Sequence[SparseCode], starts: Sequence[int]) -> SparseCode:
    """Return one code of codes of the same tokens over consecutive ranges of latents that begin at `starts`."""
    if len(codes) == 1:
        return codes[0]
    token, value = torch.cat([code.token for code in codes]), torch.cat([code.value for code in codes])
    latent = torch.cat([code.latent + start for code, start in zip(codes, starts, strict=True)])
    order = token.argsort(stable=True)
    return SparseCode(token[order], latent[order], value[order], codes[0].n_tokens)


def sparse_dots(
    code: SparseCode, rows: Float[Tensor, "token width"], weight: Float[Tensor, "latent width"]
) -> Float[Tensor, "nonzero"]:
    """Return ⟨rows[token], weight[latent]⟩ per nonzero. No gradient; rows may be strided, inner dimension dense."""
    if code.token.numel() == 0:
        return rows.new_zeros(0)
    with torch.no_grad():
        return _dots(code, rows, weight)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, code: SparseCode, order: LatentOrder | None) -> Tensor:
        ctx.save_for_backward(value, weight)
        ctx.code, ctx.order = code, order
        return _bag_sums(code.latent, weight, code.offsets(), value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        value, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        value_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            value_gradient = sparse_dots(ctx.code, gradient, weight)
        if ctx.needs_input_grad[1]:
            order = ctx.order or latent_order(ctx.code, len(weight))
            weight_gradient = _bag_sums(order.token, gradient, order.offsets, value[order.position])
        return value_gradient, weight_gradient, None, None


def sparse_decode(
    code: SparseCode, weight: Float[Tensor, "latent ..."], order: LatentOrder | None = None
) -> Float[Tensor, "token ..."]:
    """Return Σ_j f_j(n) · weight[j] for each token, with gradients for `code.value` and `weight`.

    `order` spares the backward a sort where the caller has it. Weight rows must be contiguous, (latent, …).
    """
    rows = weight.reshape(len(weight), -1)
    detached = code._replace(value=code.value.detach())
    result = _Decode.apply(code.value, rows, detached, order)
    return result.view(code.n_tokens, *weight.shape[1:])


class _EncoderOutputs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, rows: Tensor, code: SparseCode, order: LatentOrder | None
    ) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.code, ctx.order, ctx.dict_size = code, order, len(weight)
        return code.value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (rows,) = ctx.saved_tensors
        gradient = torch.where(ctx.code.value > 0, gradients[0], 0)  # padding has no gradient, as ReLU at 0
        weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            order = ctx.order or latent_order(ctx.code, ctx.dict_size)
            weight_gradient = _bag_sums(order.token, rows, order.offsets, gradient[order.position])
        if ctx.needs_input_grad[1]:
            bias_gradient = gradient.new_zeros(ctx.dict_size).index_add_(0, ctx.code.latent, gradient)
        return weight_gradient, bias_gradient, None, None, None


def selected_encoder_outputs(
    code: SparseCode,
    rows: Float[Tensor, "token width"],
    weight: Float[Tensor, "latent width"],
    bias: Float[Tensor, "latent"],
    order: LatentOrder | None = None,
) -> SparseCode:
    """Attach the encoder to a code selected without gradients: value = ReLU(⟨rows[token], weight[latent]⟩ + bias).

    The values are those of `code` (made by one GEMM); the backward sums ∂L/∂value · rows over the tokens of each
    latent, instead of the dense (F × N)(N × width) product. Rows are data: they get no gradient.
    """
    value = _EncoderOutputs.apply(weight, bias, rows, code, order)
    return code._replace(value=value)


def _canonical(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return a mask of the `count` largest scores, ties to the earliest, and the smallest score kept."""
    cutoff = score.kthvalue(len(score) - count + 1).values
    above, tied = score > cutoff, score == cutoff
    return above | (tied & (tied.cumsum(0) <= count - above.sum())), cutoff


def _sampled_floor(preactivations: Tensor, count: int, scale: Tensor) -> float:
    """Estimate a score a little under the count-th largest, from a few rows."""
    step = max(1, len(preactivations) // SAMPLED_ROWS)
    sample = (_wide(preactivations[::step]) * scale).flatten()
    wanted = math.ceil(1.2 * count * len(sample) / preactivations.numel()) + 8
    return float(sample.topk(min(wanted, len(sample)), sorted=False).values.min())


def _select_filtered(preactivations: Tensor, count: int, scale: Tensor, guess: float) -> tuple[Tensor, Tensor]:
    """Return flat positions (sorted) and the smallest score; exact whatever the guess."""
    dict_size = preactivations.shape[1]
    flat = preactivations.view(-1)
    for attempt in ("guess", "sample", "all"):
        if attempt == "sample":
            guess = _sampled_floor(preactivations, count, scale)
        floor = guess if attempt != "all" else 0.0
        if attempt != "all" and not floor > 0:
            continue
        bound = floor * (1 - FLOOR_SLACK) / scale
        position = (preactivations > bound).view(-1).nonzero().squeeze(1)
        score = _wide(flat[position]) * scale[position % dict_size]
        if len(score) > count:
            kept, smallest = _canonical(score, count)
            # Everything left out scores at most `floor`, so a cutoff above it is the cutoff of the whole batch.
            if smallest > floor:
                return position[kept], smallest
        elif len(score) == count and count and score.min() > floor:
            return position, score.min()
    positive = score > 0
    position, score = position[positive], score[positive]
    return position, score.min() if len(score) else score.new_zeros(())


def _select_fixed(preactivations: Tensor, count: int, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_select_filtered` with shapes known to the host (no synchronisation): padded with entries of score 0."""
    score = (preactivations * scale.to(preactivations.dtype)).clamp_(min=0).view(-1)
    position = score.topk(min(count, score.numel()), sorted=False).indices.sort().values
    kept = _wide(score[position])
    smallest = torch.where(kept > 0, kept, torch.inf).min()
    return position, kept, torch.where(smallest.isinf(), 0.0, smallest)


def select_largest(
    preactivations: Float[Tensor, "token latent"],
    count: int,
    scale: Float[Tensor, "latent"] | None = None,
    guess: float = 0.0,
) -> Selection:
    """Keep the `count` entries of largest score v_j(n) = ReLU(preactivation)·scale_j of a whole batch.

    Exact, and in row-major order. Only positive scores are kept; among equal scores at the cutoff the first in
    row-major order win. `guess` is a lower bound hoped for (such as 0.95 of the last batch's smallest score): it
    decides how many entries are looked at twice, never which are kept. On CUDA the guess is not used and the number
    of entries is always `count`: entries that are not positive have value 0. `scale` must be ≥ 0.
    """
    n_tokens, dict_size = preactivations.shape
    if scale is None:
        scale = torch.ones(dict_size, device=preactivations.device)
    preactivations = preactivations.detach().contiguous()
    if preactivations.is_cuda:
        position, kept, smallest = _select_fixed(preactivations, count, scale)
        value = torch.where(kept > 0, _wide(preactivations.view(-1)[position]), 0.0)
    else:
        position, smallest = _select_filtered(preactivations, count, scale, guess)
        value = _wide(preactivations.view(-1)[position])
    token = torch.div(position, dict_size, rounding_mode="floor")
    return Selection(SparseCode(token, position - token * dict_size, value, n_tokens), smallest)


def above_threshold(
    preactivations: Float[Tensor, "token latent"], threshold: Float[Tensor, "latent"] | float = 0.0
) -> SparseCode:
    """Return the code of the entries with f_j > threshold_j ≥ 0 (their number is read by the host)."""
    bound = torch.as_tensor(threshold, device=preactivations.device).clamp(min=0)
    token, latent = (preactivations > bound).nonzero(as_tuple=True)
    return SparseCode(token, latent, _wide(preactivations[token, latent]), len(preactivations))
