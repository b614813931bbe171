"""Explanations of a dictionary's latents as they are shown: the best first, each with its score and a yardstick."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from tunediff.explanations.contexts import BANDS, DIRECTIONS, RANDOM
from tunediff.explanations.scores import SCORED
from tunediff.explanations.tables import LABEL, LEXICAL, LLM, MODEL, OTHER, RULE
from tunediff.latents.examples import SILENT
from tunediff.markup import visible

EXPLAINERS = {LLM: "language model"}  # where the name does not say it
SAID = {RULE: "by its rule", MODEL: "by a language model"}  # of judges
OWN = (LLM, LEXICAL, LABEL)  # explanations of a latent itself, in the order in which they are shown
JUDGES = {LLM: (MODEL, RULE)}  # in that order; of others the rule comes first
LEAST = 5  # random directions of a mean
PARTS = (*BANDS, *SILENT)  # of the windows that are judged


class Explanation(NamedTuple):
    """A latent in words, and how well a judge predicts from them where it fires (method.md section 8)."""

    group: str  # of the explained latents
    explainer: str  # lexical, label, llm or generic; with " of another" after it a control
    judge: str  # rule or llm
    of: int  # the latent that it was made for
    text: str
    status: str  # scored, or why there is no score
    balanced_accuracy: tuple[float, float, float]  # of judging windows; ends of its 95 % interval. Chance is 0.5
    auroc: float  # of how sure the judge is
    accuracy: dict[str, float]  # share of windows judged rightly, by band; NaN without windows
    n_active: int  # judged windows in which the latent fires
    n_silent: int
    n_missing: int  # windows without a judgement
    random: float  # mean balanced accuracy of random directions, explained and judged the same way; NaN: not known

    @property
    def scored(self) -> bool:
        """Whether it has a score."""
        return self.status == SCORED

    @property
    def who(self) -> tuple[str, str]:
        """Who explains, and who judges: "lexical", "by its rule"."""
        maker, other, _ = self.explainer.partition(OTHER)
        return EXPLAINERS.get(maker, maker) + other, SAID[self.judge]

    @property
    def words(self) -> str:
        """The text; of a lexical one its clauses alone, without the shares that follow in brackets."""
        clauses, bracket, shares = self.text.rpartition(" (")
        lexical = self.explainer.startswith(LEXICAL)
        return clauses if lexical and bracket and shares.endswith(" of others)") else self.text

    @property
    def line(self) -> str:
        """The explanation with its score, in one visible line."""
        told = f"explained ({', '.join(self.who)}): {visible(self.words) or 'no text'}: "
        if not self.scored:
            return f"{told}not scored ({visible(self.status)})"
        value, low, high = self.balanced_accuracy
        told += f"balanced accuracy {value:.2f} [{low:.2f}, {high:.2f}], AUROC {self.auroc:.2f}"
        return told if math.isnan(self.random) else f"{told}; random directions {self.random:.2f}"


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

    @property
    def lines(self) -> dict[int, list[str]]:
        """The explanations of each latent that are no controls, as lines with their scores."""
        return {latent: [each.line for each in every] for latent, every in self.own.items()}

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
