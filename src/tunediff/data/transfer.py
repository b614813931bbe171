"""Copies between host and device that nobody waits for: from and to pinned memory, in the order of the stream."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_gpu(device: str | torch.device) -> bool:
    """Return whether a device is a GPU, where work is queued and the host goes on."""
    return torch.device(device).type == "cuda"


def moved(array: NDArray[Any], device: str | torch.device) -> Tensor:
    """Return an array as a tensor on a device; the host goes on while it is copied to a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if on_gpu(device) else tensor.to(device)


class Later:
    """A small tensor on its way to the host.

    `read` waits until it is computed, and for nothing that was queued after it.
    """

    def __init__(self, value: Tensor) -> None:
        self._value, self._event = value, None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(value.device))

    def read(self) -> Any:
        """Return its value, as numbers of Python."""
        if self._event is not None:
            self._event.synchronize()
        return self._value.tolist()
