"""What every dictionary method shares: parameters, one encoder GEMM, dead counters, evaluation.

A method implements `step` (loss and metrics of one training batch; advances its state) and `inference_threshold`.
Exclusive latents (DFC) would be a (latent, model) mask multiplied into the weights where they are used here, and
latent groups a list of ranges with a k each: both belong to this class and its settings, and touch nothing else.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunediff.config.dictionaries import DictionarySettings
from tunediff.dictionaries.sparse import SparseCode, above_threshold, sparse_decode


class StepResult(NamedTuple):
    """The loss of one batch (with its graph) and metrics that stay on the device until somebody asks."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]  # 0-dimensional, without graph; empty unless measured


class Dictionary(nn.Module):
    """A crosscoder while it trains, on normalised activations.

    Parameters: encoder_weight, decoder_weight (F, 2, d) contiguous rows; encoder_bias (F); decoder_bias (2, d). One
    random direction set of norm `norm_init`, the same for both models; encoder = decoder; biases 0.
    Buffer: tokens_since_fired (F), advanced by `step` only.
    """

    kind: ClassVar[str]
    settings_type: ClassVar[type[DictionarySettings]]
    clip_norm: float | None = None  # total gradient norm allowed; None does not clip
    dead_after_tokens: int  # a latent is dead after so many tokens without firing
    target_l0: float | None = None  # mean number of latents per token that was asked for, if any was

    tokens_since_fired: Tensor

    def __init__(
        self, settings: Any, d_model: int, seed: int, steps: int = 0, warmup_steps: int = 0, norm_init: float = 1.0
    ) -> None:
        super().__init__()
        self.settings, self.seed, self.steps, self.warmup_steps = settings, seed, steps, warmup_steps
        self.dict_size, self.d_model = settings.dict_size, d_model
        directions = torch.randn(self.dict_size, d_model, generator=torch.Generator().manual_seed(seed))
        directions *= norm_init / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        rows = directions[:, None].repeat(1, 2, 1)
        self.encoder_weight = nn.Parameter(rows.clone())
        self.decoder_weight = nn.Parameter(rows)
        self.encoder_bias = nn.Parameter(torch.zeros(self.dict_size))
        self.decoder_bias = nn.Parameter(torch.zeros(2, d_model))
        self.register_buffer("tokens_since_fired", torch.zeros(self.dict_size, dtype=torch.int64))
        self.learning_rate_factors: dict[str, float] = {}  # by parameter, 1 where not named
        self.steps_taken = 0
        self.gemm_dtype = torch.float32  # bfloat16: the encoder GEMM under autocast, everything else in float32
        self._block: Tensor | None = None

    def get_extra_state(self) -> dict[str, int]:
        """Return the host-side state of `state_dict`."""
        return {"steps_taken": self.steps_taken}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the host-side state."""
        self.steps_taken = state["steps_taken"]

    def prepare(self, x: Float[Tensor, "token model d_model"]) -> None:
        """See the first batch before the first step; a method may start its biases from it."""

    def step(self, x: Float[Tensor, "token model d_model"], measure: bool = True) -> StepResult:
        """Return loss and (if asked to measure) metrics of a training batch; advance counters and schedules."""
        raise NotImplementedError

    def inference_threshold(self) -> Float[Tensor, "latent"]:
        """Return the activation above which each latent is kept at inference."""
        raise NotImplementedError

    def facts(self) -> dict[str, float | int]:
        """Return what config.json states about the trained method (k, μ, θ)."""
        return {}

    @torch.no_grad()
    def preactivations(self, x: Float[Tensor, "token model d_model"]) -> Float[Tensor, "token latent"]:
        """Return Σ_m W_enc^m h^m + b_enc in one GEMM, in a block that the next call overwrites."""
        rows, weight = x.reshape(len(x), -1), self.encoder_weight.view(self.dict_size, -1)
        shape = (len(rows), self.dict_size)
        # Fresh memory costs more than the arithmetic here: page faults on a CPU, the allocator's cache on a GPU.
        if self._block is None or self._block.shape != shape or self._block.dtype != self.gemm_dtype:
            self._block = torch.empty(shape, dtype=self.gemm_dtype, device=rows.device)
        if self.gemm_dtype == torch.float32:
            return torch.addmm(self.encoder_bias, rows, weight.T, out=self._block)
        low = (tensor.to(self.gemm_dtype) for tensor in (self.encoder_bias, rows, weight.T))
        return torch.addmm(*low, out=self._block)

    @torch.no_grad()
    def decoder_norms(self) -> Float[Tensor, "latent model"]:
        """Return ‖d_j^m‖, without gradient; their sum over models is s_j."""
        return torch.linalg.vector_norm(self.decoder_weight, dim=-1)

    def release(self) -> None:
        """Free the preactivation block."""
        self._block = None

    def _count(self, code: SparseCode) -> None:
        """Advance the dead counters by the tokens of a training batch."""
        with torch.no_grad():
            largest = torch.zeros(self.dict_size, dtype=code.value.dtype, device=code.value.device)
            largest.scatter_reduce_(0, code.latent, code.value.detach(), "amax")
            since = self.tokens_since_fired + code.n_tokens
            self.tokens_since_fired.copy_(torch.where(largest > 0, 0, since))
        self.steps_taken += 1

    def dead_fraction(self) -> Float[Tensor, ""]:
        """Return the share of latents that have not fired for `dead_after_tokens` training tokens."""
        return (self.tokens_since_fired >= self.dead_after_tokens).double().mean()

    @torch.no_grad()
    def _metrics(self, x: Tensor, error: Tensor, code: SparseCode, **others: Tensor) -> dict[str, Tensor]:
        squared = error.detach().square().sum(dim=(0, 2), dtype=torch.float64)
        spread = (x - x.mean(dim=0)).square().sum(dim=(0, 2), dtype=torch.float64)
        explained = 1 - squared / spread
        return {
            "fve_base": explained[0],
            "fve_chat": explained[1],
            "l0": torch.count_nonzero(code.value > 0) / code.n_tokens,
            "dead_fraction": self.dead_fraction(),
            **{name: value.detach() for name, value in others.items()},
        }

    @torch.no_grad()
    def evaluate(self, x: Float[Tensor, "token model d_model"]) -> dict[str, Tensor]:
        """Return fve_base, fve_chat, l0 and dead_fraction at the inference threshold; changes no state."""
        code = above_threshold(self.preactivations(x), self.inference_threshold())
        error = x - sparse_decode(code, self.decoder_weight) - self.decoder_bias
        return self._metrics(x, error, code)


def reconstruction_loss(error: Float[Tensor, "token model d_model"], form: str, factor: float) -> Float[Tensor, ""]:
    """Return the mean over tokens of factor · Σ_m ‖ε^m‖² ("squared") or of ½ Σ_m ‖ε^m‖₂ ("norm", released code)."""
    if form == "squared":
        return error.square().sum() * (factor / len(error))
    return torch.linalg.vector_norm(error, dim=-1).mean()
