"""L1 crosscoder: reconstruction + μ · Σ_j f_j s_j, with μ given or found during training (method.md section 2)."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunediff.config.dictionaries import L1Settings
from tunediff.dictionaries.base import Dictionary, StepResult
from tunediff.dictionaries.losses import reconstruction_loss
from tunediff.dictionaries.precision import product
from tunediff.dictionaries.sharding import WHOLE, Shard
from tunediff.dictionaries.sparse import SparseCode, above_threshold
from tunediff.errors import TunediffError

# Share of nonzeros under which nonzeros beat GEMMs (benchmarks/training_step.py --crossover, one core). Never on CUDA:
# the host would wait for the number of nonzeros in every step, and GEMMs are cheap there against gathers.
SPARSE_BELOW = {"cpu": 0.2, "cuda": 0.0}

# The search of μ (see `L1`), tuned on the demo, the planted arms and a real pair.
MU_START = 0.05  # first μ, in units of the mean centred norm ("squared"); "norm" compares with numbers near 1
MU_DECAY = 0.9  # of the average of log L0 that μ follows
MU_RAMP = 0.6  # share of the steps in which the reference falls from L0 as found to the target
MU_INTEGRAL, MU_PROPORTIONAL = 12.0, 1.5  # log μ moves 12 times the log error over a whole run, plus 1.5 its change
MU_SETTLING = 3.0  # times the integral part once the reference is at the target
MU_MAX_GAIN = 0.05  # per step: latents need some tens of steps to answer, however short the run
MU_GUARD = 0.9  # μ does not rise while the loss is above this share of an empty code's: it would kill the latents
START_DENSITY = 2.0  # times target_l0: what fires before the first step, by the biases


class _DenseOutputs(torch.autograd.Function):
    """f = ReLU(preactivations) computed already; the backward is the dense one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, rows: Tensor, preactivations: Tensor) -> Tensor:
        activation = preactivations.relu_().detach()
        ctx.save_for_backward(rows, activation)
        return activation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, activation = ctx.saved_tensors
        gradient = torch.where(activation > 0, gradients[0], 0)
        return product(gradient.T, rows), gradient.sum(dim=0), None, None


class _WithNorms(torch.autograd.Function):
    """A weight, to be used once, and the norms of its rows, whose gradient is added into that of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.linalg.vector_norm(weight, dim=-1)
        ctx.save_for_backward(weight, norms)
        return weight.view_as(weight), norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        weight, norms = ctx.saved_tensors
        share = torch.where(norms > 0, gradients[1] / norms, 0)
        return gradients[0].addcmul_(
            weight, share[..., None]
        )  # in place: it comes from a product, which is done with it


def _with_norms(weight: Tensor) -> tuple[Tensor, Float[Tensor, "latent stream"]]:
    """Return a decoder, to be used once, and the norms of its rows; on CUDA with a third of the traffic for them.

    A CPU keeps torch's own gradient: the other one rounds otherwise, and results of a CPU do not change.
    """
    if not weight.is_cuda:
        return weight, torch.linalg.vector_norm(weight, dim=-1)
    whole, norms = _WithNorms.apply(weight)
    return whole, norms


def _penalty(totals: Float[Tensor, "latent"], norms: Float[Tensor, "latent stream"], n_tokens: int) -> Tensor:
    """Return mean_n Σ_j f_j s_j from Σ_n f_j."""
    return (totals * norms.sum(dim=1)).sum() / n_tokens


class L1(Dictionary):
    """L = mean_n Σ_m rec(ε^m) + μ · mean_n Σ_j f_j s_j; the norms in s_j are inside the gradient.

    Dense while many latents fire (on CUDA always), in nonzeros once their share falls under `SPARSE_BELOW`; both give
    the same numbers.
    With mu: auto the biases start where about twice target_l0 latents fire, and they learn √d times faster than the
    weights (whose effect on a preactivation has inputs of norm √d behind it). From the end of the warm-up to the last
    step, log μ then follows the log ratio of L0 (averaged) to a reference that falls from L0 as found to target_l0, as
    a proportional-integral controller does. So μ is a means to an L0, not a constant: compare such runs by L0.
    Buffers: mu, average_l0 and start_l0 (logs; infinite before the search), last_error, empty_loss.
    """

    settings_type = L1Settings
    settings: L1Settings
    mu: Tensor
    average_l0: Tensor
    start_l0: Tensor
    last_error: Tensor
    empty_loss: Tensor

    def __init__(
        self,
        settings: L1Settings,
        d_model: int,
        seed: int,
        steps: int = 0,
        warmup_steps: int = 0,
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__(settings, d_model, seed, steps, warmup_steps, shard)
        self.sparse_below: float | None = None  # None: by device; tests and benchmarks set it
        starts = {"mu": 0.0 if isinstance(settings.mu, str) else settings.mu}
        starts |= {"average_l0": math.inf, "start_l0": math.inf, "last_error": 0.0, "empty_loss": 0.0}
        for name, value in starts.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        if settings.mu == "auto":
            self.learning_rate_factors = {"encoder_bias": math.sqrt(d_model)}
            self.target_l0 = settings.target_l0
            if 0 < steps <= 2 * warmup_steps:
                raise TunediffError(
                    f"l1.mu: the search of μ needs more steps than {steps}, of which {warmup_steps} are the warm-up; "
                    "raise training.steps, lower training.warmup_steps, or give mu as a number"
                )

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "token stream d_model"]) -> None:
        """Start the search of μ from the scale of the first batch, and the biases from its preactivations."""
        if self.settings.mu != "auto":
            return
        centred = x - x.mean(dim=0)
        self.empty_loss.fill_(reconstruction_loss(centred, self.settings.reconstruction, factor=0.5))
        unit = 1.0
        if self.settings.reconstruction == "squared":
            unit = float(torch.linalg.vector_norm(centred.flatten(1).double(), dim=1).mean())
        self.mu.fill_(MU_START * unit)
        share = START_DENSITY * float(self.settings.target_l0 or 0) / self.dict_size
        if share < 0.5:  # else as many fire without a bias
            highest = self.preactivations(x).topk(max(1, round(share * len(x))), dim=0).values
            self.encoder_bias.sub_(highest[-1])

    def step(self, x: Float[Tensor, "token stream d_model"], measure: bool = True) -> StepResult:
        """Return loss and metrics of a training batch, and advance counters and μ."""
        preactivations = self.preactivations(x)
        limit = SPARSE_BELOW[x.device.type] if self.sparse_below is None else self.sparse_below
        count = torch.count_nonzero(preactivations > 0) if limit else None
        sparse = count is not None and int(count) < limit * preactivations.numel()
        error, penalty, code = (self._sparse_losses if sparse else self._dense_losses)(x, preactivations)
        if count is None:  # the dense path has made activations of the preactivations
            count = torch.count_nonzero(preactivations)
        l0 = self.shard.total(count).double() / len(x)
        reconstruction = reconstruction_loss(error, self.settings.reconstruction, factor=0.5)
        added, terms = self._terms(x, error, code)
        mu = self.mu.clone()
        self._count(code)
        loss = reconstruction + mu.to(penalty.dtype) * penalty + added
        self._follow(l0, loss.detach())
        if not measure:
            return StepResult(loss, {})
        others = {"reconstruction": reconstruction, "sparsity": penalty, **terms, "mu": mu}
        return StepResult(loss, {**self._metrics(x, error, code, others), "l0": l0})

    def _sparse_losses(self, x: Tensor, preactivations: Tensor) -> tuple[Tensor, Tensor, SparseCode]:
        decoder, norms = _with_norms(self.decoder())
        live, error = self._decode(x, above_threshold(preactivations), self.encoder(), decoder)
        totals = torch.zeros_like(self.encoder_bias).index_add(0, live.latent, live.value)
        return error, self.shard.sum(_penalty(totals, norms, len(x))), live

    def _dense_losses(self, x: Tensor, preactivations: Tensor) -> tuple[Tensor, Tensor, SparseCode]:
        encoder, (decoder, norms) = self.encoder().view(self.n_own, -1), _with_norms(self.decoder())
        activation = _DenseOutputs.apply(encoder, self.encoder_bias, x.reshape(len(x), -1), preactivations)
        reconstruction = self.shard.sum(product(activation, decoder.view(self.n_own, -1)))
        error = x - reconstruction.view_as(x) - self.decoder_bias
        active = activation.detach() > 0
        if self.loss_terms:
            token, latent = active.nonzero(as_tuple=True)
            value = activation[token, latent]
        else:  # the counters only need to know which latents fired at all
            latent = torch.arange(self.n_own, device=x.device)
            token, value = torch.zeros_like(latent), active.any(dim=0).to(x.dtype)
        penalty = self.shard.sum(_penalty(activation.sum(dim=0), norms, len(x)))
        return error, penalty, SparseCode(token, latent, value, len(x))

    @torch.no_grad()
    def _follow(self, l0: Tensor, loss: Tensor) -> None:
        """Move log μ by the log error of L0 (integral) and by the change of that error (proportional)."""
        if self.settings.mu != "auto" or self.steps_taken <= self.warmup_steps:
            return
        wanted = math.log(float(self.settings.target_l0 or 1))
        now = l0.double().clamp(min=1e-2 * math.exp(wanted)).log()
        first = self.average_l0.isinf()
        self.average_l0.copy_(torch.where(first, now, MU_DECAY * self.average_l0 + (1 - MU_DECAY) * now))
        self.start_l0.copy_(torch.where(first, now, self.start_l0))
        # L0 answers over hundreds of steps. Asked for the target at once, μ would run away and kill the latents.
        searched = max(1, self.steps - self.warmup_steps)
        left = max(0.0, 1 - (self.steps_taken - self.warmup_steps) / (MU_RAMP * searched))
        error = self.average_l0 - (wanted + left * (self.start_l0 - wanted))
        change = torch.where(first, 0.0, error - self.last_error)
        self.last_error.copy_(error)
        gain = min(MU_INTEGRAL * (1.0 if left else MU_SETTLING) / searched, MU_MAX_GAIN)
        move = gain * error.clamp(-1.5, 1.5) + MU_PROPORTIONAL * change
        self.mu.mul_(torch.where(loss > MU_GUARD * self.empty_loss, move.clamp(max=0.0), move).exp())

    def inference_threshold(self) -> Float[Tensor, "latent"]:
        """Return 0 for every latent."""
        return torch.zeros_like(self.encoder_bias.detach())

    def facts(self) -> dict[str, float | int]:
        """Return the (final) μ."""
        return {"mu": float(self.mu)}
