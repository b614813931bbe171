"""Judgements: in which windows does a latent fire, going by its explanation alone?

The rule of a lexical explanation, or of a label, is applied to every window. A language model is shown the text of the
explanation and five windows at a time, in two rotated orders. Written is one row per window and order (kind
`judgements`); a reply that cannot be read is a row without a number, never a guess.
"""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tunediff.explanations.contexts import each
from tunediff.explanations.explain import Answered, Reader, detects
from tunediff.explanations.prompts import ROTATIONS, WINDOWS_PER_CALL, judge_request, read_judgement
from tunediff.explanations.tables import (
    GENERIC,
    JUDGED,
    JUDGEMENTS,
    LABEL,
    LEXICAL,
    LLM,
    MODEL,
    NO_REPLY,
    OK,
    OTHER,
    REFUSED,
    RULE,
    UNREADABLE,
    Explanations,
)
from tunediff.pipeline.artifacts import building, provenance, seal

if TYPE_CHECKING:
    from tunediff.explanations.asking import Reply, Request

JUDGED_BY_MODEL = (LEXICAL, LABEL, LLM, LLM + OTHER, GENERIC)  # the rule judges the other controls


class Call(NamedTuple):
    """Windows that a language model judges together, in the order in which it sees them."""

    group: str
    latent: int
    explainer: str
    rotation: int
    numbers: tuple[int, ...]
    request: "Request"


def calls(explanations: Explanations, reader: Reader, model: str, seed: int) -> Iterator[Call]:
    """Yield everything a language model is asked about a dictionary's explanations, whole latents after one another."""
    for row in explanations:
        windows = explanations.scored_on.get((row.group, row.latent))
        if row.explainer not in JUDGED_BY_MODEL or row.status != OK or windows is None:
            continue
        scored = list(each(windows))
        for start in range(0, len(scored), WINDOWS_PER_CALL):
            together = scored[start : start + WINDOWS_PER_CALL]
            for number, turn in enumerate(ROTATIONS):
                shown = together[turn % len(together) :] + together[: turn % len(together)]
                request = judge_request(model, seed, row.text, ["".join(reader.texts(window)) for window in shown])
                of = tuple(window.number for window in shown)
                yield Call(row.group, row.latent, row.explainer, number, of, request)


def _by_rule(explanations: Explanations, reader: Reader) -> Iterator[tuple[Any, ...]]:
    for row in explanations:
        windows = explanations.scored_on.get((row.group, row.latent))
        if not row.rule or windows is None:
            continue
        for number, p in zip(windows["number"], detects(row.rule, reader.spans(windows)), strict=True):
            yield row.group, row.latent, row.explainer, RULE, number, 0, 0, p, OK


def _by_model(call: Call, reply: "Reply | None") -> Iterator[tuple[Any, ...]]:
    found, status = None, NO_REPLY
    if reply is not None:
        found = read_judgement(reply, len(call.numbers))
        status = OK if found is not None else REFUSED if reply.refused else UNREADABLE
    for slot, number in enumerate(call.numbers):
        p = math.nan if found is None else found[slot]
        yield call.group, call.latent, call.explainer, MODEL, number, call.rotation, slot, p, status


def build_judgements(
    explanations: Explanations,
    reader: Reader,
    out: Path,
    *,
    key: str,
    model: str = "",
    seed: int = 0,
    answered: Answered | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """Judge all explanations of a dictionary by rule and, with `answered`, by the language model `model`.

    Returned and written at `out` (kind `judgements`) are the rows of `JUDGEMENTS`.
    """
    started = time.time()
    rows = list(_by_rule(explanations, reader))
    if answered is not None:
        asked = list(calls(explanations, reader, model, seed))
        replies: Mapping[str, Reply] = answered([call.request for call in asked])
        for call in asked:
            rows += _by_model(call, replies.get(call.request.digest))
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(JUDGEMENTS)
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, JUDGEMENTS, strict=True)], schema=JUDGEMENTS
    )
    frame = table.to_pandas()
    counts = frame[frame["judge"] == MODEL]["status"].value_counts()
    with building(out) as partial:
        pq.write_table(table, partial, compression="zstd")
    facts = {"model": model, "judged_by_model": {str(status): int(n) for status, n in counts.items()}}
    seal(out, JUDGED, key, facts, provenance(started, device))
    return frame
