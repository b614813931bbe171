"""The step of the analysis pass at full scale on the fake GPU: encode, decode, Latent Scaling, and what goes with it.

Run in a process of its own: python analysis.py PRECISION-CASE … [--table]
Cases: `fit` (two directions), `confirm` (four, with what is reconstructed and twins), `plain` (a fit without Triton),
and a mistake that must be found: `wait` (a number of nonzeros that is read at once).
"""

from typing import Any

from fake import D_MODEL, DICT_SIZE, GPU, N_TOKENS, Costs, main  # loads the device, before torch

import numpy as np  # isort: skip
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tunediff.config.settings import LatentSettings
from tunediff.data import transfer
from tunediff.data.activations import ActivationBatch
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents import held_out, scaling, twins
from tunediff.latents.measure import Measured
from tunediff.latents.passes import Encoder

L0 = 100
OF_TWINS = 0.05  # of the nonzeros


class Event:
    """Stands for one of CUDA's, which a torch without it does not have."""

    def record(self, stream: Any) -> None:
        """Do nothing."""


def step(setting: str, case: str) -> Costs:
    """Take two steps; return the costs of the second."""
    cuda: Any = torch.cuda
    cuda.Event, cuda.current_stream = Event, lambda device: None
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    transfer.Later.read = lambda self: int(OF_TWINS * N_TOKENS * L0)  # type: ignore[method-assign]
    scaling.available = lambda device: case != "plain"  # whether Triton is installed here or not
    facts = [np.arange(N_TOKENS, dtype=np.int64) % 2 for _ in range(6)]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():

        def weight(*shape: int) -> torch.Tensor:
            return torch.empty(*shape, device=GPU)

        rows = DICT_SIZE, 2, D_MODEL
        crosscoder = Crosscoder(weight(*rows), weight(DICT_SIZE), weight(*rows), weight(2, D_MODEL), weight(DICT_SIZE))
        crosscoder.precision = setting
        encoder = Encoder(crosscoder)
        n_directions = 4 if case == "confirm" else 2
        collected = twins.Collected(np.arange(DICT_SIZE // 20), DICT_SIZE, GPU)
        more = None if case != "confirm" else (held_out.HeldOut(crosscoder, ["web", "chat"], GPU), collected)
        directions = weight(DICT_SIZE, n_directions, D_MODEL)
        measured = Measured(crosscoder, ["web", "chat"], LatentSettings(), GPU, directions, more)
        for _ in range(2):  # the first one allocates
            x = weight(N_TOKENS, 2, D_MODEL)
            with Costs() as costs:
                started = encoder.start(x)
                count = int(started.fires.sum()) if case == "wait" else N_TOKENS * L0
                measured.add(ActivationBatch(x, *facts), encoder.finish(started, count))
    return costs


if __name__ == "__main__":
    main(step)
