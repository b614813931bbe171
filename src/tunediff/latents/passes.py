"""One pass of a dictionary over a store: its batches with their codes, in order.

On a GPU the number of nonzeros of a batch is the one thing the host must know, to ask for memory. It is read while the
device encodes the next batch; so the device never waits for the host.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tunediff.data.activations import ActivationBatch, ActivationStore, counted_batches
from tunediff.data.transfer import Later, on_gpu
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.precision import operand, precision, product
from tunediff.dictionaries.sparse import SparseCode


class Started(NamedTuple):
    """A batch whose code is on its way."""

    preactivations: Float[Tensor, "token latent"]
    fires: Bool[Tensor, "token latent"]
    size: Later  # number of nonzeros


class Encoder:
    """Encodes in two steps, `start` and `finish`, so that the host can do something else between them."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self.crosscoder, self.bound = crosscoder, crosscoder.threshold.clamp(min=0)
        with precision(crosscoder.precision):
            self.weight = operand(crosscoder.encoder_weight.flatten(1)).T  # rounded once, where it is

    def start(self, x: Float[Tensor, "token model d_model"]) -> Started:
        """Queue the encoder's product, at the precision of the crosscoder, and the count of what fires."""
        with precision(self.crosscoder.precision):
            preactivations = product(self.crosscoder.rows(x), self.weight, self.crosscoder.encoder_bias)
        fires = preactivations > self.bound
        return Started(preactivations, fires, Later(fires.sum()))

    def finish(self, started: Started, count: int) -> SparseCode:
        """Return the code, given its number of nonzeros."""
        token, latent = torch.nonzero_static(started.fires, size=count).T.contiguous()
        return SparseCode(token, latent, started.preactivations[token, latent], len(started.fires))


def one_ahead(
    crosscoder: Crosscoder, batches: Iterable[ActivationBatch]
) -> Iterator[tuple[ActivationBatch, SparseCode]]:
    """Yield batches with their codes, each when the next one has been started."""
    encoder = Encoder(crosscoder)
    waiting: deque[tuple[ActivationBatch, Started]] = deque()

    def first() -> tuple[ActivationBatch, SparseCode]:  # a function, so that no name holds on to what was started
        batch, started = waiting.popleft()
        return batch, encoder.finish(started, started.size.read())

    for batch in batches:
        waiting.append((batch, encoder.start(batch.activations)))
        if len(waiting) > 1:
            yield first()
    if waiting:
        yield first()


def encoded_batches(
    crosscoder: Crosscoder, store: ActivationStore, batch_size: int, device: str, name: str, limit: int | None = None
) -> Iterator[tuple[ActivationBatch, SparseCode]]:
    """Yield the batches of `activations.counted_batches` with their codes; values are float32."""
    batches = counted_batches(store, batch_size, device, name, limit)
    if on_gpu(device):
        return one_ahead(crosscoder, batches)
    return ((batch, crosscoder.encode(batch.activations)) for batch in batches)
