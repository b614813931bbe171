"""Examples of a few latents, made from seeded random numbers, for the tests of what reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunediff.latents.examples import BAND_FROM, BANDS, HISTOGRAM_BINS, SCHEMAS, Examples, lists, writing

SOURCES = ("web", "chat")
PER_BAND = {"strongest": 20, "inactive": 15, "inactive_hard": 15} | dict.fromkeys(BAND_FROM, 10)


def example_tables(
    latents: Sequence[int],
    lengths: Sequence[int],
    vocab: int = 40,
    seed: int = 0,
    context: int = 32,
    per_band: Mapping[str, int] = PER_BAND,
    tokens_per_kind: int = 10,
    logits_per_end: int = 15,
    neighbours: int = 5,
    sources: Sequence[str] = SOURCES,
) -> dict[str, dict[str, Any]]:
    """Return the columns of every table for `latents` (rising), on documents of these lengths.

    Document i is of source i modulo their number. Values are of a maximum of latent + 1.
    """
    g = np.random.default_rng(seed)
    doc_start = np.concatenate([[0], np.cumsum(lengths)])
    share_of = {
        name: (low, high) for (name, low), high in zip(BAND_FROM.items(), (1, *BAND_FROM.values()), strict=False)
    }
    rows: dict[str, list[dict[str, Any]]] = {
        "windows": [],
        "tokens": [],
        "histogram": [],
        "neighbours": [],
        "logits": [],
    }
    for latent in latents:
        maximum = float(latent + 1)
        for band in BANDS:
            size = min(per_band[band], len(lengths))
            shares = np.zeros(size)
            if band == "strongest":
                shares = np.sort(g.uniform(0.7, 1, size))[::-1]
                shares[:1] = 1
            elif band in share_of:
                shares = g.uniform(*share_of[band], size)
            for place, (document, share) in enumerate(zip(g.permutation(len(lengths))[:size], shares, strict=True)):
                peak = int(g.integers(doc_start[document], doc_start[document + 1]))
                start, stop = max(doc_start[document], peak - context), min(doc_start[document + 1], peak + context + 1)
                activation = np.where(g.random(stop - start) < 0.1, share * g.random(stop - start), 0) * maximum
                activation[peak - start] = share * maximum
                rows["windows"].append(
                    {"latent": latent, "band": band, "place": place, "document": document, "start": start, "peak": peak}
                    | {"value": share * maximum, "source": sources[document % len(sources)], "activation": activation}
                )
        for kind in ("peak", "next"):
            counts = np.sort(g.integers(1, 100, tokens_per_kind))[::-1]
            for token_id, count in zip(g.permutation(vocab)[:tokens_per_kind], counts, strict=True):
                share = count / counts.sum()
                rows["tokens"].append(
                    {"latent": latent, "kind": kind, "token_id": token_id, "count": count, "share": share}
                    | {"lift": share * vocab}
                )
        for source in sources:
            for place in range(HISTOGRAM_BINS):
                count = int(g.integers(0, 50))
                if count:
                    rows["histogram"].append({"latent": latent, "source": source, "bin": place, "count": count})
        for kind in ("cosine", "coactivation"):
            others = g.permutation([each for each in latents if each != latent])[:neighbours]
            for place, (other, value) in enumerate(zip(others, np.sort(g.random(len(others)))[::-1], strict=True)):
                rows["neighbours"].append(
                    {"latent": latent, "kind": kind, "place": place, "neighbour": other, "value": value}
                )
        for direction in ("chat", "base", "difference"):
            for end, sign in (("highest", 1), ("lowest", -1)):
                values = sign * np.sort(g.random(logits_per_end))[::-1]
                for place, (token_id, value) in enumerate(
                    zip(g.permutation(vocab)[:logits_per_end], values, strict=True)
                ):
                    rows["logits"].append(
                        {"latent": latent, "direction": direction, "end": end, "place": place}
                        | {"token_id": token_id, "value": value}
                    )
    tables = {name: pd.DataFrame(found, columns=SCHEMAS[name].names) for name, found in rows.items()}
    columns: dict[str, dict[str, Any]] = {
        name: {column: frame[column].to_numpy() for column in frame} for name, frame in tables.items()
    }
    arrays = tables["windows"]["activation"]
    columns["windows"]["activation"] = lists(np.concatenate(arrays.to_list()), arrays.map(len).to_numpy())
    return columns


def small_examples(
    path: Path, latents: Sequence[int], lengths: Sequence[int], key: str = "key", **sizes: Any
) -> Examples:
    """Write examples of `latents` at `path` (see `example_tables`) and open them."""
    with writing(path, key=key, facts={"context": sizes.get("context", 32)}) as writer:
        for name, columns in example_tables(latents, lengths, **sizes).items():
            writer.add(name, columns)
    return Examples.open(path)
