"""What a language model will be asked, and what that costs, before anything is asked: `tunediff calls`.

Requests are the very ones that the stages send; replies that are kept already cost nothing. Prompts are counted by the
model's tokenizer, or for an endpoint by the chat model's; where replies of the model are kept, their use corrects that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tunediff.config.settings import ExplanationSettings
from tunediff.errors import TunediffError
from tunediff.explanations.asking import Asker, Cache, Reply, Request
from tunediff.explanations.backend import asker_of, replies_path
from tunediff.explanations.contexts import EXPLAIN, SUBJECT
from tunediff.explanations.explain import Reader, request_for
from tunediff.explanations.judge import calls
from tunediff.explanations.tables import LLM, OK, OTHER, Explanations, Row
from tunediff.pipeline.job import resolve_device
from tunediff.results import Results

EXPECTED_TEXT = "The feature is active on words that ask for advice, at the start of a request (latent {})."
EXPECTED_TOKENS = {"explanations": 42, "judgements": 11}  # of a reply, where none is kept
ENOUGH = 5  # kept replies that correct the count


class Cost(NamedTuple):
    """What one stage asks about one dictionary."""

    stage: str
    dictionary: str
    requests: int
    kept: int  # of them answered already
    prompt_tokens: int  # of the others
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens that are still to be paid for."""
        return self.prompt_tokens + self.completion_tokens


def cost(stage: str, name: str, requests: Iterable[Request], asker: Asker, kept: Mapping[str, Reply]) -> Cost:
    """Return what some requests will cost, given the replies that are kept."""
    unique = {request.digest: request for request in requests}
    counted = {digest: asker.count_tokens(request) for digest, request in unique.items()}
    done = [digest for digest in unique if digest in kept]
    ratio, reply = 1.0, float(EXPECTED_TOKENS[stage])
    if len(done) >= ENOUGH:
        ratio = sum(kept[digest].prompt_tokens for digest in done) / max(1, sum(counted[digest] for digest in done))
        reply = float(np.mean([kept[digest].completion_tokens for digest in done]))
    missing = [digest for digest in unique if digest not in kept]
    prompt = ratio * sum(counted[digest] for digest in missing)
    return Cost(stage, name, len(unique), len(done), round(prompt), round(reply * len(missing)))


def with_expected(explanations: Explanations, drawn: Sequence[int]) -> Explanations:
    """Return explanations with those that a language model has still to make, as a text of the usual length."""
    rows = list(explanations)
    having = {(row.group, row.latent) for row in rows if row.explainer == LLM and row.status == OK}
    for group, latent in dict.fromkeys((row.group, row.latent) for row in rows):
        if (group, latent) not in having:
            rows.append(Row(group, latent, LLM, latent, EXPECTED_TEXT.format(latent), "", OK))
    other = {row.latent for row in rows if row.explainer == LLM + OTHER}
    groups = {row.latent: row.group for row in rows if row.explainer != LLM and row.of == row.latent}
    for i in drawn:
        if i in groups and i not in other:  # a text of its own: equal requests are asked once
            rows.append(Row(groups[i], i, LLM + OTHER, -1, EXPECTED_TEXT.format(f"like {i}"), "", OK))
    return replace(explanations, rows=pd.DataFrame(rows, columns=list(Row._fields)))


def _replies(path: Path) -> dict[str, Reply]:
    if not path.is_file():
        return {}
    with Cache(path) as cache:
        return dict(cache.replies)


def planned(config: Mapping[str, Any]) -> list[Cost]:
    """Return what the language model of a checked config will be asked, for every dictionary that is explained.

    `TunediffError`: the config names no model, or its explanations by rules are not made yet.
    """
    own, results = config["explanations"], Results(Path(config["results"]))
    if own["model"] is None:
        raise TunediffError("explanations.model: is null, so nothing is asked; name an endpoint or a local model")
    settings = ExplanationSettings(**own, context=config["examples"]["context"], seed=config["seed"])
    names = [name for name in results.dictionaries if (results.path / "explanations" / name).is_dir()]
    if not names:
        raise TunediffError(
            f"{results.path}/explanations: nothing there; first run `snakemake` with `explanations.model: null`, which "
            "asks nothing and makes the rules, windows and controls that the requests are made of"
        )
    reader = Reader(results.tokens("validation"), results.tokenizer)
    asker = asker_of(own["model"], resolve_device(config["models"]["device"]), results.tokenizer)
    found = []
    for name in names:
        explanations: Explanations = results.read("explanations", name)
        for key in ("latents", "shared", "controls", "context", "seed"):
            made = explanations.facts["settings"][key]
            if made != getattr(settings, key):
                raise TunediffError(
                    f"explanations.{key}: is {getattr(settings, key)}, the explanations of {name} were made with "
                    f"{made}; run `snakemake` with `explanations.model: null` first"
                )
        if list(explanations.facts["settings"]["only"].get(name, [])) != list(settings.only.get(name, [])):
            raise TunediffError(
                f"explanations.only.{name}: other latents than the explanations on disk have; run `snakemake` with "
                "`explanations.model: null` first"
            )
        kept = partial(replies_path, results.path, name=name)
        windows: Any = explanations.windows[explanations.windows["use"] == EXPLAIN].groupby(SUBJECT, sort=False)
        asked = [request_for(part, reader, asker.model, settings.seed) for _, part in windows]
        found.append(cost("explanations", name, asked, asker, _replies(kept("explanations"))))
        expected = with_expected(explanations, explanations.facts["controls"])
        judged = [call.request for call in calls(expected, reader, asker.model, settings.seed)]
        found.append(cost("judgements", name, judged, asker, _replies(kept("judgements"))))
    return found


def as_text(found: Sequence[Cost], model: Mapping[str, Any]) -> str:
    """Return costs as lines, with the price where the model's section states it."""
    frame = pd.DataFrame(found, columns=list(Cost._fields))
    total = frame[["requests", "kept", "prompt_tokens", "completion_tokens"]].sum()
    whole = Cost("all", "", *map(int, total))
    lines = [f"{'stage':14}{'dictionary':24}{'requests':>10}{'kept':>10}{'tokens read':>14}{'tokens written':>16}"]
    for each in (*found, whole):
        numbers = f"{each.requests:>10,}{each.kept:>10,}{each.prompt_tokens:>14,}{each.completion_tokens:>16,}"
        lines.append(f"{each.stage:14}{each.dictionary:24}{numbers}")
    read, written = model.get("price_input"), model.get("price_output")
    if read is not None and written is not None:
        price = (whole.prompt_tokens * read + whole.completion_tokens * written) / 1e6
        lines.append(f"price {price:.2f}, at {read:g} and {written:g} a million tokens read and written")
    return "\n".join(lines)
