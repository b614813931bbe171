"""The latents that the KL experiment edits with, chosen so that doses can be compared.

The dose of a set S is its edit energy E(S) = Σ_n ‖Σ_{j∈S} f_j(n) (d_j^chat − d_j^base)‖² over response positions. The
halves of a ranking have very different ones, so beside them stand sets of equal energy, the ranking by energy itself,
and the prefixes of whole rankings at stated shares of E(all).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tunediff.config.settings import CausalSettings
from tunediff.dictionaries.sparse import SparseCode, latent_order
from tunediff.errors import TunediffError
from tunediff.latents.table import LatentTable

RANKINGS = ("norm_difference", "latent_scaling")
BASELINE, RANDOM = "energy", "random"  # the order to beat, and the one to start from
MATCHED_FACTOR = 1.5  # between the energies of two latents that are paired
TOLERANCE = 0.02  # relative, of the energy of a set of random latents


class Grown(NamedTuple):
    """The latents of a set in the order they were added, and the joint energy after each."""

    latents: NDArray[np.int64]
    energy: NDArray[np.float64]

    @property
    def joint(self) -> float:
        """Energy of the whole set."""
        return float(self.energy[-1]) if len(self.energy) else 0.0


class EditEnergy:
    """Energies of edits Σ_{j∈S} f_j(n) Δ_j over the tokens of a code, Δ_j = d_j^chat − d_j^base (latent, d_model).

    `single` (latent,) holds E({j}) = ‖Δ_j‖² Σ_n f_j(n)²; float64.
    """

    def __init__(self, code: SparseCode, difference: Float[Tensor, "latent d_model"]) -> None:
        order = latent_order(code, len(difference))
        self.difference, self.n_tokens = difference, code.n_tokens
        self._token, self._value = order.token, code.value[order.position]
        self._offset = order.offsets.tolist()
        squares = torch.zeros(len(difference), dtype=torch.float64, device=difference.device)
        squares.index_add_(0, code.latent, code.value.double() ** 2)
        self.single: NDArray[np.float64] = (squares * difference.double().square().sum(1)).cpu().numpy()

    def grow(self, order: Iterable[int], most: float = np.inf, enough: float = np.inf) -> Grown:
        """Add latents in `order`, with their joint energies; skip one that exceeds `most`, stop at `enough`.

        E(S ∪ {j}) = E(S) + E({j}) + 2 Σ_n f_j(n) ⟨Δ_j, edit of S at n⟩: one pass over the nonzeros for all prefixes.
        """
        edit = self.difference.new_zeros(self.n_tokens, self.difference.shape[1])
        energy, latents, energies = 0.0, [], []
        for j in order:
            if energy >= enough:
                break
            grown = energy
            if self.single[j] > 0:
                nonzeros = slice(self._offset[j], self._offset[j + 1])
                token, value = self._token[nonzeros], self._value[nonzeros]
                overlap = (value.double() * (edit[token] @ self.difference[j]).double()).sum()
                grown = energy + float(self.single[j]) + 2 * float(overlap)
                if grown > most:
                    continue
                edit[token] += value[:, None] * self.difference[j]
            energy = max(0.0, grown)  # rounding: a sum of squares is not negative
            latents.append(int(j))
            energies.append(energy)
        return Grown(np.array(latents, dtype=np.int64), np.array(energies, dtype=np.float64))

    def joint(self, latents: Iterable[int]) -> float:
        """Return E of a set."""
        return self.grow(latents).joint


class LatentSet(NamedTuple):
    """The latents of one intervention and their dose."""

    intervention: str
    latents: NDArray[np.int64]
    energy: float  # joint, over response positions
    rule: str  # how they were chosen, for a reader
    ranking: str = ""  # norm_difference, latent_scaling, energy or random
    draw: int = 0  # number of the random draw or order
    point: int = 0  # number of the curve's point, from 1


class LatentSets(NamedTuple):
    """All sets of one crosscoder."""

    effective: NDArray[np.int64]  # the latents that halves are drawn from, by falling Δnorm
    name: str  # what they are: "the 146 live latents of highest norm difference (0 of them chat-only)"
    members: list[LatentSet]
    energy: float  # E(all): every latent of the crosscoder
    notes: list[str]  # sets that could not be made as asked, and why
    rule: str

    def describe(self) -> dict[str, Any]:
        """Return what causal/kl.sets.json says of a crosscoder; latents of a curve's prefixes are left out (many)."""
        sets = [
            {
                **{name: value for name, value in chosen._asdict().items() if name != "latents"},
                "n_latents": len(chosen.latents),
                "energy_share": chosen.energy / self.energy if self.energy else None,
                **({} if chosen.intervention == "prefix" else {"latents": chosen.latents.tolist()}),
            }
            for chosen in self.members
        ]
        return {
            "name": self.name,
            "rule": self.rule,
            "notes": self.notes,
            "size": len(self.effective),
            "half": len(self.effective) // 2,
            "energy_all": self.energy,
            "latents": self.effective.tolist(),
            "sets": sets,
        }


def effective_size(name: str, tables: Mapping[str, LatentTable], settings: CausalSettings) -> tuple[int, str]:
    """Return the size of the effective set of crosscoder `name`, and why.

    The reference is the crosscoder so named, or else its run of the same seed (REFERENCE-seedN).

    Raises
    ------
    TunediffError
        There is no such crosscoder.
    """
    if settings.set_size is not None:
        return settings.set_size, f"causal.set_size = {settings.set_size}"
    seed = re.search(r"-seed\d+$", name)
    candidates = [settings.reference, settings.reference + (seed.group() if seed else "")]
    for candidate in candidates:
        if candidate in tables:
            n = int((tables[candidate].frame["class_name"] == "chat-only").sum())
            return max(2, n), f"number of chat-only latents of {candidate} ({n}), at least 2"
    raise TunediffError(
        f"causal.reference: no crosscoder '{candidates[-1]}' among {', '.join(tables)}; "
        "name one of the config's crosscoders, or set causal.set_size"
    )


def rank_latents(frame: pd.DataFrame, single: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
    """Return all live latents in the order of each ranking.

    By falling Δnorm; by rising rank_sum, those without one after them; by falling single energy. Ties, and latents
    without rank_sum, are in the order of Δnorm.
    """
    live = np.flatnonzero(~frame["dead"].to_numpy())
    by_norm = live[np.argsort(-frame["norm_difference"].to_numpy()[live], kind="stable")]
    rank_sum = np.nan_to_num(frame["rank_sum"].to_numpy()[by_norm], nan=np.inf)
    return {
        "norm_difference": by_norm,
        "latent_scaling": by_norm[np.argsort(rank_sum, kind="stable")],
        BASELINE: by_norm[np.argsort(-single[by_norm], kind="stable")],
    }


def match_energies(best: NDArray[np.int64], worst: NDArray[np.int64], single: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the pairs of latents of near energy, as an array (best, worst) with at most one True per row and column.

    Of all assignments whose pairs differ by a factor of at most 1.5, it is one with most pairs, and of these the one of
    least Σ |log E_i − log E_j|. Latents without energy stay alone.
    """
    pairs = np.zeros((len(best), len(worst)), dtype=bool)
    rows, columns = (np.flatnonzero(single[half] > 0) for half in (best, worst))
    distance = np.abs(np.log(single[best[rows]])[:, None] - np.log(single[worst[columns]])[None])
    within = distance <= np.log(MATCHED_FACTOR)
    forbidden = np.log(MATCHED_FACTOR) * (1 + min(distance.shape))  # one such pair outweighs all others together
    at = linear_sum_assignment(np.where(within, distance, forbidden))
    pairs[rows[at[0]], columns[at[1]]] = within[at]
    return pairs


class _Chooser:
    """Collects the sets of one crosscoder, and notes on those that could not be made as asked."""

    def __init__(self, energy: EditEnergy, settings: CausalSettings) -> None:
        self.energy, self.settings = energy, settings
        self.members: list[LatentSet] = []
        self.notes: list[str] = []

    def add(self, intervention: str, latents: NDArray[np.int64], rule: str, ranking: str = "") -> LatentSet:
        """Add a set and measure its energy."""
        self.members.append(LatentSet(intervention, latents, self.energy.joint(latents), rule, ranking))
        return self.members[-1]

    def halves(self, ranking: str, ordered: NDArray[np.int64]) -> LatentSet:
        """Add the best and the worst half of a set in the order of a ranking; return the best."""
        half = len(ordered) // 2
        best = self.add(f"{ranking}_best", ordered[:half], f"first {half} of the set by {ranking}", ranking)
        worst = ordered[len(ordered) - half :]
        self.add(f"{ranking}_worst", worst, f"last {half} of the set by {ranking}", ranking)
        if ranking != BASELINE:  # halves by energy have no energies in common
            pairs = match_energies(best.latents, worst, self.energy.single)
            rule = (
                f"{int(pairs.sum())} pairs by {ranking} whose energies differ by a factor of at most {MATCHED_FACTOR}"
            )
            if pairs.any():
                self.add(f"{ranking}_best_matched", best.latents[pairs.any(1)], f"best of {rule}", ranking)
                self.add(f"{ranking}_worst_matched", worst[pairs.any(0)], f"worst of {rule}", ranking)
            else:
                self.notes.append(f"no energy-matched halves: {rule}")
        return best

    def controls(self, best: LatentSet, outside: NDArray[np.int64], stream: int) -> None:
        """Add draws of random latents from `outside` that have the joint energy of a best half."""
        rule = f"random live latents outside the set, with the energy of the best half by {best.ranking}"
        if not best.energy > 0 or not len(outside):
            why = "no latent outside fires on response tokens" if best.energy > 0 else "that half has no energy"
            self.notes.append(f"no {rule}: {why}")
            return
        least, most = (1 - TOLERANCE) * best.energy, (1 + TOLERANCE) * best.energy
        for draw in range(self.settings.random_sets):
            order = np.random.default_rng([self.settings.seed, stream, draw]).permutation(outside)
            latents, energies = self.energy.grow(order, most, least)
            reached = energies[-1] / best.energy if len(energies) else 0.0
            if reached < 1 - TOLERANCE:
                self.notes.append(f"draw {draw} of {rule}: it reaches {100 * reached:.0f} % of it")
            if len(latents):
                chosen = LatentSet("matched_random", latents, float(energies[-1]), rule, best.ranking, draw)
                self.members.append(chosen)


def latent_sets(table: LatentTable, energy: EditEnergy, n: int, reason: str, settings: CausalSettings) -> LatentSets:
    """Choose the effective set, its halves, their energy-matched counterparts and the curves of whole rankings.

    The effective set is the n live latents of highest Δnorm that are not reversed. Best and worst are the first and
    last ⌊n/2⌋ of it in the order of a ranking. Random latents, from outside the set, have the joint energy of a best
    half; where all of them together have less, they are all taken.
    """
    frame, chooser = table.frame, _Chooser(energy, settings)
    orders = rank_latents(frame, energy.single)
    live, is_reversed = orders["norm_difference"], frame["reversed"].to_numpy()
    usable = live[~is_reversed[live]]
    effective, outside = usable[:n], usable[n:]
    best = [chooser.halves(ranking, order[np.isin(order, effective)]) for ranking, order in orders.items()]
    lost = live[:n][is_reversed[live[:n]]]
    if len(lost):
        chooser.add("reversed", lost, f"reversed latents among the {n} live latents of highest norm difference")
    for stream, half in enumerate(best, 1):
        chooser.controls(half, outside[energy.single[outside] > 0], stream)
    total = energy.joint(range(len(frame)))
    curves = [(ranking, 0, order) for ranking, order in orders.items()]
    for draw in range(settings.random_orders):
        curves.append((RANDOM, draw, np.random.default_rng([settings.seed, 0, draw]).permutation(live)))
    for ranking, draw, order in curves:
        chooser.members += curve(energy, order, total, settings.curve_energies, ranking, draw)

    chat_only = int((frame["class_name"].to_numpy()[effective] == "chat-only").sum())
    kept = " that are not reversed" if len(lost) else ""
    name = f"the {len(effective):,} live latents of highest norm difference{kept} ({chat_only:,} of them chat-only)"
    without = int(np.isnan(frame["rank_sum"].to_numpy()[effective]).sum())
    rule = (
        f"{name}; {len(lost)} reversed among the first {n}; size: {reason}; best/worst: first/last "
        f"{len(effective) // 2} by norm difference, by rank_sum ({without} without it, ranked last) or by edit energy"
    )
    return LatentSets(effective, name, chooser.members, total, chooser.notes, rule)


def curve(
    energy: EditEnergy, order: NDArray[np.int64], total: float, shares: Sequence[float], ranking: str, draw: int
) -> list[LatentSet]:
    """Return the prefixes of `order` whose joint energies are nearest to the given shares of `total`, each once.

    Of equally near ones the shortest is taken. The empty prefix is left out, and what has all latents that fire.
    """
    energies = np.concatenate([[0.0], energy.grow(order).energy])
    firing = np.flatnonzero(energy.single[order] > 0)
    points: dict[int, LatentSet] = {}
    for point, share in enumerate(shares, 1):
        size = int(np.argmin(np.abs(energies - share * total)))
        if 0 < size <= (firing[-1] if len(firing) else 0) and size not in points:
            rule = f"first {size} of {len(order)} live latents by {ranking}: nearest to {100 * share:g} % of E(all)"
            points[size] = LatentSet("prefix", order[:size], float(energies[size]), rule, ranking, draw, point)
    return list(points.values())
