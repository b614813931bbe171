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
def _dots(token, latent, rows, weight, result, width, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    row, own = rows + tl.load(token + i) * width, weight + tl.load(latent + i) * width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        other = tl.load(own + column, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(row + column, mask=inside, other=0.0) * other
    tl.store(result + i, tl.sum(total, 0))


@triton.jit
def _columns(index, factor, rows, extra, own, begin, end, column, inside, width):
    """Columns of one row of the gradient: Σ factor · rows[index] over begin:end, and its extra row if it has one."""
    total = tl.load(extra + own * width + column, mask=inside & (own >= 0), other=0.0)
    for i in range(begin, end):
        row = tl.load(rows + tl.load(index + i) * width + column, mask=inside, other=0.0)
        total += tl.load(factor + i) * row
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
        for i in range(begin, end):
            products = gram + tl.load(index + i) * n_rows
            for start in range(begin, end, BLOCK):
                other = start + tl.arange(0, BLOCK)
                inside = other < end
                product = tl.load(products + tl.load(index + other, mask=inside, other=0), mask=inside, other=0.0)
                total += tl.load(factor + i) * tl.sum(tl.load(factor + other, mask=inside, other=0.0) * product, 0)
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
            m = beta1 * tl.load(average + place, mask=inside, other=0.0) + (1 - beta1) * gradient
            v = beta2 * tl.load(square + place, mask=inside, other=0.0) + (1 - beta2) * gradient * gradient
            value = tl.load(parameter + place, mask=inside, other=0.0) - rate * m / (tl.sqrt(v) / root2 + epsilon)
            tl.store(average + place, m, mask=inside)
            tl.store(square + place, v, mask=inside)
            tl.store(parameter + place, value, mask=inside)
            if LOW:
                tl.store(low + place, value.to(tl.bfloat16), mask=inside)
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
def dots(token: Tensor, latent: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Return ⟨rows[token], weight[latent]⟩ per nonzero, float32."""
    result = torch.empty(len(token), device=rows.device)
    width = rows.shape[1]
    _dots[(len(token),)](token, latent, rows, weight, result, width, BLOCK=_block(width))
    return result


@dots.register_fake
def _(token: Tensor, latent: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    return rows.new_empty(len(token))


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
    return rows.new_empty(len(offsets) - 1)


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
