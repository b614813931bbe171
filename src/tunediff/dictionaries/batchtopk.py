"""BatchTopK crosscoder: the N·k largest decoder-norm-weighted activations of a batch (method.md section 2)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from tunediff.config.dictionaries import BatchTopKSettings
from tunediff.dictionaries.base import (
    Dictionary,
    StepResult,
    reconstruction_loss,
)
from tunediff.dictionaries.sparse import latent_order, select_largest, selected_encoder_outputs, sparse_decode

THRESHOLD_DECAY = 0.999
GUESS = 0.95  # of the last batch's smallest kept score: where the next selection starts to look


def geometric_median(
    points: Float[Tensor, "token d_model"], iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, "d_model"]:
    """Return the point of least summed distance (Weiszfeld, float64)."""
    points = points.double()
    guess = points.mean(dim=0)
    for _ in range(iterations):
        weight = 1 / torch.linalg.vector_norm(points - guess, dim=1).clamp(min=1e-12)
        previous, guess = guess, (weight / weight.sum()) @ points
        if torch.linalg.vector_norm(guess - previous) < tolerance * torch.linalg.vector_norm(guess):
            break
    return guess


class BatchTopK(Dictionary):
    """v_j(n) = f_j(n)·s_j with s_j detached; the N·k largest decode their unscaled f.

    L = mean_n Σ_m ‖ε^m‖² + α·aux. Inference keeps v > θ, θ the average (decay 0.999, from step `threshold_start`) of
    the smallest kept v; a run shorter than that uses the last batch's smallest. Where fewer than 5,000 steps follow
    `threshold_start`, the average is over the last fifth of them, or it would lag behind the weights.
    Buffers: threshold (θ, negative before its start), last_smallest.
    """

    kind = "batchtopk"
    settings_type = BatchTopKSettings
    settings: BatchTopKSettings
    threshold: Tensor
    last_smallest: Tensor

    def __init__(
        self, settings: BatchTopKSettings, d_model: int, seed: int, steps: int = 0, warmup_steps: int = 0
    ) -> None:
        super().__init__(settings, d_model, seed, steps, warmup_steps, settings.norm_init)
        self.clip_norm = settings.clip_norm
        self.target_l0 = float(settings.k)
        averaged = max(0, steps - settings.threshold_start)
        self.threshold_decay = max(0.0, min(THRESHOLD_DECAY, 1 - 5 / averaged)) if averaged else THRESHOLD_DECAY
        self.dead_after_tokens = settings.dead_after_tokens
        self.register_buffer("threshold", torch.tensor(-1.0, dtype=torch.float64))
        self.register_buffer("last_smallest", torch.tensor(0.0, dtype=torch.float64))

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "token model d_model"]) -> None:
        """Start both sides at the geometric median of the first batch, per model.

        The decoder's bias is that point; the encoder's cancels what it gives, or every latent would start by decoding
        the mean of inputs that are not centred once more.
        """
        for model in range(2):
            self.decoder_bias[model] = geometric_median(x[:, model]).to(self.decoder_bias.dtype)
        self.encoder_bias.copy_(-torch.einsum("lmd,md->l", self.encoder_weight, self.decoder_bias))

    def current_k(self) -> int:
        """Return the k of the next step (annealed linearly from k_max, rounded)."""
        settings = self.settings
        if settings.k_max is None or self.steps_taken >= settings.k_anneal_steps:
            return settings.k
        share = self.steps_taken / settings.k_anneal_steps
        return round(settings.k_max + (settings.k - settings.k_max) * share)

    def step(self, x: Float[Tensor, "token model d_model"], measure: bool = True) -> StepResult:
        """Return loss and metrics of a training batch, and advance counters and threshold."""
        encoder = self.encoder_weight.view(self.dict_size, -1)
        scale = self.decoder_norms().sum(dim=1)
        guess = 0.0 if x.is_cuda else GUESS * float(self.last_smallest)
        code, smallest = select_largest(self.preactivations(x), len(x) * self.current_k(), scale, guess)
        order = latent_order(code, self.dict_size)
        live = selected_encoder_outputs(code, x.reshape(len(x), -1), encoder, self.encoder_bias, order)
        error = x - sparse_decode(live, self.decoder_weight, order) - self.decoder_bias
        reconstruction = reconstruction_loss(error, self.settings.reconstruction, factor=1.0)
        auxiliary = self.auxiliary_loss(x, error.detach(), scale)
        self._count(code)
        self._average_threshold(smallest)
        loss = reconstruction + self.settings.aux_weight * auxiliary
        if not measure:
            return StepResult(loss, {})
        others = {"reconstruction": reconstruction, "auxiliary": auxiliary, "threshold": self.last_smallest.clone()}
        return StepResult(loss, self._metrics(x, error, code, **others))

    def auxiliary_loss(
        self,
        x: Float[Tensor, "token model d_model"],
        residual: Float[Tensor, "token model d_model"],
        scale: Float[Tensor, "latent"],
    ) -> Float[Tensor, ""]:
        """Return ‖residual − decode(aux_k dead latents of largest v)‖² over the residual's variance; 0 if none is dead.

        Dense on the dead latents alone: aux_k of them is no longer sparse.
        """
        none = residual.new_zeros(())
        # The host counts tokens too, so there is nothing to ask the device before a latent can be dead.
        if not self.settings.aux_weight * self.settings.aux_k or self.steps_taken * len(x) < self.dead_after_tokens:
            return none
        dead = (self.tokens_since_fired >= self.dead_after_tokens).nonzero().squeeze(1)
        if not len(dead):
            return none
        flat = residual.reshape(len(residual), -1)
        encoder = self.encoder_weight.view(self.dict_size, -1).index_select(0, dead)
        decoder = self.decoder_weight.view(self.dict_size, -1).index_select(0, dead)
        activation = linear(x.reshape(len(x), -1), encoder, self.encoder_bias.index_select(0, dead)).relu()
        if len(dead) > self.settings.aux_k:
            score = activation.detach() * scale[dead]
            chosen = score.topk(self.settings.aux_k, dim=1, sorted=False).indices
            activation = activation * torch.zeros_like(score).scatter_(1, chosen, 1.0)
        squared = (flat - activation @ decoder).square().sum()
        return squared / (flat - flat.mean(dim=0)).square().sum().clamp(min=torch.finfo(flat.dtype).tiny)

    @torch.no_grad()
    def _average_threshold(self, smallest: Tensor) -> None:
        smallest = smallest.double()
        self.last_smallest.copy_(smallest)
        if self.steps_taken > self.settings.threshold_start:
            average = self.threshold_decay * self.threshold + (1 - self.threshold_decay) * smallest
            self.threshold.copy_(torch.where(self.threshold < 0, smallest, average))

    def theta(self) -> Float[Tensor, ""]:
        """Return θ, in units of v."""
        return torch.where(self.threshold < 0, self.last_smallest, self.threshold)

    @torch.no_grad()
    def inference_threshold(self) -> Float[Tensor, "latent"]:
        """Return θ / s_j."""
        scale = self.decoder_norms().sum(dim=1).double()
        return (self.theta() / scale.clamp(min=torch.finfo(torch.float32).tiny)).to(self.decoder_weight.dtype)

    def facts(self) -> dict[str, float | int]:
        """Return k and θ."""
        return {"k": self.settings.k, "theta": float(self.theta())}
