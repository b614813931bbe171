"""The passes of the analysis against encoding alone, as the stages run them, side by side in one run.

Tokens are sums of planted directions and noise, latents as uneven as real ones; the crosscoder's rows are those
directions, and its thresholds leave about k latents per token. Every batch is encoded alone, then by the pass that fits
Latent Scaling, then by the pass over validation tokens (confirmation with its controls, firing, held-out metrics,
twins), in turn. The pass of the examples is made of whole shards: the codes of all tokens are given to it, and its time
is added to that of their encoding. Reading the store is left out on all sides (benchmarks/reading.py).
"""

import argparse
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from measured import Side, compared, peak_memory
from torch import Tensor
from training_step import SHAPES, Shape

from tunediff.config.settings import ExampleSettings, LatentSettings
from tunediff.data.activations import ActivationBatch
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode
from tunediff.latents import held_out, twins, windows
from tunediff.latents.measure import Measured
from tunediff.latents.scaling import random_directions, scaling_directions

SOURCES = ["web", "chat"]
DOCUMENT = 256  # tokens
VOCABULARY = 4096
PLANTED = 40  # directions in a token
PASSES = ("fit", "validation", "examples")


def planted(shape: Shape, seed: int = 0) -> tuple[Crosscoder, Iterator[Tensor]]:
    """Return a crosscoder with about k latents per token, and batches (n_tokens, 2, d_model) of what it was made for.

    Latent j is drawn as often as 1 / (j + 200). One latent in twenty has its decoder in one model only.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape.dict_size, 2, shape.d_model, generator=generator) / shape.d_model**0.5
    rows[:, 1] = 0.8 * rows[:, 0] + 0.6 * rows[:, 1]
    rows[::40, 0] *= 0.01
    rows[20::40, 1] *= 0.01
    share = 1 / (torch.arange(shape.dict_size) + 200.0)

    def batches() -> Iterator[Tensor]:
        while True:
            chosen = torch.multinomial(share, shape.n_tokens * PLANTED, replacement=True, generator=generator)
            weight = 0.2 + torch.rand(shape.n_tokens, PLANTED, generator=generator)
            x = torch.nn.functional.embedding_bag(
                chosen.view_as(weight), rows.flatten(1), mode="sum", per_sample_weights=weight
            )
            noise = torch.randn(x.shape, generator=generator) * (0.3 / shape.d_model**0.5)
            yield (x + noise).view(-1, 2, shape.d_model)

    feed, (bias, threshold) = batches(), torch.zeros(2, shape.dict_size)
    crosscoder = Crosscoder(rows, bias, rows, torch.zeros(2, shape.d_model), threshold)
    sample = next(feed)
    values = torch.mm(sample.flatten(1), rows.flatten(1).T).flatten()
    crosscoder.threshold.fill_(values.kthvalue(len(values) - shape.k * len(sample)).values.item())
    return crosscoder, feed


def tokens_of(n: int) -> tuple[Any, Any]:
    """Return what `windows.find` asks of a token store and of an activation store of n tokens, stored permuted."""
    generator = np.random.default_rng(0)
    start = np.arange(0, n + 1, DOCUMENT)
    tokens = SimpleNamespace(
        token_id=generator.integers(0, VOCABULARY, n), doc=np.arange(n) // DOCUMENT, doc_start=start,
        doc_source=np.arange(len(start) - 1) % len(SOURCES), sources=SOURCES, n_tokens=n,
    )  # fmt: skip
    shards = np.arange(n).reshape(-1, min(n, windows.BLOCK_TOKENS))
    row = np.concatenate([generator.permutation(shard) for shard in shards])
    return tokens, SimpleNamespace(row=row, kept=lambda: np.ones(n, dtype=bool))


def batch_of(x: Tensor, tokens: Any, row: np.ndarray) -> ActivationBatch:
    """Return a batch of these tokens."""
    doc = tokens.doc[row]
    mask = np.zeros(len(row), dtype=np.uint8)
    return ActivationBatch(x, row, tokens.token_id[row], doc, row % DOCUMENT, mask, tokens.doc_source[doc])


def fitting(crosscoder: Crosscoder) -> Measured:
    """Return what the fit adds batches to."""
    return Measured(crosscoder, SOURCES, LatentSettings(), "cpu", scaling_directions(crosscoder))


def validating(crosscoder: Crosscoder) -> Measured:
    """Return what the pass over validation tokens adds batches to, with two control directions more."""
    directions = scaling_directions(crosscoder)
    controls = torch.stack([random_directions(directions[:, 0], 0), directions[:, 0].roll(1, 0)], dim=1)
    difference = crosscoder.norm_difference
    ends = torch.nonzero((difference < 0.1) | (difference > 0.9)).squeeze(1).numpy()
    more = held_out.HeldOut(crosscoder, SOURCES, "cpu"), twins.Collected(ends, crosscoder.dict_size, "cpu")
    return Measured(crosscoder, SOURCES, LatentSettings(), "cpu", torch.cat([directions, controls], dim=1), more)


def firing_of(codes: list[SparseCode], dict_size: int) -> windows.Firing:
    """Return what the latent table says of every latent."""
    latent, value = torch.cat([code.latent for code in codes]), torch.cat([code.value for code in codes])
    maximum = torch.zeros(dict_size).scatter_reduce_(0, latent, value, "amax")
    return windows.Firing(maximum.numpy(), torch.bincount(latent, minlength=dict_size).numpy())


def find_examples(
    crosscoder: Crosscoder, codes: list[SparseCode], firing: windows.Firing, n_tokens: int
) -> windows.Found:
    """Run the examples' pass over tokens whose codes are given."""
    tokens, store = tokens_of(n_tokens)
    nothing, size = torch.empty(0), codes[0].n_tokens
    batches = [batch_of(nothing, tokens, store.row[i * size : (i + 1) * size]) for i in range(len(codes))]
    with patch.object(windows, "encoded_batches", lambda *_: zip(batches, codes, strict=True)):
        return windows.find(crosscoder, firing, store, tokens, ExampleSettings(), "cpu", "examples")[0]


def alone(what: str, shape: Shape, n_tokens: int, threads: int) -> None:
    """Run one pass, or encoding, alone."""
    torch.set_num_threads(threads)
    crosscoder, feed = planted(shape)
    tokens, store = tokens_of(n_tokens)
    into = {"fit": fitting, "validation": validating}[what](crosscoder) if what in ("fit", "validation") else None
    codes = []
    for start in range(0, n_tokens, shape.n_tokens):
        x = next(feed)
        codes.append(crosscoder.encode(x))
        if into is not None:
            into.add(batch_of(x, tokens, store.row[start : start + shape.n_tokens]), codes.pop())
        elif what == "encoding":
            codes.clear()
    if what == "examples":
        find_examples(crosscoder, codes, firing_of(codes, crosscoder.dict_size), n_tokens)


class Passes(NamedTuple):
    """Times of a batch, and of what examples cost of it."""

    times: dict[str, Side]  # encoding first
    examples: float  # ratio
    examples_ms: float  # a batch, its encoding counted
    l0: float
    memory: dict[str, float]  # GB


@torch.no_grad()
def run(shape: Shape = SHAPES[0], batches: int = 16, n_tokens: int = 65_536, threads: int = 2, examples_rounds: int = 3,
        memory: bool = True) -> Passes:  # fmt: skip
    """Time `batches` batches of every pass in turn, and the examples of `n_tokens` tokens."""
    torch.set_num_threads(threads)
    crosscoder, feed = planted(shape)
    tokens, store = tokens_of(n_tokens)
    into = {"fit": fitting(crosscoder), "validation": validating(crosscoder)}
    seconds: dict[str, list[float]] = {name: [] for name in ("encoding", *into)}
    codes = []
    for number, start in enumerate(range(0, n_tokens, shape.n_tokens)):
        x = next(feed)
        batch = batch_of(x, tokens, store.row[start : start + shape.n_tokens])
        began = time.perf_counter()
        codes.append(crosscoder.encode(x))
        ended = time.perf_counter()
        if not 1 <= number <= batches:  # the first warms up
            continue
        seconds["encoding"].append(ended - began)
        for name, measured in into.items():
            began = time.perf_counter()
            measured.add(batch, crosscoder.encode(x))
            seconds[name].append(time.perf_counter() - began)
    times, own, firing = compared(seconds), list[float](), firing_of(codes, crosscoder.dict_size)
    for _ in range(examples_rounds):
        began = time.perf_counter()
        find_examples(crosscoder, codes, firing, n_tokens)
        own.append(time.perf_counter() - began)
    per_batch = float(np.median(own)) * shape.n_tokens / n_tokens
    encoding = times["encoding"].seconds
    peaks = {}
    if memory:
        of = {"examples": n_tokens}  # which must hold the codes of a shard; the others hold a batch
        few = 4 * shape.n_tokens
        peaks = {n: peak_memory(alone, n, shape, of.get(n, few), threads) for n in ("encoding", *PASSES)}
    l0 = sum(len(code.latent) for code in codes) / n_tokens
    return Passes(times, 1 + per_batch / encoding, 1e3 * (encoding + per_batch), l0, peaks)


def rows(shape: Shape, found: Passes) -> list[str]:
    """Return the rows of docs/speed.md."""
    encoding = f"encoding: {1e3 * found.times['encoding'].seconds:.0f} ms, {found.memory['encoding']:.1f} GB"
    names = {
        "fit": "Latent Scaling, fit: all latents and targets",
        "validation": "Validation pass: confirmation with controls, held-out metrics, twins",
        "examples": "Examples' pass",
    }
    table = []
    for name, what in names.items():
        if name == "examples":
            ms, ratio = found.examples_ms, f"{found.examples:.2f}×"
        else:
            side = found.times[name]
            ms, ratio = 1e3 * side.seconds, f"{side.ratio:.2f}× ({side.low:.2f}–{side.high:.2f})"
        table.append(
            f"| {what}, d {shape.d_model}, F {shape.dict_size:,}, L0 {found.l0:.0f} | {ms:.0f} ms a batch of "
            f"{shape.n_tokens:,}, {found.memory[name]:.1f} GB | {encoding} | {ratio} (≤ 1.3×) |"
        )
    return table


def main() -> None:
    """Print the markdown rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=16, help="batches timed of every pass (default 16)")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens of the examples' pass (default 65,536)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--d-model", type=int, help="one shape of this width instead of both")
    arguments = parser.parse_args()
    for shape in [Shape(d_model=arguments.d_model)] if arguments.d_model else SHAPES:
        print("\n".join(rows(shape, run(shape, arguments.batches, arguments.tokens, arguments.threads))), flush=True)


if __name__ == "__main__":
    main()
