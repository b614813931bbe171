"""Compile every kernel for an H100, which needs no GPU; run by test_kernels.py, without Triton's interpreter."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tunediff.dictionaries import kernels

H100 = GPUTarget("cuda", 90, 32)
INDEX, SINGLE, HALF, WHOLE, REAL = "*i64", "*fp32", "*bf16", "i32", "fp32"


def compiled(kernel: Any, types: list[str], **constants: Any) -> None:
    """Compile one kernel, given the types of its arguments in order; constants come last or stand for a pointer."""
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    made = triton.compile(
        ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constants), target=H100
    )
    assert made.asm["cubin"]


if __name__ == "__main__":
    for rows in (SINGLE, HALF):
        compiled(kernels._decode, [INDEX, SINGLE, INDEX, rows, SINGLE, WHOLE], BLOCK=1024)
    for targets, directions in ((1, 1), (4, 2), (4, 4)):  # of a training step, and of Latent Scaling
        shape = {"TARGETS": targets, "DIRECTIONS": directions, "AT_ONCE": kernels.at_once(targets * directions)}
        for rows in (SINGLE, HALF):
            compiled(kernels._dots, [INDEX, INDEX, rows, rows, SINGLE, WHOLE], **shape, BLOCK=128)
    moments, numbers = [SINGLE, INDEX, SINGLE, SINGLE, SINGLE, SINGLE], [REAL] * 5 + [WHOLE] * 2
    for rows in (SINGLE, HALF):
        sums = [INDEX, SINGLE, INDEX, rows]
        compiled(kernels._squares, [*sums, SINGLE, SINGLE, INDEX, SINGLE, WHOLE, WHOLE], BLOCK=1024)
        compiled(kernels._update, [*sums, *moments, HALF, SINGLE, *numbers], LOW=True, NORMS=True, BLOCK=1024)
        compiled(kernels._update, [*sums, *moments, *numbers], LOW=False, NORMS=False, BLOCK=1024, low=None, norms=None)
    print("ok")
