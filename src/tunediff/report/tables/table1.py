"""Table 1: latents per class, chat-specific ones beside their controls and the nulls, and held-out quality."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tunediff.errors import TunediffError
from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import CLASSES, LatentTable, control_passes
from tunediff.report import style as look
from tunediff.report.inputs import Inputs, OutlierTokens
from tunediff.report.layout import cell, ruled, typeset
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "tables/table1",
    __name__,
    title="Crosscoders and their latents",
    caption=(
        "Latents per class, how many of them are called chat-specific, and the quality of every crosscoder on held-out "
        "tokens. Beside the counts stand their controls: latents that pass the same criterion with a random direction "
        "or with another latent's, and, where they have run, the counts in the null pairs. FVE, L0 and dead latents "
        "are of the validation tokens that the note counts."
    ),
    reads=("latents", "evaluation", "nulls", "activations_validation"),
)
NULLS_NOT_RUN = "nulls: not run (snakemake nulls)"
# calls that are counted in the nulls too: column of the nulls -> column of table 1
CALLS = {
    "chat_only": "chat_only",
    "chat_specific": "chat_specific_any_class",
    "chat_specific_interval": "chat_specific_interval_any_class",
}
NULL_KINDS = {"exact": "must be 0", "contaminated": "upper bound"}  # what a count in a null says

SPECIFIC = ("chat_specific", "chat_specific_validation", "chat_specific_interval")
CONTROL_NAMES = {"random": "with random directions", "shuffled": "with another latent's direction"}
# parts of table 1, a rule between them: (printed name, column, form)
CLASS_LINES = (
    ("chat-only", "chat_only", "count"),
    ("   chat-specific", "chat_specific", "count"),
    ("      confirmed on validation tokens", "chat_specific_validation", "count"),
    ("      95 % intervals below too", "chat_specific_interval", "count"),
    ("shared", "shared", "count"),
    ("base-only", "base_only", "count"),
    ("other", "other", "count"),
    ("dead", "dead", "count"),
    ("   dead fraction", "dead_fraction", "share"),
)
SPECIFIC_LINES = (
    ("chat-specific in any class", "chat_specific_any_class", "count"),
    ("   confirmed on validation tokens", "chat_specific_validation_any_class", "count"),
    ("   95 % intervals below too", "chat_specific_interval_any_class", "count"),
    ("reversed", "reversed", "count"),
    ("ν^act, median of live latents", "nu_activation", "ratio"),
)
MEASURES = {  # of each model's reconstruction
    "fve": "FVE",
    "fve_standardised": "standardised FVE",
    "largest_dimension_share": "variance in the largest dimension",
}
MODELS = {"difference": "difference", "base": "base model", "chat": "chat model"}
QUALITY_LINES = (
    *((f"{said}, {of}", f"{name}_{model}", "share") for name, said in MEASURES.items() for model, of in MODELS.items()),
    ("L0", "l0", "number"),
    ("outlier tokens, left out", "outlier_share", "share"),
)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Typeset table 1 with one column per crosscoder; the numbers are those of `table1`."""
    outliers = results.outliers["validation"]
    return printed(table1(results.latents, results.evaluation, results.nulls, outliers), style)


def table1(
    latents: Mapping[str, LatentTable],
    evaluations: Mapping[str, Evaluation],
    nulls: pd.DataFrame | None = None,
    outliers: OutlierTokens | None = None,
) -> pd.DataFrame:
    """Return table 1, one row per crosscoder: counts per class, chat-specific latents, held-out FVE, L0, dead.

    `chat_specific` counts the latents that pass the tables' criterion among the chat-only ones, `_validation` those of
    them that pass it on validation tokens too and `_interval` those whose intervals' upper ends pass; those with
    `_any_class` count over all classes. `CONTROL_passing` of `CONTROL_measured` latents pass with a control direction.
    `null_PAIR_CALL` are the counts of `nulls` (nulls/summary.csv), `null_PAIR_kind` says what they bound. Seeds of one
    crosscoder stand together.

    Raises
    ------
    TunediffError
        An evaluation is missing, or two tables state different criteria.
    """
    rows = []
    criterion = look.one_criterion(latents)
    kinds = list(dict.fromkeys(map(look.kind_of, latents)))
    order = sorted(latents, key=lambda label: kinds.index(look.kind_of(label)))
    for label in order:
        judged, table = latents[label], latents[label].frame
        if label not in evaluations:
            raise TunediffError(f"table 1: no evaluation of '{label}'; run snakemake again to make it")
        evaluation = evaluations[label]
        chat_only = table["class_name"] == "chat-only"
        calls = {name: table[name].astype(bool) for name in SPECIFIC}
        rows.append(
            {
                "crosscoder": label,
                "kind": look.kind_name(label),
                "latents": len(table),
                **{name.replace("-", "_"): int((table["class_name"] == name).sum()) for name in CLASSES},
                **{name: int((chat_only & called).sum()) for name, called in calls.items()},
                **{f"{name}_any_class": int(called.sum()) for name, called in calls.items()},
                "reversed": int(table["reversed"].sum()),
                **_controls(judged),
                **({} if judged.has_norm_taxonomy else dict.fromkeys(_OF_MODELS, math.nan)),
                "nu_activation": float(table.loc[~table["dead"], "nu_activation"].median()),
                **{
                    f"{name}_{model}": evaluation.value(name, model)
                    for name in (*MEASURES, "largest_dimension")
                    for model in ("base", "chat", "difference")
                },
                "l0": evaluation.value("l0"),
                "dead_fraction": evaluation.value("dead_fraction"),
                "outlier_share": math.nan if outliers is None else outliers.share,
                "n_tokens": int(evaluation.n_tokens["all"]),
                **_in_nulls(nulls, label),
                "criterion": criterion.text,
            }
        )
    return pd.DataFrame(rows)


# what a dictionary of the difference has not: classes by Δnorm, and ν of both models' reconstructions
_OF_MODELS = (
    *("chat_only", "shared", "base_only", "other"),
    *(f"{name}{suffix}" for name in SPECIFIC for suffix in ("", "_any_class")),
    *(f"{name}_{count}" for name in CONTROL_NAMES for count in ("passing", "measured")),
)


def _controls(table: LatentTable) -> dict[str, int]:
    """Return how many latents pass the criterion with each control direction, and how many have both ν there."""
    ends = {control: zip(("passing", "measured"), both, strict=True) for control, both in control_passes(table).items()}
    return {f"{control}_{name}": count for control, counts in ends.items() for name, count in counts}


def _in_nulls(nulls: pd.DataFrame | None, label: str) -> dict[str, Any]:
    """Return the calls of crosscoder `label` in each null."""
    found: dict[str, Any] = {}
    if nulls is None:
        return found
    for row in nulls[(nulls["pair"].fillna("") != "") & (nulls["crosscoder"] == label)].to_dict("records"):
        found[f"null_{row['pair']}_kind"] = row["null_kind"]
        found |= {f"null_{row['pair']}_{call}": int(row[call]) for call in CALLS}
    return found


def row_of(summary: pd.DataFrame, crosscoder: str, intervention: str, positions: str) -> Mapping[Any, Any] | None:
    """Return the first row of causal/summary.parquet of an intervention, if there is one."""
    of = (summary["crosscoder"].fillna("") == crosscoder) & (summary["intervention"] == intervention)
    return next(iter(summary[of & (summary["positions"] == positions)].to_dict("records")), None)


def printed(table: pd.DataFrame, style: look.Style) -> look.Drawn:
    """Typeset table 1; the numbers are `table` itself."""
    tokens = " / ".join(f"{count:,}" for count in dict.fromkeys(table["n_tokens"]))
    rows = table.to_dict("records")

    def lines(part: Sequence[tuple[str, str, str]]) -> list[list[str]]:
        return [[look.mathematical(name), *(cell(row[column], form) for row in rows)] for name, column, form in part]

    controls = [
        [f"   passing {name}", *(_of(row[f"{key}_passing"], row[f"{key}_measured"]) for row in rows)]
        for key, name in CONTROL_NAMES.items()
    ]
    specific = lines(SPECIFIC_LINES)
    in_nulls = [[f"   {name}", *cells] for name, cells in null_counts(table).items()]
    parts = [
        lines([("Latents", "latents", "count")]),
        lines(CLASS_LINES),
        [*specific[:-2], *controls, *specific[-2:]],
        [["called in nulls: chat-only, chat-specific, intervals", *("" for _ in rows)], *in_nulls] if in_nulls else [],
        lines(QUALITY_LINES),
    ]
    heads = ["", *(f"{look.kind_name(label)}\n{label}" for label in table["crosscoder"])]
    criterion = table["criterion"].iloc[0]
    note = (
        f"Chat-specific: {look.mathematical(criterion)}, fitted on train tokens. Confirmed: so on validation tokens "
        "too. Passing with a direction that is not the latent's own: what the criterion calls where there is nothing "
        "to call. Reversed: a ν under the lower bound, base and chat use the direction with opposite signs. "
        + ("" if in_nulls else f"{NULLS_NOT_RUN[0].upper()}{NULLS_NOT_RUN[1:]}. ")
        + f"FVE, L0 and dead fraction: {tokens} held-out tokens (web and chat), at the inference threshold. "
        "Standardised: every dimension scaled to unit variance. A dash: not measured."
    )
    title = "Table 1. Crosscoders and their latents"
    return look.Drawn(typeset(heads, *ruled(parts), title, note, style), table)


def _of(passing: float, measured: float) -> str:
    return f"{passing:,.0f} of {measured:,.0f}" if math.isfinite(passing) else "–"


def null_pairs(columns: Iterable[Any]) -> list[str]:
    """Return the names of the nulls that table 1 has columns of."""
    kinds = [name for name in map(str, columns) if name.startswith("null_") and name.endswith("_kind")]
    return [name.removeprefix("null_").removesuffix("_kind") for name in kinds]


def null_counts(table: pd.DataFrame) -> dict[str, list[str]]:
    """Return "chat-only, chat-specific, intervals" per null (named with what it bounds) and row of table 1."""
    found = {}
    for pair in null_pairs(table):
        kind = table[f"null_{pair}_kind"].dropna().iloc[0]
        numbers = table[[f"null_{pair}_{call}" for call in CALLS]].to_numpy(np.float64)
        found[f"{pair} ({NULL_KINDS[kind]})"] = [", ".join(cell(value, "count") for value in row) for row in numbers]
    return found
