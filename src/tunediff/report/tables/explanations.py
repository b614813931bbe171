"""Explanations: how well each kind of explanation predicts where latents fire, beside its controls."""

import numpy as np
import pandas as pd

from tunediff.explanations.contexts import BANDS, LISTED, RANDOM, RANKED, SHARED, UNTRAINED
from tunediff.explanations.tables import GENERIC, LLM, MODEL, OTHER, RULE
from tunediff.latents.examples import INACTIVE, INACTIVE_HARD
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.layout import ruled, typeset
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "tables/explanations",
    __name__,
    title="Scores of explanations and of their controls",
    caption=(
        "Balanced accuracy and AUROC of judging, from an explanation alone, in which windows a latent fires, with 95 % "
        "intervals over latents and documents; the shares judged rightly by the latent's activation in the window. "
        "Shared latents, random directions that fire as often, and other latents' explanations stand below."
    ),
    reads=("explanation_means", "explanation_scores"),
)
GROUPS = {
    **{RANKED: "ranked latents", LISTED: "listed latents", SHARED: "shared latents"},
    **{RANDOM: "random directions", UNTRAINED: "untrained directions"},
}
JUDGES = {RULE: "rule", MODEL: "language model"}
BY_BAND = (*BANDS, INACTIVE, INACTIVE_HARD)
HEADS = (
    *("", "judge", "scored\n(not)", "balanced\naccuracy", "AUROC"),
    *(*BANDS, "silent", "silent,\nits tokens", "effect of\nthe order"),
)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Typeset the first seed of each crosscoder; the numbers have every dictionary, without the fifths of a ranking."""
    table = scores(results.explanation_means, results.explanation_scores)
    if table.empty:
        return look.empty("no latent was explained: none is ranked or shared", style)
    shown = look.selected({label: None for label in table["dictionary"].unique()})
    parts = []
    for label in shown:
        own = table[table["dictionary"] == label]
        part = [[look.display_name(label), *("" for _ in HEADS[1:])]]
        parts.append(part + [_line(row) for _, row in own.iterrows()])
    note = (
        "Brackets: 95 % intervals; latents are resampled, and for each the documents of its windows. High, middle, "
        "low: windows in which the latent reaches 0.7, 0.4, 0.1 of its maximum; silent: it fires nowhere, at random "
        "or around one of its most frequent tokens. Effect of the order: mean |difference| of a judgement between two "
        "orders of the windows. Not scored: too few windows, or no readable reply; the report says which. Chance is "
        "0.5."
    )
    title = "Explanations: do they tell where a latent fires?"
    return look.Drawn(typeset(HEADS, *ruled(parts), title, note, style, first_width=2.35), table)


def scores(means: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per dictionary, explainer, judge and group, with every measure and the mean effect of the order."""
    keys = ["dictionary", "explainer", "judge", "group"]
    own = means[means["group"].isin(GROUPS)]
    table = own[own["measure"] == "balanced_accuracy"].set_index(keys)[["latents", "unscored", "value", "low", "high"]]
    table = table.rename(columns={"value": "balanced_accuracy", "low": "accuracy_from", "high": "accuracy_to"})
    for measure in ("auroc", *(f"accuracy_{band}" for band in BY_BAND)):
        table[measure] = own[own["measure"] == measure].set_index(keys)["value"]
    area = own[own["measure"] == "auroc"].set_index(keys)
    table["auroc_from"], table["auroc_to"] = area["low"], area["high"]
    table["order_effect"] = rows.groupby(keys)["order_effect"].mean()
    return table.reset_index()


def _line(row: pd.Series) -> list[str]:
    name = str(row["explainer"]).replace(LLM, "language model")
    group = GROUPS[row["group"]]
    if not (name.endswith(OTHER) or name == GENERIC):
        name = f"{name}, {group}"

    def interval(value: str, low: str, high: str) -> str:
        if not np.isfinite(row[value]):
            return "–"
        return f"{row[value]:.2f} [{row[low]:.2f}, {row[high]:.2f}]"

    def plain(column: str) -> str:
        return f"{row[column]:.2f}" if np.isfinite(row[column]) else "–"

    cells = [f"   {name}", JUDGES[row["judge"]], f"{row['latents']:,} ({row['unscored']:,})"]
    cells += [
        interval("balanced_accuracy", "accuracy_from", "accuracy_to"),
        interval("auroc", "auroc_from", "auroc_to"),
    ]
    return cells + [plain(f"accuracy_{band}") for band in BY_BAND] + [plain("order_effect")]
