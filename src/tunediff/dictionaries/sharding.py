"""Latents of one dictionary spread over processes, one per GPU: which are whose, and all that the processes exchange.

Every process sees every token of every batch and owns a part of each group of latents. It encodes, selects, decodes and
updates its own. What the parts must agree on passes through a `Shard`: sums over latents, the cutoff of a selection,
counts. So every process has the same loss, thresholds and μ, and the gradients of its own latents are those of one
process. A `Shard` of one process exchanges nothing and returns what it is given.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from tunediff.dictionaries.sparse import SparseCode
from tunediff.errors import TunediffError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # of a wait for the other processes; the first one reads and measures data meanwhile


class Shard:
    """One process, which owns all latents."""

    rank, ranks = 0, 1

    def device(self, device: str) -> str:
        """Return the device of this process, where the training's is `device`."""
        return device

    def tells(self) -> bool:
        """Return whether this process is the first to end in an error: then the others end because of it."""
        return True

    def part(self, start: int, stop: int) -> range:
        """Return which of the latents from start to stop are this process's own."""
        size = stop - start
        return range(start + self.rank * size // self.ranks, start + (self.rank + 1) * size // self.ranks)

    def sum(self, own: Tensor) -> Tensor:
        """Return the sum over processes of what each has of its own latents; the gradient goes to the own part."""
        return own

    def total(self, own: Tensor) -> Tensor:
        """Return the sum over processes, without gradient."""
        return own

    def norm(self, own: Float[Tensor, ""], shared: Tensor) -> Float[Tensor, ""]:
        """Return the norm over all latents; `own` is that of all gradients here, of which all have the `shared` one."""
        return own

    def keep_largest(
        self, code: SparseCode, scale: Float[Tensor, "own"], count: int, smallest: Float[Tensor, ""]
    ) -> tuple[SparseCode, Float[Tensor, ""]]:
        """Keep the `count` entries of largest score over all processes, each of which gives its `count` largest.

        Code and smallest score are those of `sparse.select_largest`, and what is returned is what it would return of
        the latents of all, as far as they are the own ones: of equal scores the first token counts, then latent.
        """
        return code, smallest

    def among_largest(self, score: Float[Tensor, "token own"], count: int) -> Float[Tensor, "token own"]:
        """Return 1 where an own score is among the `count` largest of its token over all processes, else 0."""
        chosen = score.topk(count, dim=1, sorted=False).indices
        return torch.zeros_like(score).scatter_(1, chosen, 1.0)

    def of_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process, which alone calls it; tensors in it are on the host."""
        return make()

    def every(self, value: T) -> list[T]:
        """Return the value of each process, by rank; the processes wait for one another here."""
        return [value]


WHOLE = Shard()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, shard: "Ranks") -> Tensor:
        return shard.total(own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None  # every process has the same loss, so this is the gradient of its own part


class Ranks(Shard):
    """One of several processes of torch.distributed."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def exchange(self, operation: Callable[..., Any], *arguments: Any) -> None:
        """Take part in a collective operation of `torch.distributed`."""
        try:
            operation(*arguments)
        except RuntimeError as error:
            raise TunediffError(
                "training.devices: another process of this training has died, perhaps of a lack of memory; torchrun "
                "says which in the log beside this one, and a new run goes on from the last checkpoint"
            ) from error

    def gather(self, own: Tensor) -> Float[Tensor, "rank ..."]:
        """Return the tensors of all processes, which have one shape."""
        every = own.new_empty(self.ranks, *own.shape)
        self.exchange(dist.all_gather, list(every.unbind()), own.contiguous())
        return every

    def sum(self, own: Tensor) -> Tensor:
        result: Tensor = _Sum.apply(own, self)
        return result

    def total(self, own: Tensor) -> Tensor:
        result = own.detach().clone(memory_format=torch.contiguous_format)
        self.exchange(dist.all_reduce, result)
        return result

    def norm(self, own: Float[Tensor, ""], shared: Tensor) -> Float[Tensor, ""]:
        return (self.total(own.square()) - (self.ranks - 1) * shared.square().sum()).sqrt()

    @torch.no_grad()
    def keep_largest(
        self, code: SparseCode, scale: Float[Tensor, "own"], count: int, smallest: Float[Tensor, ""]
    ) -> tuple[SparseCode, Float[Tensor, ""]]:
        score = code.value * scale[code.latent]
        padded = score.new_zeros(count)
        padded[: len(score)] = score
        every = self.gather(padded)
        cutoff = every.view(-1).topk(count, sorted=False).values.min()
        # Entries at the cutoff, in the order of one process: by token, then latent, which grows with the rank.
        tied = (score == cutoff).long()
        ties = tied.new_zeros(code.n_tokens).index_add_(0, code.token, tied)
        of_all = self.gather(ties).T
        earlier = (of_all.reshape(-1).cumsum(0).view_as(of_all) - of_all)[:, self.rank] - (ties.cumsum(0) - ties)
        place = earlier[code.token] + tied.cumsum(0) - tied
        room = count - (every > cutoff).sum()
        kept = (score > 0) & ((score > cutoff) | ((tied > 0) & (place < room)))
        least = torch.where((every > 0) & (every >= cutoff), every, torch.inf).min()
        least = torch.where(least.isinf(), 0.0, least)
        if code.value.is_cuda:  # shapes the host knows, without waiting for a number
            return code._replace(value=torch.where(kept, code.value, 0.0)), least
        return SparseCode(code.token[kept], code.latent[kept], code.value[kept], code.n_tokens), least

    @torch.no_grad()
    def among_largest(self, score: Float[Tensor, "token own"], count: int) -> Float[Tensor, "token own"]:
        largest = score.new_zeros(len(score), count)
        own = min(count, score.shape[1])
        largest[:, :own] = score.topk(own, dim=1, sorted=False).values
        every = self.gather(largest)
        cutoff = every.transpose(0, 1).flatten(1).topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        tied = score == cutoff
        room = count - (every > cutoff).sum(dim=(0, 2)) - (every[: self.rank] == cutoff).sum(dim=(0, 2))
        return ((score > cutoff) | (tied & (tied.cumsum(dim=1) <= room[:, None]))).to(score.dtype)

    def of_first(self, make: Callable[[], T]) -> T:
        made = [make() if self.rank == 0 else None]
        self.exchange(dist.broadcast_object_list, made)
        return made[0]  # type: ignore[return-value]

    def every(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.ranks
        self.exchange(dist.all_gather_object, values, value)
        return values


class Processes(Ranks):
    """The same as torchrun starts it."""

    def __init__(self, store: dist.Store, rank: int, ranks: int) -> None:
        super().__init__(rank, ranks)
        self._store = store

    def device(self, device: str) -> str:
        if not device.startswith("cuda"):
            return device
        own = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(own)
        return own

    def tells(self) -> bool:
        return self._store.add("errors", 1) == 1


@contextmanager
def torchrun() -> Iterator[Processes]:
    """Join the processes that torchrun started: by NCCL where tensors are on GPUs, by gloo where they are on the host.

    What they print goes to stdout: torchrun has stderr for itself.
    """
    sys.stderr = sys.stdout
    store, rank, ranks = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() and torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
    yield Processes(store, rank, ranks)
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone
