"""What a dictionary reconstructs of validation tokens: FVE, L0, dead latents (method.md section 2, "Metrics").

Measured in the pass that measures the latents, and written beside their table. BOS, ignored tokens and massive
activations are left out. The mean that FVE is measured against is the subset's own.
"""

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tunediff.data.activations import MODELS, ActivationBatch
from tunediff.data.transfer import moved
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import check, read_json, write_json

SUFFIX = ".held_out.json"  # of the file beside the latent table
OUTPUTS = (*MODELS, "difference")  # what FVE is of; of a dictionary of the difference, the last alone
Part: TypeAlias = tuple[slice, slice]  # some outputs, and some of their dimensions
WHOLE: Part = (slice(None), slice(None))
COLUMNS = 512  # dimensions of one output that a CPU sums at once: 4 MiB of float64 for 1,024 tokens


class LargestDimension(NamedTuple):
    """The dimension of largest variance, and its share of the variance of all."""

    dimension: int
    share: float


class Variance:
    """Float64 sums of squares per dimension, for y of each output: each model and the difference, or that alone.

    FVE = 1 − Σ‖ε‖² / Σ‖y − mean‖². Sums are of y less the mean of the first tokens added: where the mean is far larger
    than the spread, as in real residual streams, sums of y itself would lose the digits of the variance.
    """

    def __init__(self, d_model: int, device: str, n_outputs: int = len(OUTPUTS)) -> None:
        self.n_tokens = 0
        shape = (n_outputs, d_model)
        self.origin, self.error, self.square, self.sum = torch.zeros(4, *shape, dtype=torch.float64, device=device)

    def add(
        self, target: Float[Tensor, "token output d_model"], reconstruction: Float[Tensor, "token output d_model"]
    ) -> None:
        """Add tokens."""
        y = target.double()
        self.add_part(WHOLE, y, (y - reconstruction.double()).square_())
        self.n_tokens += len(y)

    def add_part(
        self, part: Part, y: Float[Tensor, "token output d_model"], error: Float[Tensor, "token output d_model"]
    ) -> None:
        """Add y and ‖ε‖², float64, of some outputs and dimensions; the caller adds the tokens once all parts are in."""
        if not self.n_tokens:
            self.origin[part] = y.mean(0)
        self.error[part].add_(error.sum(0))
        y = y - self.origin[part]
        self.sum[part].add_(y.sum(0))
        self.square[part].add_(y.square_().sum(0))

    def merge(self, other: "Variance") -> None:
        """Add the sums of other tokens; nothing was added here, or as many outputs and dimensions."""
        if not self.n_tokens:
            self.origin.copy_(other.origin)
        shift = other.origin - self.origin
        self.error += other.error
        self.square += other.square + 2 * shift * other.sum + other.n_tokens * shift.square()
        self.sum += other.sum + other.n_tokens * shift
        self.n_tokens += other.n_tokens

    def total(self) -> Float[Tensor, "output d_model"]:
        """Return Σ (y − mean)² per dimension."""
        return (self.square - self.sum.square() / max(1, self.n_tokens)).clamp(min=0)

    def fve(self) -> list[float]:
        """Return FVE of each output (NaN without variance)."""
        total = self.total().sum(1)
        return torch.where(total > 0, 1 - self.error.sum(1) / total, torch.nan).tolist()

    def fve_standardised(self) -> list[float]:
        """Return FVE with each dimension scaled to unit variance: 1 − the mean of Σ ε_i² / Σ (y_i − mean_i)².

        The mean is over the dimensions that vary; NaN if none does.
        """
        total = self.total()
        share = torch.where(total > 0, self.error / total, torch.nan)
        return (1 - share.nanmean(1)).tolist()

    def largest_dimensions(self) -> list[LargestDimension]:
        """Return the dimension of largest variance of each output (share NaN without variance)."""
        total = self.total()
        largest = total.max(dim=1)
        shares = (largest.values / total.sum(1)).tolist()
        return [LargestDimension(i, share) for i, share in zip(largest.indices.tolist(), shares, strict=True)]

    def mean(self) -> Float[Tensor, "output d_model"]:
        """Return the mean of each output."""
        return self.sum / max(1, self.n_tokens) + self.origin


def with_difference(x: Float[Tensor, "token stream d_model"]) -> Float[Tensor, "token output d_model"]:
    """Return base, chat and their difference chat − base, stacked; the difference as it is where x is that."""
    return x if x.shape[1] == 1 else torch.cat([x, x[:, 1:] - x[:, :1]], dim=1)


def parts(x: Float[Tensor, "token stream d_model"]) -> list[Part]:
    """Return the parts that are summed one after another: on a CPU what fits its cache, on a GPU everything."""
    _, n_streams, d_model = x.shape
    if x.is_cuda:
        return [WHOLE]
    starts = range(0, d_model, COLUMNS)
    outputs = range(1 if n_streams == 1 else len(OUTPUTS))
    return [(slice(i, i + 1), slice(start, start + COLUMNS)) for i in outputs for start in starts]


def taken(x: Float[Tensor, "token stream d_model"], part: Part) -> Float[Tensor, "token output d_model"]:
    """Return a part of `with_difference(x)`, without making the rest of it."""
    outputs, columns = part
    if part == WHOLE:
        return with_difference(x)
    if outputs.start < x.shape[1]:
        return x[:, outputs, columns]
    return x[:, 1:, columns] - x[:, :1, columns]


def metric(name: str, model: str, subset: str, value: float) -> dict[str, Any]:
    """Return a row of the metrics in long form; a value that is not finite is None."""
    return {"metric": name, "model": model, "subset": subset, "value": value if np.isfinite(value) else None}


class Reconstruction(NamedTuple):
    """The metrics, as their file holds them."""

    metrics: list[dict[str, Any]]  # rows of `metric`
    n_tokens: dict[str, int]  # counted tokens per subset
    dead: str  # which latents are called dead
    mean: list[list[float]]  # of each output, shape (output, d_model): what ablation puts in a residual's place

    def write(self, table: Path) -> None:
        """Write them beside a latent table."""
        write_json(table.with_suffix(SUFFIX), self._asdict())

    @classmethod
    def read(cls, table: Path, *, key: str | None = None) -> "Reconstruction":
        """Read what lies beside a latent table; `TunediffError`: missing, damaged, or made by other inputs."""
        path = table.with_suffix(SUFFIX)
        check(path, "latents", key)
        return cls(**read_json(path))


class HeldOut:
    """Sums over validation tokens per source, and over those of the template; "all" are those of all sources."""

    def __init__(self, crosscoder: Crosscoder, sources: list[str], device: str) -> None:
        self.crosscoder, self.sources, self.device = crosscoder, sources, device
        n_outputs = len(OUTPUTS) if crosscoder.reconstructs == "models" else 1
        subsets = [*sources, "template"]
        self.variances = {subset: Variance(crosscoder.d_model, device, n_outputs) for subset in subsets}
        self.nonzeros = {subset: torch.zeros((), dtype=torch.int64, device=device) for subset in subsets}

    def add(
        self, batch: ActivationBatch, code: SparseCode, reconstruction: Float[Tensor, "token stream d_model"]
    ) -> None:
        """Add the tokens of a batch."""
        per_token = code.offsets().diff()
        inputs = self.crosscoder.inputs(batch.activations)
        members = {source: batch.source == i for i, source in enumerate(self.sources)} | {"template": batch.template}
        chosen = {
            subset: moved(np.flatnonzero(member), self.device) for subset, member in members.items() if member.any()
        }
        for part in parts(inputs):
            y = taken(inputs, part).double()
            error = (y - taken(reconstruction, part).double()).square_()
            for subset, own in chosen.items():
                one = len(own) == len(y)  # no copy of what is in one subset
                self.variances[subset].add_part(part, y if one else y[own], error if one else error[own])
        for subset, own in chosen.items():
            self.variances[subset].n_tokens += len(own)
            self.nonzeros[subset] += per_token[own].sum()

    def metrics(self, dead_fraction: float, name: str) -> Reconstruction:
        """Return the metrics. `name` is that of the crosscoder; `TunediffError`: a reconstruction is not finite."""
        n_outputs, d_model = self.variances["template"].error.shape
        whole = Variance(d_model, self.device, n_outputs)
        variances = {"all": whole, **self.variances}
        for source in self.sources:
            whole.merge(self.variances[source])
        nonzeros = {"all": sum(self.nonzeros[source] for source in self.sources), **self.nonzeros}
        if not whole.error.isfinite().all():
            raise TunediffError(
                f"{name}: the reconstruction error is not finite; delete the crosscoder and run snakemake again"
            )
        rows = []
        for subset, variance in variances.items():
            if variance.n_tokens:
                columns = variance.fve(), variance.fve_standardised(), variance.largest_dimensions()
                for model, fve, standardised, largest in zip(OUTPUTS[-len(columns[0]) :], *columns, strict=True):
                    rows.append(metric("fve", model, subset, fve))
                    rows.append(metric("fve_standardised", model, subset, standardised))
                    rows.append(metric("largest_dimension_share", model, subset, largest.share))
                    rows.append(metric("largest_dimension", model, subset, largest.dimension))
        for subset, variance in variances.items():
            if variance.n_tokens:
                rows.append(metric("l0", "both", subset, int(nonzeros[subset]) / variance.n_tokens))
        rows.append(metric("dead_fraction", "both", "all", dead_fraction))
        n_tokens = {subset: variance.n_tokens for subset, variance in variances.items()}
        dead = f"no firing on the {n_tokens['all']} counted validation tokens"
        return Reconstruction(rows, n_tokens, dead, whole.mean().tolist())
