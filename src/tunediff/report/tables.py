"""The tables: counts and held-out metrics (1), the ranking, the published numbers, the spread over seeds."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tunediff.errors import TunediffError
from tunediff.interventions.registry import INTERVENTIONS
from tunediff.latents.table import LatentTable, control_passes
from tunediff.report import style as look
from tunediff.report.figures.fig2 import shared_interval
from tunediff.report.style import Drawing, Style

TWIN_COSINE = 0.9
RANKED = 20  # latents of each crosscoder in the table of the ranking
NULLS_NOT_RUN = "nulls: not run (snakemake nulls)"
# calls that are counted in the nulls too: column of the nulls -> column of table 1
CALLS = {
    "chat_only": "chat_only",
    "chat_specific": "chat_specific_any_class",
    "chat_specific_interval": "chat_specific_interval_any_class",
}
NULL_KINDS = {"exact": "must be 0", "contaminated": "upper bound"}  # what a count in a null says


class OutlierTokens(NamedTuple):
    """Massive activations of a split, left out of training and metrics."""

    factor: float  # a norm above this many medians is one
    norm: dict[str, float]  # largest norm that is none, per model (of the part where it is largest)
    median: dict[str, float]  # norm, per model (mean over the parts)
    tokens: dict[str, int]  # outliers per source
    of: dict[str, int]  # counted tokens per source, outliers among them

    @property
    def share(self) -> float:
        """Share of all counted tokens."""
        return sum(self.tokens.values()) / max(1, sum(self.of.values()))


def outlier_tokens(parts: Sequence[Path]) -> OutlierTokens | None:
    """Return what the manifests of a split's activation stores say of massive activations; None where no mask was set.

    `parts` are the manifests.
    """
    facts = [json.loads(path.read_text(encoding="utf-8"))["facts"]["outliers"] for path in parts]
    found = [fact for fact in facts if fact is not None]
    if not found:
        return None
    return OutlierTokens(
        found[0]["factor"],
        {model: max(fact["norm"][model] for fact in found) for model in found[0]["norm"]},
        {model: float(np.mean([fact["median"][model] for fact in found])) for model in found[0]["median"]},
        {source: sum(fact["tokens"][source] for fact in found) for source in found[0]["tokens"]},
        {source: sum(fact["of"][source] for fact in found) for source in found[0]["of"]},
    )


def metric(evaluation: Mapping[str, Any], name: str, model: str | None = None, subset: str = "all") -> float:
    """Return one value of results/evaluation/NAME.json (of any model if none is given), NaN if it was not measured."""
    for row in evaluation["metrics"]:
        if row["metric"] == name and row["subset"] == subset and model in (None, row["model"]):
            return math.nan if row["value"] is None else float(row["value"])
    return math.nan


def table1(
    latents: Mapping[str, LatentTable],
    evaluations: Mapping[str, Mapping[str, Any]],
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
    for label, judged in look.selected(latents, order).items():
        table = judged.frame
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
                **{name.replace("-", "_"): int((table["class_name"] == name).sum()) for name in look.CLASSES},
                **{name: int((chat_only & called).sum()) for name, called in calls.items()},
                **{f"{name}_any_class": int(called.sum()) for name, called in calls.items()},
                "reversed": int(table["reversed"].sum()),
                **_controls(judged),
                **{
                    f"{name}_{model}": metric(evaluation, name, model)
                    for name in ("fve", "fve_standardised", "largest_dimension_share", "largest_dimension")
                    for model in ("base", "chat", "difference")
                },
                "l0": metric(evaluation, "l0"),
                "dead_fraction": metric(evaluation, "dead_fraction"),
                "outlier_share": math.nan if outliers is None else outliers.share,
                "n_tokens": int(evaluation["n_tokens"]["all"]),
                **_in_nulls(nulls, label),
                "criterion": criterion.text,
            }
        )
    return pd.DataFrame(rows)


SPECIFIC = ("chat_specific", "chat_specific_validation", "chat_specific_interval")


def _controls(table: LatentTable) -> dict[str, int]:
    """Return how many latents pass the criterion with each control direction, and how many have both ν there."""
    counts: dict[str, int] = {}
    for control, (passing, measured) in control_passes(table).items():
        counts |= {f"{control}_passing": passing, f"{control}_measured": measured}
    return counts


def _in_nulls(nulls: pd.DataFrame | None, label: str) -> dict[str, Any]:
    """Return the calls of crosscoder `label` in each null."""
    found: dict[str, Any] = {}
    if nulls is None:
        return found
    for row in nulls[(nulls["pair"].fillna("") != "") & (nulls["crosscoder"] == label)].to_dict("records"):
        found[f"null_{row['pair']}_kind"] = row["null_kind"]
        found |= {f"null_{row['pair']}_{call}": int(row[call]) for call in CALLS}
    return found


# (quantity, kind) -> value printed by the paper at Gemma 2 2B scale (method.md, section 7)
PUBLISHED = {
    ("chat-only latents", "L1"): 3176,
    ("chat-only latents", "BatchTopK"): 134,
    ("shared latents", "L1"): 53569,
    ("shared latents", "BatchTopK"): 62373,
    ("base-only latents", "L1"): 1437,
    ("base-only latents", "BatchTopK"): 5,
    ("FVE", "L1"): 0.846,
    ("FVE", "BatchTopK"): 0.876,
    ("L0", "L1"): 100,
    ("L0", "BatchTopK"): 100,
    ("dead fraction", "BatchTopK"): 0.12,
    ("chat-only inside the shared 95 % interval of ν^r", "L1"): 0.18,
    ("chat-only inside the shared 95 % interval of ν^r", "BatchTopK"): 0.0,
    ("twins with cosine > 0.9", "L1"): 109,
    ("twins with cosine > 0.9", "BatchTopK"): 0,
    ("chat-only firing mainly on template tokens", "BatchTopK"): 0.40,
    ("chat-only with ≥ 1/3 of activations on template tokens", "BatchTopK"): 0.67,
    ("KL, None, all", ""): 0.482,
    ("KL, None, first 9", ""): 1.69,
    ("KL, Template, all", ""): 0.239,
    ("KL, Template, first 9", ""): 0.507,
    ("KL change, All, all", "L1"): -0.59,
    ("KL change, All, first 9", "L1"): -0.78,
    ("KL change, All, all", "BatchTopK"): -0.59,
    ("KL change, All, first 9", "BatchTopK"): -0.78,
    ("KL, Δnorm best, all", "L1"): 0.241,
    ("KL, Δnorm best, first 9", "L1"): 0.619,
    ("KL, Δnorm worst, all", "L1"): 0.242,
    ("KL, Δnorm worst, first 9", "L1"): 0.740,
    ("KL, Δnorm best, all", "BatchTopK"): 0.230,
    ("KL change, Δnorm best, first 9", "BatchTopK"): -0.50,
    ("KL, Δnorm worst, all", "BatchTopK"): 0.267,
    ("KL change, Δnorm worst, first 9", "BatchTopK"): -0.06,
}
SHARES = ("FVE", "dead fraction", "chat-only inside", "chat-only firing", "chat-only with", "KL change")
BY_LABEL = {each.label: each.name for each in INTERVENTIONS.values()}
POSITIONS = {"all": "all", "first 9": "first"}


def published(
    latents: Mapping[str, LatentTable],
    evaluations: Mapping[str, Mapping[str, Any]],
    twins: Mapping[str, pd.DataFrame] | None = None,
    summary: pd.DataFrame | None = None,
    *,
    show: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the paper's numbers at Gemma 2 2B scale beside ours: quantity, kind, published, crosscoder, ours.

    Ours is NaN where the crosscoder or the table it comes from is not there. FVE is the mean over the two models.
    """
    shown = look.selected(latents, show)
    by_kind: dict[str, str] = {}
    for label in shown:
        by_kind.setdefault(look.kind_name(label), label)
    counted = {row["crosscoder"]: row for row in table1(shown, evaluations).to_dict("records")}
    rows = []
    for (quantity, kind), value in PUBLISHED.items():
        label = by_kind.get(kind, "")
        ours = math.nan
        if quantity.startswith("KL"):
            if summary is not None and (label or not kind):
                ours = _kl(quantity, label, summary)
        elif quantity.startswith("twins"):
            if label and twins is not None and label in twins:
                ours = float((twins[label]["cosine"] > TWIN_COSINE).sum())
        elif label:
            ours = _of_latents(quantity, counted[label], shown[label].frame)
        rows.append({"quantity": quantity, "kind": kind, "published": float(value), "crosscoder": label, "ours": ours})
    return pd.DataFrame(rows)


def _of_latents(quantity: str, row: Mapping[Any, Any], table: pd.DataFrame) -> float:
    if quantity.endswith(" latents"):
        return float(row[quantity.removesuffix(" latents").replace("-", "_")])
    if quantity == "FVE":
        return float((row["fve_base"] + row["fve_chat"]) / 2)
    if quantity == "L0":
        return float(row["l0"])
    if quantity == "dead fraction":
        return float(row["dead_fraction"])
    if quantity.startswith("chat-only inside"):
        return shared_interval(table).share
    share = table.loc[table["class_name"] == "chat-only", "template_share"].dropna()
    if share.empty:
        return math.nan
    return float((share > 0.5).mean() if "mainly" in quantity else (share >= 1 / 3).mean())


def _kl(quantity: str, label: str, summary: pd.DataFrame) -> float:
    what, intervention, positions = quantity.split(", ")
    rows = summary[
        (summary["crosscoder"].fillna("") == label)
        & (summary["intervention"] == BY_LABEL[intervention])
        & (summary["positions"] == POSITIONS[positions])
    ]
    if rows.empty:
        return math.nan
    return float(-rows["reduction"].iloc[0] if what == "KL change" else rows["mean"].iloc[0])


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
)
QUALITY_LINES = (
    ("FVE, difference", "fve_difference", "share"),
    ("FVE, base model", "fve_base", "share"),
    ("FVE, chat model", "fve_chat", "share"),
    ("standardised FVE, difference", "fve_standardised_difference", "share"),
    ("standardised FVE, base model", "fve_standardised_base", "share"),
    ("standardised FVE, chat model", "fve_standardised_chat", "share"),
    ("variance in the largest dimension, difference", "largest_dimension_share_difference", "share"),
    ("variance in the largest dimension, base model", "largest_dimension_share_base", "share"),
    ("variance in the largest dimension, chat model", "largest_dimension_share_chat", "share"),
    ("L0", "l0", "number"),
    ("outlier tokens, left out", "outlier_share", "share"),
)


def draw_table1(table: pd.DataFrame, style: Style) -> Drawing:
    """Typeset table 1 with one column per crosscoder; the numbers are `table` itself."""
    tokens = " / ".join(f"{count:,}" for count in dict.fromkeys(table["n_tokens"]))
    rows = table.to_dict("records")

    def lines(part: Sequence[tuple[str, str, str]]) -> list[list[str]]:
        return [[name, *(_cell(row[column], form) for row in rows)] for name, column, form in part]

    controls = [
        [f"   passing {name}", *(f"{row[f'{key}_passing']:,} of {row[f'{key}_measured']:,}" for row in rows)]
        for key, name in CONTROL_NAMES.items()
    ]
    specific = lines(SPECIFIC_LINES)
    in_nulls = [[f"   {name}", *cells] for name, cells in null_counts(table).items()]
    parts = [
        lines([("Latents", "latents", "count")]),
        lines(CLASS_LINES),
        [*specific[:-1], *controls, specific[-1]],
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
    return Drawing(typeset(heads, *_ruled(parts), title, note, style), table)


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
        found[f"{pair} ({NULL_KINDS[kind]})"] = [", ".join(_cell(value, "count") for value in row) for row in numbers]
    return found


def _ruled(parts: Sequence[Sequence[Sequence[str]]]) -> tuple[list[Sequence[str]], set[int]]:
    """Return the lines of all parts, and the lines before which a rule stands: the first of each part but the first."""
    lines: list[Sequence[str]] = []
    rules = set()
    for part in parts:
        if lines and part:
            rules.add(len(lines))
        lines += part
    return lines, rules


def ranking(latents: Mapping[str, LatentTable]) -> pd.DataFrame:
    """Return the first twenty latents of every crosscoder's ranking, with their numbers and what they are called.

    Where no latent has a `rank_sum` (NaN then), the order is that of Δnorm.
    """
    criterion = look.one_criterion(latents)
    intervals = [f"nu_{target}{end}" for target in ("reconstruction", "error") for end in ("", "_low", "_high")]
    pieces = []
    for label, table in latents.items():
        sources = [f"frequency_{source}" for source in table.sources]
        columns = ["latent", "class_name", "norm_difference", *intervals, *sources, "template_share", *SPECIFIC]
        first = table.first(RANKED)[[*columns, "rank_sum"]].reset_index(drop=True)
        first.insert(0, "place", np.arange(1, len(first) + 1))
        first.insert(0, "crosscoder", label)
        pieces.append(first)
    return pd.concat(pieces, ignore_index=True).assign(criterion=criterion.text)


def with_interval(value: float, low: float, high: float) -> str:
    """Return a ν with its 95 % interval, in print."""
    if not np.isfinite(value):
        return "–"
    value, low, high = (round(float(x), 2) + 0.0 for x in (value, low, high))  # + 0: no −0.00
    ends = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) and np.isfinite(high) else ""
    return f"{value:.2f}{ends}".replace("-", "−")


def verdict(row: Mapping[Any, Any]) -> str:
    """Return whether a latent of the ranking is called chat-specific, and confirmed on validation tokens."""
    if not row["chat_specific"]:
        return "no"
    return "confirmed" if row["chat_specific_validation"] else "not confirmed"


def draw_ranking(latents: Mapping[str, LatentTable], style: Style) -> Drawing:
    """Typeset the ranking of the first seed of each crosscoder; the numbers are `ranking`, with every seed."""
    table, shown = ranking(latents), look.selected(latents)
    sources = [name.removeprefix("frequency_") for name in map(str, table) if name.startswith("frequency_")]
    heads = ["", "class", look.NORM_DIFFERENCE, f"{look.NU_RECONSTRUCTION} [95 %]", f"{look.NU_ERROR} [95 %]"]
    heads += [f"fires on\n{source}" for source in sources] + ["template\nshare", "chat-\nspecific"]
    parts = []
    for label in shown:
        passing, rows = passing_text(latents[label]), table[table["crosscoder"] == label].to_dict("records")
        order = "; none has both ν within the bounds, so by Δnorm" if rows and np.isnan(rows[0]["rank_sum"]) else ""
        part = [[look.mathematical(f"{look.display_name(label)}: {passing}{order}"), *("" for _ in heads[1:])]]
        for row in rows:
            cells = [f"{row['place']}.  latent {row['latent']}", row["class_name"], f"{row['norm_difference']:.2f}"]
            for name in ("nu_reconstruction", "nu_error"):
                cells.append(with_interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high"))))
            cells += [firing_share(row[f"frequency_{source}"]) for source in sources]
            part.append([*cells, look.per_cent(row["template_share"]), verdict(row)])
        parts.append(part)
    criterion = look.one_criterion(latents)
    note = (
        f"Latents by rank({look.NU_RECONSTRUCTION}) + rank({look.NU_ERROR}), the first {RANKED} of each crosscoder"
        + (" (the CSV has every seed)" if len(shown) < len(latents) else "")
        + f". Chat-specific: {criterion.math}, fitted on train tokens; confirmed: so on validation tokens too. Fires "
        "on: share of validation tokens. Template share: of its firings, those on template tokens."
    )
    title = "The ranking: latents most specific to the chat model"
    return Drawing(typeset(heads, *_ruled(parts), title, note, style, first_width=1.0), table)


def passing_text(table: LatentTable) -> str:
    """Return how many of the live latents are chat-specific, in words where none is."""
    live = int((~table.frame["dead"]).sum())
    passing = int(table.frame["chat_specific"].sum())
    if not live:
        return f"no live latent (0 of {len(table):,})"
    if not passing:
        return f"none of {live:,} live latents is chat-specific"
    return f"{passing:,} of {live:,} live latents {'is' if passing == 1 else 'are'} chat-specific"


def firing_share(share: float) -> str:
    """Return a share of tokens as a printed percentage of two digits."""
    if not 0 < share < 0.0995:
        return look.per_cent(share)
    return f"{100 * share:.2g} %" if share >= 1e-6 else "< 0.0001 %"


def draw_published(table: pd.DataFrame, style: Style) -> Drawing:
    """Typeset `published` with the paper's number and ours side by side per kind; the numbers are `table` itself."""
    quantities = list(dict.fromkeys(table["quantity"]))
    kinds = [kind for kind in dict.fromkeys(table["kind"]) if kind]
    labels = {kind: next(iter(table.loc[table["kind"] == kind, "crosscoder"])) for kind in kinds}
    heads = [""]
    for kind in kinds:
        heads += [f"{kind}\npaper", f"{kind}\n{labels[kind] or 'not run'}"]
    values = {(row["quantity"], row["kind"]): row for row in table.to_dict("records")}
    cells = []
    for quantity in quantities:
        form = "share" if quantity.startswith(SHARES) else "nats" if quantity.startswith("KL") else "number"
        line = [quantity.replace("ν^r", look.NU_RECONSTRUCTION).replace("Δnorm", look.NORM_DIFFERENCE)]
        line[0] += " tokens" if quantity.startswith("KL") else ""
        for position, kind in enumerate(kinds):
            row = values.get((quantity, kind)) or (values.get((quantity, "")) if position == 0 else None)
            line += ["", ""] if row is None else [_cell(row["published"], form), _cell(row["ours"], form)]
        cells.append(line)
    first_kl = next((n for n, quantity in enumerate(quantities) if quantity.startswith("KL")), 0)
    note = (
        "Paper: Gemma 2 2B, arXiv 2504.02922. KL in nats; a change is against None. None and Template do not depend on "
        "the crosscoder; the paper gives the change of All once, and it stands in both columns. Other models and sizes "
        "are not expected to agree. A dash: not measured or without a latent to measure; blank: not published. An "
        "independent BatchTopK run (k 100, 100 M tokens): 3 chat-only, 39,711 shared, 4 base-only, FVE .877 and .867, "
        "L0 100.5, dead 42.9 %. A later post of the authors: a diff-SAE restores 88 % of the KL gap."
    )
    return Drawing(typeset(heads, cells, {first_kl}, "Published numbers beside ours", note, style), table)


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
    ("   chat-only", "stable_chat_only", "share"),
    ("   chat-specific", "stable_chat_specific", "share"),
    ("   shared", "stable_shared", "share"),
    ("   base-only", "stable_base_only", "share"),
    ("   other", "stable_other", "share"),
)


def across_seeds(
    latents: Mapping[str, LatentTable],
    evaluations: Mapping[str, Mapping[str, Any]],
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
            intervention, positions, _ = SEED_KL[column]
            numbers[column] = [-_reduction(summary, label, intervention, positions) for label in numbers["crosscoder"]]
        elif column.startswith("stable"):
            pool = column.removeprefix("stable").removeprefix("_").replace("_", "-")
            numbers[column] = [
                _stable_share(matches, name, seed, pool)
                for name, seed in zip(numbers["name"], numbers["seed"], strict=True)
            ]
    rows = []
    for name, group in numbers.groupby("name", sort=False):
        for _, column, _ in SEED_LINES:
            values = group.set_index("seed")[column].astype(np.float64)
            rows.append(
                {
                    "crosscoder": name,
                    "quantity": column,
                    "n_seeds": int(values.notna().sum()),
                    "mean": values.mean(),
                    "low": values.min(),
                    "high": values.max(),
                    "sd": values.std(ddof=1),
                    **{f"value_seed{seed}": value for seed, value in values.items()},
                    "criterion": numbers["criterion"].iloc[0],
                }
            )
    return pd.DataFrame(rows)


def _reduction(summary: pd.DataFrame, label: str, intervention: str, positions: str) -> float:
    of = (summary["crosscoder"].fillna("") == label) & (summary["intervention"] == intervention)
    rows = summary.loc[of & (summary["positions"] == positions), "reduction"]
    return float(rows.iloc[0]) if len(rows) else math.nan


def _stable_share(matches: pd.DataFrame, name: str, seed: int, pool: str) -> float:
    """Return the share of a seed's latents of a class (all live ones, the chat-specific of the chat-only) stable."""
    own = matches[(matches["crosscoder"] == name) & (matches["seed"] == seed)].drop_duplicates("latent")
    if pool == "chat-specific":
        own = own[(own["class_name"] == "chat-only") & own["chat_specific"].astype(bool)]
    else:
        own = own[(own["class_name"] == pool) if pool else (own["class_name"] != "dead")]
    return float(own["stable"].mean()) if len(own) else math.nan


def draw_seeds(table: pd.DataFrame, style: Style) -> Drawing:
    """Typeset `across_seeds`, one column per crosscoder: mean and range; the numbers are `table` itself."""
    title = "Spread over training seeds"
    if "mean" not in table:
        note = "Counts, FVE, L0, KL and the stability of latents get a spread over seeds of the same data."
        return Drawing(typeset(["", ""], [[table["quantity"].iloc[0], ""]], set(), title, note, style), table)
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
        "change is against None, over all response tokens unless said. Stable: matched with cosine ≥ 0.8 in every "
        "other seed (decoder directions of both models, concatenated; one-to-one), share of the seed's latents. "
        f"Chat-specific: {look.mathematical(table['criterion'].iloc[0])}; counts of each seed in the nulls: table 1."
    )
    return Drawing(typeset(heads, cells, rules, title, note, style), table)


def _spread(row: Mapping[Any, Any], form: str) -> str:
    if not np.isfinite(row["mean"]):
        return "–"
    if form == "share":
        low, mean, high = (f"{100 * row[name]:.1f}".replace("-", "−") for name in ("low", "mean", "high"))
        return f"{mean} % [{low}, {high}]"
    decimals = 0 if form == "count" else 1
    low, high = (f"{row[name]:,.{decimals}f}" for name in ("low", "high"))
    return f"{row['mean']:,.1f} [{low}, {high}]"


def _cell(value: float, form: str) -> str:
    if not np.isfinite(value):
        return "–"
    if form == "share":
        return f"{100 * value:.1f} %".replace("-", "−")
    if form == "nats":
        return f"{value:.3f}"
    return f"{value:,.0f}" if form == "count" or float(value).is_integer() else f"{value:,.1f}"


def typeset(
    heads: Sequence[str],
    cells: Sequence[Sequence[str]],
    rules: set[int],
    title: str,
    note: str,
    style: Style,
    first_width: float = 2.95,
) -> Any:
    """Set a table with rules above, below the head, before the rows of `rules`, and at the end.

    The first column has `first_width` inches, others what they need; what is left of the text width is shared out.
    """
    line_height = 0.175  # inches
    needed = [_width(heads[n], [line[n] for line in cells], style) for n in range(1, len(heads))]
    spare = max(0.0, style.width - first_width - sum(needed)) / max(1, len(needed))
    right = first_width + np.cumsum([width + spare for width in needed]) - 0.06
    width = float(right[-1]) + 0.06
    head_height = 2 * line_height if any(heads) else 0.0
    note = look.wrapped(note, int(0.98 * width * 72 / (0.58 * style.small_size)))
    height = (
        0.27 + head_height + line_height * len(cells) + 0.12 + (note.count("\n") + 1) * style.small_size * 1.25 / 72
    )
    with style.context():
        figure = style.figure(height, width)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        axes.text(0.05, 0.14, title, fontweight="bold", va="center")
        y = 0.27
        axes.plot([0.05, width - 0.05], [y, y], color="black", linewidth=1.0)
        for x, head in zip(right, heads[1:], strict=True):
            for row, part in enumerate(head.split("\n")):
                baseline = y + line_height * (0.8 + 0.85 * row)
                axes.text(x, baseline, part, ha="right", va="baseline", fontsize=style.small_size)
        y += head_height
        axes.plot([0.05, width - 0.05], [y, y], color="black", linewidth=0.6)
        for n, line in enumerate(cells):
            if n in rules:
                axes.plot([0.05, width - 0.05], [y, y], color="black", linewidth=0.4)
            axes.text(0.05, y + line_height / 2, line[0], va="center")
            for x, text in zip(right, line[1:], strict=True):
                axes.text(x, y + line_height / 2, text, ha="right", va="center")
            y += line_height
        axes.plot([0.05, width - 0.05], [y, y], color="black", linewidth=1.0)
        axes.text(0.05, y + 0.06, note, va="top", fontsize=style.small_size, color=look.DARK_GREY)
    return figure


def _width(head: str, cells: Sequence[str], style: Style) -> float:
    """Return the inches that a column needs."""
    plain = look.MATHTEXT.sub(lambda math: "ν" * look.printed_length(math.group()), head)
    needed = [_points(part) * style.small_size for part in plain.split("\n")]
    return max(needed + [_points(cell) * style.font_size for cell in cells]) / 72 + 0.15


def _points(text: str) -> float:
    """Return the width of a text of font size 1."""
    return sum(0.36 if letter in " .,:;[]()|'-" else 0.66 for letter in text)
