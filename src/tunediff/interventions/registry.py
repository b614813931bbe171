"""The interventions of the KL experiment and the rankings that their latents are chosen by, in the order of all tables.

A new intervention is one entry of `INTERVENTIONS`: figures and summaries ask here for its label and partner. Nothing
here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from tunediff.data.masks import template_positions
from tunediff.errors import TunediffError

if TYPE_CHECKING:
    from torch import Tensor

    from tunediff.config.settings import CausalSettings
    from tunediff.interventions.kl import Case, CrosscoderCase
    from tunediff.interventions.sets import Choice

KEY = ["crosscoder", "intervention", "ranking", "draw", "point"]  # what identifies a row of the tables
RANDOM = "random"  # in the column `ranking`: random orders of all live latents
PREFIX = "prefix"  # the intervention that curves are made of
# rows of the summary that are neither an intervention nor a difference of two
RANDOM_MEAN = "matched_random_mean"  # mean over the draws of random latents that have the energy of a best half
AREA = "area_over_random"  # causal value: area between a ranking's curve over energy shares [0, 1] and the random ones'


class Capabilities(NamedTuple):
    """What a dictionary can be asked for; the defaults are a crosscoder's."""

    reconstructs: str = "models"  # or "difference": h^chat − h^base alone
    has_norm_taxonomy: bool = True  # two decoders, so Δnorm and classes by it


CROSSCODER = Capabilities()
T = TypeVar("T", "Ranking", "Intervention")


def _by_name(*entries: T) -> dict[str, T]:
    found: dict[str, T] = {}
    for entry in entries:
        if entry.name in found:
            raise TunediffError(f"interventions/registry.py: two entries are named '{entry.name}'; rename one")
        found[entry.name] = entry
    return found


@dataclass(frozen=True)
class Ranking:
    """An order of all live latents."""

    name: str  # in the column `ranking`
    label: str  # in text and legends
    short: str  # under a bar
    by: str  # what of a latent decides, in words
    column: str = ""  # of the latent table; without one it is the energy of the latent's own edit
    rising: bool = False  # lowest first; then live latents may lack the value: they, and reversed ones, come last
    baseline: bool = False  # the order to beat: its halves have no energies in common, and are only added as they are
    supports: Callable[[Capabilities], bool] = lambda of: True

    @property
    def extreme(self) -> str:
        """What its first latents have, in words."""
        return f"{'lowest' if self.rising else 'highest'} {self.by}"


def _has_norms(dictionary: Capabilities) -> bool:
    return dictionary.has_norm_taxonomy


def _of_models(dictionary: Capabilities) -> bool:
    return dictionary.reconstructs == "models"


def _of_difference(dictionary: Capabilities) -> bool:
    return dictionary.reconstructs == "difference"


RANKINGS = _by_name(  # the first that a dictionary supports orders its effective set, and ties in the others
    Ranking("norm_difference", "Δnorm", "Δnorm", "norm difference", "norm_difference", supports=_has_norms),
    # it needs ν of both reconstructions and errors
    Ranking("latent_scaling", "Latent Scaling", "LS", "rank_sum", "rank_sum", rising=True, supports=_of_models),
    Ranking("nu_activation", "ν^act", "ν^act", "ν^act", "nu_activation", rising=True, supports=_of_difference),
    Ranking("energy", "edit energy", "energy", "edit energy", baseline=True),
)


class Difference(NamedTuple):
    """A row of the summary: an intervention less its partner, of one crosscoder."""

    name: str  # in the summary's column `intervention`
    label: str  # beside its axis in figure 4b
    text: str  # in a sentence


BEST_WORST = Difference("best_minus_worst", "best − worst\nhalf, as is", "best and worst half")
MATCHED = Difference("matched_best_minus_worst", "best − worst\nhalf, equal E", "energy-matched subsets")
BEST_RANDOM = Difference(
    "best_minus_random", "best half −\nrandom, equal E", "best half less random latents of its energy"
)


class Edit(NamedTuple):
    """What an intervention makes of the activations it starts from."""

    start: Tensor  # (conversation, position, d_model)
    at: Tensor  # (conversation, position): where they are edited
    values: Tensor  # (token, d_model), float32: what they become there


@dataclass(frozen=True)
class Intervention:
    """One way of editing the activations that the chat model's upper half continues from."""

    name: str  # in the column `intervention`
    label: str  # in tables and legends
    edit: Callable[[Any], Edit]  # of a `Case`, or of a `CrosscoderCase` where it needs one
    needs: Literal["models", "crosscoder", "latents"] = "crosscoder"  # runs once, per crosscoder, per set of latents
    choose: Callable[[Choice, Intervention], object] | None = None  # adds its sets of latents to the choice
    shares: str = ""  # or the intervention whose sets it runs with
    ranking: str = ""  # the only one it runs for
    partner: str | None = None  # what it is paired with in `difference`
    difference: Difference | None = None
    control: str | None = None  # a later one, on random latents that have its energy; `BEST_RANDOM` compares them
    bar: str = ""  # text under its bar of figure 4; without one it has no bar
    supports: Callable[[Capabilities], bool] = lambda of: True
    runs: Callable[[CausalSettings, int], int] = lambda causal, rankings: 1  # per crosscoder at most, 0: switched off

    def times(self, causal: CausalSettings, dictionary: Capabilities | None) -> int:
        """Return how often the upper half runs for it, at most: of a dictionary, or without one of the models."""
        if (self.needs == "models") != (dictionary is None):
            return 0
        if dictionary is None:
            return self.runs(causal, 0)
        return self.runs(causal, len(rankings(dictionary))) if self.supports(dictionary) else 0


def _restore(case: Case, at: Tensor) -> Edit:
    return Edit(case.base, at, case.chat[at].float())


def _add(case: CrosscoderCase) -> Edit:
    """h^base + Σ_{j∈S} f_j (d_j^chat − d_j^base)."""
    return Edit(case.base, case.at, case.before + case.decode(case.editor.difference))


def _add_chat(case: CrosscoderCase) -> Edit:
    """h^base + Σ_{j∈S} f_j d_j^chat."""
    return Edit(case.base, case.at, case.before + case.decode(case.editor.chat))


def _half(ranking: Ranking, best: bool) -> list[Intervention]:
    """Return what is run for one half of the effective set by a ranking: as it is, additive, energy-matched."""
    side = "best" if best else "worst"
    name, label = f"{ranking.name}_{side}", f"{ranking.label} {side}"
    half = partial(Intervention, needs="latents", ranking=ranking.name, supports=ranking.supports)

    def pair(difference: Difference, suffix: str = "") -> dict[str, Any]:
        return {"partner": f"{ranking.name}_worst{suffix}", "difference": difference} if best else {}

    plain = half(
        name,
        label,
        _add,
        choose=lambda choice, of: choice.half(of, best=best),
        control="matched_random" if best else None,
        bar="" if ranking.baseline else f"{ranking.short}\n{side}",
        **pair(BEST_WORST),
    )
    if ranking.baseline:
        return [plain]
    additive = f"{name}_additive", f"{label}, additive", _add_chat
    matched = f"{name}_matched", f"{label}, energy-matched", _add
    return [
        plain,
        half(*additive, shares=name, supports=lambda of: ranking.supports(of) and _of_models(of)),
        half(*matched, choose=lambda choice, of: choice.matched(of, best=best), **pair(MATCHED, "_matched")),
    ]


def _halves(ranking: Ranking) -> list[Intervention]:
    best, worst = _half(ranking, best=True), _half(ranking, best=False)
    return [*best[:2], *worst[:2], *best[2:], *worst[2:]]


INTERVENTIONS = _by_name(
    Intervention("none", "None", lambda case: _restore(case, case.batch.counted & False), "models", bar="None"),
    Intervention(
        "template",
        "Template",
        lambda case: _restore(case, case.batch.counted & case.batch.where(template_positions)),
        "models",
        bar="Tem-\nplate",
    ),
    Intervention("chat", "Chat", lambda case: _restore(case, case.batch.attention_mask.bool()), "models"),
    Intervention("all", "All", lambda case: Edit(case.base, case.at, case.before + case.whole), bar="All"),
    Intervention("error", "Error", lambda case: Edit(case.chat, case.at, case.after - case.whole), bar="Error"),
    Intervention(
        "all_with_bias",
        "All + bias",
        lambda case: Edit(case.base, case.at, case.before + case.whole + case.editor.crosscoder.difference_bias),
        bar="All\n+ bias",
        runs=lambda causal, rankings: int(causal.include_bias),
    ),
    *(each for ranking in RANKINGS.values() for each in _halves(ranking)),
    Intervention("reversed", "Reversed latents", _add, "latents", lambda choice, of: choice.reversed(of)),
    Intervention(
        "matched_random",
        "Random latents of equal E",
        _add,
        "latents",
        lambda choice, of: choice.random(of),
        runs=lambda causal, rankings: rankings * causal.random_sets,
    ),
    Intervention(
        PREFIX,
        "First latents of an order",
        _add,
        "latents",
        lambda choice, of: choice.prefixes(of),
        runs=lambda causal, rankings: len(causal.curve_energies) * (rankings + causal.random_orders),
    ),
)


def rankings(dictionary: Capabilities) -> dict[str, Ranking]:
    """Return the rankings that a dictionary supports."""
    return {name: ranking for name, ranking in RANKINGS.items() if ranking.supports(dictionary)}


def interventions(causal: CausalSettings, dictionary: Capabilities | None) -> list[Intervention]:
    """Return what runs for a dictionary; without one, what runs once."""
    return [each for each in INTERVENTIONS.values() if each.times(causal, dictionary)]


def count(causal: CausalSettings, dictionary: Capabilities | None) -> int:
    """Return how often the upper half runs for them, at most."""
    return sum(each.times(causal, dictionary) for each in INTERVENTIONS.values())


def pairs(ranking: str) -> list[tuple[str, str, Difference]]:
    """Return (name, partner, difference) of the interventions of a ranking that have a partner."""
    own = (each for each in INTERVENTIONS.values() if each.ranking == ranking)
    return [(each.name, each.partner, each.difference) for each in own if each.partner and each.difference]


def differences() -> dict[str, Difference]:
    """Return all differences by name, those to random latents last."""
    found = [difference for ranking in (*RANKINGS, "") for *_, difference in pairs(ranking)]
    return {difference.name: difference for difference in (*found, BEST_RANDOM)}
