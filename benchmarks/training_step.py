"""BatchTopK training step: nonzeros against two dense references, same init, data, loss and clipping.

`dense` is plain PyTorch with the fused Adam: rows of both models in one matrix, a mask, five matrix products. `paper`
is the arithmetic of the trainer that the paper released, written anew: einsums over (stream, d, F), scores and codes of
all entries, a scatter, and Adam as `torch.optim.Adam` runs it on a CPU by default, tensor by tensor. No latent is dead,
so the auxiliary loss of all three is silent. Prints one row of docs/speed.md per shape.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from measured import Side, compared, peak_memory
from torch import Tensor

from tunediff.config.dictionaries import BatchTopKSettings, L1Settings
from tunediff.config.settings import TrainingSettings
from tunediff.dictionaries.base import Dictionary
from tunediff.dictionaries.batchtopk import BatchTopK
from tunediff.dictionaries.l1 import L1
from tunediff.dictionaries.training import make_optimizer, optimizer_step

LEARNING_RATE = 1e-4


class Shape(NamedTuple):
    """Sizes of a step."""

    d_model: int = 512
    dict_size: int = 16_384
    n_tokens: int = 1_024
    k: int = 32

    def __str__(self) -> str:
        return f"d {self.d_model}, F {self.dict_size:,}, N {self.n_tokens:,}, k {self.k}"


SHAPES = (Shape(), Shape(d_model=2304))


def synthetic(d_model: int, n_tokens: int, n_directions: int = 4096, seed: int = 0) -> Callable[[], Tensor]:
    """Return a function that draws (n_tokens, 2, d_model) activations: 12 of many random directions, and noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_directions, 2 * d_model, generator=generator)

    def draw() -> Tensor:
        chosen = torch.randint(n_directions, (n_tokens, 12), generator=generator)
        weight = torch.rand(n_tokens, 12, 1, generator=generator)
        x = (directions[chosen] * weight).sum(dim=1) / 2 + 0.1 * torch.randn(n_tokens, 2 * d_model, generator=generator)
        return x.view(n_tokens, 2, d_model)

    return draw


class Dense(torch.nn.Module):
    """The loss in dense algebra: full topk, mask, five products of matrices; weights as `BatchTopK` has them."""

    def __init__(self, source: Dictionary, k: int) -> None:
        super().__init__()
        self.k = k
        for name, parameter in source.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(parameter.detach().clone()))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)

    def loss(self, x: Tensor) -> Tensor:
        """Return mean_n Σ_m ‖ε^m‖² with the N·k largest scores kept."""
        rows, dict_size = x.flatten(1), len(self.encoder_bias)
        activation = torch.relu(rows @ self.encoder_weight.view(dict_size, -1).T + self.encoder_bias)
        with torch.no_grad():
            score = activation * self.decoder_weight.norm(dim=-1).sum(dim=1)
            kept = score.view(-1).topk(len(x) * self.k, sorted=False).indices
            mask = torch.zeros_like(activation).view(-1).index_fill_(0, kept, 1.0).view_as(activation)
        error = rows - (activation * mask) @ self.decoder_weight.view(dict_size, -1) - self.decoder_bias.view(-1)
        return error.square().sum() / len(x)

    def step(self, x: Tensor) -> float:
        """Take a training step; return its loss."""
        loss = self.loss(x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class Paper(Dense):
    """The same loss as the paper's trainer computes it; weights (stream, d, F) and (stream, F, d)."""

    def __init__(self, source: Dictionary, k: int) -> None:
        super().__init__(source, k)
        self.encoder_weight = torch.nn.Parameter(source.encoder_weight.detach().permute(1, 2, 0).contiguous())
        self.decoder_weight = torch.nn.Parameter(source.decoder_weight.detach().transpose(0, 1).contiguous())
        self.register_buffer("since_fired", torch.zeros(len(source.encoder_bias), dtype=torch.long))
        self.threshold = torch.tensor(-1.0)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    def loss(self, x: Tensor) -> Tensor:
        """Return the loss; the threshold and the counts of silent tokens go on as well."""
        activation = torch.relu(torch.einsum("nsd,sdf->nf", x, self.encoder_weight) + self.encoder_bias)
        with torch.no_grad():
            score = activation * self.decoder_weight.norm(dim=2).sum(dim=0)
            best = score.flatten().topk(len(x) * self.k, sorted=False)
            kept = torch.zeros_like(score).flatten().scatter_(0, best.indices, best.values).view_as(score)
            smallest = kept[kept > 0].min()
            self.threshold = torch.where(self.threshold < 0, smallest, 0.999 * self.threshold + 0.001 * smallest)
            fired = kept.sum(dim=0) > 0
            self.since_fired += len(x)
            self.since_fired[fired] = 0
        code = activation * (kept > 0)
        error = x - (torch.einsum("nf,sfd->nsd", code, self.decoder_weight) + self.decoder_bias)
        return error.square().sum(dim=(1, 2)).mean()


class Ours:
    """The step as training takes it."""

    def __init__(self, dictionary: BatchTopK) -> None:
        self.dictionary = dictionary
        settings = TrainingSettings(steps=dictionary.steps, learning_rate=LEARNING_RATE, device="cpu")
        self.optimizer = make_optimizer(dictionary, settings)

    def step(self, x: Tensor) -> float:
        """Take a training step; return its loss."""
        return float(optimizer_step(self.dictionary, self.optimizer, x, measure=False)[0])


def sides(shape: Shape, names: tuple[str, ...] = ("ours", "dense", "paper")) -> dict[str, Ours | Dense]:
    """Return those sides, with the same weights, and the bias that the first batch gives."""
    start = BatchTopK(BatchTopKSettings(dict_size=shape.dict_size, k=shape.k), shape.d_model, seed=0, steps=50)
    start.prepare(synthetic(shape.d_model, shape.n_tokens)())
    made: dict[str, Ours | Dense] = {}
    for name in names:  # ours last: it takes the weights themselves
        made[name] = Ours(start) if name == "ours" else (Dense if name == "dense" else Paper)(start, shape.k)
    return made


def steps_of(name: str, shape: Shape, steps: int, threads: int) -> None:
    """Take some steps of one side alone."""
    torch.set_num_threads(threads)
    (side,) = sides(shape, (name,)).values()
    draw = synthetic(shape.d_model, shape.n_tokens)
    for _ in range(steps):
        side.step(draw())


class Measured(NamedTuple):
    """Steps of all sides, in turn."""

    times: dict[str, Side]
    loss_difference: float  # largest relative difference of a loss to ours
    memory: dict[str, float]  # GB


def run(shape: Shape = SHAPES[0], steps: int = 20, threads: int = 2, warmup: int = 2) -> Measured:
    """Train all sides on the same batches, in turn."""
    torch.set_num_threads(threads)
    made, draw = sides(shape), synthetic(shape.d_model, shape.n_tokens)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    difference = 0.0
    for number in range(warmup + steps):
        x, losses = draw(), {}
        for name, side in made.items():
            start = time.perf_counter()
            losses[name] = side.step(x)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
        difference = max(difference, *(abs(loss / losses["ours"] - 1) for loss in losses.values()))
    memory = {name: peak_memory(steps_of, name, shape, 2, threads) for name in made}
    return Measured(compared(seconds), difference, memory)


def crossover(threads: int = 2, d_model: int = 128, dict_size: int = 2048, n_tokens: int = 2048) -> list[list[float]]:
    """Return [share of nonzeros, seconds dense, seconds sparse] of an L1 step: what `SPARSE_BELOW` is set from."""
    torch.set_num_threads(threads)
    x, rows = synthetic(d_model, n_tokens)(), []
    for bias in (0.0, -1.0, -1.5, -2.0, -2.5, -3.0):
        model = L1(L1Settings(dict_size=dict_size, mu=0.1, norm_init=1.0), d_model, seed=0)
        preactivations = model.preactivations(x)
        model.encoder_bias.data.fill_(bias * float(preactivations.std()))
        share, row = float((model.preactivations(x) > 0).double().mean()), []
        for limit in (0.0, 2.0):
            model.sparse_below, times = limit, []
            for _ in range(7):
                start = time.perf_counter()
                model.zero_grad()
                model.step(x).loss.backward()
                times.append(time.perf_counter() - start)
            row.append(statistics.median(times))
        rows.append([share, *row])
    return rows


def row(shape: Shape, measured: Measured) -> str:
    """Return the row of docs/speed.md."""
    times, memory = measured.times, measured.memory
    ours = f"{1e3 * times['ours'].seconds:,.0f} ms, {memory['ours']:.1f} GB"
    names = {"paper": "the paper's arithmetic", "dense": "dense PyTorch"}
    others = [f"{what} {1e3 * times[name].seconds:,.0f} ms, {memory[name]:.1f} GB" for name, what in names.items()]
    ratios = [f"{times[name].ratio:.1f}× ({times[name].low:.1f}–{times[name].high:.1f})" for name in names]
    target = " (≥ 5×)" if shape == SHAPES[0] else ""
    return (
        f"| BatchTopK step, {shape} | {ours} | {'; '.join(others)} | {ratios[0]}{target}; {ratios[1]}; "
        f"losses equal to {measured.loss_difference:.0e} |"
    )


def main() -> None:
    """Print the markdown rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="training steps of all sides (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="threads of all sides (default 2)")
    parser.add_argument("--d-model", type=int, help="one shape of this width instead of both")
    parser.add_argument("--crossover", action="store_true", help="print where an L1 step becomes faster in nonzeros")
    arguments = parser.parse_args()
    if arguments.crossover:
        print("| density | dense step | sparse step |\n|---|---|---|")
        for share, dense, sparse in crossover(arguments.threads):
            print(f"| {share:.3f} | {dense * 1e3:.1f} ms | {sparse * 1e3:.1f} ms |")
        return
    for shape in [Shape(d_model=arguments.d_model)] if arguments.d_model else SHAPES:
        print(row(shape, run(shape, arguments.steps, arguments.threads)), flush=True)


if __name__ == "__main__":
    main()
