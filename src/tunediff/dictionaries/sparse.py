"""Sparse codes and the kernels that work on their nonzeros only, on CPU and CUDA.

All kernels are gathers summed per bag (`embedding_bag`), over latents of a token or over tokens of a latent: no
(nonzero × d) array exists, and these sums have a fixed order. Those of `index_add_` and `scatter_` have none on CUDA.

Dimension names: token (N), latent (F), nonzero, width (a row's length, d or 2·d), model (2: base, chat), d_model (d).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

FLOOR_SLACK = 1e-5  # relative; float32 rounding of floor / scale must not lose a candidate
BLOCK_TOKENS = 16  # compared at once in a selection on CUDA
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
        return torch.searchsorted(self.token, torch.arange(self.n_tokens + 1, device=self.token.device))

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


def merge(codes: Sequence[SparseCode], starts: Sequence[int]) -> SparseCode:
    """Return one code of codes of the same tokens over consecutive ranges of latents that begin at `starts`."""
    if len(codes) == 1:
        return codes[0]
    token, value = torch.cat([code.token for code in codes]), torch.cat([code.value for code in codes])
    latent = torch.cat([code.latent + start for code, start in zip(codes, starts, strict=True)])
    order = token.argsort(stable=True)
    return SparseCode(token[order], latent[order], value[order], codes[0].n_tokens)


@torch.no_grad()
def sparse_dots(
    code: SparseCode, rows: Float[Tensor, "token width"], weight: Float[Tensor, "latent width"]
) -> Float[Tensor, "nonzero"]:
    """Return ⟨rows[token], weight[latent]⟩ per nonzero. No gradient; rows may be strided, inner dimension dense."""
    # The gradient kernel of embedding_bag's per_sample_weights is exactly this product; it reads strided rows as they
    # lie. sampled_addmm is as fast on contiguous rows, 15x slower on strided ones (it copies the weights).
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, weight, code.latent, code.offsets(), code.token, 0, -1
    )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, code: SparseCode, order: LatentOrder | None) -> Tensor:
        ctx.save_for_backward(value, weight)
        ctx.code, ctx.order = code, order
        return _bag_sums(code.latent, weight, code.offsets(), value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        value, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        order = ctx.order or latent_order(ctx.code, len(weight))
        weight_gradient = _bag_sums(order.token, gradient, order.offsets, value[order.position])
        return sparse_dots(ctx.code, gradient, weight), weight_gradient, None, None


def sparse_decode(
    code: SparseCode, weight: Float[Tensor, "latent ..."], order: LatentOrder | None = None
) -> Float[Tensor, "token ..."]:
    """Return Σ_j f_j(n) · weight[j] for each token, with gradients for `code.value` and `weight`.

    `order` spares the backward a sort where the caller has it. Weight rows must be contiguous, (latent, …).
    """
    rows = weight.reshape(len(weight), -1)
    result = _Decode.apply(code.value, rows, code._replace(value=code.value.detach()), order)
    return result.view(code.n_tokens, *weight.shape[1:])


class _EncoderOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, rows: Tensor, code: SparseCode, order: LatentOrder) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.code, ctx.order = code, order
        return code.value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (rows,), order = ctx.saved_tensors, ctx.order
        gradient = torch.where(ctx.code.value > 0, gradients[0], 0)  # padding has no gradient, as ReLU at 0
        weight_gradient = _bag_sums(order.token, rows, order.offsets, gradient[order.position])
        bias_gradient = gradient.new_zeros(len(weight_gradient)).index_add_(0, ctx.code.latent, gradient)
        return weight_gradient, bias_gradient, None, None, None


def selected_encoder_outputs(
    code: SparseCode,
    rows: Float[Tensor, "token width"],
    weight: Float[Tensor, "latent width"],
    bias: Float[Tensor, "latent"],
    order: LatentOrder,
) -> SparseCode:
    """Attach the encoder to a code selected without gradients: value = ReLU(⟨rows[token], weight[latent]⟩ + bias).

    The values are those of `code` (made by one GEMM); the backward sums ∂L/∂value · rows over the tokens of each
    latent, instead of the dense (F × N)(N × width) product. Rows are data: they get no gradient.
    """
    return code._replace(value=_EncoderOutputs.apply(weight, bias, rows, code, order))


def flat_positions(mask: Bool[Tensor, "row column"]) -> Int[Tensor, "chosen"]:
    """Return row · columns + column of every True, rising (their number is read by the host)."""
    if mask.is_cuda:
        return mask.view(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # torch's takes five times as long where few are


def _floors(preactivations: Tensor, count: int, scale: Tensor, guess: float) -> Iterator[float]:
    """Yield scores hoped to be a little under the count-th largest: the guess, an estimate from a few rows, and 0."""
    if guess > 0:
        yield guess
    sample = (preactivations[:: max(1, len(preactivations) // SAMPLED_ROWS)] * scale).flatten()
    wanted = math.ceil(1.2 * count * len(sample) / preactivations.numel()) + 8
    estimate = float(sample.topk(min(wanted, len(sample)), sorted=False).values.min())
    if estimate > 0:
        yield estimate
    yield 0.0


def _select_filtered(preactivations: Tensor, count: int, scale: Tensor, guess: float) -> tuple[Tensor, Tensor]:
    """Return flat positions (sorted) and the smallest score; exact whatever the guess."""
    for floor in _floors(preactivations, count, scale, guess):
        position = flat_positions(preactivations > floor * (1 - FLOOR_SLACK) / scale)
        score = preactivations.view(-1)[position] * scale[position % preactivations.shape[1]]
        if len(score) >= count:
            smallest = score.kthvalue(len(score) - count + 1).values
            # Everything left out scores at most `floor`, so a cutoff above it is the cutoff of the whole batch.
            if smallest > floor:
                above, tied = score > smallest, score == smallest
                return position[above | (tied & (tied.cumsum(0) <= count - above.sum()))], smallest
    positive = score > 0
    return position[positive], score[positive].min() if positive.any() else score.new_zeros(())


def _select_fixed(preactivations: Tensor, count: int, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_select_filtered` with shapes known to the host (no synchronisation): padded with entries of score 0.

    Entries are compared in blocks of a latent's tokens first, which have one scale: the `count` blocks of largest
    entry hold the `count` largest entries. So preactivations are read once, and scores of their size never exist.
    """
    n_tokens, dict_size = preactivations.shape
    size = math.gcd(n_tokens, BLOCK_TOKENS)
    best = (preactivations.view(-1, size, dict_size).amax(dim=1) * scale).view(-1)
    block = best.topk(min(count, len(best)), sorted=False).indices
    latent = block % dict_size
    first = (block - latent) * size + latent
    candidate = (first[:, None] + dict_size * torch.arange(size, device=first.device)).view(-1)
    score = (preactivations.view(-1)[candidate].view(-1, size) * scale[latent, None]).view(-1)
    kept, chosen = score.topk(min(count, len(score)), sorted=False)
    position, order = candidate[chosen].sort()
    kept = kept[order].clamp(min=0)
    smallest = torch.where(kept > 0, kept, torch.inf).min()
    return position, kept, torch.where(smallest.isinf(), 0.0, smallest)


def select_largest(
    preactivations: Float[Tensor, "token latent"], count: int, scale: Float[Tensor, "latent"], guess: float = 0.0
) -> tuple[SparseCode, Float[Tensor, ""]]:
    """Keep the `count` entries of largest score v_j(n) = ReLU(preactivation)·scale_j; return their smallest score too.

    Exact, and in row-major order. Only positive scores are kept (0 is the smallest of none); the first of equal ones
    win. `guess` is a lower bound hoped for (such as 0.95 of the last batch's smallest score): it decides how many
    entries are looked at twice, never which are kept. On CUDA the guess is not used and the number of entries is
    always `count`: entries that are not positive have value 0. `scale` must be ≥ 0.
    """
    n_tokens, dict_size = preactivations.shape
    preactivations = preactivations.detach().contiguous()
    if preactivations.is_cuda:
        position, kept, smallest = _select_fixed(preactivations, count, scale)
        value = torch.where(kept > 0, preactivations.view(-1)[position], 0.0)
    else:
        position, smallest = _select_filtered(preactivations, count, scale, guess)
        value = preactivations.view(-1)[position]
    token = torch.div(position, dict_size, rounding_mode="floor")
    return SparseCode(token, position - token * dict_size, value, n_tokens), smallest


def above_threshold(
    preactivations: Float[Tensor, "token latent"], threshold: Float[Tensor, "latent"] | float = 0.0
) -> SparseCode:
    """Return the code of the entries with f_j > threshold_j ≥ 0 (their number is read by the host)."""
    bound = torch.as_tensor(threshold, device=preactivations.device).clamp(min=0)
    dict_size = preactivations.shape[1]
    position = flat_positions(preactivations > bound)
    token = torch.div(position, dict_size, rounding_mode="floor")
    return SparseCode(token, position - token * dict_size, preactivations.flatten()[position], len(preactivations))
