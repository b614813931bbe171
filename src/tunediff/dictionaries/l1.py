"""L1 crosscoder: reconstruction + μ · Σ_j f_j s_j, with μ given or found during training (method.md section 2)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunediff.dictionaries.base import (
    RECONSTRUCTIONS,
    Dictionary,
    DictionarySettings,
    StepResult,
    reconstruction_loss,
)
from tunediff.errors import TunediffError
from tunediff.sparse import SparseCode, above_threshold, latent_order, selected_encoder_outputs, sparse_decode

# Share of nonzeros under which nonzeros beat GEMMs (benchmarks/training_step.py --crossover, one core). On a GPU GEMMs
# are cheaper against gathers; that value is an estimate from peak rates (790 TFLOP/s, 4.3 TB/s), not a measurement.
SPARSE_BELOW = {"cpu": 0.2, "cuda": 0.01}

MU_DECAY = 0.9  # of the average of L0 that μ follows
MU_INTEGRAL, MU_PROPORTIONAL = 12.0, 0.5  # log μ moves 12 times the log error over a whole search, plus ½ its change
MU_MAX_GAIN = 0.05  # per step: latents need some tens of steps to answer, however short the search
MU_LIMIT = 0.5  # largest μ of a search, in the same units: beyond it hardly any latent can live
MU_RAMP = 0.6  # share of the search in which the reference falls
MU_START = 0.03  # first μ of a search, in units of the mean centred norm ("squared"); the paper's 0.041 is as "norm"


@dataclass(frozen=True)
class L1Settings(DictionarySettings):
    """Config section of kind l1."""

    kind: ClassVar[str] = "l1"

    mu: float | str  # weight of the sparsity penalty, or "auto": searched for target_l0
    target_l0: float | None = None  # wanted mean number of latents per token; only with mu: auto
    mu_search_fraction: float = 0.8  # share of the steps after which a searched μ stays fixed
    reconstruction: str = "squared"  # squared: ½ Σ_m ‖ε^m‖² (printed); norm: ‖ε^m‖₂ averaged over the models (released)
    norm_init: float = 0.05  # norm of each model's decoder row at the start, activation units
    dead_after_tokens: int = 10_000_000  # tokens without firing after which a latent counts as dead in the log

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.mu, int | float) and self.mu >= 0
        self.require("mu", number or self.mu == "auto", 'a number of 0 or more, or "auto"')
        if self.mu == "auto":
            wanted = self.target_l0 is not None and 0 < self.target_l0 < self.dict_size
            self.require("target_l0", wanted, "between 0 and dict_size where mu is auto")
        self.require("mu_search_fraction", 0 < self.mu_search_fraction <= 1, "in (0, 1]")
        self.require("reconstruction", self.reconstruction in RECONSTRUCTIONS, f"one of {RECONSTRUCTIONS}")
        self.require("norm_init", self.norm_init > 0, "positive")
        self.require("dead_after_tokens", self.dead_after_tokens > 0, "positive")


class _DenseOutputs(torch.autograd.Function):
    """f = ReLU(preactivations) computed already; the backward is the dense one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, rows: Tensor, preactivations: Tensor) -> Tensor:
        activation = preactivations.float().relu_() if preactivations.dtype != rows.dtype else preactivations.relu_()
        activation = activation.detach()
        ctx.save_for_backward(rows, activation)
        return activation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, activation = ctx.saved_tensors
        gradient = torch.where(activation > 0, gradients[0], 0)
        return gradient.T @ rows, gradient.sum(dim=0), None, None


class L1(Dictionary):
    """L = mean_n Σ_m rec(ε^m) + μ · mean_n Σ_j f_j s_j; the norms in s_j are inside the gradient.

    Dense while many latents fire, in nonzeros once their share falls under `SPARSE_BELOW`; both give the same numbers.
    With mu: auto, from the end of the warm-up until `mu_search_fraction` of the steps, log μ follows the log ratio of
    L0 (averaged) to a reference that falls from L0 as found to target_l0; then μ stays. Buffers: mu, mu_limit,
    average_l0 and start_l0 (negative before the search).
    """

    kind = "l1"
    settings_type = L1Settings
    settings: L1Settings
    mu: Tensor
    average_l0: Tensor
    start_l0: Tensor
    mu_limit: Tensor

    def __init__(self, settings: L1Settings, d_model: int, seed: int, steps: int = 0, warmup_steps: int = 0) -> None:
        super().__init__(settings, d_model, seed, steps, warmup_steps, settings.norm_init)
        self.dead_after_tokens = settings.dead_after_tokens
        self.sparse_below: float | None = None  # None: by device; tests and benchmarks set it
        start = 0.0 if isinstance(settings.mu, str) else float(settings.mu)
        self.register_buffer("mu", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("mu_limit", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("start_l0", torch.tensor(-1.0, dtype=torch.float64))
        self.register_buffer("average_l0", torch.tensor(-1.0, dtype=torch.float64))
        self.search_end = math.floor(settings.mu_search_fraction * steps)
        if settings.mu == "auto" and self.search_end <= warmup_steps:
            raise TunediffError(
                f"l1.mu_search_fraction: the search of μ would end at step {self.search_end} of {steps}, within the "
                f"warm-up of {warmup_steps}; raise it, train longer, or give mu as a number"
            )

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "token model d_model"]) -> None:
        """Start the search of μ from the scale of the first batch."""
        if self.settings.mu == "auto":
            unit = 1.0
            if self.settings.reconstruction == "squared":
                unit = float(torch.linalg.vector_norm((x - x.mean(dim=0)).flatten(1).double(), dim=1).mean())
            self.mu.fill_(MU_START * unit)
            self.mu_limit.fill_(MU_LIMIT * unit)

    def step(self, x: Float[Tensor, "token model d_model"], measure: bool = True) -> StepResult:
        """Return loss and metrics of a training batch, and advance counters and μ."""
        preactivations = self.preactivations(x)
        limit = SPARSE_BELOW[x.device.type] if self.sparse_below is None else self.sparse_below
        # A host read, on CUDA too: the nonzeros of an L1 code have no size known beforehand.
        count = int(torch.count_nonzero(preactivations > 0))
        losses = self._sparse_losses if count < limit * preactivations.numel() else self._dense_losses
        error, penalty, l0, code = losses(x, preactivations)
        reconstruction = reconstruction_loss(error, self.settings.reconstruction, factor=0.5)
        mu = self.mu.clone()
        self._count(code)
        self._follow(l0)
        loss = reconstruction + mu.to(penalty.dtype) * penalty
        if not measure:
            return StepResult(loss, {})
        metrics = self._metrics(x, error, code, reconstruction=reconstruction, sparsity=penalty, mu=mu)
        return StepResult(loss, {**metrics, "l0": l0})

    def _sparse_losses(self, x: Tensor, preactivations: Tensor) -> tuple[Tensor, Tensor, Tensor, SparseCode]:
        code = above_threshold(preactivations)
        order = latent_order(code, self.dict_size)
        encoder = self.encoder_weight.view(self.dict_size, -1)
        live = selected_encoder_outputs(code, x.reshape(len(x), -1), encoder, self.encoder_bias, order)
        error = x - sparse_decode(live, self.decoder_weight, order) - self.decoder_bias
        totals = torch.zeros_like(self.encoder_bias).index_add(0, live.latent, live.value)
        l0 = torch.tensor(len(code.value) / len(x), dtype=torch.float64, device=x.device)
        return error, self._penalty(totals, len(x)), l0, code

    def _dense_losses(self, x: Tensor, preactivations: Tensor) -> tuple[Tensor, Tensor, Tensor, SparseCode]:
        encoder = self.encoder_weight.view(self.dict_size, -1)
        activation = _DenseOutputs.apply(encoder, self.encoder_bias, x.reshape(len(x), -1), preactivations)
        reconstruction = activation @ self.decoder_weight.view(self.dict_size, -1)
        error = x - reconstruction.view_as(x) - self.decoder_bias
        active = activation.detach() > 0
        l0 = torch.count_nonzero(active).double() / len(x)
        # The counters only need to know which latents fired at all.
        latent = torch.arange(self.dict_size, device=x.device)
        code = SparseCode(torch.zeros_like(latent), latent, active.any(dim=0).to(x.dtype), len(x))
        return error, self._penalty(activation.sum(dim=0), len(x)), l0, code

    def _penalty(self, totals: Float[Tensor, "latent"], n_tokens: int) -> Float[Tensor, ""]:
        """Return mean_n Σ_j f_j s_j from Σ_n f_j."""
        norms = torch.linalg.vector_norm(self.decoder_weight, dim=-1).sum(dim=1)
        return (totals * norms).sum() / n_tokens

    @torch.no_grad()
    def _follow(self, l0: Tensor) -> None:
        """Move log μ by the log error of L0 (integral) and by its change (proportional, damping)."""
        if self.settings.mu != "auto" or not self.warmup_steps < self.steps_taken <= self.search_end:
            return
        wanted = float(self.settings.target_l0 or 0)
        l0 = l0.double().clamp(min=1e-3 * wanted)
        before = torch.where(self.average_l0 < 0, l0, self.average_l0)
        after = MU_DECAY * before + (1 - MU_DECAY) * l0
        self.average_l0.copy_(after)
        self.start_l0.copy_(torch.where(self.start_l0 < 0, l0, self.start_l0))
        # L0 answers over hundreds of steps. Asked for the target at once, μ would run away and kill the latents.
        done = (self.steps_taken - self.warmup_steps) / (MU_RAMP * max(1, self.search_end - self.warmup_steps))
        share = max(0.0, 1 - done) ** 2
        reference = wanted * (self.start_l0 / wanted) ** share
        error = (after / reference).log().clamp(-1.5, 1.5)
        change = (after / before).log()
        gain = min(MU_INTEGRAL / max(1, self.search_end - self.warmup_steps), MU_MAX_GAIN)
        self.mu.mul_(torch.exp(gain * error + MU_PROPORTIONAL * change)).clamp_(max=self.mu_limit)

    def inference_threshold(self) -> Float[Tensor, "latent"]:
        """Return 0 for every latent."""
        return torch.zeros_like(self.encoder_bias.detach())

    def facts(self) -> dict[str, float | int]:
        """Return the (final) μ."""
        return {"mu": float(self.mu)}
