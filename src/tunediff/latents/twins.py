"""Twins: a chat-only and a base-only latent of the same direction, and whether they fire on the same tokens.

Twins are one concept split in two: the chat decoder direction of the one and the base decoder direction of the other
have a cosine above 0.9, and they fire together. Random pairs of the same classes are the control (method.md section 6).
Their firings are collected in the pass that measures the latents; they are written beside the latent table.
"""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tunediff.data.transfer import Later, moved
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode
from tunediff.latents.table import TWIN_COSINE

SUFFIX = ".twins.parquet"  # of the file beside the latent table
HIGH, LOW = 0.4, 0.1  # of the pair's maximum: an activation from HIGH on is high, one under LOW is low
BLOCK = 1024  # chat-only latents compared at once
SCHEMA = {
    "chat_only_latent": "int32",
    "base_only_latent": "int32",
    "cosine": "float32",  # of the chat decoder direction of the one and the base decoder direction of the other
    "divergence": "float32",  # 0: always high together, 1: one is low whenever the other is high
    "divergence_scaled": "float32",  # the same of f_j · ‖the direction compared‖, free of the scale of f
    "n_high": "int32",  # tokens on which at least one is high
}


@dataclass(frozen=True)
class TwinSettings:
    """Settings of the twins."""

    random_pairs: int = 1000  # control pairs (chat-only, base-only) that are not twins; fewer where there are fewer
    seed: int = 0  # of the random pairs


class Firings(NamedTuple):
    """The nonzero activations of some latents, grouped by latent."""

    token: NDArray[np.int32]  # rising within a latent
    value: NDArray[np.float32]
    start: NDArray[np.int64]  # where each latent's begin, and their number at the end

    def of(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return tokens and values of the i-th latent."""
        own = slice(self.start[i], self.start[i + 1])
        return self.token[own], self.value[own]


def _unit(weight: Tensor) -> Tensor:
    return torch.nn.functional.normalize(weight.float(), dim=-1, eps=1e-30)


def pairs(
    decoder: Float[Tensor, "latent model d_model"],
    chat_only: NDArray[np.integer],
    base_only: NDArray[np.integer],
    settings: TwinSettings,
) -> pd.DataFrame:
    """Return all twins and then random pairs of the two classes that are not twins, with their cosines."""
    if not len(chat_only) or not len(base_only):
        return pd.DataFrame({"chat_only_latent": [], "base_only_latent": [], "cosine": []})
    left = _unit(decoder[torch.from_numpy(np.asarray(chat_only, dtype=np.int64)).to(decoder.device), 1])
    right = _unit(decoder[torch.from_numpy(np.asarray(base_only, dtype=np.int64)).to(decoder.device), 0])
    near = [(part @ right.T > TWIN_COSINE).cpu() for part in left.split(BLOCK)]
    twins = torch.cat(near).nonzero().numpy()
    size = len(left) * len(right)
    taken = twins[:, 0] * len(right) + twins[:, 1]
    wanted = min(settings.random_pairs, size - len(taken))
    drawn = np.random.default_rng(settings.seed).choice(size, min(size, wanted + len(taken)), replace=False)
    control = np.sort(drawn[~np.isin(drawn, taken)][:wanted])
    i = np.concatenate([twins[:, 0], control // len(right)])
    j = np.concatenate([twins[:, 1], control % len(right)])
    chosen = [torch.from_numpy(side) for side in (i, j)]
    cosine = torch.cat([(left[a] * right[b]).sum(-1) for a, b in zip(*(c.split(BLOCK) for c in chosen), strict=True)])
    cosine = cosine.cpu()
    # another order of summation must not move a pair across the threshold
    cosine[: len(twins)].clamp_(min=float(np.nextafter(np.float32(TWIN_COSINE), np.float32(2))))
    cosine[len(twins) :].clamp_(max=TWIN_COSINE - 1e-7)
    return pd.DataFrame({"chat_only_latent": chat_only[i], "base_only_latent": base_only[j], "cosine": cosine.numpy()})


class Collected:
    """The firings of some latents, collected batch by batch: 12 bytes each, on the device."""

    def __init__(self, latents: NDArray[np.integer], dict_size: int, device: str) -> None:
        self.latents, self.n_tokens = latents, 0
        number = np.full(dict_size, -1)
        number[latents] = np.arange(len(latents))
        self._number = moved(number, device)
        self._waiting: deque[tuple[Tensor, Tensor, Tensor, Tensor, Later]] = deque()
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, code: SparseCode) -> None:
        """Add the code of a batch; its tokens follow those of the last."""
        number = self._number[code.latent]
        inside = number >= 0
        self._waiting.append((code.token + self.n_tokens, number, code.value, inside, Later(inside.sum())))
        self.n_tokens += code.n_tokens
        if len(self._waiting) > 1:  # the count of the batch before is there
            self._take()

    def _take(self) -> None:
        token, number, value, inside, count = self._waiting.popleft()
        chosen = torch.nonzero_static(inside, size=count.read())[:, 0]
        self._parts.append((token[chosen].int(), number[chosen].int(), value[chosen].float()))

    def firings(self) -> Firings:
        """Return all, grouped by latent in the order of `latents`."""
        while self._waiting:
            self._take()
        token, number, value = (torch.cat(column).cpu().numpy() for column in zip(*self._parts, strict=True))
        order = np.argsort(number, kind="stable")  # tokens stay in order
        start = np.searchsorted(number[order], np.arange(len(self.latents) + 1))
        return Firings(token[order], value[order], start)


def divergence(
    a: tuple[NDArray[np.integer], NDArray[np.floating]], b: tuple[NDArray[np.integer], NDArray[np.floating]]
) -> tuple[float, int]:
    """Return the activation divergence of two latents, given as (tokens, values), and the tokens with one of them high.

    (#(A high, B low) + #(A low, B high)) / (#A high + #B high − #both high), high ≥ 0.4 and low < 0.1 of the larger
    maximum of the two; NaN where neither fires. A token on which a latent does not fire is low.
    """
    largest = max((float(values.max()) for _, values in (a, b) if len(values)), default=0.0)
    if largest <= 0:
        return float("nan"), 0
    high = [tokens[values >= HIGH * largest] for tokens, values in (a, b)]
    not_low = [tokens[values >= LOW * largest] for tokens, values in (a, b)]
    apart = sum(int((~np.isin(high[i], not_low[1 - i], assume_unique=True)).sum()) for i in (0, 1))
    either = len(high[0]) + len(high[1]) - len(np.intersect1d(high[0], high[1], assume_unique=True))
    return apart / either, either


class Classes(NamedTuple):
    """The latents of the two classes that twins are of, rising; without norm taxonomy there are none."""

    chat_only: NDArray[np.int32]
    base_only: NDArray[np.int32]

    @classmethod
    def of(cls, class_name: NDArray[Any]) -> "Classes":
        """Take them from the class of every latent."""
        return cls(*(np.flatnonzero(class_name == name).astype(np.int32) for name in ("chat-only", "base-only")))


def twins(
    crosscoder: Crosscoder, classes: Classes, collected: Collected, settings: TwinSettings
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return all twins and the random pairs with their activation divergence, columns `SCHEMA`, and facts about them.

    `collected` holds the firings of the latents of both classes at least.
    """
    frame = pairs(crosscoder.decoder_weight, *classes, settings)
    sides = [frame[name].to_numpy(np.int64) for name in ("chat_only_latent", "base_only_latent")]
    measured: list[tuple[float, float, int]] = []
    if len(frame):
        fired = collected.firings()
        norms = crosscoder.decoder_norms.cpu().numpy()
        for i, j in zip(*sides, strict=True):
            a, b = (fired.of(int(np.searchsorted(collected.latents, latent))) for latent in (i, j))
            value, n_high = divergence(a, b)
            scaled, _ = divergence((a[0], a[1] * norms[i, 1]), (b[0], b[1] * norms[j, 0]))
            measured.append((value, scaled, n_high))
    frame[["divergence", "divergence_scaled", "n_high"]] = np.array(measured, dtype=np.float64).reshape(-1, 3)
    facts = {
        "settings": asdict(settings),
        "pairs_compared": len(classes.chat_only) * len(classes.base_only),
        "twins": int((frame["cosine"] > TWIN_COSINE).sum()),
        "n_tokens": collected.n_tokens,
        "high": f"f ≥ {HIGH} of the larger maximum of the pair",
        "low": f"f < {LOW} of it",
    }
    if not crosscoder.has_norm_taxonomy:
        facts["left_out"] = "no classes by decoder norms: the dictionary is of the difference of the models"
    frame = frame[list(SCHEMA)].astype(SCHEMA)
    frame.attrs["twin_cosine"] = TWIN_COSINE  # travels in the file
    return frame, facts
