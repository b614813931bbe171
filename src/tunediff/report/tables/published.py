"""The paper's published numbers at Gemma 2 2B scale beside ours."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from tunediff.config.dictionaries import BatchTopKSettings, L1Settings
from tunediff.interventions.registry import INTERVENTIONS
from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import LatentTable
from tunediff.report import style as look
from tunediff.report.figures.fig2 import shared_interval
from tunediff.report.figures.template import MAINLY
from tunediff.report.inputs import Inputs
from tunediff.report.layout import cell, typeset
from tunediff.report.registry import Drawing
from tunediff.report.tables.table1 import row_of, table1

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
L1, BATCHTOPK = L1Settings.label, BatchTopKSettings.label
OF_LATENTS = {  # quantity -> values of an L1 and a BatchTopK crosscoder
    "chat-only latents": (3176, 134),
    "shared latents": (53569, 62373),
    "base-only latents": (1437, 5),
    "FVE": (0.846, 0.876),
    "L0": (100, 100),
    "dead fraction": (None, 0.12),
    "chat-only inside the shared 95 % interval of ν^r": (0.18, 0.0),
    "twins with cosine > 0.9": (109, 0),
    "chat-only firing mainly on template tokens": (None, 0.40),
    "chat-only with ≥ 1/3 of activations on template tokens": (None, 0.67),
}
# (quantity, kind) -> value printed by the paper at Gemma 2 2B scale (method.md, section 7)
PUBLISHED = {
    (quantity, kind): value
    for quantity, values in OF_LATENTS.items()
    for kind, value in zip((L1, BATCHTOPK), values, strict=True)
    if value is not None
} | {
    ("KL, None, all", ""): 0.482,
    ("KL, None, first 9", ""): 1.69,
    ("KL, Template, all", ""): 0.239,
    ("KL, Template, first 9", ""): 0.507,
    ("KL change, All, all", L1): -0.59,
    ("KL change, All, first 9", L1): -0.78,
    ("KL change, All, all", BATCHTOPK): -0.59,
    ("KL change, All, first 9", BATCHTOPK): -0.78,
    ("KL, Δnorm best, all", L1): 0.241,
    ("KL, Δnorm best, first 9", L1): 0.619,
    ("KL, Δnorm worst, all", L1): 0.242,
    ("KL, Δnorm worst, first 9", L1): 0.740,
    ("KL, Δnorm best, all", BATCHTOPK): 0.230,
    ("KL change, Δnorm best, first 9", BATCHTOPK): -0.50,
    ("KL, Δnorm worst, all", BATCHTOPK): 0.267,
    ("KL change, Δnorm worst, first 9", BATCHTOPK): -0.06,
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
    by_kind = {look.kind_name(label): label for label in reversed(shown)}
    counted = {row["crosscoder"]: row for row in table1(shown, evaluations).to_dict("records")}
    rows = []
    for (quantity, kind), value in PUBLISHED.items():
        label, ours = by_kind.get(kind, ""), math.nan
        if quantity.startswith("KL"):
            if summary is not None and (label or not kind):
                ours = _kl(quantity, label, summary)
        elif quantity.startswith("twins"):
            if twins is not None and label in twins:
                ours = float((twins[label]["cosine"] > twins[label].attrs["twin_cosine"]).sum())
        elif label:
            ours = _of_latents(quantity, counted[label], shown[label].frame)
        rows.append({"quantity": quantity, "kind": kind, "published": float(value), "crosscoder": label, "ours": ours})
    return pd.DataFrame(rows)


def _of_latents(quantity: str, row: Mapping[Any, Any], table: pd.DataFrame) -> float:
    if quantity == "FVE":
        return float((row["fve_base"] + row["fve_chat"]) / 2)
    if quantity.startswith("chat-only inside"):
        return shared_interval(table).share
    if quantity.startswith(("chat-only firing", "chat-only with")):
        share = table.loc[table["class_name"] == "chat-only", "template_share"].dropna()
        return float((share > MAINLY).mean() if "mainly" in quantity else (share >= 1 / 3).mean())
    return float(row[quantity.removesuffix(" latents").replace("-", "_").replace(" ", "_").lower()])


def _kl(quantity: str, label: str, summary: pd.DataFrame) -> float:
    what, intervention, positions = quantity.split(", ")
    row = row_of(summary, label, BY_LABEL[intervention], POSITIONS[positions])
    if row is None:
        return math.nan
    return float(-row["reduction"] if what == "KL change" else row["mean"])


def printed(table: pd.DataFrame, style: look.Style) -> look.Drawn:
    """Typeset `published` with the paper's number and ours side by side per kind; the numbers are `table` itself."""
    quantities = list(dict.fromkeys(table["quantity"]))
    kinds = [kind for kind in dict.fromkeys(table["kind"]) if kind]
    labels = {kind: next(iter(table.loc[table["kind"] == kind, "crosscoder"])) for kind in kinds}
    heads = ["", *(f"{kind}\n{said}" for kind in kinds for said in ("paper", labels[kind] or "not run"))]
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
