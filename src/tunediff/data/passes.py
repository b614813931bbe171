"""One sequential pass over an activation store, without the tokens that no metric counts."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tunediff.data.activations import ActivationStore
from tunediff.data.masks import LEFT_OUT, Mask

Numbers = NDArray[Any]


class PassBatch:
    """Tokens of one step of a pass: activations on the device, what is known of them as numpy arrays."""

    def __init__(self, activations: Tensor, row: Numbers, doc: Numbers, source: Numbers, mask: Numbers) -> None:
        self.activations = activations  # float32 [token, model, d_model]
        self.row = row  # of the token store
        self.doc = doc
        self.source = source
        self.template: NDArray[np.bool_] = (mask & int(Mask.TEMPLATE)) != 0

    def __len__(self) -> int:
        return len(self.activations)


def counted_batches(
    store: ActivationStore, batch_size: int, device: str, name: str, limit: int | None = None
) -> Iterator[PassBatch]:
    """Yield every token of the store once but those left out, `batch_size` at a time (fewer at a read's end).

    Left out are BOS, ignored tokens and massive activations (`tokens.LEFT_OUT`).

    `limit` stops the pass after that many counted tokens. Shows a progress bar called `name`, with tokens/s.
    """
    remaining = int(store.kept(LEFT_OUT).sum())
    if limit is not None:
        remaining = min(limit, remaining)
    together = max(1, batch_size // store.chunk_tokens)
    with tqdm(total=remaining, desc=name, unit="tok", unit_scale=True, mininterval=5, file=sys.stderr) as bar:
        for chunk in store.chunks(LEFT_OUT, together):
            for start in range(0, min(len(chunk.row), remaining), batch_size):
                part = slice(start, min(start + batch_size, remaining))
                activations = chunk.activations[part].to(device, torch.float32)
                yield PassBatch(activations, *(getattr(chunk, name)[part] for name in ("row", "doc", "source", "mask")))
                bar.update(len(activations))
            remaining -= len(chunk.row)
            if remaining <= 0:
                return
