"""Twins: a chat-only and a base-only latent of the same direction, and whether they fire on the same tokens.

Twins are one concept split in two: the chat decoder direction of the one and the base decoder direction of the other
have a cosine above 0.9, and they fire together. Random pairs of the same classes are the control (method.md section 6).
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tunediff.data.activations import ActivationStore, counted_batches
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.latents.table import TWIN_COSINE, LatentTable
from tunediff.pipeline.artifacts import provenance, write_frame

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
    batch_size: int = 2048  # tokens encoded at once
    seed: int = 0  # of the random pairs


class Firings(NamedTuple):
    """The nonzero activations of some latents, grouped by latent."""

    token: NDArray[np.int64]  # rising within a latent
    value: NDArray[np.float32]
    start: NDArray[np.int64]  # where each latent's begin, and their number at the end

    def of(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
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


@torch.no_grad()
def firings(
    crosscoder: Crosscoder, store: ActivationStore, latents: NDArray[np.integer], batch_size: int, device: str
) -> tuple[Firings, int]:
    """Return the nonzero activations of `latents` on every counted token, and the number of these, in one pass.

    Only the rows of these latents are multiplied: an encoder's latents do not depend on one another.
    """
    rows = torch.from_numpy(latents.astype(np.int64)).to(crosscoder.encoder_weight.device)
    part = Crosscoder(
        crosscoder.encoder_weight[rows],
        crosscoder.encoder_bias[rows],
        crosscoder.decoder_weight[rows],
        crosscoder.decoder_bias,
        crosscoder.threshold[rows],
    )
    token, latent, value, n_tokens = [], [], [], 0
    for batch in counted_batches(store, batch_size, device, "twins"):
        code = part.encode(batch.activations)
        token.append(code.token.cpu().numpy() + n_tokens)
        latent.append(code.latent.cpu().numpy().astype(np.int32))
        value.append(code.value.cpu().numpy().astype(np.float32))
        n_tokens += len(batch.row)
    if not n_tokens:
        raise TunediffError("twins: no token to measure on; raise the token budget of validation")
    latent_all = np.concatenate(latent)
    order = np.argsort(latent_all, kind="stable")  # tokens stay in order
    start = np.searchsorted(latent_all[order], np.arange(len(latents) + 1))
    return Firings(np.concatenate(token)[order], np.concatenate(value)[order], start), n_tokens


def divergence(
    a: tuple[NDArray[np.int64], NDArray[np.floating]], b: tuple[NDArray[np.int64], NDArray[np.floating]]
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


def build_twins(
    crosscoder: Crosscoder,
    table: LatentTable,
    validation_store: ActivationStore,
    settings: TwinSettings,
    out: Path,
    *,
    key: str,
    device: str = "cpu",
) -> pd.DataFrame:
    """Find all twins of a crosscoder; write them and the random pairs, with their activation divergence, at `out`."""
    started = time.time()
    classes = table.frame["class_name"].to_numpy()  # a dictionary without norm taxonomy has neither class: no twins
    chat_only, base_only = (np.flatnonzero(classes == name).astype(np.int32) for name in ("chat-only", "base-only"))
    frame = pairs(crosscoder.decoder_weight, chat_only, base_only, settings)
    sides = [frame[name].to_numpy(np.int64) for name in ("chat_only_latent", "base_only_latent")]
    needed = np.unique(np.concatenate(sides))
    measured: list[tuple[float, float, int]] = []
    n_tokens = 0
    if len(needed):
        fired, n_tokens = firings(crosscoder, validation_store, needed, settings.batch_size, device)
        norms = crosscoder.decoder_norms.cpu().numpy()
        for i, j in zip(*sides, strict=True):
            a, b = (fired.of(int(np.searchsorted(needed, latent))) for latent in (i, j))
            value, n_high = divergence(a, b)
            scaled, _ = divergence((a[0], a[1] * norms[i, 1]), (b[0], b[1] * norms[j, 0]))
            measured.append((value, scaled, n_high))
    frame[["divergence", "divergence_scaled", "n_high"]] = np.array(measured, dtype=np.float64).reshape(-1, 3)
    facts = {
        "settings": asdict(settings),
        "pairs_compared": len(chat_only) * len(base_only),
        "twins": int((frame["cosine"] > TWIN_COSINE).sum()),
        "n_tokens": n_tokens,
        "high": f"f ≥ {HIGH} of the larger maximum of the pair",
        "low": f"f < {LOW} of it",
    }
    if not crosscoder.has_norm_taxonomy:
        facts["left_out"] = "no classes by decoder norms: the dictionary is of the difference of the models"
    frame = frame[list(SCHEMA)].astype(SCHEMA)
    frame.attrs["twin_cosine"] = TWIN_COSINE  # travels in the file
    write_frame(frame, out, "twins", key, facts, provenance(started, device))
    return frame
