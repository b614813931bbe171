"""Triton kernels of a training step on a GPU: sparse decode, its products, and Adam's update without a gradient array.

A weight's gradient is Σ weight · row over a latent's nonzeros. Written down it has the size of the weight, three times
read and written in a step. Here it is summed where it is used. `dictionaries/fused.py` says when. Triton comes with
PyTorch for CUDA; tests run the kernels on a CPU, under Triton's interpreter, beside plain PyTorch.
"""

# mypy: disallow-untyped-defs=False
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

COLUMNS = 1024  # of a row at once
DOTS_COLUMNS, SPLITS = 128, 4  # of `dots`: columns at once, and programs that share a token's nonzeros


@triton.jit
def _decode(latent, value, offsets, weight, result, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(tl.load(offsets + token), tl.load(offsets + token + 1)):
        row = tl.load(weight + tl.load(latent + i) * width + column, mask=inside, other=0.0)
        total += tl.load(value + i) * row.to(tl.float32)
    tl.store(result + token * width + column, total, mask=inside)


@triton.jit
def _dots(
    offsets, latent, rows, weight, result, width,
    TARGETS: tl.constexpr, DIRECTIONS: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    target, direction = tl.arange(0, TARGETS), tl.arange(0, DIRECTIONS)
    end = tl.load(offsets + token + 1)
    first = tl.load(offsets + token) + tl.program_id(1) * AT_ONCE
    for start in range(first, end, tl.num_programs(1) * AT_ONCE):
        i = start + tl.arange(0, AT_ONCE)
        exists = i < end
        own = tl.load(latent + i, mask=exists, other=0)[:, None] * DIRECTIONS + direction[None, :]
        total = tl.zeros([AT_ONCE, DIRECTIONS, TARGETS, BLOCK], dtype=tl.float32)
        for column_start in range(0, width, BLOCK):
            column = column_start + tl.arange(0, BLOCK)
            inside = column < width
            place = (token * TARGETS + target)[:, None] * width + column[None, :]
            row = tl.load(rows + place, mask=inside[None, :], other=0.0).to(tl.float32)
            other = own[:, :, None] * width + column[None, None, :]
            read = exists[:, None, None] & inside[None, None, :]
            u = tl.load(weight + other, mask=read, other=0.0).to(tl.float32)
            total += u[:, :, None, :] * row[None, None, :, :]
        place = (i[:, None] * DIRECTIONS + direction[None, :])[:, :, None] * TARGETS + target[None, None, :]
        tl.store(result + place, tl.sum(total, 3), mask=exists[:, None, None])


@triton.jit
def _columns(index, factor, rows, extra, own, begin, end, column, inside, width):
    """Columns of one row of the gradient: Σ factor · rows[index] over begin:end, and its extra row if it has one."""
    total = tl.load(extra + own * width + column, mask=inside & (own >= 0), other=0.0)
    for i in range(begin, end):
        # The rows of a batch stay in a GPU's L2 cache, through which weights and moments only pass.
        place = rows + tl.load(index + i) * width + column
        total += tl.load(factor + i) * tl.load(place, mask=inside, other=0.0, eviction_policy="evict_last").to(
            tl.float32
        )
    return total


@triton.jit
def _squares(index, factor, offsets, rows, gram, extra, extra_of, result, n_rows, width, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    own = tl.load(extra_of + latent)
    total = 0.0
    if own >= 0:
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            part = _columns(index, factor, rows, extra, own, begin, end, column, column < width, width)
            total += tl.sum(part * part, 0)
    else:
        for i in range(begin, end):  # each pair of different tokens counts twice
            products = gram + tl.load(index + i) * n_rows
            own_factor = tl.load(factor + i)
            total += own_factor * own_factor * tl.load(products + tl.load(index + i))
            for start in range(i + 1, end, BLOCK):
                other = start + tl.arange(0, BLOCK)
                inside = other < end
                product = tl.load(products + tl.load(index + other, mask=inside, other=0), mask=inside, other=0.0)
                total += 2 * own_factor * tl.sum(tl.load(factor + other, mask=inside, other=0.0) * product, 0)
    tl.store(result + latent, total)


@triton.jit
def _update(
    index, factor, offsets, rows, extra, extra_of, divisor, parameter, average, square, low, norms,
    rate, beta1, beta2, root2, epsilon, streams, d_model,
    LOW: tl.constexpr, NORMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    own, scale, width = tl.load(extra_of + latent), 1.0 / tl.load(divisor), streams * d_model
    for stream in range(streams):
        total = 0.0
        for start in range(0, d_model, BLOCK):
            within = start + tl.arange(0, BLOCK)
            inside, column = within < d_model, stream * d_model + within
            place = latent * width + column
            gradient = _columns(index, factor, rows, extra, own, begin, end, column, inside, width) * scale
            old_m = tl.load(average + place, mask=inside, other=0.0, eviction_policy="evict_first")
            old_v = tl.load(square + place, mask=inside, other=0.0, eviction_policy="evict_first")
            value = tl.load(parameter + place, mask=inside, other=0.0, eviction_policy="evict_first")
            m = beta1 * old_m + (1 - beta1) * gradient
            v = beta2 * old_v + (1 - beta2) * gradient * gradient
            value -= rate * m / (tl.sqrt(v) / root2 + epsilon)
            tl.store(average + place, m, mask=inside, eviction_policy="evict_first")
            tl.store(square + place, v, mask=inside, eviction_policy="evict_first")
            tl.store(parameter + place, value, mask=inside, eviction_policy="evict_first")
            if LOW:
                tl.store(low + place, value.to(tl.bfloat16), mask=inside, eviction_policy="evict_first")
            if NORMS:
                value = tl.where(inside, value, 0.0)
                total += tl.sum(value * value, 0)
        if NORMS:
            tl.store(norms + latent * streams + stream, tl.sqrt(total))


def _block(width: int) -> int:
    return min(COLUMNS, triton.next_power_of_2(width))


@custom_op("tunediff::decode", mutates_args=())
def decode(latent: Tensor, value: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Return Σ value · weight[latent] per token, float32 (token, width); offsets (token + 1) say where each begins."""
    n_tokens, width = len(offsets) - 1, weight.shape[1]
    result = torch.empty(n_tokens, width, device=weight.device)
    block = _block(width)
    _decode[(n_tokens, triton.cdiv(width, block))](latent, value, offsets, weight, result, width, BLOCK=block)
    return result


@decode.register_fake
def _(latent: Tensor, value: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    return value.new_empty(len(offsets) - 1, weight.shape[1])


@custom_op("tunediff::dots", mutates_args=())
def dots(offsets: Tensor, latent: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Return ⟨rows[token], weight[latent]⟩, float32 (nonzero, direction, target).

    `offsets` (token + 1) say where the nonzeros of each token begin; rows are (token, target, width), weight is
    (latent, direction, width). A row of weight is read once per nonzero, those of a token once per `at_once` nonzeros.
    Numbers of targets and directions are powers of two.
    """
    n_tokens, n_targets, width = rows.shape
    n_directions = weight.shape[1]
    result = torch.empty(len(latent), n_directions, n_targets, device=rows.device)
    _dots[(n_tokens, SPLITS)](
        *(offsets, latent, rows, weight, result, width),
        TARGETS=n_targets,
        DIRECTIONS=n_directions,
        AT_ONCE=at_once(n_directions * n_targets),
        BLOCK=min(DOTS_COLUMNS, _block(width)),
    )
    return result


def at_once(n_products: int) -> int:
    """Return how many nonzeros of a token `dots` takes at a time: their sums must fit a program's registers."""
    return max(1, min(16, 64 // n_products))


@dots.register_fake
def _(offsets: Tensor, latent: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(len(latent), weight.shape[1], rows.shape[1], device=rows.device)


@custom_op("tunediff::square_norms", mutates_args=())
def square_norms(
    index: Tensor, factor: Tensor, offsets: Tensor, rows: Tensor, gram: Tensor, extra: Tensor, extra_of: Tensor
) -> Tensor:
    """Return ‖gradient row‖² per latent, from the products of the rows: ‖Σ w_n x_n‖² = Σ w_n w_m ⟨x_n, x_m⟩."""
    n_latents, width = len(offsets) - 1, rows.shape[1]
    result = torch.empty(n_latents, device=rows.device)
    _squares[(n_latents,)](
        index, factor, offsets, rows, gram, extra, extra_of, result, len(rows), width, BLOCK=_block(width)
    )
    return result


@square_norms.register_fake
def _(
    index: Tensor, factor: Tensor, offsets: Tensor, rows: Tensor, gram: Tensor, extra: Tensor, extra_of: Tensor
) -> Tensor:
    return factor.new_empty(len(offsets) - 1)


@custom_op("tunediff::update", mutates_args=("parameter", "average", "square", "low", "norms"))
def update(
    index: Tensor,
    factor: Tensor,
    offsets: Tensor,
    rows: Tensor,
    extra: Tensor,
    extra_of: Tensor,
    divisor: Tensor,
    parameter: Tensor,
    average: Tensor,
    square: Tensor,
    low: Tensor | None,
    norms: Tensor | None,
    rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """Take Adam's step `step` (from 1) with the gradient over `divisor`, in one pass over parameter and moments.

    `low` (bfloat16) becomes the rounded parameter, `norms` (latent, stream) the norms of its rows.
    """
    n_latents, streams, d_model = parameter.shape
    _update[(n_latents,)](
        *(index, factor, offsets, rows, extra, extra_of, divisor, parameter, average, square, low, norms),
        *(rate / (1 - beta1**step), beta1, beta2, (1 - beta2**step) ** 0.5, epsilon, streams, d_model),
        LOW=low is not None,
        NORMS=norms is not None,
        BLOCK=_block(d_model),
    )


@update.register_fake
def _(*_: object) -> None:
    return None
