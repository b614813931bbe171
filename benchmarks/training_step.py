"""BatchTopK training step: nonzeros against a dense implementation by plain autograd, same init, data and optimiser.

Prints one row of README's performance table. Both sides include gradient clipping and the fused Adam update.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tunediff.config.dictionaries import BatchTopKSettings, L1Settings
from tunediff.config.settings import TrainingSettings
from tunediff.dictionaries.base import Dictionary
from tunediff.dictionaries.batchtopk import BatchTopK
from tunediff.dictionaries.l1 import L1
from tunediff.dictionaries.training import make_optimizer, optimizer_step

D_MODEL, DICT_SIZE, N_TOKENS, K = 512, 16_384, 1_024, 32


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


class DenseBatchTopK(torch.nn.Module):
    """The same loss in dense algebra: full topk, mask, five GEMMs."""

    def __init__(self, source: Dictionary, k: int) -> None:
        super().__init__()
        self.k = k
        for name, parameter in source.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(parameter.detach().clone()))

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


def run(steps: int = 50, threads: int = 2, warmup: int = 3) -> dict[str, float]:
    """Train both side by side, alternating steps; return tokens/s of each, their ratio and the loss difference."""
    torch.set_num_threads(threads)
    training = TrainingSettings(batch_size=N_TOKENS, steps=steps, learning_rate=1e-4, device="cpu")
    sparse = BatchTopK(BatchTopKSettings(dict_size=DICT_SIZE, k=K), D_MODEL, seed=0, steps=steps)
    draw = synthetic(D_MODEL, N_TOKENS)
    sparse.prepare(draw())
    dense = DenseBatchTopK(sparse, K)
    sparse_optimizer = make_optimizer(sparse, training)
    dense_optimizer = torch.optim.Adam(dense.parameters(), lr=training.learning_rate, fused=True)
    seconds: dict[str, list[float]] = {"sparse": [], "dense": []}
    difference = 0.0
    for _ in range(steps):
        x = draw()
        start = time.perf_counter()
        loss, _ = optimizer_step(sparse, sparse_optimizer, x, measure=False)
        middle = time.perf_counter()
        dense_optimizer.zero_grad(set_to_none=True)
        dense_loss = dense.loss(x)
        dense_loss.backward()
        torch.nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
        dense_optimizer.step()
        seconds["sparse"].append(middle - start)
        seconds["dense"].append(time.perf_counter() - middle)
        difference = max(difference, abs(float(loss) / float(dense_loss.detach()) - 1))
    rates = {name: N_TOKENS / statistics.median(values[warmup:]) for name, values in seconds.items()}
    return {
        "tokens_per_second": rates["sparse"],
        "tokens_per_second_dense": rates["dense"],
        "ratio": rates["sparse"] / rates["dense"],
        "max_relative_loss_difference": difference,
    }


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


def main() -> None:
    """Print the markdown row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="training steps of both sides (default 50)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default 2)")
    parser.add_argument("--crossover", action="store_true", help="print where an L1 step becomes faster in nonzeros")
    arguments = parser.parse_args()
    if arguments.crossover:
        print("| density | dense step | sparse step |\n|---|---|---|")
        for share, dense, sparse in crossover(arguments.threads):
            print(f"| {share:.3f} | {dense * 1e3:.1f} ms | {sparse * 1e3:.1f} ms |")
        return
    result = run(arguments.steps, arguments.threads)
    print(
        f"| BatchTopK step, d {D_MODEL}, F {DICT_SIZE:,}, N {N_TOKENS:,}, k {K} "
        f"| {result['tokens_per_second']:,.0f} tokens/s | dense {result['tokens_per_second_dense']:,.0f} tokens/s "
        f"| {result['ratio']:.1f}× (≥ 2×) | loss within {result['max_relative_loss_difference']:.1e} (≤ 1e-4) |"
    )


if __name__ == "__main__":
    main()
