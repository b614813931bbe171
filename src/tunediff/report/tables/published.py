"""The paper's published numbers at Gemma 2 2B scale beside ours."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from tunediff.interventions.registry import INTERVENTIONS
from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import TWIN_COSINE, LatentTable
from tunediff.report import style as look
from tunediff.report.figures.fig2 import shared_interval
from tunediff.report.figures.template import MAINLY
from tunediff.report.inputs import Inputs
from tunediff.report.layout import cell, typeset
from tunediff.report.registry import Drawing
from tunediff.report.tables.table1 import table1

DRAWING = Drawing(
    "tables/published",
    __name__,
    title="Published numbers beside ours",
    caption=(
        "The paper's numbers for Gemma 2 2B beside those of this run: latents per class, FVE, L0, twins, template "
        "latents and the KL experiment. The first seed of every crosscoder is shown. Other models and sizes are not "
        "expected to agree; the column of an independent run is in the note."
    ),
    reads=("latents", "evaluation", "twins", "kl"),
    by_norm=True,
)
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


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Typeset the paper's number and ours side by side per kind of crosscoder; the numbers are those of `published`."""
    return printed(published(results.with_norms, results.evaluation, results.twins, results.kl), style)


def published(
    latents: Mapping[str, LatentTable],
    evaluations: Mapping[str, Evaluation],
    twins: Mapping[str, pd.DataFrame] | None = None,
    summary: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the paper's numbers at Gemma 2 2B scale beside ours: quantity, kind, published, crosscoder, ours.

    Ours is NaN where the crosscoder or the table it comes from is not there. FVE is the mean over the two models.
    """
    shown = look.selected(latents)
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
    return float((share > MAINLY).mean() if "mainly" in quantity else (share >= 1 / 3).mean())


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


def printed(table: pd.DataFrame, style: look.Style) -> look.Drawn:
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
            line += ["", ""] if row is None else [cell(row["published"], form), cell(row["ours"], form)]
        cells.append(line)
    first_kl = next((n for n, quantity in enumerate(quantities) if quantity.startswith("KL")), 0)
    note = (
        "Paper: Gemma 2 2B, arXiv 2504.02922. KL in nats; a change is against None. None and Template do not depend on "
        "the crosscoder; the paper gives the change of All once, and it stands in both columns. Other models and sizes "
        "are not expected to agree. A dash: not measured or without a latent to measure; blank: not published. An "
        "independent BatchTopK run (k 100, 100 M tokens): 3 chat-only, 39,711 shared, 4 base-only, FVE .877 and .867, "
        "L0 100.5, dead 42.9 %. A later post of the authors: a diff-SAE restores 88 % of the KL gap."
    )
    return look.Drawn(typeset(heads, cells, {first_kl}, "Published numbers beside ours", note, style), table)
