"""Explanations in the report: never without their score, beside controls and a yardstick, with where they fail."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tunediff.data.tokens import TokenStore
from tunediff.explained import OWN, PARTS, Explained, Explanation
from tunediff.explanations import contexts
from tunediff.explanations.tables import LEXICAL, LLM, MODEL, OTHER, RULE, Explanations
from tunediff.report.html.latents import BANDS, coded, fired
from tunediff.report.html.shards import Shards, column, counts
from tunediff.report.html.text import shown
from tunediff.report.inputs import Inputs

BLOCK = 128  # explained latents per shard
WRONG = 3  # windows of each kind of mistake that are shown
DIGITS = 4  # of scores, which are printed with two decimals
LONGEST = 80  # characters of an explanation on the first screen


class Told(NamedTuple):
    """The explanations of one dictionary, and the windows that judges of those shown in lists got wrong."""

    explained: Explained
    wrong: pd.DataFrame | None  # as `wrong_windows` returns them; None where judgements are not there

    @property
    def latents(self) -> list[int]:
        """The explained latents, in the order in which they stand in the shards."""
        return sorted(self.explained.best)

    def about(self) -> dict[str, Any]:
        """Return what the page needs to know of all explanations of the dictionary."""
        return {"block": BLOCK, "yardstick": yardstick(self.explained)}

    def listed(self, latent: int) -> dict[str, Any] | None:
        """Return a latent's explanation as the first screen has it: short, with its score, or why it has none."""
        best = self.explained.best.get(latent)
        if best is None:
            return None
        if not best.scored:
            return {"why": shown(best.status)}
        return {"text": shortened(shown(best.words)), "score": column(best.balanced_accuracy, DIGITS)}

    def table(self) -> dict[str, Any]:
        """Return the explanations of the table of all latents, by columns: one entry per explained latent."""
        every = [self.explained.best[latent] for latent in self.latents]
        scores = np.array([best.balanced_accuracy for best in every], dtype=np.float64).reshape(-1, 3)
        return {
            "latent": self.latents,
            "text": [shown(best.words) if best.scored else "" for best in every],
            "why": ["" if best.scored else shown(best.status) for best in every],
            **{name: column(scores[:, i], DIGITS) for i, name in enumerate(("score", "low", "high"))},
        }

    def write(self, name: str, shards: Shards, tokens: TokenStore) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Write what the pages of a dictionary's explained latents show; yield starts and lengths of its windows."""
        for number, first in enumerate(range(0, len(self.latents), BLOCK)):
            latents = self.latents[first : first + BLOCK]
            every = [
                [_row(each, self.explained.best[latent]) for each in self.explained.of[latent]] for latent in latents
            ]
            value: dict[str, Any] = {"rows": every}
            if self.wrong is not None:
                rows = self.wrong[self.wrong["latent"].isin(latents)]
                value["mistakes"] = [_mistakes(rows, latent) for latent in latents]
                rows = rows[rows["place"] < WRONG]
                value["windows"] = windows(rows, latents, tokens)
                yield rows["start"].to_numpy(np.int64), np.array(value["windows"]["length"], dtype=np.int64)
            shards.write(f"explanations/{name}/{number}", value)


def told(run: Inputs, name: str) -> Told | None:
    """Return the explanations of a dictionary; None where the run has none of it."""
    explained = Explained(run.explanation_scores, name) if run.has("explanation_scores") else None
    if not explained:
        return None
    have = all(run.has(role) and name in getattr(run, role) for role in ("explanations", "judgements"))
    wrong = wrong_windows(run.explanations[name], run.judgements[name], explained.best) if have else None
    return Told(explained, wrong)


def wrong_windows(
    explanations: Explanations, judgements: pd.DataFrame, best: Mapping[int, Explanation]
) -> pd.DataFrame:
    """Return the scored windows that the judge of each latent's best explanation got wrong, sorted by latent.

    A window where the latent `fires` is judged by a `p` under 0.5, a silent one by one above; p is the mean over the
    orders. `place` counts each latent's mistakes of a kind, 0 is the strongest: p farthest from the truth, then the
    larger activation.
    """
    keys = ["group", "latent", "explainer", "judge"]
    wanted = pd.DataFrame(
        [(each.group, latent, each.explainer, each.judge) for latent, each in best.items()], columns=keys
    )
    own = judgements.merge(wanted.astype({"latent": judgements["latent"].dtype}), on=keys)
    key = ["group", "latent", "number"]
    p = own.groupby(key, sort=False)["p"].mean().dropna().reset_index()
    scored = explanations.windows[explanations.windows["use"] == contexts.SCORE]
    found = scored.merge(p, on=key)
    fires = contexts.fires(found)
    found = found.assign(
        fires=fires,
        surprise=np.where(fires, 1 - found["p"], found["p"]),
        largest=[float(np.max(values)) for values in found["activation"]],
    )
    rising = {"latent": True, "fires": False, "surprise": False, "largest": False, "number": True}
    found = found[found["surprise"] > 0.5].sort_values(list(rising), ascending=list(rising.values()), kind="stable")
    return found.assign(place=found.groupby(["latent", "fires"]).cumcount()).reset_index(drop=True)


def windows(rows: pd.DataFrame, latents: list[int], tokens: TokenStore) -> dict[str, Any]:
    """Return windows as the shards of latents have them (`latents.block`), with p; `rows` are sorted by latent."""
    document, start = rows["document"].to_numpy(np.int64), rows["start"].to_numpy(np.int64)
    peak = rows["peak"].to_numpy(np.int64) - start
    values = [float(own[at]) for own, at in zip(rows["activation"], peak, strict=True)]
    return {
        "count": counts(np.searchsorted(latents, rows["latent"].to_numpy(np.int64)), 0, len(latents)),
        "band": coded(rows, "band", BANDS).tolist(),
        "source": tokens.doc_source[document].tolist(),
        "document": document.tolist(),
        "start": start.tolist(),
        "peak": peak.tolist(),
        "value": column(np.array(values, dtype=np.float64)),
        "p": column(rows["p"].to_numpy(np.float64)),
        **fired(rows),
    }


def _mistakes(wrong: pd.DataFrame, latent: int) -> list[int]:
    """Return in how many windows a latent fires unseen, and in how many it is silent and said to fire."""
    fires = wrong["fires"][wrong["latent"] == latent]
    return [int(fires.sum()), int((~fires).sum())]


def _row(each: Explanation, best: Explanation) -> dict[str, Any]:
    """Return a row of the page's table."""
    explainer, judge = each.who
    return {
        "who": explainer,
        "by": judge,
        "control": each.explainer not in OWN,
        "of": each.of if each.explainer.endswith(OTHER) else None,
        "text": shown(each.text),
        "why": "" if each.scored else shown(each.status),
        "score": column(each.balanced_accuracy, DIGITS),
        "auroc": column([each.auroc], DIGITS)[0],
        "accuracy": column([each.accuracy[part] for part in PARTS]),
        "windows": [each.n_active, each.n_silent, each.n_missing],
        "random": column([each.random], DIGITS)[0],
        "best": each is best,
    }


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return a text of at most about `longest` characters, cut between clauses or words."""
    if len(text) <= longest:
        return text
    clauses, between, _ = text[:longest].rpartition(" or ")
    return f"{clauses} or …" if between else f"{text[:longest].rpartition(' ')[0] or text[:longest]} …"


def yardstick(explained: Explained) -> str:
    """Return what explanations of random directions score, in a sentence."""
    makers = {(LEXICAL, RULE): "the rules", (LLM, MODEL): "a language model's explanations"}
    said = [
        f"{words} of {found.directions} random directions score {found.balanced_accuracy:.2f} in the mean"
        for key, words in makers.items()
        if (found := explained.yardsticks.get(key)) is not None
    ]
    if not said:
        return "Chance is 0.5; too few random directions were scored for a yardstick."
    return f"Chance is 0.5; where there is nothing to explain, {' and '.join(said)}."
