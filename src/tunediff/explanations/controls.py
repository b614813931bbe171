"""Directions that no training made, as controls: what do explanations score where there is nothing to explain?

Each is matched with a latent: it fires on as large a share of tokens. `random` ones have weights of equal influence on
every dimension of the residual stream; `untrained` ones are rows of an encoder before its first step, whose influence
is largest on the dimensions that vary most.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tunediff.config.settings import ExampleSettings
from tunediff.data.activations import ActivationStore, counted_batches
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.profile import Silent, frequent_tokens, silent_windows, token_tables, window_columns
from tunediff.latents.windows import Firing, find

SAMPLE_TOKENS = 1 << 17  # that a direction's threshold is found on


def _sample(store: ActivationStore, batch_size: int, device: str, name: str) -> Float[Tensor, "token model d_model"]:
    batches = counted_batches(store, batch_size, device, name, SAMPLE_TOKENS)
    return torch.cat([batch.activations.float().cpu() for batch in batches])


@torch.no_grad()
def directions(
    x: Float[Tensor, "token model d_model"], frequency: NDArray[np.floating], equal_influence: bool, seed: int
) -> Crosscoder:
    """Return a crosscoder of one random direction per frequency, which fires on that share of the tokens `x`.

    Its decoder is zero: it is made for its firings alone.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(frequency), *x.shape[1:], generator=generator)
    scale = x.std(0) if equal_influence else x.var(0).mean(1, keepdim=True).sqrt()
    weight /= scale.clamp(min=torch.finfo(torch.float32).tiny)
    projected = (x.flatten(1) @ weight.flatten(1).T).T.contiguous()
    silent = np.clip(len(x) - np.round(frequency * len(x)), 1, len(x) - 1).astype(int).tolist()
    bias = -torch.stack([row.kthvalue(n).values for row, n in zip(projected, silent, strict=True)])
    return Crosscoder(weight, bias, torch.zeros_like(weight), torch.zeros(x.shape[1:]), torch.zeros(len(weight)))


@torch.no_grad()
def windows(
    crosscoder: Crosscoder,
    store: ActivationStore,
    tokens: TokenStore,
    settings: ExampleSettings,
    device: str,
    name: str,
) -> pd.DataFrame:
    """Return the rows of the examples' table `windows` for every direction of a crosscoder (`profile.build_examples`).

    Reads the store twice. Directions that never fire have no rows.
    """
    maximum, count = torch.zeros(crosscoder.dict_size), torch.zeros(crosscoder.dict_size, dtype=torch.int64)
    for batch in counted_batches(store, settings.batch_size, device, f"{name} maxima"):
        code = crosscoder.encode(batch.activations)
        latent = code.latent.cpu()
        maximum.scatter_reduce_(0, latent, code.value.float().cpu(), "amax")
        count += torch.bincount(latent, minlength=len(count))
    firing = Firing(maximum.numpy(), count.numpy())
    found, texts = find(crosscoder, firing, store, tokens, settings, device, f"{name} examples")
    live = np.flatnonzero(firing.tokens)
    silent: Silent = silent_windows(found, texts, frequent_tokens(token_tables(found, texts)), live, settings)
    columns = window_columns(found, silent, texts, live, slice(None), settings)
    return pd.DataFrame(
        {
            name: column.to_numpy(zero_copy_only=False) if name == "activation" else column
            for name, column in columns.items()
        }
    )


def control_windows(
    store: ActivationStore,
    tokens: TokenStore,
    frequency: NDArray[np.floating],
    settings: ExampleSettings,
    device: str,
    name: str,
) -> dict[str, pd.DataFrame]:
    """Return the windows of directions matched with latents of some frequencies, by group; numbered as given."""
    sample = _sample(store, settings.batch_size, device, f"{name} controls")
    result = {}
    for number, (group, equal) in enumerate((("random", True), ("untrained", False))):
        crosscoder = directions(sample, frequency, equal, settings.seed + number).to(device)
        result[group] = windows(crosscoder, store, tokens, settings, device, f"{name} {group}")
    return result
