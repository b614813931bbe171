"""The latents that the KL experiment edits with, chosen so that doses can be compared.

The dose of a set S is its edit energy E(S) = Σ_n ‖Σ_{j∈S} f_j(n) (d_j^chat − d_j^base)‖² over response positions. The
halves of a ranking have very different ones, so beside them stand sets of equal energy, the ranking by energy itself,
and the prefixes of whole rankings at stated shares of E(all).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
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
from tunediff.interventions.registry import INTERVENTIONS, RANDOM, Capabilities, Intervention, interventions, rankings
from tunediff.latents.table import LatentTable

MATCHED_FACTOR = 1.5  # between the energies of two latents that are paired
TOLERANCE = 0.02  # relative, of the energy of a set of random latents


class Grown(NamedTuple):
    """The latents of a set in the order they were added, and the joint energy after each."""

    latents: NDArray[np.int64]
    energy: NDArray[np.float64]


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
        Without limits the host waits for a GPU once, at the end; with them once per latent.
        """
        edit = self.difference.new_zeros(self.n_tokens, self.difference.shape[1])
        known: Iterator[float] | None = None
        if most == enough == np.inf:
            order = list(order)
            overlaps = [self._overlap(j, edit, add=True) for j in order if self.single[j] > 0]
            known = iter(torch.stack(overlaps).tolist() if overlaps else [])
        energy, latents, energies = 0.0, [], []
        for j in order:
            if energy >= enough:
                break
            grown = energy
            if self.single[j] > 0:
                overlap = float(self._overlap(j, edit)) if known is None else next(known)
                grown = energy + float(self.single[j]) + 2 * overlap
                if grown > most:
                    continue
                if known is None:
                    self._add(j, edit)
            energy = max(0.0, grown)  # rounding: a sum of squares is not negative
            latents.append(int(j))
            energies.append(energy)
        return Grown(np.array(latents, dtype=np.int64), np.array(energies, dtype=np.float64))

    def _overlap(self, j: int, edit: Float[Tensor, "token d_model"], add: bool = False) -> Float[Tensor, ""]:
        """Return Σ_n f_j(n) ⟨Δ_j, edit at n⟩, on the device; then add the latent's own edit if asked to."""
        nonzeros = slice(self._offset[j], self._offset[j + 1])
        token, value = self._token[nonzeros], self._value[nonzeros]
        overlap = (value.double() * (edit[token] @ self.difference[j]).double()).sum()
        if add:
            self._add(j, edit)
        return overlap

    def _add(self, j: int, edit: Float[Tensor, "token d_model"]) -> None:
        """Add the edit by a latent, in place."""
        nonzeros = slice(self._offset[j], self._offset[j + 1])
        edit[self._token[nonzeros]] += self._value[nonzeros, None] * self.difference[j]

    def joint(self, latents: Iterable[int]) -> float:
        """Return E of a set."""
        energy = self.grow(latents).energy
        return float(energy[-1]) if len(energy) else 0.0


class LatentSet(NamedTuple):
    """The latents of one intervention and their dose."""

    intervention: str
    latents: NDArray[np.int64]
    energy: float  # joint, over response positions
    rule: str  # how they were chosen, for a reader
    ranking: str = ""  # one of the registry's, or random
    draw: int = 0  # number of the random draw or order
    point: int = 0  # number of the curve's point, from 1


class LatentSets(NamedTuple):
    """All sets of one crosscoder."""

    effective: NDArray[np.int64]  # the latents that halves are drawn from, in the order of the first ranking
    name: str  # what they are: "the 146 live latents of highest norm difference (0 of them chat-only)"
    members: list[LatentSet]
    energy: float  # E(all): every latent of the crosscoder
    notes: list[str]  # sets that could not be made as asked, and why
    rule: str

    def describe(self) -> dict[str, Any]:
        """Return what causal/kl.sets.json says of a crosscoder; latents of a curve's prefixes are left out (many)."""
        sets = []
        for chosen in self.members:
            own = {name: value for name, value in chosen._asdict().items() if name != "latents"}
            own |= {"n_latents": len(chosen.latents)}
            own |= {"energy_share": chosen.energy / self.energy if self.energy else None}
            sets.append(own if chosen.point else own | {"latents": chosen.latents.tolist()})
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

    The reference is the crosscoder so named, or else its run of the same seed (REFERENCE-seedN). `TunediffError`: there
    is no such crosscoder, or its latents have no classes by Δnorm.
    """
    if settings.set_size is not None:
        return settings.set_size, f"causal.set_size = {settings.set_size}"
    seed = re.search(r"-seed\d+$", name)
    candidates = [settings.reference, settings.reference + (seed.group() if seed else "")]
    for candidate in filter(tables.__contains__, candidates):
        if not tables[candidate].has_norm_taxonomy:
            raise TunediffError(
                f"causal.reference: '{candidate}' has no Δnorm, so no chat-only latents to count; name a "
                "crosscoder of both models, or set causal.set_size"
            )
        n = int((tables[candidate].frame["class_name"] == "chat-only").sum())
        return max(2, n), f"number of chat-only latents of {candidate} ({n}), at least 2"
    raise TunediffError(
        f"causal.reference: no crosscoder '{candidates[-1]}' among {', '.join(tables)}; "
        "name one of the config's crosscoders, or set causal.set_size"
    )


def rank_latents(
    frame: pd.DataFrame, single: NDArray[np.float64], dictionary: Capabilities
) -> dict[str, NDArray[np.int64]]:
    """Return all live latents in the order of each ranking that the dictionary supports.

    `single` are the energies of single latents. Ties, and latents without a place, are in the order of the first.
    """
    tied, orders = np.flatnonzero(~frame["dead"].to_numpy()), {}
    for ranking in rankings(dictionary).values():
        values = (frame[ranking.column].to_numpy() if ranking.column else single)[tied]
        if ranking.rising:
            values[frame["reversed"].to_numpy()[tied]] = np.nan
        orders[ranking.name] = tied[np.argsort(values if ranking.rising else -values, kind="stable")]  # NaN last
        tied = next(iter(orders.values()))
    return orders


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


class Choice:
    """What the sets of one dictionary are chosen from; collects them, and notes on those not to be had as asked.

    The effective set is the n live latents that are first in the first ranking and not reversed. `outside` are the
    other live latents that are not reversed, `lost` the reversed among the first n.
    """

    def __init__(
        self, frame: pd.DataFrame, energy: EditEnergy, n: int, settings: CausalSettings, dictionary: Capabilities
    ) -> None:
        self.frame, self.energy, self.n, self.settings = frame, energy, n, settings
        self.orders = rank_latents(frame, energy.single, dictionary)
        self.first = next(iter(rankings(dictionary).values()))
        self.live = self.orders[self.first.name]
        is_reversed = frame["reversed"].to_numpy()
        usable = self.live[~is_reversed[self.live]]
        self.effective, self.outside = usable[:n], usable[n:]
        self.lost = self.live[:n][is_reversed[self.live[:n]]]
        self.total = energy.joint(range(len(frame)))
        self.members: list[LatentSet] = []
        self.notes: list[str] = []

    def add(self, intervention: Intervention, latents: NDArray[np.int64], rule: str) -> None:
        """Add a set and measure its energy."""
        joint = self.energy.joint(latents)
        self.members.append(LatentSet(intervention.name, latents, joint, rule, intervention.ranking))

    def _halves(self, ranking: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ordered = self.orders[ranking][np.isin(self.orders[ranking], self.effective)]
        half = len(ordered) // 2
        return ordered[:half], ordered[len(ordered) - half :]

    def half(self, of: Intervention, *, best: bool) -> None:
        """Add the best or the worst half of the effective set in the order of the intervention's ranking."""
        latents = self._halves(of.ranking)[not best]
        self.add(of, latents, f"{'first' if best else 'last'} {len(latents)} of the set by {of.ranking}")

    def matched(self, of: Intervention, *, best: bool) -> None:
        """Add those of a half that are paired with latents of like energy of the other half, if any are."""
        halves = self._halves(of.ranking)
        pairs = match_energies(*halves, self.energy.single)
        rule = f"{int(pairs.sum())} pairs by {of.ranking} whose energies differ by a factor of at most {MATCHED_FACTOR}"
        if pairs.any():
            self.add(of, halves[not best][pairs.any(int(best))], f"{'best' if best else 'worst'} of {rule}")
        elif best:
            self.notes.append(f"no energy-matched halves: {rule}")

    def reversed(self, of: Intervention) -> None:
        """Add the reversed latents that the effective set lost, if any."""
        if len(self.lost):
            self.add(of, self.lost, f"reversed latents among the {self.n} live latents of {self.first.extreme}")

    def random(self, of: Intervention) -> None:
        """Add draws of random latents from outside that have the joint energy of each half controlled by them."""
        outside = self.outside[self.energy.single[self.outside] > 0]
        controlled = [each for each in self.members if INTERVENTIONS[each.intervention].control == of.name]
        for stream, half in enumerate(controlled, 1):
            rule = f"random live latents outside the set, with the energy of the best half by {half.ranking}"
            if not half.energy > 0 or not len(outside):
                why = "no latent outside fires on response tokens" if half.energy > 0 else "that half has no energy"
                self.notes.append(f"no {rule}: {why}")
                continue
            least, most = (1 - TOLERANCE) * half.energy, (1 + TOLERANCE) * half.energy
            for draw in range(self.settings.random_sets):
                order = np.random.default_rng([self.settings.seed, stream, draw]).permutation(outside)
                latents, energies = self.energy.grow(order, most, least)
                reached = energies[-1] / half.energy if len(energies) else 0.0
                if reached < 1 - TOLERANCE:
                    self.notes.append(f"draw {draw} of {rule}: it reaches {100 * reached:.0f} % of it")
                if len(latents):
                    self.members.append(LatentSet(of.name, latents, float(energies[-1]), rule, half.ranking, draw))

    def prefixes(self, of: Intervention) -> None:
        """Add the points of the curves of all rankings, and of random orders."""
        curves = [(ranking, 0, order) for ranking, order in self.orders.items()]
        for draw in range(self.settings.random_orders):
            curves.append((RANDOM, draw, np.random.default_rng([self.settings.seed, 0, draw]).permutation(self.live)))
        for ranking, draw, order in curves:
            self.members += self._curve(of.name, ranking, draw, order)

    def _curve(self, name: str, ranking: str, draw: int, order: NDArray[np.int64]) -> list[LatentSet]:
        """Return the prefixes of `order` whose joint energies are nearest to the settings' shares of E(all), each once.

        Of equally near ones the shortest is taken. The empty prefix is left out, and what has all latents that fire.
        """
        energies = np.concatenate([[0.0], self.energy.grow(order).energy])
        firing = np.flatnonzero(self.energy.single[order] > 0)
        points: dict[int, LatentSet] = {}
        for point, share in enumerate(self.settings.curve_energies, 1):
            size = int(np.argmin(np.abs(energies - share * self.total)))
            if 0 < size <= (firing[-1] if len(firing) else 0) and size not in points:
                rule = f"first {size} of {len(order)} live latents by {ranking}: nearest to {100 * share:g} % of E(all)"
                points[size] = LatentSet(name, order[:size], float(energies[size]), rule, ranking, draw, point)
        return list(points.values())


def latent_sets(
    table: LatentTable, energy: EditEnergy, n: int, reason: str, settings: CausalSettings, dictionary: Capabilities
) -> LatentSets:
    """Choose the effective set of at most n latents and the sets of every intervention that the dictionary supports.

    Best and worst are the first and last ⌊n/2⌋ of the effective set in the order of a ranking. Random latents, from
    outside the set, have the joint energy of a best half; where all of them together have less, they are all taken.
    """
    frame, choice = table.frame, Choice(table.frame, energy, n, settings, dictionary)
    for each in interventions(settings, dictionary):
        if each.choose is not None:
            each.choose(choice, each)
    effective = choice.effective
    kept = " that are not reversed" if len(choice.lost) else ""
    name = f"the {len(effective):,} live latents of {choice.first.extreme}{kept}"
    if dictionary.has_norm_taxonomy:
        name += f" ({int((frame['class_name'].to_numpy()[effective] == 'chat-only').sum()):,} of them chat-only)"
    ways = []
    for ranking in rankings(dictionary).values():
        ways.append(f"by {ranking.by}")
        if ranking.rising:
            ways[-1] += f" ({int(frame[ranking.column].iloc[effective].isna().sum())} without it, ranked last)"
    rule = (
        f"{name}; {len(choice.lost)} reversed among the first {n}; size: {reason}; best/worst: first/last "
        f"{len(effective) // 2} {', '.join(ways[:-1])} or {ways[-1]}"
    )
    return LatentSets(effective, name, choice.members, choice.total, choice.notes, rule)
