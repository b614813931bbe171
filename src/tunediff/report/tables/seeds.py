"""The spread over training seeds of counts, held-out metrics and KL reductions, and how stable latents are."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tunediff.interventions.registry import INTERVENTIONS
from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import LatentTable
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.layout import typeset
from tunediff.report.registry import Drawing
from tunediff.report.tables.table1 import CLASS_LINES, QUALITY_LINES, SPECIFIC_LINES, row_of, table1

DRAWING = Drawing(
    "tables/seeds",
    __name__,
    title="Spread over training seeds",
    caption=(
        "Mean and range over the training seeds of every crosscoder: latents per class, chat-specific latents, "
        "held-out quality and changes of KL. The last rows give the share of latents that come back in every other "
        "seed. The seeds differ in initialisation only; with one seed the table says so."
    ),
    reads=("latents", "evaluation", "kl", "seeds"),
    requires=lambda graph: bool(graph.trained),
)
STABLE_POOLS = ("chat-only", "chat-specific", "shared", "base-only", "other")
# column of a seed's numbers -> (intervention, positions, printed name)
SEED_KL = {
    f"kl_change_{name}{suffix}": (name, positions, f"KL change, {look.mathematical(INTERVENTIONS[name].label)}{said}")
    for name in ("all", "latent_scaling_best", "norm_difference_best")
    for positions, suffix, said in (("all", "", ""), ("first", "_first", ", first 9"))
}
# (printed name, column of a seed's numbers, form)
SEED_LINES = (
    *CLASS_LINES[:-1],
    *SPECIFIC_LINES,
    *QUALITY_LINES[:-1],
    *((printed, column, "share") for column, (_, _, printed) in SEED_KL.items()),
    ("stable: all live latents", "stable", "share"),
    *((f"   {name}", f"stable_{name.replace('-', '_')}", "share") for name in STABLE_POOLS),
)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Typeset mean and range per crosscoder; the numbers are those of `across_seeds`."""
    return printed(across_seeds(results.latents, results.evaluation, results.kl, results.seeds), style)


def across_seeds(
    latents: Mapping[str, LatentTable],
    evaluations: Mapping[str, Evaluation],
    summary: pd.DataFrame,
    matches: pd.DataFrame,
) -> pd.DataFrame:
    """Return mean, least, largest and standard deviation over the seeds of each trained crosscoder, per quantity.

    `matches` is seeds/matches.parquet. `value_seedN` is the number of seed N; a quantity that a seed does not have (the
    share of stable chat-only latents where there is none) is left out of its mean. `sd` is the sample's (n − 1). Of
    crosscoders with one seed there is one row in all, that says so.
    """
    trained = {label: table for label, table in latents.items() if look.seed_of(label) is not None}
    seeds = sorted({look.seed_of(label) or 0 for label in trained})
    if len(seeds) < 2:
        found = f"one seed ({seeds[0]})" if seeds else "no crosscoder trained here"
        said = f"{found}: no spread; list several under training.seeds to get one"
        return pd.DataFrame([{"crosscoder": "", "quantity": said, "n_seeds": len(seeds)}])
    numbers = table1(trained, evaluations)
    numbers["name"] = numbers["crosscoder"].map(look.kind_of)
    numbers["seed"] = numbers["crosscoder"].map(look.seed_of)
    for _, column, _ in SEED_LINES:
        if column in SEED_KL:
            kl_rows = [row_of(summary, label, *SEED_KL[column][:2]) for label in numbers["crosscoder"]]
            numbers[column] = [math.nan if row is None else -float(row["reduction"]) for row in kl_rows]
        elif column.startswith("stable"):
            pool = column.removeprefix("stable").removeprefix("_").replace("_", "-")
            seeds_of = zip(numbers["name"], numbers["seed"], strict=True)
            numbers[column] = [_stable_share(matches, name, seed, pool) for name, seed in seeds_of]
    rows = []
    for name, group in numbers.groupby("name", sort=False):
        for _, column, _ in SEED_LINES:
            values = group.set_index("seed")[column].astype(np.float64)
            rows.append(
                {
                    "crosscoder": name,
                    "quantity": column,
                    "n_seeds": int(values.notna().sum()),
                    **values.agg({"mean": "mean", "low": "min", "high": "max", "sd": "std"}),
                    **{f"value_seed{seed}": value for seed, value in values.items()},
                    "criterion": numbers["criterion"].iloc[0],
                }
            )
    table = pd.DataFrame(rows)
    table.attrs = dict(matches.attrs)
    return table


def _stable_share(matches: pd.DataFrame, name: str, seed: int, pool: str) -> float:
    """Return the share of a seed's latents of a class (all live ones, the chat-specific of the chat-only) stable."""
    own = matches[(matches["crosscoder"] == name) & (matches["seed"] == seed)].drop_duplicates("latent")
    if pool == "chat-specific":
        own = own[own["chat_specific"].astype(bool)]
    if pool:
        own = own[own["class_name"] == ("chat-only" if pool == "chat-specific" else pool)]
    else:
        own = own[own["class_name"] != "dead"]
    return float(own["stable"].mean()) if len(own) else math.nan


def printed(table: pd.DataFrame, style: look.Style) -> look.Drawn:
    """Typeset `across_seeds`, one column per crosscoder: mean and range; the numbers are `table` itself."""
    title = "Spread over training seeds"
    if "mean" not in table:
        note = "Counts, FVE, L0, KL and the stability of latents get a spread over seeds of the same data."
        return look.Drawn(typeset(["", ""], [[table["quantity"].iloc[0], ""]], set(), title, note, style), table)
    names = list(dict.fromkeys(table["crosscoder"]))
    by_cell = {(row["crosscoder"], row["quantity"]): row for row in table.to_dict("records")}
    cells = [
        [printed, *(_spread(by_cell[name, column], form) for name in names)] for printed, column, form in SEED_LINES
    ]
    columns = [column for _, column, _ in SEED_LINES]
    rules = {columns.index(first) for first in ("chat_specific_any_class", "fve_difference", "kl_change_all", "stable")}
    heads = [""]
    for name in names:
        heads.append(f"{look.kind_name(name)}\n{name}, {table.loc[table['crosscoder'] == name, 'n_seeds'].max()} seeds")
    note = (
        "Mean [least, largest] over seeds; the seeds differ in initialisation only, not in data or its order. A KL "
        "change is against None, over all response tokens unless said. Stable: matched with cosine ≥ "
        f"{table.attrs['stable_cosine']:g} in every other seed (decoder directions of both models, concatenated; "
        "one-to-one), share of the seed's latents. "
        f"Chat-specific: {look.mathematical(table['criterion'].iloc[0])}; counts of each seed in the nulls: table 1."
    )
    return look.Drawn(typeset(heads, cells, rules, title, note, style), table)


def _spread(row: Mapping[Any, Any], form: str) -> str:
    if not np.isfinite(row["mean"]):
        return "–"
    if form == "share":
        low, mean, high = (f"{100 * row[name]:.1f}".replace("-", "−") for name in ("low", "mean", "high"))
        return f"{mean} % [{low}, {high}]"
    decimals = 0 if form == "count" else 1
    low, high = (f"{row[name]:,.{decimals}f}" for name in ("low", "high"))
    return f"{row['mean']:,.1f} [{low}, {high}]"
