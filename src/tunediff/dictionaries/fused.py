"""Weights whose gradients are never written down: decode, products and Adam's update in the kernels of `kernels.py`.

For dictionaries whose weights are used as they are (no mask, no ties) and get a gradient from their nonzeros only, on a
GPU. Everything else takes the plain path, which gives the same numbers. Under `bf16` the kernels and the encoder's
product read a copy of the weights in bfloat16, which the update keeps. The rows that gradients sum are rounded too
(inputs, and gradients of what is decoded): those of a batch then fit a GPU's L2 cache. Weights, moments and sums are
float32.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunediff.dictionaries.precision import product
from tunediff.dictionaries.sparse import LatentOrder, SparseCode

NORMS = "norms"  # in the optimiser's state of a weight: ‖row‖ of each latent and stream, as the last update made it


class RowSums(NamedTuple):
    """Row j of a gradient is Σ factor · rows[token] over the entries offsets[j] to offsets[j + 1]."""

    token: Int[Tensor, "nonzero"]
    factor: Float[Tensor, "nonzero"]
    offsets: Int[Tensor, "latent_plus_1"]
    rows: Float[Tensor, "token width"]  # bfloat16 where the weight has a copy in it


class FusedWeight:
    """A parameter (latent, stream, d_model), its copy in bfloat16 if there is one, and its gradient as sums."""

    def __init__(self, parameter: nn.Parameter, optimizer: torch.optim.Adam, low: bool, norms: bool) -> None:
        self.parameter, self.state = parameter, optimizer.state[parameter]
        (self.group,) = [group for group in optimizer.param_groups if group["params"][0] is parameter]
        flat = parameter.detach().flatten(1)
        self.low = flat.bfloat16() if low else None
        if "exp_avg" not in self.state:
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.state.update({"step": torch.zeros((), device=parameter.device), **zeros})
        if norms and NORMS not in self.state:
            self.state[NORMS] = torch.linalg.vector_norm(parameter.detach(), dim=-1)
        self.sums: RowSums | None = None
        self.extra: tuple[Tensor, Tensor] | None = None  # latents, and a gradient row of each

    @property
    def rows(self) -> Float[Tensor, "latent width"]:
        """What products read: the copy in bfloat16, or the parameter."""
        return self.parameter.detach().flatten(1) if self.low is None else self.low

    @property
    def norms(self) -> Float[Tensor, "latent stream"]:
        """‖row‖ per latent and stream."""
        return self.state[NORMS]

    def rounded(self, rows: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        """Return rows as this weight's gradient sums them: in bfloat16 if there is a copy in it."""
        return rows.contiguous() if self.low is None else rows.bfloat16()

    def take(self, latent: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen stream d_model"]:
        """Return some rows, with their gradients."""
        return _Take.apply(self.parameter, self, latent)

    def _pieces(self) -> tuple[Tensor, ...]:
        assert self.sums is not None
        token, _, offsets, rows = self.sums
        of_latent = torch.full((len(offsets) - 1,), -1, dtype=torch.int64, device=token.device)
        if self.extra is None:
            return *self.sums, rows.new_empty(1, 1, dtype=torch.float32), of_latent  # not read
        latent, extra = self.extra
        return *self.sums, extra, of_latent.scatter_(0, latent, torch.arange(len(extra), device=token.device))

    def square_norm(self) -> Float[Tensor, ""]:
        """Return ‖gradient‖²."""
        from tunediff.dictionaries import kernels

        token, factor, offsets, rows, extra, of_latent = self._pieces()
        squares = kernels.square_norms(token, factor, offsets, rows, product(rows, rows.T), extra, of_latent)
        return squares.sum(dtype=torch.float64).float()

    def update(self, divisor: Float[Tensor, ""], step: int) -> None:
        """Take Adam's step number `step` with the gradient over `divisor`, and forget the gradient."""
        from tunediff.dictionaries import kernels

        state, group = self.state, self.group
        kernels.update(
            *(*self._pieces(), divisor, self.parameter.detach(), state["exp_avg"], state["exp_avg_sq"], self.low),
            *(state.get(NORMS), group["lr"], *group["betas"], group["eps"], step),
        )
        state["step"] += 1
        self.sums = self.extra = None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, weight: FusedWeight, latent: Tensor) -> Tensor:
        ctx.weight, ctx.latent = weight, latent
        return parameter.index_select(0, latent)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.weight.extra = ctx.latent, gradients[0].flatten(1).contiguous()
        return None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, parameter: Tensor, weight: FusedWeight, code: SparseCode, order: LatentOrder
    ) -> Tensor:
        from tunediff.dictionaries import kernels

        ctx.weight, ctx.code, ctx.order, ctx.offsets = weight, code, order, code.offsets()
        return kernels.decode(code.latent, -code.value, ctx.offsets, weight.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        from tunediff.dictionaries import kernels

        weight, code, order, gradient = ctx.weight, ctx.code, ctx.order, ctx.weight.rounded(gradients[0])
        weight.sums = RowSums(order.token, -code.value[order.position], order.offsets, gradient)
        dots = kernels.dots(ctx.offsets, code.latent, gradient[:, None], weight.rows[:, None])
        return -dots.flatten(), None, None, None, None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        bias: Tensor,
        parameter: Tensor,
        weight: FusedWeight,
        rows: Tensor,
        code: SparseCode,
        order: LatentOrder,
    ) -> Tensor:
        ctx.weight, ctx.rows, ctx.code, ctx.order = weight, rows, code, order
        return code.value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        weight, order = ctx.weight, ctx.order
        gradient = torch.where(ctx.code.value > 0, gradients[0], 0)  # padding has no gradient, as ReLU at 0
        weight.sums = RowSums(order.token, gradient[order.position], order.offsets, ctx.rows)
        bias = gradient.new_zeros(len(weight.parameter)).index_add_(0, ctx.code.latent, gradient)
        return bias, None, None, None, None, None


class Fused(NamedTuple):
    """The two weights of a dictionary."""

    encoder: FusedWeight
    decoder: FusedWeight

    def decode(
        self, code: SparseCode, rows: Float[Tensor, "token width"], bias: Tensor, order: LatentOrder
    ) -> tuple[SparseCode, Float[Tensor, "token width"]]:
        """Return a selected code with its gradients (see `selected_encoder_outputs`), and minus what it decodes to.

        An error adds it, so that the gradient of the error is that of the rows, and no array of minus it is made.
        """
        encoder, decoder = self
        live = code._replace(value=_Encode.apply(bias, encoder.parameter, encoder, encoder.rounded(rows), code, order))
        return live, _Decode.apply(live.value, decoder.parameter, decoder, code, order)

    def square_norm(self) -> Float[Tensor, ""]:
        """Return ‖gradients‖² of both."""
        return self.encoder.square_norm() + self.decoder.square_norm()

    def update(self, divisor: Float[Tensor, ""], step: int) -> None:
        """Take Adam's step of both."""
        self.encoder.update(divisor, step)
        self.decoder.update(divisor, step)


def available(device: str) -> bool:
    """Return whether the kernels can run: on a GPU, where Triton is installed."""
    return device.startswith("cuda") and find_spec("triton") is not None


def fuse(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Adam, low: bool) -> Fused:
    """Return the two weights of a dictionary for the kernels; `low` keeps copies in bfloat16."""
    return Fused(
        FusedWeight(parameters["encoder_weight"], optimizer, low, norms=False),
        FusedWeight(parameters["decoder_weight"], optimizer, low, norms=True),
    )
