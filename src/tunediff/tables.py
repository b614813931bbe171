"""Table 1 (counts per class, FVE, L0, dead latents), the published numbers beside ours, and the spread over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tunediff.errors import TunediffError
from tunediff.figures import style as look
from tunediff.figures.fig2 import shared_interval
from tunediff.figures.style import Drawing, Style

TWIN_COSINE = 0.9


def metric(evaluation: Mapping[str, Any], name: str, model: str | None = None, subset: str = "all") -> float:
    """Return one value of results/evaluation/NAME.json (of any model if none is given), NaN if it was not measured."""
    for row in evaluation["metrics"]:
        if row["metric"] == name and row["subset"] == subset and model in (None, row["model"]):
            return math.nan if row["value"] is None else float(row["value"])
    return math.nan


def table1(latents: Mapping[str, pd.DataFrame], evaluations: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return table 1, one row per crosscoder: counts per class, chat-specific latents, held-out FVE, L0, dead.

    `chat_specific` counts ν^r < 0.5 and ν^ε < 0.2 among chat-only latents, `chat_specific_interval` those of them
    whose 95 % intervals stay under both thresholds; those with `_any_class` count over all classes. Seeds of one
    crosscoder stand together.
    """
    rows = []
    kinds = list(dict.fromkeys(map(look.kind_of, latents)))
    order = sorted(latents, key=lambda label: kinds.index(look.kind_of(label)))
    for label, table in look.selected(latents, order).items():
        look.require(table, ["class_name", "chat_specific", "chat_specific_interval"], f"latents of {label}")
        if label not in evaluations:
            raise TunediffError(f"table 1: no evaluation of '{label}'; run snakemake again to make it")
        evaluation = evaluations[label]
        chat_only = table["class_name"] == "chat-only"
        specific = table["chat_specific"].astype(bool)
        rows.append(
            {
                "crosscoder": label,
                "kind": look.kind_name(label),
                "latents": len(table),
                **{name.replace("-", "_"): int((table["class_name"] == name).sum()) for name in look.CLASSES},
                "chat_specific": int((chat_only & specific).sum()),
                "chat_specific_interval": int((chat_only & table["chat_specific_interval"].astype(bool)).sum()),
                "chat_specific_any_class": int(specific.sum()),
                "chat_specific_interval_any_class": int(table["chat_specific_interval"].sum()),
                "fve_base": metric(evaluation, "fve", "base"),
                "fve_chat": metric(evaluation, "fve", "chat"),
                "fve_difference": metric(evaluation, "fve", "difference"),
                "l0": metric(evaluation, "l0"),
                "dead_fraction": metric(evaluation, "dead_fraction"),
                "n_tokens": int(evaluation["n_tokens"]["all"]),
            }
        )
    return pd.DataFrame(rows)


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
INTERVENTIONS = {"None": "none", "Template": "template", "All": "all"}
INTERVENTIONS |= {"Δnorm best": "norm_difference_best", "Δnorm worst": "norm_difference_worst"}
POSITIONS = {"all": "all", "first 9": "first"}


def published(
    latents: Mapping[str, pd.DataFrame],
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
            ours = _of_latents(quantity, counted[label], shown[label])
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
        & (summary["intervention"] == INTERVENTIONS[intervention])
        & (summary["positions"] == POSITIONS[positions])
    ]
    if rows.empty:
        return math.nan
    return float(-rows["reduction"].iloc[0] if what == "KL change" else rows["mean"].iloc[0])


def draw_table1(table: pd.DataFrame, style: Style) -> Drawing:
    """Typeset table 1 with one column per crosscoder; the numbers are `table` itself."""
    tokens = " / ".join(f"{count:,}" for count in dict.fromkeys(table["n_tokens"]))
    lines: list[tuple[str, str, str]] = [
        ("Latents", "latents", "count"),
        ("chat-only", "chat_only", "count"),
        (f"   chat-specific ({look.NU_RECONSTRUCTION} < 0.5, {look.NU_ERROR} < 0.2)", "chat_specific", "count"),
        ("   chat-specific, 95 % intervals below", "chat_specific_interval", "count"),
        ("shared", "shared", "count"),
        ("base-only", "base_only", "count"),
        ("other", "other", "count"),
        ("dead", "dead", "count"),
        ("chat-specific in any class", "chat_specific_any_class", "count"),
        ("   95 % intervals below", "chat_specific_interval_any_class", "count"),
        ("dead fraction", "dead_fraction", "share"),
        ("FVE, base model", "fve_base", "share"),
        ("FVE, chat model", "fve_chat", "share"),
        ("FVE, difference", "fve_difference", "share"),
        ("L0", "l0", "number"),
    ]
    cells = [[name, *(_cell(value, form) for value in table[column])] for name, column, form in lines]
    heads = ["", *(f"{look.kind_name(label)}\n{label}" for label in table["crosscoder"])]
    note = f"FVE, L0 and dead fraction on {tokens} held-out tokens (web and chat), at the inference threshold."
    return Drawing(typeset(heads, cells, {1, 8, 10}, "Table 1. Crosscoders and their latents", note, style), table)


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


# (printed name, column of a seed's numbers, form)
SEED_LINES = (
    ("chat-only", "chat_only", "count"),
    (f"   chat-specific ({look.NU_RECONSTRUCTION} < 0.5, {look.NU_ERROR} < 0.2)", "chat_specific", "count"),
    ("   chat-specific, 95 % intervals below", "chat_specific_interval", "count"),
    ("shared", "shared", "count"),
    ("base-only", "base_only", "count"),
    ("other", "other", "count"),
    ("dead", "dead", "count"),
    ("chat-specific in any class", "chat_specific_any_class", "count"),
    ("   95 % intervals below", "chat_specific_interval_any_class", "count"),
    ("FVE, base model", "fve_base", "share"),
    ("FVE, chat model", "fve_chat", "share"),
    ("FVE, difference", "fve_difference", "share"),
    ("L0", "l0", "number"),
    ("KL change, All", "kl_change_all", "share"),
    ("KL change, All, first 9", "kl_change_all_first", "share"),
    ("KL change, Latent Scaling best", "kl_change_latent_scaling_best", "share"),
    ("KL change, Latent Scaling best, first 9", "kl_change_latent_scaling_best_first", "share"),
    (f"KL change, {look.NORM_DIFFERENCE} best", "kl_change_norm_difference_best", "share"),
    (f"KL change, {look.NORM_DIFFERENCE} best, first 9", "kl_change_norm_difference_best_first", "share"),
    ("stable: all live latents", "stable", "share"),
    ("   chat-only", "stable_chat_only", "share"),
    ("   chat-specific", "stable_chat_specific", "share"),
    ("   shared", "stable_shared", "share"),
    ("   base-only", "stable_base_only", "share"),
    ("   other", "stable_other", "share"),
)


def across_seeds(
    latents: Mapping[str, pd.DataFrame],
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
        if column.startswith("kl_change_"):
            positions = "first" if column.endswith("_first") else "all"
            intervention = column.removeprefix("kl_change_").removesuffix("_first")
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
    rules = {columns.index(first) for first in ("chat_specific_any_class", "fve_base", "kl_change_all", "stable")}
    heads = [""]
    for name in names:
        heads.append(f"{look.kind_name(name)}\n{name}, {table.loc[table['crosscoder'] == name, 'n_seeds'].max()} seeds")
    note = (
        "Mean [least, largest] over seeds; the seeds differ in initialisation only, not in data or its order. A KL "
        "change is against None, over all response tokens unless said. Stable: matched with cosine ≥ 0.8 in every "
        "other seed (decoder directions of both models, concatenated; one-to-one), share of the seed's latents."
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
    heads: Sequence[str], cells: Sequence[Sequence[str]], rules: set[int], title: str, note: str, style: Style
) -> Any:
    """Set a table with rules above, below the head, before the rows of `rules`, and at the end."""
    line_height, first_width = 0.175, 2.95  # inches
    columns = len(heads) - 1
    longest = max(len(part) for head in heads for part in head.split("\n"))
    widest = max((len(text) for line in cells for text in line[1:]), default=0)
    needed = 0.0092 * max(style.small_size * longest, style.font_size * widest) + 0.12
    column_width = max((style.width - first_width) / columns, needed)
    head_height = 2 * line_height if any(heads) else 0.0
    width = first_width + column_width * columns
    note = look.wrapped(note, int(width * 72 / (0.54 * style.small_size)))
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
        right = [first_width + column_width * (n + 1) - 0.06 for n in range(columns)]
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
