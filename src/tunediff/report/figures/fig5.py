"""Figure 5: how well explanations of latents predict where they fire, by how chat-specific the latents are."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from tunediff.explanations.contexts import BANDS, RANDOM, RANKED, SHARED, UNTRAINED
from tunediff.explanations.scores import BINS
from tunediff.explanations.tables import LABEL, LEXICAL, LLM, MODEL, OTHER, RULE
from tunediff.latents.examples import INACTIVE, INACTIVE_HARD
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/fig5",
    __name__,
    title="Explanations of latents, scored on texts they were not made from",
    caption=(
        "(a) Balanced accuracy of judging, from an explanation alone, in which windows a latent fires: by fifths of "
        "`rank_sum`, the most chat-specific first, for shared latents, and for the controls: random directions that "
        "fire as often, and the explanation of another latent. (b) The share of windows judged rightly, by the "
        "latent's activation there. Lines are 95 % intervals over latents and documents; 0.5 is chance."
    ),
    reads=("explanation_means", "explanation_scores"),
)

SERIES = {  # explainer and judge
    (LEXICAL, RULE): look.Mark("lexical, by its rule", look.BLUE, "s"),
    (LABEL, RULE): look.Mark("label, by the rule (ceiling)", look.GREEN, "^"),
    (LLM, MODEL): look.Mark("language model, by a language model", look.VERMILLION, "o"),
    (LEXICAL, MODEL): look.Mark("lexical, by a language model", look.SKY, "D"),
}
ANOTHER = "another"
LEAST = 5  # latents of a mean that is drawn
PLACES = {
    **{f"{RANKED} {i + 1}": f"{100 * i // BINS}–{100 * (i + 1) // BINS} %" for i in range(BINS)},
    **{SHARED: "shared", RANDOM: "random", UNTRAINED: "untrained", ANOTHER: "another's"},
}
PARTS = {**{band: f"fires,\n{band}" for band in BANDS}, INACTIVE: "silent", INACTIVE_HARD: "silent,\nits tokens"}


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw accuracy by bin of rank_sum and by band, per dictionary (the first seed of each kind)."""
    means = results.explanation_means
    of = {name: own for name, own in means.groupby("dictionary", sort=False) if " − " not in str(name)}
    shown = look.selected({str(name): own for name, own in of.items()})
    return look.each_crosscoder(shown, partial(_panel, style=style), 4.6, style, (0.95, partial(_below, means, style)))


def _series(own: pd.DataFrame) -> dict[tuple[str, str], look.Mark]:
    present = set(zip(own["explainer"], own["judge"], strict=True))
    return {key: mark for key, mark in SERIES.items() if key in present}


def _points(own: pd.DataFrame, key: tuple[str, str], measure: str) -> pd.DataFrame:
    """Return the means of a series by group; the control with another's explanation as a group of its own."""
    explainer, judge = key
    rows = own[(own["judge"] == judge) & (own["measure"] == measure) & (own["latents"] >= LEAST)]
    swapped = rows[(rows["explainer"] == explainer + OTHER) & (rows["group"] == RANKED)].assign(group=ANOTHER)
    return pd.concat([rows[rows["explainer"] == explainer], swapped])


def _draw(axes: Axes, x: float, row: pd.Series, mark: look.Mark) -> None:
    axes.plot([x, x], [row["low"], row["high"]], color=mark.colour, linewidth=0.9)
    axes.plot(x, row["value"], mark.marker, color=mark.colour, markersize=3.6)


def _panel(panel: SubFigure, label: str, own: pd.DataFrame, width: float, style: look.Style) -> list[pd.DataFrame]:
    upper, lower = panel.subplots(2, 1, height_ratios=[1.5, 1])
    series = _series(own)
    pieces = []
    for number, (key, mark) in enumerate(series.items()):
        shift = 0.16 * (number - (len(series) - 1) / 2)
        points = _points(own, key, "balanced_accuracy")
        for place, group in enumerate(PLACES):
            for _, row in points[points["group"] == group].dropna(subset="value").iterrows():
                _draw(upper, place + shift, row, mark)
        for place, part in enumerate(PARTS):
            rows = _points(own, key, f"accuracy_{part}")
            for _, row in rows[rows["group"] == RANKED].dropna(subset="value").iterrows():
                _draw(lower, place + shift, row, mark)
            pieces.append(rows[rows["group"] == RANKED])
        pieces.append(points)
    upper.axvline(BINS - 0.5, color=look.GREY, linewidth=0.6)
    upper.axvline(BINS + 0.5, color=look.GREY, linewidth=0.6)
    lower.axvline(len(BANDS) - 0.5, color=look.GREY, linewidth=0.6)
    for axes, letter in ((upper, "(a)"), (lower, "(b)")):
        axes.set_title(letter, loc="left", fontsize=style.font_size)
        axes.axhline(0.5, color=look.DARK_GREY, linestyle="--", linewidth=0.8)
    size = style.small_size
    upper.set_xticks(range(len(PLACES)), list(PLACES.values()), rotation=60, ha="right", rotation_mode="anchor")
    upper.set(xlim=(-0.5, len(PLACES) - 0.5), ylim=(0.3, 1.02), ylabel="balanced accuracy")
    upper.set_xlabel("latents by rank_sum  |  and controls", fontsize=size)
    lower.set_xticks(range(len(PARTS)), list(PARTS.values()), fontsize=0.9 * size)
    lower.set(xlim=(-0.5, len(PARTS) - 0.5), ylim=(-0.02, 1.04), ylabel="judged rightly")
    handles = [look.point(mark.marker, mark.colour, mark.name) for mark in series.values()]
    handles.append(Line2D([], [], color=look.DARK_GREY, linestyle="--", label="chance"))
    look.legend(panel, handles, look.display_name(label), columns=1)
    if not series:
        look.statement(upper, "no latent could be scored", style)
    return [piece.drop(columns="dictionary") for piece in pieces] or [pd.DataFrame({"group": [np.nan]})]


def _below(means: pd.DataFrame, style: look.Style, panel: SubFigure) -> pd.DataFrame:
    """Print how many latents were scored, and the comparison of dictionaries within deciles of frequency."""
    every = means[means["measure"] == "balanced_accuracy"]
    by_rule = every[(every["group"] == RANKED) & (every["judge"] == RULE)]
    counts = []
    for name, own in by_rule.groupby("dictionary", sort=False):
        n = dict(zip(own["explainer"], zip(own["latents"], own["unscored"], strict=True), strict=True))
        found, lacking = n.get(LEXICAL, (0, 0))
        labelled = f", {n[LABEL][0]} of them with a label" if LABEL in n else ""
        counts.append(f"{name}: {found} ranked latents scored{labelled}, {lacking} could not be")
    paired = every[every["group"] == "by frequency"]
    wanted = [key for key in SERIES if key[0] != LABEL]
    paired = paired[[key in wanted for key in zip(paired["explainer"], paired["judge"], strict=True)]]
    differences = [
        f"{row['dictionary']}, {SERIES[row['explainer'], row['judge']].name}: {look.signed(round(row['value'], 3))} "
        f"[{look.signed(round(row['low'], 3))}, {look.signed(round(row['high'], 3))}]"
        for _, row in paired.iterrows()
    ]
    text = ". ".join(counts) + "."
    if differences:
        text += " Difference of accuracy within deciles of frequency: " + "; ".join(differences) + "."
    text += " random: directions of equal influence on all dimensions; untrained: rows of an encoder before training. "
    text += f"Means of fewer than {LEAST} latents are left out."
    look.note(panel, text, style)
    return paired.drop(columns="dictionary").assign(crosscoder=paired["dictionary"])
