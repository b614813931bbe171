"""One precision for every large product: `training.matmul_precision`, and a product that obeys it.

`highest` is float32. `high` is TF32 where a GPU has it. `bf16` rounds what is multiplied to bfloat16; sums and results
are float32, on every device (a CPU gains no speed by it). Weights, moments, gradients and scores are float32 always.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Torch's own flag holds the setting, because every thread sees it: a backward on CUDA has threads of its own. For torch
# on CUDA "medium" is TF32, so a float32 product that is not one of `product` runs in TF32 under bf16.
TORCH = {"highest": "highest", "high": "high", "bf16": "medium"}


@contextmanager
def precision(setting: str) -> Iterator[None]:
    """Let large products run at a setting (`highest`, `high`, `bf16`) inside, and as before afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(TORCH[setting])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rounded(matrix: Tensor) -> bool:
    return matrix.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"


def operand(matrix: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """Return a matrix as `product` multiplies it now: rounded to bfloat16 under `bf16`, else itself.

    Round one that is multiplied several times once, and give `product` the result.
    """
    return matrix.bfloat16() if _rounded(matrix) else matrix


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    kept: dict[str, Any] = {}
    if torch.bfloat16 in (left.dtype, right.dtype):
        left, right = left.bfloat16(), right.bfloat16()
        if left.is_cuda:
            kept = {"out_dtype": torch.float32}
        else:  # the same numbers: the product of two bfloat16 is exact in float32
            left, right = left.float(), right.float()
    if bias is None:
        return torch.mm(left, right, out=out, **kept)
    return torch.addmm(bias, left, right, out=out, **kept)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        left, right = operand(left), operand(right)
        ctx.save_for_backward(left, right)
        return _multiply(left, right, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (left, right), wanted, rounded = ctx.saved_tensors, ctx.needs_input_grad, gradients[0].bfloat16()
        return (
            _multiply(rounded, right.T) if wanted[0] else None,
            _multiply(rounded.T, left).T if wanted[1] else None,
            gradients[0].sum(dim=0) if wanted[2] else None,
        )


def product(
    left: Float[Tensor, "row inner"],
    right: Float[Tensor, "inner column"],
    bias: Float[Tensor, "column"] | None = None,
    out: Float[Tensor, "row column"] | None = None,
) -> Float[Tensor, "row column"]:
    """Return left @ right (+ bias) at the precision of the moment, float32 for float32 and for operands in bfloat16.

    With gradients, unless it is written to `out`.
    """
    if out is None and (_rounded(left) or _rounded(right)):
        return _Product.apply(left, right, bias)
    return _multiply(operand(left), operand(right), bias, out)
