"""Dead latents, listed for the auxiliary loss without a wait of the host, and rows of a weight with cheap gradients."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunediff.dictionaries.sharding import WHOLE, Shard

REFRESH = 100  # steps between two lists on CUDA


class Dead(NamedTuple):
    """A list of dead latents."""

    own: Int[Tensor, "dead"]  # of this process
    total: int  # of all processes


class _Listing:
    """A list of latents on its way: the host learns its length when the copy is there."""

    def __init__(self, chosen: Bool[Tensor, "latent"], shard: Shard) -> None:
        self.order = chosen.byte().argsort(descending=True, stable=True)
        own = chosen.sum()
        # into pinned memory
        self.count, self.total = (each.to("cpu", non_blocking=True) for each in (own, shard.total(own)))
        self.copied = torch.Event(chosen.device)
        self.copied.record()

    def latents(self) -> Dead:
        """Return the list; a wait only for a copy that is younger than the host is ahead."""
        self.copied.synchronize()
        return Dead(self.order[: int(self.count)], int(self.total))


class DeadLatents:
    """The latents that have not fired for `after_tokens` training tokens.

    On a CPU the list is that of the moment. On CUDA a list is begun every `REFRESH` steps and is in use from the next
    time on. So a latent may enter up to 2 · REFRESH steps late; one that has fired since stays in the list.
    """

    def __init__(self, after_tokens: int, shard: Shard = WHOLE) -> None:
        self.after_tokens, self.shard = after_tokens, shard
        self._used: Dead | None = None
        self._begun: _Listing | None = None

    @torch.no_grad()
    def listed(self, silent: Int[Tensor, "latent"], step: int, n_tokens: int) -> Dead:
        """Return the list at a step, given the tokens for which each latent is silent; n_tokens are those of a step."""
        if not silent.is_cuda:
            chosen = silent >= self.after_tokens
            return Dead(chosen.nonzero().squeeze(1), int(self.shard.total(chosen.sum())))
        if self._used is None or self._begun is None:
            # What was silent long enough at an earlier step and has not fired since is known from the counters of now:
            # so training that is resumed goes on with the lists it had. The only wait of a run.
            begun = step // REFRESH * REFRESH
            used, self._begun = (
                _Listing(silent >= self.after_tokens + (step - at) * n_tokens, self.shard)
                for at in (begun - REFRESH, begun)
            )
            self._used = used.latents()
        elif step % REFRESH == 0:
            self._used, self._begun = self._begun.latents(), _Listing(silent >= self.after_tokens, self.shard)
        return self._used


class _WithRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(latent)
        return weight.view_as(weight), weight.index_select(0, latent)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # In place: the gradient of the whole comes from a kernel of `sparse`, which keeps no hold of it.
        return gradients[0].index_add_(0, ctx.saved_tensors[0], gradients[1]), None


def with_rows(
    weight: Float[Tensor, "latent ..."], latent: Int[Tensor, "chosen"]
) -> tuple[Float[Tensor, "latent ..."], Float[Tensor, "chosen ..."]]:
    """Return a weight, to be used once, and some of its rows.

    The gradients of the rows are added into that of the weight: no second array of its size exists.
    """
    whole, rows = _WithRows.apply(weight, latent)
    return whole, rows
