"""Explanations of a dictionary's latents as they are shown: the best first, each with its score and a yardstick."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from tunediff.explanations.contexts import BANDS, DIRECTIONS, RANDOM
from tunediff.explanations.scores import SCORED
from tunediff.explanations.tables import LABEL, LEXICAL, LLM, MODEL, OTHER, RULE
from tunediff.latents.card import Explanation
from tunediff.latents.examples import SILENT

OWN = (LLM, LEXICAL, LABEL)  # explanations of a latent itself, in the order in which they are shown
JUDGES = {LLM: (MODEL, RULE)}  # in that order; of others the rule comes first
LEAST = 5  # random directions of a mean
PARTS = (*BANDS, *SILENT)  # of the windows that are judged


class Yardstick(NamedTuple):
    """What explanations score where there is nothing to explain: a mean over random directions."""

    balanced_accuracy: float
    directions: int  # that were scored


class Explained:
    """The explanations of a dictionary's latents, and what those of random directions score.

    `scores` are the rows of `explanation_scores` of all dictionaries.
    """

    def __init__(self, scores: pd.DataFrame, name: str) -> None:
        rows = scores[scores["dictionary"] == name]
        random = rows[(rows["group"] == RANDOM) & (rows["status"] == SCORED)]
        means: Any = random.groupby(["explainer", "judge"])["balanced_accuracy"]
        self.yardsticks = {
            key: Yardstick(float(values.mean()), len(values)) for key, values in means if len(values) >= LEAST
        }
        found: dict[int, list[Explanation]] = {}
        for row in rows[~rows["group"].isin(DIRECTIONS)].to_dict("records"):
            found.setdefault(int(row["latent"]), []).append(self._explanation(row))
        self.of: Mapping[int, list[Explanation]] = {latent: sorted(found[latent], key=place) for latent in found}

    def __len__(self) -> int:
        return len(self.of)

    @cached_property
    def own(self) -> dict[int, list[Explanation]]:
        """The explanations of each latent that are no controls."""
        return {latent: [each for each in every if each.explainer in OWN] for latent, every in self.of.items()}

    @cached_property
    def best(self) -> dict[int, Explanation]:
        """The explanation that a latent is named by: the language model's where it is scored, else the lexical one."""
        found = {}
        for latent, every in self.own.items():
            first = [each for each in every if each.explainer == LLM and each.judge == MODEL and each.scored]
            lexical = [each for each in every if each.explainer == LEXICAL and each.judge == RULE]
            if chosen := [*first, *lexical, *every][:1]:
                found[latent] = chosen[0]
        return found

    def _explanation(self, row: Mapping[Any, Any]) -> Explanation:
        explainer, judge = str(row["explainer"]), str(row["judge"])
        yardstick = self.yardsticks.get((explainer, judge))
        value, low, high = (float(row[f"balanced_accuracy{end}"]) for end in ("", "_low", "_high"))
        return Explanation(
            group=str(row["group"]),
            explainer=explainer,
            judge=judge,
            of=int(row["of"]),
            text=str(row["text"]),
            status=str(row["status"]),
            balanced_accuracy=(value, low, high),
            auroc=float(row["auroc"]),
            accuracy={part: float(row[f"accuracy_{part}"]) for part in PARTS},
            n_active=int(row["n_active"]),
            n_silent=int(row["n_silent"]),
            n_missing=int(row["n_missing"]),
            random=math.nan if yardstick is None else yardstick.balanced_accuracy,
        )


def place(each: Explanation) -> tuple[bool, int, int]:
    """Return where an explanation stands among those of its latent: its own first, then controls."""
    maker = each.explainer.removesuffix(OTHER)
    judges = JUDGES.get(maker, (RULE, MODEL))
    return each.explainer not in OWN, OWN.index(maker) if maker in OWN else len(OWN), judges.index(each.judge)
