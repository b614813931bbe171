"""BatchTopK crosscoder: the N·k largest decoder-norm-weighted activations of a batch (method.md section 2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from tunediff.config.dictionaries import BatchTopKSettings
from tunediff.dictionaries.base import Dictionary, LatentGroup, StepResult
from tunediff.dictionaries.dead import Dead, DeadLatents, with_rows
from tunediff.dictionaries.losses import reconstruction_loss
from tunediff.dictionaries.precision import product
from tunediff.dictionaries.sharding import WHOLE, Shard
from tunediff.dictionaries.sparse import SparseCode, merge, select_largest

THRESHOLD_DECAY = 0.999
GUESS = 0.95  # of the last batch's smallest kept score: where the next selection starts to look


def geometric_median(points: Float[Tensor, "token d_model"], tolerance: float = 1e-5) -> Float[Tensor, "d_model"]:
    """Return the point of least summed distance (Weiszfeld, float64)."""
    points = points.double()
    guess = points.mean(dim=0)
    for _ in range(100):
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
    A kind may split the latents in groups whose k add up to `k`: each keeps its own N·k largest, above a θ of its own.
    Buffers, one entry per group: threshold (θ, negative before its start), last_smallest.
    """

    settings_type = BatchTopKSettings
    sparse_gradients = True
    settings: BatchTopKSettings
    threshold: Tensor
    last_smallest: Tensor

    def __init__(
        self,
        settings: BatchTopKSettings,
        d_model: int,
        seed: int,
        steps: int = 0,
        warmup_steps: int = 0,
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__(settings, d_model, seed, steps, warmup_steps, shard)
        self.clip_norm = settings.clip_norm
        self.target_l0 = float(settings.k)
        self.dead_latents = DeadLatents(settings.dead_after_tokens, shard)
        averaged = max(0, steps - settings.threshold_start)
        self.threshold_decay = max(0.0, min(THRESHOLD_DECAY, 1 - 5 / averaged)) if averaged else THRESHOLD_DECAY
        self.register_buffer("threshold", torch.full((len(self.groups),), -1.0, dtype=torch.float64))
        self.register_buffer("last_smallest", torch.zeros(len(self.groups), dtype=torch.float64))

    def latent_groups(self) -> tuple[LatentGroup, ...]:
        """Return one group that keeps k latents per token."""
        return (LatentGroup("all", 0, self.dict_size, self.settings.k),)

    def _by_group(self, name: str, values: Tensor) -> dict[str, Tensor]:
        """Return one value per group under `name`, or NAME_GROUP where there are several."""
        if len(self.groups) == 1:
            return {name: values[0]}
        return {f"{name}_{group.name}": value for group, value in zip(self.groups, values, strict=True)}

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "token stream d_model"]) -> None:
        """Start the decoder's bias at the geometric median of the first batch; the encoder's cancels what it gives.

        Else every latent would start by decoding the mean of inputs that are not centred once more.
        """
        for stream in range(len(self.streams)):
            self.decoder_bias[stream] = geometric_median(x[:, stream]).to(self.decoder_bias.dtype)
        self.encoder_bias.copy_(-torch.einsum("lmd,md->l", self.encoder(), self.decoder_bias))

    def current_k(self) -> int:
        """Return the k of the next step (annealed linearly from k_max, rounded)."""
        settings = self.settings
        if settings.k_max is None or self.steps_taken >= settings.k_anneal_steps:
            return settings.k
        share = self.steps_taken / settings.k_anneal_steps
        return round(settings.k_max + (settings.k - settings.k_max) * share)

    def _select(self, preactivations: Tensor, scale: Tensor) -> tuple[SparseCode, Tensor]:
        """Return the own entries of the N·k that each group keeps, and the smallest score of each group."""
        codes, smallest = [], []
        for group, part, last in zip(self.groups, self.own_groups, self.last_smallest, strict=True):
            count = len(preactivations) * group.k * self.current_k() // self.settings.k
            guess = 0.0 if preactivations.is_cuda else GUESS * float(last)
            code, least = select_largest(preactivations[:, part], count, scale[part], guess)
            code, least = self.shard.keep_largest(code, scale[part], count, least)
            codes.append(code)
            smallest.append(least)
        return merge(codes, [part.start for part in self.own_groups]), torch.stack(smallest)

    def step(self, x: Float[Tensor, "token stream d_model"], measure: bool = True) -> StepResult:
        """Return loss and metrics of a training batch, and advance counters and threshold."""
        encoder, decoder, scale = self.encoder(), self.decoder(), self.decoder_norms().sum(dim=1)
        dead = self._listed_dead(len(x))
        if dead is not None and self.fused is not None:
            dead_encoder, dead_decoder = self.fused.encoder.take(dead.own), self.fused.decoder.take(dead.own)
        elif dead is not None:
            encoder, dead_encoder = with_rows(encoder, dead.own)
            decoder, dead_decoder = with_rows(decoder, dead.own)
        code, smallest = self._select(self.preactivations(x), scale)
        live, error = self._decode(x, code, encoder, decoder)
        reconstruction = reconstruction_loss(error, self.settings.reconstruction, factor=1.0)
        if dead is None:
            auxiliary = error.new_zeros(())
        else:
            auxiliary = self._auxiliary_loss(x, error.detach(), dead, dead_encoder, dead_decoder, scale)
        added, terms = self._terms(x, error, live)
        self._count(code)
        self._average_threshold(smallest)
        loss = reconstruction + self.settings.aux_weight * auxiliary + added
        if not measure:
            return StepResult(loss, {})
        others = {"reconstruction": reconstruction, "auxiliary": auxiliary, **terms}
        others |= self._by_group("threshold", self.last_smallest.clone())
        return StepResult(loss, self._metrics(x, error, code, others))

    def _listed_dead(self, n_tokens: int) -> Dead | None:
        """Return the dead latents for the auxiliary loss; None if no process has any, or there is no such loss."""
        # The host counts tokens too, so there is nothing to ask the device before a latent can be dead.
        seen = self.steps_taken * n_tokens
        if not self.settings.aux_weight * self.settings.aux_k or seen < self.dead_after_tokens:
            return None
        dead = self.dead_latents.listed(self.tokens_since_fired, self.steps_taken, n_tokens)
        return dead if dead.total else None

    def _auxiliary_loss(
        self, x: Tensor, residual: Tensor, dead: Dead, encoder: Tensor, decoder: Tensor, scale: Tensor
    ) -> Tensor:
        """Return ‖residual − decode(aux_k dead latents of largest v)‖² over the residual's variance.

        Dense on the listed latents alone (the own ones of `dead`, and their rows): aux_k of them is no longer sparse.
        """
        rows, residual = x.flatten(1), residual.flatten(1)
        # A latent that has fired since it was listed is silenced: it is not dead.
        bias = self.encoder_bias.index_select(0, dead.own)
        bias = torch.where(self.tokens_since_fired[dead.own] >= self.dead_after_tokens, bias, -torch.inf)
        activation = product(rows, encoder.flatten(1).T, bias).relu()
        if dead.total > self.settings.aux_k:
            activation = activation * self.shard.among_largest(
                activation.detach() * scale[dead.own], self.settings.aux_k
            )
        squared = (residual - self.shard.sum(product(activation, decoder.flatten(1)))).square().sum()
        return squared / (residual - residual.mean(dim=0)).square().sum().clamp(min=torch.finfo(residual.dtype).tiny)

    @torch.no_grad()
    def _average_threshold(self, smallest: Tensor) -> None:
        smallest = smallest.double()
        self.last_smallest.copy_(smallest)
        if self.steps_taken > self.settings.threshold_start:
            average = self.threshold_decay * self.threshold + (1 - self.threshold_decay) * smallest
            self.threshold.copy_(torch.where(self.threshold < 0, smallest, average))

    def theta(self) -> Float[Tensor, "group"]:
        """Return θ, in units of v."""
        return torch.where(self.threshold < 0, self.last_smallest, self.threshold)

    @torch.no_grad()
    def inference_threshold(self) -> Float[Tensor, "latent"]:
        """Return θ / s_j."""
        scale = self.decoder_norms().sum(dim=1).double()
        sizes = torch.tensor([len(own) for own in self.own], device=scale.device)
        theta = self.theta().repeat_interleave(sizes)
        return (theta / scale.clamp(min=torch.finfo(torch.float32).tiny)).to(self.decoder_weight.dtype)

    def facts(self) -> dict[str, float | int]:
        """Return k and θ."""
        theta = self._by_group("theta", self.theta())
        return {"k": self.settings.k} | {name: float(value) for name, value in theta.items()}
