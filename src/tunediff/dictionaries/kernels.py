"""Triton kernels of a training step on a GPU. Each has a twin in plain PyTorch that gives the same results.

Triton comes with PyTorch for CUDA. Tests run the kernels on a CPU, under Triton's interpreter.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

# A score is ≥ 0, so the bits of its float32 are ordered as it is. The first 13 after the sign are the exponent and five
# of the mantissa: a bin is 3 % wide.
_SHIFT, _BINS = 18, 1 << 13
_BLOCK = 4096


@triton.jit
def _score(preactivations, scale, index, n, dict_size):
    """ReLU(preactivation) · scale of flat positions, in float32; 0 beyond the end."""
    inside = index < n
    value = tl.load(preactivations + index, mask=inside, other=0.0).to(tl.float32)
    return tl.maximum(value, 0.0) * tl.load(scale + index % dict_size, mask=inside, other=0.0)


@triton.jit
def _count_bins(
    preactivations, scale, bins, n, dict_size, BLOCK: tl.constexpr, SHIFT: tl.constexpr, BINS: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = _score(preactivations, scale, index, n, dict_size).to(tl.int32, bitcast=True)
    counts = tl.histogram(bits >> SHIFT, BINS)
    bin_number = tl.arange(0, BINS)
    tl.atomic_add(bins + bin_number, counts, mask=counts > 0)


@triton.jit
def _collect(
    preactivations,
    scale,
    lowest,
    number,
    position,
    value,
    n,
    dict_size,
    capacity,
    BLOCK: tl.constexpr,
    SHIFT: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    score = _score(preactivations, scale, index, n, dict_size)
    kept = (score.to(tl.int32, bitcast=True) >> SHIFT) >= tl.load(lowest)
    one = kept.to(tl.int32)
    place = tl.atomic_add(number, tl.sum(one, 0)) + tl.cumsum(one, 0) - one
    kept = kept & (place < capacity)
    tl.store(position + place, index, mask=kept)
    tl.store(value + place, score, mask=kept)


def largest_scores(
    preactivations: Float[Tensor, "token latent"], count: int, scale: Float[Tensor, "latent"]
) -> tuple[Int[Tensor, "nonzero"], Float[Tensor, "nonzero"], Float[Tensor, ""]]:
    """Return flat positions (sorted), scores and the smallest score of the `count` largest ReLU(preactivation)·scale.

    Exact, and without a host synchronisation: a histogram of the scores gives a bound under which none is among them;
    what reaches it is collected (about a tenth more than `count`), and the cutoff is chosen from that. The first of
    equal scores win. Two reads of the preactivations. Where fewer than `count` are positive, the rest have score 0 and
    the last position. Where more than twice `count` reach the bound (equal scores without end), the smallest is NaN.
    """
    n, dict_size = preactivations.numel(), preactivations.shape[1]
    count = min(count, n)
    capacity = min(2 * count + (1 << 16), n)
    device, grid = preactivations.device, (triton.cdiv(n, _BLOCK),)
    bins = torch.zeros(_BINS, dtype=torch.int32, device=device)
    _count_bins[grid](preactivations, scale, bins, n, dict_size, BLOCK=_BLOCK, SHIFT=_SHIFT, BINS=_BINS)
    reach = bins[1:].flip(0).cumsum(0)  # of the highest bin, the two highest, … without the bin of 0
    lowest = (_BINS - 1 - (reach < count).sum()).clamp(min=1).to(torch.int32)
    number = torch.zeros((), dtype=torch.int32, device=device)
    position = torch.full((capacity,), n - 1, dtype=torch.int64, device=device)
    score = torch.zeros(capacity, dtype=torch.float32, device=device)
    _collect[grid](
        preactivations, scale, lowest, number, position, score, n, dict_size, capacity, BLOCK=_BLOCK, SHIFT=_SHIFT
    )
    position, order = position.sort(stable=True)  # collected in any order
    score = score[order]
    cutoff = score.topk(count, sorted=False).values.min()
    above, tied = score > cutoff, score == cutoff
    chosen = above | (tied & (tied.cumsum(0) <= count - above.sum()))
    # exactly `count` are chosen; the others go to a slot of their own
    place = torch.where(chosen, chosen.cumsum(0) - 1, count)
    position = position.new_zeros(count + 1).scatter_(0, place, position)[:count]
    score = score.new_zeros(count + 1).scatter_(0, place, score)[:count]
    smallest = torch.where(score > 0, score, torch.inf).min()
    smallest = torch.where(smallest.isinf(), 0.0, smallest)
    return position, score, torch.where(number > capacity, torch.nan, smallest)


@triton.jit
def _row_block(index, weight, rows, extra, own, begin, end, column, inside, width):
    """Columns of one row of the gradient: Σ weight · rows[index] over begin:end, and its extra row if it has one."""
    total = tl.load(extra + own * width + column, mask=inside & (own >= 0), other=0.0)
    for i in range(begin, end):
        token = tl.load(index + i)
        total += tl.load(weight + i) * tl.load(rows + token * width + column, mask=inside, other=0.0)
    return total


@triton.jit
def _square_norms(index, weight, offsets, rows, gram, extra, extra_of, result, n_tokens, width, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    own = tl.load(extra_of + latent)
    total = 0.0
    if own >= 0:
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            part = _row_block(index, weight, rows, extra, own, begin, end, column, column < width, width)
            total += tl.sum(part * part, 0)
    else:
        for i in range(begin, end):
            token, factor = tl.load(index + i), tl.load(weight + i)
            for start in range(begin, end, BLOCK):
                other = start + tl.arange(0, BLOCK)
                inside = other < end
                product = tl.load(gram + token * n_tokens + tl.load(index + other, mask=inside, other=0), mask=inside)
                total += factor * tl.sum(tl.where(inside, tl.load(weight + other, mask=inside) * product, 0.0), 0)
    tl.store(result + latent, total)


@triton.jit
def _update_rows(
    index, weight, offsets, rows, extra, extra_of, divisor, parameter, average, square, rate, beta1, beta2, correction1,
    correction2, epsilon, width, BLOCK: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    own, scale = tl.load(extra_of + latent), 1.0 / tl.load(divisor)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside, place = column < width, latent * width + column
        gradient = _row_block(index, weight, rows, extra, own, begin, end, column, inside, width) * scale
        m = beta1 * tl.load(average + place, mask=inside) + (1 - beta1) * gradient
        v = beta2 * tl.load(square + place, mask=inside) + (1 - beta2) * gradient * gradient
        step = rate / correction1 * m / (tl.sqrt(v) / tl.sqrt(correction2) + epsilon)
        tl.store(parameter + place, tl.load(parameter + place, mask=inside) - step, mask=inside)
        tl.store(average + place, m, mask=inside)
        tl.store(square + place, v, mask=inside)


class Adam(NamedTuple):
    """The constants of the update."""

    beta1: float
    beta2: float
    epsilon: float


class RowGradient(NamedTuple):
    """The gradient of weights with one row per latent, as the sums it consists of: it is never written down.

    Row j is Σ weight · rows[index] over the entries offsets[j] to offsets[j + 1], plus one of the `extra` rows for each
    latent of `extra_latent` (the auxiliary loss of dead latents).
    """

    index: Int[Tensor, "nonzero"]  # token of each entry
    weight: Float[Tensor, "nonzero"]
    offsets: Int[Tensor, "latent_plus_1"]
    rows: Float[Tensor, "token width"]
    extra_latent: Int[Tensor, "extra"]
    extra: Float[Tensor, "extra width"]

    def dense(self) -> Float[Tensor, "latent width"]:
        """Return the gradient as an array: the twin of what the kernels add up."""
        total = embedding_bag(
            self.index, self.rows, self.offsets, mode="sum", per_sample_weights=self.weight, include_last_offset=True
        )
        return total.index_add(0, self.extra_latent, self.extra)

    def _extra_of(self) -> Int[Tensor, "latent"]:
        """Return the extra row of each latent, -1 where it has none."""
        found = torch.full((len(self.offsets) - 1,), -1, dtype=torch.int64, device=self.index.device)
        return found.scatter_(0, self.extra_latent, torch.arange(len(self.extra), device=found.device))

    def square_norm(self) -> Float[Tensor, ""]:
        """Return ‖gradient‖², from the products of the rows with each other: ‖Σ w_n x_n‖² = Σ w_n w_m ⟨x_n, x_m⟩."""
        n_latents, width = len(self.offsets) - 1, self.rows.shape[1]
        result = self.rows.new_empty(n_latents)
        _square_norms[(n_latents,)](
            *(self.index, self.weight, self.offsets, self.rows, self.rows @ self.rows.T, self.extra, self._extra_of()),
            *(result, len(self.rows), width),
            BLOCK=_block(width),
        )
        return result.sum(dtype=torch.float64).float()

    def update(
        self, parameter: Tensor, average: Tensor, square: Tensor, divisor: Tensor, step: int, rate: float, adam: Adam
    ) -> None:
        """Take Adam's step on a parameter and its two moments with this gradient over `divisor`, in one pass."""
        width = self.rows.shape[1]
        _update_rows[(len(self.offsets) - 1,)](
            *(self.index, self.weight, self.offsets, self.rows, self.extra, self._extra_of(), divisor),
            *(parameter, average, square, rate, adam.beta1, adam.beta2),
            *(1 - adam.beta1**step, 1 - adam.beta2**step, adam.epsilon, width),
            BLOCK=_block(width),
        )


def _block(width: int) -> int:
    return min(1024, triton.next_power_of_2(width))
