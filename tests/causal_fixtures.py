"""A latent table for the tests of the KL experiment."""

import numpy as np
import pandas as pd

from analysis_fixtures import SOURCES
from tunediff.latents.table import LatentTable

F = 20  # latents; the last is dead
REVERSED = (6, 8)


def latent_table(chat_only: int = 9, reversed_latents: tuple[int, ...] = REVERSED) -> LatentTable:
    """Return a table whose norm differences and rank sums are random, with every fourth latent not ranked."""
    g = np.random.default_rng(3)
    columns = {}
    for name, dtype in LatentTable.schema(SOURCES).items():
        values = np.full(F, "shared") if dtype == "string" else np.zeros(F)
        columns[name] = pd.Series(values, dtype="str" if dtype == "string" else dtype)
    frame = pd.DataFrame(columns)
    frame["latent"] = np.arange(F, dtype=np.int32)
    frame["norm_difference"] = g.permutation(np.linspace(0, 1, F)).astype(np.float32)
    frame["rank_sum"] = np.where(np.arange(F) % 4 == 0, np.nan, g.permutation(F)).astype(np.float32)
    frame["class_name"] = ["chat-only"] * chat_only + ["shared"] * (F - chat_only - 1) + ["dead"]
    frame["dead"] = np.arange(F) == F - 1
    frame.loc[list(reversed_latents), "reversed"] = True
    frame.loc[list(reversed_latents), "rank_sum"] = np.nan
    return LatentTable(frame, SOURCES)
