"""Reconstruction losses, and terms that a kind adds to its loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunediff.dictionaries.sparse import SparseCode


class LossTerm(NamedTuple):
    """A term of a loss: weight · value(x, error, code), its value reported as a metric under its name.

    Inputs and errors are (token, stream, d_model), the code is the decoded one; error and code carry gradients. Where
    several processes train, the code holds the latents of one: a term that is a sum over latents says so.
    """

    name: str
    weight: float
    value: Callable[[Tensor, Tensor, SparseCode], Float[Tensor, ""]]
    adds_latents: bool = False  # a sum over latents of the code; else a function of inputs and errors alone


class _SquaredNorm(torch.autograd.Function):
    """Σ error², in one pass over the error on a GPU, and one in the backward."""

    @staticmethod
    def forward(ctx: Any, error: Tensor) -> Tensor:
        ctx.save_for_backward(error)
        return torch.linalg.vector_norm(error).square() if error.is_cuda else error.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * (2 * gradients[0])


def reconstruction_loss(error: Float[Tensor, "token stream d_model"], form: str, factor: float) -> Float[Tensor, ""]:
    """Return the mean over tokens of factor · Σ_m ‖ε^m‖² ("squared"), or of ‖ε^m‖₂ averaged over m ("norm")."""
    if form == "squared":
        return _SquaredNorm.apply(error) * (factor / len(error))
    return torch.linalg.vector_norm(error, dim=-1).mean()
