"""The planted benchmark's table: quality, recall, precision and false positives per arm and crosscoder."""

from typing import Any

import numpy as np
import pandas as pd

from tunediff.latents.criterion import Criterion
from tunediff.markup import per_cent
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.layout import typeset
from tunediff.report.registry import Drawing
from tunediff.validation.truth import over_seeds, summary, undecided_up_to

DRAWING = Drawing(
    "tables/planted",
    __name__,
    title="The planted benchmark in numbers",
    caption=(
        "Recall, precision and false positives of every rule that calls latents chat-specific, per arm and crosscoder "
        "of the planted benchmark, with the crosscoder's own quality above. Means over seeds; the intervals are in the "
        "CSV. In the null arm nothing is planted that a rule may call."
    ),
    reads=("scores",),
    version=2,
)


def lines(criterion: Criterion) -> tuple[tuple[str, str, str], ...]:
    """Return (printed name, column of the scores, form) of the table's lines."""
    return (
        ("latents", "dict_size", "count"),
        ("L0", "l0", "number"),
        ("FVE, base model", "fve_base", "share"),
        ("FVE, chat model", "fve_chat", "share"),
        ("concepts found", "found", "share"),
        (f"recall of chat-only: {look.NORM_DIFFERENCE}", "recall_norm_difference", "share"),
        ("   ν, points", "recall_nu_point", "share"),
        ("   ν, intervals", "recall_nu_interval", "share"),
        (f"precision: {look.NORM_DIFFERENCE}", "precision_norm_difference", "share"),
        ("   ν, points", "precision_nu_point", "share"),
        ("   ν, intervals", "precision_nu_interval", "share"),
        (f"false-positive rate: {look.NORM_DIFFERENCE}", "false_positives_norm_difference", "share"),
        ("   ν, points", "false_positives_nu_point", "share"),
        ("   ν, intervals", "false_positives_nu_interval", "share"),
        (f"   ν, points without the bounds {criterion.range}", "false_positives_nu_unbounded", "share"),
        (f"called base-specific wrongly: {look.NORM_DIFFERENCE}", "false_base_norm_difference", "share"),
        ("   ν mirrored, points", "false_base_nu_point", "share"),
        (f"AUROC: {look.NORM_DIFFERENCE}", "auroc_norm_difference", "ratio"),
        ("   rank sum of ν", "auroc_rank_sum", "ratio"),
        (f"reversed latents: a ν under {look.signed(criterion.lowest)}", "reversed", "share"),
    )


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Typeset the benchmark, one column per arm and crosscoder; the numbers have the intervals over seeds too.

    Further numbers, `all`: every score in long form.
    """
    scores = results.scores
    criterion = scores.criterion
    printed = lines(criterion)
    rows: list[dict[str, Any]] = []
    heads, columns = [""], []
    for (arm, crosscoder), table in scores.crosscoders.groupby(["arm", "crosscoder"], sort=False):
        heads.append(f"{arm}\n{look.kind_name(str(crosscoder))}")
        cells = []
        for _, column, form in printed:
            interval = over_seeds(table[column].to_numpy(), (0.0, 1.0) if form in ("share", "ratio") else None)
            rows.append({"arm": arm, "crosscoder": crosscoder, "quantity": column, **interval._asdict()})
            cells.append(_cell(interval.mean, form))
        columns.append(cells)
    body = [[name, *(column[n] for column in columns)] for n, (name, _, _) in enumerate(printed)]
    note = (
        "Means over seeds; intervals are in the CSV. Recall: chat-only concepts that are found and called. Precision: "
        "called latents that follow a chat-only concept. False positives: latents that follow none, called. In the "
        f"null arm every call is one. Concepts at ×{undecided_up_to(criterion):g} or less in base count neither way. "
        f"ν: {criterion.math}; intervals: their upper ends too."
    )
    title = "Planted benchmark: what is found, and what is called chat-specific"
    figure = typeset(heads, body, {5, 8, 11, 15, 17}, title, note, style)
    return look.Drawn(figure, pd.DataFrame(rows), {"all": summary(scores)})


def _cell(value: float, form: str) -> str:
    if not np.isfinite(value):
        return "–"
    if form == "share":
        return per_cent(value, 1)
    return f"{value:.3f}" if form == "ratio" else f"{value:,.1f}" if form == "number" else f"{value:,.0f}"
