"""What every dictionary kind shares: weights as they are used, one encoder GEMM, dead counters, evaluation.

A kind implements `step` and `inference_threshold`. It may give its latents groups, a mask over models or ties, and
terms to its loss. Dimension ``stream``: what it reads and writes of a token, base and chat or their difference alone.
"""

from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tunediff.config.dictionaries import DictionarySettings
from tunediff.dictionaries.crosscoder import STREAMS
from tunediff.dictionaries.fused import Fused
from tunediff.dictionaries.losses import LossTerm
from tunediff.dictionaries.precision import product
from tunediff.dictionaries.sharding import WHOLE, Shard
from tunediff.dictionaries.sparse import (
    SparseCode,
    above_threshold,
    latent_order,
    selected_encoder_outputs,
    sparse_decode,
)
from tunediff.errors import TunediffError

# Rows of a start drawn at once: a multiple of the 16 numbers torch makes together, so that parts give those of a whole.
DRAWN = 4096


class StepResult(NamedTuple):
    """The loss of one batch (with its graph) and metrics that stay on the device until somebody asks."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]  # 0-dimensional, without graph; empty unless measured


class LatentGroup(NamedTuple):
    """A named range of latents."""

    name: str
    start: int
    stop: int  # after its last latent
    k: int  # mean number of its latents per token, at most


class Dictionary(nn.Module):
    """A dictionary while it trains, on normalised activations of its streams (`crosscoder.streams`).

    Parameters: encoder_weight, decoder_weight (F, stream, d) contiguous rows; encoder_bias (F); decoder_bias
    (stream, d). One random direction set of norm `norm_init`, the same for all streams; encoder = decoder; biases 0.
    Buffers: tokens_since_fired (F), advanced by `step` only; mask and tied where the kind has them.
    One of several processes (`shard`) has rows of its `own` latents only, a range of each group, in all of these but
    decoder_bias; `dict_size`, `groups` and what a kind returns of them are those of the whole dictionary.
    """

    settings_type: ClassVar[type[DictionarySettings]]
    clip_norm: float | None = None  # total gradient norm allowed; None does not clip
    target_l0: float | None = None  # mean number of latents per token that was asked for, if any was
    loss_terms: tuple[LossTerm, ...] = ()  # added to the kind's loss
    sparse_gradients: ClassVar[bool] = False  # weights get gradients from their nonzeros only, so kernels can sum them
    # Parameters and buffers with a row per latent; every process has the same of all others.
    per_latent: ClassVar[tuple[str, ...]] = ("encoder_weight", "decoder_weight", "encoder_bias", "tokens_since_fired")

    tokens_since_fired: Tensor
    mask: Tensor | None
    tied: Tensor | None

    def __init__(
        self, settings: Any, d_model: int, seed: int, steps: int = 0, warmup_steps: int = 0, shard: Shard = WHOLE
    ) -> None:
        super().__init__()
        self.settings, self.seed, self.steps, self.warmup_steps = settings, seed, steps, warmup_steps
        self.dict_size, self.d_model, self.dead_after_tokens = settings.dict_size, d_model, settings.dead_after_tokens
        self.streams = STREAMS[settings.reconstructs]
        self.groups, self.shard = self.latent_groups(), shard
        ends = [0, *(group.stop for group in self.groups)]
        if [group.start for group in self.groups] != ends[:-1] or ends[-1] != self.dict_size:
            raise TunediffError(
                f"{self.settings.kind}: groups {self.groups} must follow one another from 0 to dict_size "
                f"{self.dict_size}; correct the config"
            )
        self.own = [shard.part(group.start, group.stop) for group in self.groups]
        ends = list(accumulate(map(len, self.own), initial=0))
        self.own_groups = [slice(*each) for each in pairwise(ends)]  # where the rows of each group are here
        self.n_own = ends[-1]
        if shard.ranks > 1 and not all(self.own):
            raise TunediffError(
                f"training.devices: is {shard.ranks}, and {self.settings.kind} has a group of fewer latents; lower it"
            )
        directions = self._directions(seed)
        directions *= settings.norm_init / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        rows = directions[:, None].repeat(1, len(self.streams), 1)
        self.encoder_weight = nn.Parameter(rows.clone())
        self.decoder_weight = nn.Parameter(rows)
        self.encoder_bias = nn.Parameter(torch.zeros(self.n_own))
        self.decoder_bias = nn.Parameter(torch.zeros(len(self.streams), d_model))
        self.register_buffer("tokens_since_fired", torch.zeros(self.n_own, dtype=torch.int64))
        for name, whole in {"mask": self.latent_mask(), "tied": self.tied_latents()}.items():
            own = None if whole is None else torch.cat([whole[each.start : each.stop] for each in self.own])
            self.register_buffer(name, own, persistent=False)
        self.learning_rate_factors: dict[str, float] = {}  # by parameter, 1 where not named
        self.steps_taken = 0
        self.fused: Fused | None = None  # the weights, where kernels take the steps
        self._block: Tensor | None = None

    def _directions(self, seed: int) -> Float[Tensor, "own d_model"]:
        """Return the own rows of standard normal numbers, which depend on the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.empty(self.n_own, self.d_model)
        # The last piece is the longer one: what torch draws at the end of an array depends on where that is.
        for start, stop in pairwise([0, *range(DRAWN, self.dict_size - DRAWN + 1, DRAWN), self.dict_size]):
            drawn = torch.randn(stop - start, self.d_model, generator=generator)
            for own, here in zip(self.own, self.own_groups, strict=True):
                low, high = max(start, own.start), min(stop, own.stop)
                if low < high:
                    at = here.start - own.start
                    rows[low + at : high + at] = drawn[low - start : high - start]
        return rows

    def latent_groups(self) -> tuple[LatentGroup, ...]:
        """Return the groups, in order; one of all latents unless the kind has more."""
        return (LatentGroup("all", 0, self.dict_size, self.dict_size),)

    def latent_mask(self) -> Bool[Tensor, "latent stream"] | None:
        """Return which latents may read and write which model; None: all."""
        return None

    def tied_latents(self) -> Bool[Tensor, "latent"] | None:
        """Return which latents have the same decoder row for both models (that of base is trained); None: none."""
        return None

    def encoder(self) -> Float[Tensor, "latent stream d_model"]:
        """Return the encoder rows as they are used: masked."""
        return self.encoder_weight if self.mask is None else self.encoder_weight * self.mask[..., None]

    def decoder(self) -> Float[Tensor, "latent stream d_model"]:
        """Return the decoder rows as they are used: tied, then masked."""
        weight: Tensor = self.decoder_weight
        if self.tied is not None:
            weight = torch.where(self.tied[:, None, None], weight[:, :1], weight)
        return weight if self.mask is None else weight * self.mask[..., None]

    def get_extra_state(self) -> dict[str, int]:
        """Return the host-side state of `state_dict`."""
        return {"steps_taken": self.steps_taken}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the host-side state."""
        self.steps_taken = state["steps_taken"]

    def prepare(self, x: Float[Tensor, "token stream d_model"]) -> None:
        """See the first batch before the first step; a kind may start its biases from it."""

    def step(self, x: Float[Tensor, "token stream d_model"], measure: bool = True) -> StepResult:
        """Return loss and (if asked to measure) metrics of a training batch; advance counters and schedules."""
        raise NotImplementedError

    def inference_threshold(self) -> Float[Tensor, "latent"]:
        """Return the activation above which each latent is kept at inference."""
        raise NotImplementedError

    def facts(self) -> dict[str, float | int]:
        """Return what config.json states about the trained dictionary (k, μ, θ)."""
        return {}

    @torch.no_grad()
    def preactivations(self, x: Float[Tensor, "token stream d_model"]) -> Float[Tensor, "token latent"]:
        """Return Σ_m W_enc^m x^m + b_enc in one GEMM, in a block that the next call overwrites."""
        rows = x.reshape(len(x), -1)
        weight = self.encoder().view(self.n_own, -1) if self.fused is None else self.fused.encoder.rows
        shape = (len(rows), self.n_own)
        # Fresh memory costs more than the arithmetic here: page faults on a CPU, the allocator's cache on a GPU.
        if self._block is None or self._block.shape != shape or self._block.dtype != rows.dtype:
            self._block = rows.new_empty(shape)
        return product(rows, weight.T, self.encoder_bias, self._block)

    @torch.no_grad()
    def decoder_norms(self) -> Float[Tensor, "latent stream"]:
        """Return ‖d_j^m‖, without gradient; their sum over streams is s_j."""
        return torch.linalg.vector_norm(self.decoder(), dim=-1) if self.fused is None else self.fused.decoder.norms

    def release(self) -> None:
        """Free the preactivation block."""
        self._block = None

    def _decode(
        self, x: Tensor, code: SparseCode, encoder: Tensor, decoder: Tensor
    ) -> tuple[SparseCode, Float[Tensor, "token stream d_model"]]:
        """Return a selected code with its gradients, and the error of what it decodes to."""
        order = latent_order(code, self.n_own)
        rows, weight = x.reshape(len(x), -1), encoder.view(self.n_own, -1)
        if self.fused is not None:
            live, minus_decoded = self.fused.decode(code, rows, self.encoder_bias, order)
            return live, x + self.shard.sum(minus_decoded.view_as(x)) + -self.decoder_bias
        live = selected_encoder_outputs(code, rows, weight, self.encoder_bias, order)
        return live, x - self.shard.sum(sparse_decode(live, decoder, order)) - self.decoder_bias

    @torch.no_grad()
    def _count(self, code: SparseCode) -> None:
        """Advance the dead counters by the tokens of a training batch."""
        largest = code.value.new_zeros(self.n_own).scatter_reduce_(0, code.latent, code.value, "amax")
        self.tokens_since_fired.copy_(torch.where(largest > 0, 0, self.tokens_since_fired + code.n_tokens))
        self.steps_taken += 1

    def dead_fraction(self) -> Float[Tensor, ""]:
        """Return the share of latents that have not fired for `dead_after_tokens` training tokens."""
        dead = torch.count_nonzero(self.tokens_since_fired >= self.dead_after_tokens)
        return self.shard.total(dead).double() / self.dict_size

    def _terms(self, x: Tensor, error: Tensor, code: SparseCode) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return the weighted sum of the loss terms, and the value of each."""
        values = {term.name: term.value(x, error, code) for term in self.loss_terms}
        values |= {term.name: self.shard.sum(values[term.name]) for term in self.loss_terms if term.adds_latents}
        return sum(term.weight * values[term.name] for term in self.loss_terms), values

    @torch.no_grad()
    def _metrics(self, x: Tensor, error: Tensor, code: SparseCode, others: dict[str, Tensor]) -> dict[str, Tensor]:
        squared = error.detach().square().sum(dim=(0, 2), dtype=torch.float64)
        spread = (x - x.mean(dim=0)).square().sum(dim=(0, 2), dtype=torch.float64)
        explained = 1 - squared / spread
        return {
            **{f"fve_{stream}": explained[i] for i, stream in enumerate(self.streams)},
            "l0": self.shard.total(torch.count_nonzero(code.value > 0)) / code.n_tokens,
            "dead_fraction": self.dead_fraction(),
            **{name: value.detach() for name, value in others.items()},
        }

    @torch.no_grad()
    def evaluate(self, x: Float[Tensor, "token stream d_model"]) -> dict[str, Tensor]:
        """Return FVE per stream, l0, dead_fraction and loss terms at the inference threshold; changes no state."""
        code = above_threshold(self.preactivations(x), self.inference_threshold())
        error = x - self.shard.sum(sparse_decode(code, self.decoder())) - self.decoder_bias
        return self._metrics(x, error, code, self._terms(x, error, code)[1])
