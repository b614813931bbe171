"""What the stages cost on one GPU: random weights of the paper's shapes, no network, one call of under ten minutes.

    python benchmarks/gpu.py > table.md        on a GPU
    python benchmarks/gpu.py --tiny            small shapes, on a CPU too: to see that the script runs

Needs torch, transformers, nnsight and zarr. Every row is a median; training steps stand beside dense PyTorch and the
arithmetic of the paper's trainer, in the same run. The floor of a step is computed from this card's own rates: one
encoder product (L1: five dense ones), the nonzeros of decode and its gradients, and both weights with their moments
read and written once.
"""

import argparse
import contextlib
import gc
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import reading
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from training_step import DenseBatchTopK
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedTokenizerFast

from tunediff.config.dictionaries import dictionary_settings
from tunediff.config.settings import HarvestSettings, LatentSettings, TrainingSettings
from tunediff.data.activations import ActivationBatch, ActivationStore
from tunediff.data.harvest import Harvester
from tunediff.data.transfer import on_gpu
from tunediff.dictionaries import build
from tunediff.dictionaries.base import Dictionary
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.fused import available, fuse
from tunediff.dictionaries.precision import precision
from tunediff.dictionaries.training import make_optimizer, optimizer_step
from tunediff.interventions.kl import Reference, kl_divergence
from tunediff.latents.measure import Measured
from tunediff.latents.passes import one_ahead
from tunediff.latents.scaling import scaling_directions
from tunediff.models.residual import ResidualModel
from tunediff.pipeline.progress import Progress

CONVERSATIONS, INTERVENTIONS, SCALED_TOKENS, PAIRS = 512, 33, 50_000_000, 100_000_000


@dataclass(frozen=True)
class Shape:
    """The sizes of a run."""

    d_model: int
    dict_size: int
    k: int
    batch: int
    steps: int  # timed, per training row
    model: dict[str, int]
    layer: int
    documents: int
    positions: int
    stored: int  # token pairs in the store that batches are read from


GEMMA2 = {
    **{"vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
}
SMALL = {
    **{"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
}
FULL = Shape(2304, 73_728, 100, 2048, 20, GEMMA2, 13, 32, 512, 131_072)
TINY = Shape(64, 512, 8, 128, 3, SMALL, 2, 4, 32, 65_536)


class Clock:
    """Times work on a device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def wait(self) -> None:
        """Wait until the device has done all that was asked."""
        if on_gpu(self.device):
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], rounds: int, warmup: int = 3) -> float:
        """Return the median seconds of a round."""
        times = []
        for i in range(warmup + rounds):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            if i >= warmup:
                times.append(time.perf_counter() - started)
        return statistics.median(times)

    @contextlib.contextmanager
    def memory(self) -> Iterator[Callable[[], str]]:
        """Free what is no longer used, then yield a function that returns the peak memory since, in GB."""
        gc.collect()
        if not on_gpu(self.device):
            yield lambda: "–"
            return
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield lambda: f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"


def row(*columns: str) -> None:
    """Print a row of the table at once: what was measured is there if the time runs out."""
    print(f"| {' | '.join(columns)} |", flush=True)


@dataclass(frozen=True)
class Rates:
    """What this card does: products in FLOP/s by setting, copies in bytes/s."""

    products: dict[str, float]
    copy: float

    def floor(self, shape: Shape, setting: str, streams: int, products: int) -> float:
        """Return the seconds of a step that does nothing twice, with so many products of the encoder's size."""
        width, nonzeros = streams * shape.d_model, shape.batch * shape.k
        product = products * 2 * shape.batch * shape.dict_size * width / self.products[setting]
        state = 2 * 6 * 4 * shape.dict_size * width  # two weights: parameter and two moments, read and written
        gathered = 2 * 4 * nonzeros * width  # decode and the gradient of its values; sums of gradients come from cache
        return product + (state + gathered + 4 * shape.batch * shape.dict_size) / self.copy


def measured_rates(shape: Shape, clock: Clock) -> Rates:
    """Measure products of the encoder's shape and copies of a weight."""
    n, f, width = shape.batch, shape.dict_size, 2 * shape.d_model
    left, right = torch.randn(n, width, device=clock.device), torch.randn(f, width, device=clock.device)
    flop, products = 2 * n * f * width, {}
    for setting in ("highest", "high"):
        with precision(setting):
            products[setting] = flop / clock.seconds(lambda: left @ right.T, 10)
    low = left.bfloat16(), right.bfloat16()
    products["bf16"] = flop / clock.seconds(lambda: low[0] @ low[1].T, 10)
    other = torch.empty_like(right)
    copy = 2 * right.numel() * 4 / clock.seconds(lambda: other.copy_(right), 10)
    for setting, rate in products.items():
        row(f"products, {setting}", f"{rate / 1e12:.3g} TFLOP/s", "", "", "")
    row("copy", f"{copy / 1e12:.3g} TB/s", "", "", "")
    return Rates(products, copy)


def activations(shape: Shape, device: str, streams: int = 2) -> Tensor:
    """Return one batch of random directions with noise, of the norm that training gives them."""
    generator = torch.Generator(device).manual_seed(0)
    directions = torch.randn(512, streams * shape.d_model, generator=generator, device=device)
    weights = torch.rand(shape.batch, 512, generator=generator, device=device) ** 30
    noise = 0.1 * torch.randn(shape.batch, streams * shape.d_model, generator=generator, device=device)
    return (weights @ directions / 3 + noise).view(shape.batch, streams, shape.d_model)


def training_row(
    shape: Shape,
    clock: Clock,
    rates: Rates,
    name: str,
    setting: str,
    step: Callable[[], Any],
    streams: int = 2,
    products: int = 1,
) -> None:
    """Time a step and print its row."""
    with clock.memory() as peak, precision(setting):
        seconds = clock.seconds(step, shape.steps)
        share = rates.floor(shape, setting, streams, products) / seconds
        row(name, f"{shape.batch / seconds:,.0f} pairs/s", f"{1e3 * seconds:.2f} ms", f"{share:.0%}", peak())


def own_step(dictionary: Dictionary, x: Tensor, kernels: bool, setting: str) -> Callable[[], Any]:
    """Return a training step of the project."""
    training = TrainingSettings(device=str(x.device))
    optimizer = make_optimizer(dictionary, training)
    if kernels:
        dictionary.fused = fuse(dict(dictionary.named_parameters()), optimizer, setting == "bf16")
    return lambda: optimizer_step(dictionary, optimizer, x, measure=False)


def training(shape: Shape, clock: Clock, rates: Rates) -> None:
    """Every kind at two settings, with and without kernels; then the references."""
    device = clock.device
    sections: dict[str, dict[str, Any]] = {
        "batchtopk": {"k": shape.k},
        "l1": {"mu": "auto", "target_l0": shape.k},
        "diff_sae": {"k": shape.k},
    }
    for kind, own in sections.items():
        settings = dictionary_settings({"kind": kind, "dict_size": shape.dict_size, **own})
        for setting in ("high", "bf16"):
            for kernels in (True, False):
                dictionary = build(settings, shape.d_model, 0, 50_000, 1000).to(device)
                if kernels and not (dictionary.sparse_gradients and available(device)):
                    continue
                x = activations(shape, device, len(dictionary.streams))
                dictionary.prepare(x)
                name = f"{kind}, {setting}, {'kernels' if kernels else 'PyTorch'}"
                streams, products = len(dictionary.streams), 5 if kind == "l1" else 1  # L1 is dense while it learns
                step = own_step(dictionary, x, kernels, setting)
                training_row(shape, clock, rates, name, setting, step, streams, products)
                del dictionary, step
    references(shape, clock, rates)


def references(shape: Shape, clock: Clock, rates: Rates) -> None:
    """A dense BatchTopK step: with fused Adam, and as the paper's trainer takes it (Adam loop, norms by hand)."""
    settings = dictionary_settings({"kind": "batchtopk", "dict_size": shape.dict_size, "k": shape.k})
    x = activations(shape, clock.device)
    for name, setting, fused in (
        ("dense PyTorch, fused Adam", "high", True),
        ("paper's arithmetic: dense, Adam not fused", "high", False),
        ("paper's arithmetic: dense, Adam not fused", "highest", False),
    ):
        dense = DenseBatchTopK(build(settings, shape.d_model, 0), shape.k).to(clock.device)
        optimizer = torch.optim.Adam(dense.parameters(), lr=1e-4, fused=fused, foreach=None if fused else False)

        def step(dense: nn.Module = dense, optimizer: torch.optim.Adam = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            dense.loss(x).backward()  # type: ignore[operator]
            torch.nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
            optimizer.step()

        training_row(shape, clock, rates, f"{name}, {setting}", setting, step)
        del dense, optimizer


def latent_scaling(shape: Shape, clock: Clock) -> None:
    """The fit of Latent Scaling, on batches that are on the device."""
    settings = dictionary_settings({"kind": "batchtopk", "dict_size": shape.dict_size, "k": shape.k})
    dictionary = build(settings, shape.d_model, 0).to(clock.device)
    x = activations(shape, clock.device)
    dictionary.step(x)  # which sets the threshold that the crosscoder fires at
    mean, scale = torch.zeros(2, shape.d_model, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    crosscoder = Crosscoder.from_training(dictionary, mean, scale, {"kind": "batchtopk"}).to(clock.device)
    del dictionary
    zeros = np.zeros(shape.batch, np.uint8)
    numbers = np.arange(shape.batch)
    batch = ActivationBatch(x, numbers, numbers, numbers // 64, numbers % 64, zeros, zeros)
    for setting in ("high", "bf16"):
        crosscoder.precision = setting
        fit = Measured(crosscoder, ["web"], LatentSettings(), clock.device, scaling_directions(crosscoder))

        def go(fit: Measured = fit) -> None:
            for each, code in one_ahead(crosscoder, [batch] * 8):
                fit.add(each, code)

        with clock.memory() as peak:
            seconds = clock.seconds(go, 5) / 8
            rate, whole = shape.batch / seconds, SCALED_TOKENS * seconds / shape.batch
            name = f"Latent Scaling, {setting}"
            row(name, f"{rate:,.0f} tokens/s", f"{1e3 * seconds:.2f} ms", f"{whole:.0f} s for 50 M", peak())


def residual_model(shape: Shape, device: str) -> ResidualModel:
    """Return a Gemma 2 of random weights."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<pad>")
    dtype = torch.bfloat16 if on_gpu(device) else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Gemma2Config(**shape.model), dtype=dtype)
    return ResidualModel(model, wrapped, shape.layer)


@dataclass(frozen=True)
class RandomPair:
    """Stands for a prepared pair: what a harvest asks of one."""

    base: ResidualModel
    chat: ResidualModel
    layer: int
    replacements: dict[int, int]

    def load_base(self, device: str) -> ResidualModel:
        """Return the base model."""
        return self.base

    def load_chat(self, device: str) -> ResidualModel:
        """Return the chat model."""
        return self.chat


def harvest_and_kl(shape: Shape, clock: Clock) -> None:
    """The harvest of both models without writing, and the KL experiment on one batch."""
    device, n = clock.device, shape.documents * shape.positions
    pair = RandomPair(residual_model(shape, device), residual_model(shape, device), shape.layer, {})
    harvester = Harvester(pair, HarvestSettings(batch_tokens=n), device)  # type: ignore[arg-type]
    ids = np.random.default_rng(0).integers(0, shape.model["vocab_size"], 4 * n)
    starts = np.arange(0, 4 * n + 1, shape.positions)
    with clock.memory() as peak:
        bar = Progress(4 * n, "harvest", "tok")
        seconds = clock.seconds(lambda: harvester.window(0, ids, starts, 0, 4 * n, bar), 3, warmup=1)
        rate = 4 * n / seconds
        whole = f"{PAIRS / rate / 60:.0f} min for 100 M"
        row("harvest to one layer, without writing", f"{rate:,.0f} pairs/s", f"{1e3 * seconds:.0f} ms", whole, peak())
    model, tokens = pair.chat, torch.from_numpy(ids[:n]).view(shape.documents, -1)
    mask, positions = torch.ones_like(tokens), torch.arange(shape.positions // 2, shape.positions)
    residual = model.residual(tokens, mask)

    def logits() -> Tensor:
        return model.logits_from(residual, tokens, mask, positions).flatten(0, 1)

    with clock.memory() as peak:
        reference = Reference.of(logits())
        seconds = clock.seconds(lambda: kl_divergence(reference, logits()), 5)
        whole = f"{seconds * INTERVENTIONS * CONVERSATIONS / shape.documents:.0f} s for 33 × 512"
        pace = f"{shape.documents / seconds:,.1f} conversations/s"
        row("KL of one intervention, upper half", pace, f"{1e3 * seconds:.0f} ms", whole, peak())


def batches(shape: Shape, clock: Clock) -> None:
    """Shuffled batches as training reads them: stored bfloat16, from the page cache, in one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part-000.zarr"
        reading.write_store(path, shape.stored, shape.d_model, HarvestSettings(shard_tokens=65_536))
        store = ActivationStore([path])
        room = torch.empty((shape.batch, 2, shape.d_model), dtype=torch.bfloat16)

        def forever() -> Iterator[Tensor]:
            while True:
                yield room

        stream = store.batches(shape.batch, 0, 64, into=forever())
        seconds = clock.seconds(lambda: next(stream), min(200, shape.stored // shape.batch))
        stream.close()  # type: ignore[attr-defined]
        gigabytes = 4 * shape.batch * shape.d_model / seconds / 1e9
        pace = f"{shape.batch / seconds:,.0f} pairs/s"
        row("batches from the store", pace, f"{1e3 * seconds:.2f} ms", f"{gigabytes:.1f} GB/s", "–")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1 or cpu")
    chosen = parser.parse_args()
    if not (chosen.tiny or on_gpu(chosen.device)):
        parser.error("no GPU is in sight; --tiny runs on a CPU")
    shape, clock = TINY if chosen.tiny else FULL, Clock(chosen.device)
    card = torch.cuda.get_device_name(chosen.device) if on_gpu(chosen.device) else platform.machine()
    print(
        f"{card}, {date.today()}, torch {torch.__version__}: d {shape.d_model:,}, F {shape.dict_size:,}, "
        f"k {shape.k}, N {shape.batch:,}\n\n"
        "| what | rate | median | share of the floor, or whole | peak GB |\n|---|---|---|---|---|",
        flush=True,
    )
    rates = measured_rates(shape, clock)
    training(shape, clock, rates)
    latent_scaling(shape, clock)
    harvest_and_kl(shape, clock)
    batches(shape, clock)


if __name__ == "__main__":
    main()
