"""What a dictionary reconstructs of validation tokens: FVE, L0, dead latents (method.md section 2, "Metrics").

Measured in the pass that measures the latents, and written beside their table. BOS, ignored tokens and massive
activations are left out. The mean that FVE is measured against is the subset's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tunediff.data.activations import MODELS, ActivationBatch
from tunediff.data.transfer import moved
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import check, read_json, write_json

SUFFIX = ".held_out.json"  # of the file beside the latent table
OUTPUTS = (*MODELS, "difference")  # what FVE is of; of a dictionary of the difference, the last alone
COLUMNS = 512  # dimensions of one output that a CPU sums at once: 4 MiB of float64 for 1,024 tokens


class LargestDimension(NamedTuple):
    """The dimension of largest variance, and its share of the variance of all."""

    dimension: int
    share: float


@dataclass(frozen=True)
class Variance:
    """Float64 sums per dimension over some tokens, for y of each output: each model and the difference, or that alone.

    FVE = 1 − Σ‖ε‖² / Σ‖y − mean‖², where the mean is that of these tokens. `sum` and `square` are of y less `origin`.
    """

    n_tokens: int
    origin: Float[Tensor, "output d_model"]
    error: Float[Tensor, "output d_model"]
    sum: Float[Tensor, "output d_model"]
    square: Float[Tensor, "output d_model"]

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


class Variances:
    """`Variance` of several subsets of the same tokens, which may overlap, added batch by batch.

    All share an origin near the mean of the first batch: where the mean is far larger than the spread, as in real
    residual streams, sums of y itself would lose the digits of the variance. It is of float32, as y is, so that a
    constant dimension has no variance at all.
    """

    def __init__(self, n_subsets: int, n_streams: int, d_model: int, device: str) -> None:
        self.n_tokens = np.zeros(n_subsets, dtype=np.int64)
        n_outputs = len(OUTPUTS) if n_streams == len(MODELS) else 1
        self.origin = torch.zeros(n_outputs, d_model, dtype=torch.float64, device=device)
        self.error, self.sum, self.square = self.origin.new_zeros(3, n_subsets, n_outputs, d_model)

    def add(
        self,
        members: NDArray[np.bool_],
        target: Float[Tensor, "token stream d_model"],
        reconstruction: Float[Tensor, "token stream d_model"],
    ) -> None:
        """Add tokens, each to the subsets it is in: `members` is (subset, token)."""
        first, weight = not self.n_tokens.any(), moved(members.astype(np.float64), target.device)
        for outputs, columns in parts(target):
            place = slice(None), outputs, columns
            y = taken(target, outputs, columns)
            if first:
                self.origin[outputs, columns] = y.mean(0, dtype=torch.float64).float()
            error = (y - taken(reconstruction, outputs, columns)).double().square_()
            y = y - self.origin[outputs, columns]
            self.error[place] += torch.tensordot(weight, error, dims=1)
            self.sum[place] += torch.tensordot(weight, y, dims=1)
            self.square[place] += torch.tensordot(weight, y.square_(), dims=1)
        self.n_tokens += members.sum(axis=1)

    def of(self, *subsets: int) -> Variance:
        """Return the sums of some subsets that do not overlap, as those of one."""
        own = list(subsets)
        sums = (values[own].sum(0) for values in (self.error, self.sum, self.square))
        return Variance(int(self.n_tokens[own].sum()), self.origin, *sums)


def parts(x: Float[Tensor, "token stream d_model"]) -> Iterator[tuple[slice, slice]]:
    """Yield outputs and dimensions that are summed one after another: on a CPU what fits its cache, on a GPU all."""
    _, n_streams, d_model = x.shape
    if x.is_cuda:
        yield slice(None), slice(None)
        return
    for i in range(1 if n_streams == 1 else len(OUTPUTS)):
        for start in range(0, d_model, COLUMNS):
            yield slice(i, i + 1), slice(start, start + COLUMNS)


def taken(
    x: Float[Tensor, "token stream d_model"], outputs: slice, columns: slice
) -> Float[Tensor, "token output d_model"]:
    """Return some dimensions of base, chat and their difference chat − base; of a difference alone as it is."""
    if x.shape[1] == 1 or (outputs.start is not None and outputs.stop <= len(MODELS)):
        return x[:, outputs, columns]
    difference = x[:, 1:, columns] - x[:, :1, columns]
    return difference if outputs.start is not None else torch.cat([x, difference], dim=1)


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
        self.crosscoder, self.sources = crosscoder, sources
        n_streams, d_model = crosscoder.decoder_bias.shape
        self.variances = Variances(len(sources) + 1, n_streams, d_model, device)
        self.nonzeros = torch.zeros(len(sources) + 1, dtype=torch.float64, device=device)

    def add(
        self, batch: ActivationBatch, code: SparseCode, reconstruction: Float[Tensor, "token stream d_model"]
    ) -> None:
        """Add the tokens of a batch."""
        members = np.stack([*(batch.source == i for i in range(len(self.sources))), batch.template])
        self.variances.add(members, self.crosscoder.inputs(batch.activations), reconstruction)
        per_token = code.offsets().diff().double()
        self.nonzeros += moved(members.astype(np.float64), per_token.device) @ per_token

    def metrics(self, dead_fraction: float, name: str) -> Reconstruction:
        """Return the metrics. `name` is that of the crosscoder; `TunediffError`: a reconstruction is not finite."""
        template = len(self.sources)
        subsets = {"all": tuple(range(template))} | {source: (i,) for i, source in enumerate(self.sources)}
        subsets["template"] = (template,)
        variances = {subset: self.variances.of(*own) for subset, own in subsets.items()}
        if not variances["all"].error.isfinite().all():
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
                own = self.nonzeros[list(subsets[subset])].sum()
                rows.append(metric("l0", "both", subset, float(own) / variance.n_tokens))
        rows.append(metric("dead_fraction", "both", "all", dead_fraction))
        n_tokens = {subset: variance.n_tokens for subset, variance in variances.items()}
        dead = f"no firing on the {n_tokens['all']} counted validation tokens"
        return Reconstruction(rows, n_tokens, dead, variances["all"].mean().tolist())
