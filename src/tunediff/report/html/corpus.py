"""The validation tokens in the report: stored once, in shards; windows of all latents point into them."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tunediff.data.tokens import TokenStore
from tunediff.report.html.shards import Shards, column
from tunediff.report.html.text import Pieces

SHARD = 16_384  # positions; a page with 65 windows loads as many shards at most
LOSSES = {"kl": "kl", "base": "loss_base", "chat": "loss_chat"}  # names of the page -> columns of the table


class Written(NamedTuple):
    """What of the validation tokens is in the report."""

    positions: int
    losses: list[int]  # numbers of the shards with losses


class Corpus:
    """The validation tokens, and which of them the windows cover."""

    def __init__(self, tokens: TokenStore) -> None:
        self.token_id = tokens.token_id
        # +1 where a window begins, −1 after its end: of all that are shown, and of those of chat-specific latents
        self._shown, self._measured = (np.zeros(tokens.n_tokens + 1, dtype=np.int32) for _ in range(2))

    def cover(self, start: NDArray[np.int64], length: NDArray[np.int64], measured: NDArray[np.bool_]) -> None:
        """Note windows that are shown, and which of them are of chat-specific latents."""
        for steps, rows in ((self._shown, slice(None)), (self._measured, measured)):
            np.add.at(steps, start[rows], 1)
            np.add.at(steps, start[rows] + length[rows], -1)

    def write(self, shards: Shards, pieces: Pieces, losses: pd.DataFrame | None) -> Written:
        """Write the shards of tokens, and of losses where they were measured."""
        shown, measured = (np.cumsum(steps[:-1]) > 0 for steps in (self._shown, self._measured))
        positions, numbers = 0, []
        for number, first in enumerate(range(0, len(shown), SHARD)):
            own = slice(first, first + SHARD)
            if shown[own].any():
                pieces.add(self.token_id[own])
                shards.write(f"tokens/{number}", self.token_id[own].tolist())
                positions += len(self.token_id[own])
        if losses is not None:
            kept = losses[measured[losses["position"].to_numpy()]].sort_values("position")
            for number, rows in kept.groupby(kept["position"] // SHARD):
                columns = {short: column(rows[name]) for short, name in LOSSES.items()}
                numbers.append(int(number))
                shards.write(f"losses/{number}", {"at": (rows["position"] % SHARD).tolist(), **columns})
        return Written(positions, numbers)
