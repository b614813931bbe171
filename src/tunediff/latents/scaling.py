"""Latent Scaling (method.md section 4): one pass, all latents, all targets, from sufficient statistics.

For a direction u of latent j (its chat decoder row, by definition) and a target y, the least-squares scale is
β = Σ_n f_j ⟨y, u⟩ / (‖u‖² Σ_n f_j²). Where the code is sparse, only its nonzeros feed the sums: N·L0 dot products, not
N·F; where it is dense, ⟨Σ f y, u⟩ is cheaper. Sums are kept per block of documents, for jackknife errors and bootstrap
intervals. A dictionary of the difference has one direction d_j per latent and no ĥ^m: what needs R is NaN.

Dimension names: ``direction`` (the u of each latent: chat, base, then controls), ``block`` (of documents, or any
resample of them), ``statistic`` (count, Σf, Σf², then T and R per direction and model).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.fused import available
from tunediff.dictionaries.sparse import SparseCode
from tunediff.statistics import resample_weights

BASE, CHAT = 0, 1  # index on the `model` axis
CHAT_DIRECTION, BASE_DIRECTION = 0, 1  # index on the `direction` axis; the base direction is the mirrored definition

_PRODUCTS = 1 << 20  # projections asked for at once on a CPU: their indices are 16 MiB
# elements of Σ f_j y, one row of all four targets per latent, held at once: in a core's cache; on a GPU few launches
_SUMMED_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 26}
_RESAMPLED_ELEMENTS = 1 << 22  # (resample, latent) elements of one bootstrap slice


def document_block(doc: NDArray[np.integer], n_blocks: int) -> NDArray[np.int64]:
    """Return the block of each document: a stable hash (splitmix64) of its id, modulo `n_blocks`."""
    x = doc.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) % np.uint64(n_blocks)).astype(np.int64)


def scaling_directions(crosscoder: Crosscoder) -> Float[Tensor, "latent direction d_model"]:
    """Return the directions of the definition: the chat decoder row, then the base one (mirrored definition).

    Both are d_j where the dictionary reconstructs the difference.
    """
    return crosscoder.decoder_weight.detach()[:, [-1, 0]].contiguous()


def random_directions(directions: Float[Tensor, "latent d_model"], seed: int) -> Float[Tensor, "latent d_model"]:
    """Return uniformly random directions of the same norms: the control of what ν is where f has no direction."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(directions.shape, generator=generator, dtype=torch.float64)
    drawn = drawn / drawn.norm(dim=-1, keepdim=True)
    norms = directions.norm(dim=-1, keepdim=True)
    return drawn.to(directions) * norms


def shuffled_index(alive: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """Return for each live latent another live latent whose direction it borrows (a derangement); dead ones stay."""
    index = np.arange(len(alive))
    cycle = np.random.default_rng(seed).permutation(np.flatnonzero(alive))
    index[cycle] = np.roll(cycle, 1)
    return index


def projections(
    code: SparseCode, rows: Float[Tensor, "token target d_model"], directions: Float[Tensor, "latent direction d_model"]
) -> Float[Tensor, "nonzero direction target"]:
    """Return ⟨rows[token], directions[latent]⟩ for every nonzero of the code."""
    if not rows.is_cuda:
        return grouped_projections(code, rows, directions)
    if not available(str(rows.device)):
        return whole_projections(code, rows, directions)
    from tunediff.dictionaries import kernels

    return kernels.dots(code.offsets(), code.latent, rows, directions)


def whole_projections(
    code: SparseCode, rows: Float[Tensor, "token target d_model"], directions: Float[Tensor, "latent direction d_model"]
) -> Float[Tensor, "nonzero direction target"]:
    """Return the projections from one large call of plain PyTorch: no shape that the host has to wait for.

    It is for a GPU without Triton. The call makes one product per sample, in the order of the samples. Those of one
    nonzero follow one another, so the warps of a GPU that read the same direction run side by side: if a cache keeps
    it, it comes from memory once, not once per target.
    """
    n_directions, n_targets = directions.shape[1], rows.shape[1]
    shape = len(code.token), n_directions, n_targets
    direction, target = (torch.arange(n, device=rows.device) for n in shape[1:])
    index = (code.latent[:, None, None] * n_directions + direction[:, None]).expand(shape).reshape(-1)
    row = (code.token[:, None, None] * n_targets + target).expand(shape).reshape(-1)
    # `sparse.sparse_dots` for samples in any order: offsets are read only where `row` is not given
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows.flatten(0, 1), directions.flatten(0, 1), index, index[:0], row, 0, -1
    )
    return dots.view(shape)


def grouped_projections(
    code: SparseCode, rows: Float[Tensor, "token target d_model"], directions: Float[Tensor, "latent direction d_model"]
) -> Float[Tensor, "nonzero direction target"]:
    """Return the projections some nonzeros at a time, so that the indices of a call stay in a CPU's cache."""
    step = max(1, _PRODUCTS // (directions.shape[1] * rows.shape[1]))
    parts = zip(code.token.split(step), code.latent.split(step), code.value.split(step), strict=True)
    pieces = [whole_projections(SparseCode(*part, code.n_tokens), rows, directions) for part in parts]
    return torch.cat(pieces)  # of no nonzero there is one piece, an empty one


@dataclass
class ScalingSums:
    """The sufficient statistics, float64, per block of documents; sums of disjoint tokens add."""

    table: Float[Tensor, "block latent statistic"]
    n_directions: int  # directions per latent

    @classmethod
    def zeros(
        cls, n_blocks: int, n_latents: int, n_directions: int = 2, device: str = "cpu", reconstructed: bool = True
    ) -> "ScalingSums":
        """Return empty sums; without R unless both models are reconstructed."""
        shape = (n_blocks, n_latents, 3 + (4 if reconstructed else 2) * n_directions)
        return cls(torch.zeros(shape, dtype=torch.float64, device=device), n_directions)

    def add(
        self,
        code: SparseCode,
        targets: Float[Tensor, "token target d_model"],
        directions: Float[Tensor, "latent direction d_model"],
        block: Int[Tensor, "token"],
    ) -> None:
        """Add the tokens of one batch, in place.

        Targets are the activations of base and chat, then R of both where the sums have it; `block` is that of each
        token's document.
        """
        if code.is_dense(len(directions)):
            for tokens, dense in code.dense_pieces(len(directions)):
                self._add_dense(dense.to(targets), targets[tokens], directions, block[tokens])
        else:
            self._add_sparse(code, targets, directions, block)

    def _add_sparse(self, code: SparseCode, rows: Tensor, directions: Tensor, block: Tensor) -> None:
        """Add ⟨y, u⟩ of every nonzero."""
        dots = projections(code, rows, directions)
        value = code.value.double()[:, None]
        terms = value.new_empty(len(value), self.table.shape[2])
        terms[:, 0], terms[:, 1:2], terms[:, 2:3] = 1, value, value**2
        torch.mul(dots.flatten(1), value, out=terms[:, 3:])  # per direction: T^base, T^chat, R^base, R^chat
        key = block[code.token] * self.table.shape[1] + code.latent
        flat = self.table.view(-1, self.table.shape[2])
        if flat.is_cuda:  # sorted, so that equal runs give equal bits
            flat.index_put_((key,), terms, accumulate=True)
        else:
            flat.scatter_add_(0, key[:, None].expand_as(terms), terms)

    def _add_dense(self, dense: Tensor, rows: Tensor, directions: Tensor, block: Tensor) -> None:
        """Add ⟨Σ f y, u⟩ of the tokens of each block, some latents at a time."""
        n_targets, d_model = rows.shape[1:]
        order = block.argsort(stable=True)
        counts = torch.bincount(block, minlength=len(self.table)).tolist()
        step = max(1, _SUMMED_ELEMENTS[rows.device.type] // (n_targets * d_model))
        for b, tokens in enumerate(order.split(counts)):
            if not len(tokens):
                continue
            f, own = dense[tokens], rows[tokens].flatten(1)
            wide = f.double()
            self.table[b, :, :3] += torch.stack([(f > 0).sum(0), wide.sum(0), wide.square().sum(0)], dim=1)
            for first in range(0, len(directions), step):
                part = slice(first, first + step)
                summed = (f[:, part].T @ own).view(-1, n_targets, d_model)
                dots = torch.bmm(directions[part], summed.transpose(1, 2))
                self.table[b, part, 3:] += dots.flatten(1)

    def total(self) -> "ScalingSums":
        """Return the sums over all blocks, as a single block."""
        return ScalingSums(self.table.sum(0, keepdim=True), self.n_directions)

    def filled(self) -> "ScalingSums":
        """Return the blocks that hold any activation."""
        return ScalingSums(self.table[self.table[..., 0].sum(1) > 0], self.n_directions)

    # per block and latent
    count = property(lambda self: self.table[..., 0])  # tokens on which it fires
    activation_sum = property(lambda self: self.table[..., 1])  # Σ f
    square_sum = property(lambda self: self.table[..., 2])  # Σ f²

    def dots(self, direction: int, reconstructed: bool = False) -> Float[Tensor, "block latent model"]:
        """Return T^m = Σ f⟨h^m, u⟩, or R^m = Σ f⟨ĥ^m, u⟩: NaN where there are no ĥ^m."""
        width = (self.table.shape[2] - 3) // self.n_directions
        if reconstructed and width == 2:
            return torch.full_like(self.table[..., :2], torch.nan)
        start = 3 + width * direction + 2 * reconstructed
        return self.table[..., start : start + 2]


class DirectionTerms(NamedTuple):
    """What the formulas need of the directions u besides the sums, float64."""

    square_norm: Float[Tensor, "latent direction"]  # ‖u‖²
    decoder: Float[Tensor, "latent direction model"]  # ⟨d^m, u⟩
    bias: Float[Tensor, "latent direction model"]  # ⟨b^m, u⟩, or ⟨mean of h^m, u⟩


def direction_terms(
    crosscoder: Crosscoder,
    directions: Float[Tensor, "latent direction d_model"] | None = None,
    mean: Float[Tensor, "model d_model"] | None = None,
) -> DirectionTerms:
    """Return ‖u‖², ⟨d^m, u⟩ and ⟨b^m, u⟩; the directions are those of `scaling_directions` unless given.

    `mean` of the activations stands in for b^m where the dictionary has no bias per model.
    """
    u = (scaling_directions(crosscoder) if directions is None else directions).double()
    decoder = crosscoder.decoder_weight.detach().double()
    bias = (crosscoder.decoder_bias.detach() if mean is None else mean).double()
    return DirectionTerms(u.square().sum(-1), u @ decoder.transpose(1, 2), u @ bias.T)


def betas(
    sums: ScalingSums, terms: DirectionTerms, direction: int = CHAT_DIRECTION
) -> dict[str, Float[Tensor, "block latent model"]]:
    """Return β^m of every target, per block (method.md section 4); NaN where the latent never fires.

    β_act = T/(‖u‖²Σf²); β_rec = R/(‖u‖²Σf²); β_err = β_act − β_rec + ⟨d^m, u⟩/‖u‖² (the leave-one-out residual);
    β_nobias = β_act − ⟨b^m, u⟩Σf/(‖u‖²Σf²).
    """
    square_norm = terms.square_norm[:, direction, None]
    scale = square_norm * sums.square_sum[..., None]
    activation = sums.dots(direction) / scale
    reconstruction = sums.dots(direction, reconstructed=True) / scale
    return {
        "activation": activation,
        "activation_no_bias": activation - terms.bias[:, direction] * sums.activation_sum[..., None] / scale,
        "reconstruction": reconstruction,
        "error": activation - reconstruction + terms.decoder[:, direction] / square_norm,
    }


def nu(beta: Float[Tensor, "*batch model"], mirrored: bool = False) -> Float[Tensor, "*batch"]:
    """Return ν = β^base / β^chat, or β^chat / β^base for the mirrored definition."""
    return beta[..., CHAT] / beta[..., BASE] if mirrored else beta[..., BASE] / beta[..., CHAT]


def nu_standard_error(sums: ScalingSums, terms: DirectionTerms) -> dict[str, Float[Tensor, "latent"]]:
    """Return the delete-one-block jackknife standard error of ν for every target.

    Blocks without any activation are not counted. NaN where ν without some block is undefined: the latent fires in
    one block only.
    """
    blocks = sums.filled()
    n_blocks = len(blocks.table)
    without = ScalingSums(blocks.table.sum(0, keepdim=True) - blocks.table, blocks.n_directions)
    # subtraction leaves rounding where a latent fires in one block only: there nothing is left to estimate from
    alone = without.count == 0
    errors = {}
    for target, beta in betas(without, terms).items():
        estimate = nu(beta).masked_fill(alone, torch.nan)
        deviation = estimate - estimate.mean(0)
        errors[target] = ((n_blocks - 1) / max(1, n_blocks) * deviation.square().sum(0)).sqrt()
    return errors


class NuInterval(NamedTuple):
    """The ends of a bootstrap interval of ν, one per latent."""

    low: Float[Tensor, "latent"]
    high: Float[Tensor, "latent"]


def effective_blocks(blocks: ScalingSums) -> Float[Tensor, "latent"]:
    """Return (Σ_b w_b)² / Σ_b w_b² of each latent's Σf² per block (Kish): how many equal blocks would say as much."""
    weight = blocks.square_sum
    return weight.sum(0).square() / weight.square().sum(0)


def expanded_tail(n: Float[Tensor, "latent"], level: float) -> Float[Tensor, "latent"]:
    """Return Φ(√(n/(n−1)) · t_{(1−level)/2, n−1}), the tail that makes percentile intervals of n clusters wide enough.

    Expanded percentile interval of Hesterberg (2015), doi:10.1080/00031305.2015.1089789. NaN for one cluster.
    """
    size = n.cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        deviate = np.sqrt(size / (size - 1)) * stats.t.ppf((1 - level) / 2, size - 1)
    return torch.from_numpy(np.where(size > 1 + 1e-9, stats.norm.cdf(deviate), np.nan)).to(n.device)


def column_quantile(
    samples: Float[Tensor, "resample latent"], share: Float[Tensor, "latent"]
) -> Float[Tensor, "latent"]:
    """Return a quantile of each column, each at its own share, NaN left out; linear between samples."""
    ordered = samples.sort(dim=0).values  # NaN last
    place = share * ((~samples.isnan()).sum(0) - 1)
    below = place.nan_to_num().clamp(min=0).floor().long()
    above = (below + 1).clamp(max=len(samples) - 1)
    low, high = (ordered.gather(0, index[None])[0] for index in (below, above))
    weight = place - below
    return torch.where(weight > 0, low + weight * (high - low), low + 0 * place)


def bootstrap_nu(
    sums: ScalingSums,
    terms: DirectionTerms,
    n: int,
    seed: int,
    targets: tuple[str, ...] = ("error", "reconstruction"),
    level: float = 0.95,
) -> dict[str, NuInterval]:
    """Return percentile intervals of ν from `n` resamples of the blocks, the same resamples for every latent.

    The percentiles are widened for few blocks (`expanded_tail`): plain ones are too short, more so where a latent's
    activation lies in some of the blocks (benchmarks/calibration.py). A resample in which a latent never fires says
    nothing of it and is left out for that latent; one that fires in a single block has no interval.
    """
    blocks = sums.filled()
    n_blocks, n_latents, n_statistics = blocks.table.shape
    unknown = torch.full((n_latents,), torch.nan, dtype=torch.float64)
    intervals = {target: NuInterval(unknown.clone(), unknown.clone()) for target in targets}
    if n_blocks == 0:
        return intervals
    weights = torch.from_numpy(resample_weights(n_blocks, n, seed)).to(blocks.table)
    tail = expanded_tail(effective_blocks(blocks), level)
    step = max(1, _RESAMPLED_ELEMENTS // (n * n_statistics))
    for start in range(0, n_latents, step):
        part = slice(start, start + step)
        resampled = ScalingSums(torch.tensordot(weights, blocks.table[:, part], dims=1), blocks.n_directions)
        values = betas(resampled, DirectionTerms(*(term[part] for term in terms)))
        for target in targets:
            samples = nu(values[target]).masked_fill(resampled.count == 0, torch.nan)
            for end, share in zip(intervals[target], (tail[part], 1 - tail[part]), strict=True):
                end[part] = column_quantile(samples, share).cpu()
    return intervals
