"""Figure 5: how well explanations of latents predict where they fire, by how chat-specific the latents are."""

from functools import partial
from itertools import combinations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from tunediff.explanations.contexts import BANDS, LISTED, RANDOM, RANKED, SHARED, UNTRAINED
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
CONTROLS = (RANDOM, UNTRAINED, ANOTHER)
LEAST = 3  # latents of a mean that is drawn
PLACES = {
    **{f"{RANKED} {i + 1}": f"{100 * i // BINS}–{100 * (i + 1) // BINS} %" for i in range(BINS)},
    **{LISTED: "listed", SHARED: "shared", RANDOM: "random", UNTRAINED: "untrained", ANOTHER: "another's"},
}
PARTS = {**{band: f"fires,\n{band}" for band in BANDS}, INACTIVE: "silent", INACTIVE_HARD: "silent,\nits tokens"}


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw accuracy by bin of rank_sum and by band, per dictionary (the first seed of each kind)."""
    means = results.explanation_means
    of = {name: own for name, own in means.groupby("dictionary", sort=False) if " − " not in str(name)}
    if not of:
        return look.empty("no latent was explained: none is ranked or shared", style)
    shown = look.selected({str(name): own for name, own in of.items()})
    both = [f"{first} − {second}" for first, second in combinations(shown, 2)]
    seen = means[means["dictionary"].isin([*shown, *both])]
    return look.each_crosscoder(shown, partial(_panel, style=style), 4.6, style, (0.95, partial(_below, seen, style)))


def _series(own: pd.DataFrame) -> dict[tuple[str, str], look.Mark]:
    present = set(zip(own["explainer"], own["judge"], strict=True))
    return {key: mark for key, mark in SERIES.items() if key in present}


def _points(own: pd.DataFrame, key: tuple[str, str], measure: str) -> pd.DataFrame:
    """Return the means of a series by group; the control with another's explanation as a group of its own."""
    explainer, judge = key
    rows = own[(own["judge"] == judge) & (own["measure"] == measure)]
    swapped = rows[(rows["explainer"] == explainer + OTHER) & rows["group"].isin([RANKED, LISTED])]
    swapped = swapped.assign(group=ANOTHER)
    return pd.concat([rows[rows["explainer"] == explainer], swapped])


def _drawn(points: pd.DataFrame, group: str) -> pd.DataFrame:
    """Return the means of a group that are drawn."""
    return points[(points["group"] == group) & (points["latents"] >= LEAST)]


def _draw(axes: Axes, x: float, row: pd.Series, mark: look.Mark) -> None:
    axes.plot([x, x], [row["low"], row["high"]], color=mark.colour, linewidth=0.9)
    axes.plot(x, row["value"], mark.marker, color=mark.colour, markersize=3.6)


def _panel(panel: SubFigure, label: str, own: pd.DataFrame, width: float, style: look.Style) -> list[pd.DataFrame]:
    present = {*own["group"], *([ANOTHER] if own["explainer"].str.endswith(OTHER).any() else [])}
    places = {group: name for group, name in PLACES.items() if group in present}
    ranked = RANKED in present
    divided = BINS if ranked else 1
    upper, lower = panel.subplots(2, 1, height_ratios=[1.5, 1])
    series = _series(own)
    pieces = []
    for number, (key, mark) in enumerate(series.items()):
        shift = 0.16 * (number - (len(series) - 1) / 2)
        points = _points(own, key, "balanced_accuracy")
        for place, group in enumerate(places):
            for _, row in _drawn(points, group).iterrows():
                _draw(upper, place + shift, row, mark)
        for place, part in enumerate(PARTS):
            rows = _points(own, key, f"accuracy_{part}")
            for _, row in pd.concat([_drawn(rows, RANKED), _drawn(rows, LISTED)]).iterrows():
                _draw(lower, place + shift, row, mark)
            pieces.append(rows[rows["group"].isin([RANKED, LISTED])])
        pieces.append(points)
    for x in {divided, next((i for i, group in enumerate(places) if group in CONTROLS), divided)}:
        upper.axvline(x - 0.5, color=look.GREY, linewidth=0.6)
    lower.axvline(len(BANDS) - 0.5, color=look.GREY, linewidth=0.6)
    for axes, letter in ((upper, "(a)"), (lower, "(b)")):
        axes.set_title(letter, loc="left", fontsize=style.font_size)
        axes.axhline(0.5, color=look.DARK_GREY, linestyle="--", linewidth=0.8)
    size = style.small_size
    upper.set_xticks(range(len(places)), list(places.values()), rotation=60, ha="right", rotation_mode="anchor")
    upper.set(xlim=(-0.5, len(places) - 0.5), ylim=(0.3, 1.02), ylabel="balanced accuracy")
    upper.set_xlabel(f"{'latents by rank_sum' if ranked else 'latents'}  |  and controls", fontsize=size)
    lower.set_xticks(range(len(PARTS)), list(PARTS.values()), fontsize=0.9 * size)
    lower.set(xlim=(-0.5, len(PARTS) - 0.5), ylim=(-0.06, 1.08), ylabel="judged rightly")
    handles = [look.point(mark.marker, mark.colour, mark.name) for mark in series.values()]
    handles.append(Line2D([], [], color=look.DARK_GREY, linestyle="--", label="chance"))
    look.legend(panel, handles, look.display_name(label), columns=1)
    if not (own["latents"] >= LEAST).any():
        look.statement(upper, f"fewer than {LEAST} latents could be scored", style)
    return [piece.drop(columns="dictionary") for piece in pieces]


def _below(means: pd.DataFrame, style: look.Style, panel: SubFigure) -> pd.DataFrame:
    """Print how many latents were scored, and the comparison of dictionaries within deciles of frequency."""
    every = means[means["measure"] == "balanced_accuracy"]
    by_rule = every[every["group"].isin([RANKED, LISTED]) & (every["judge"] == RULE)]
    counts = []
    for name, own in by_rule.groupby("dictionary", sort=False):
        n = dict(zip(own["explainer"], zip(own["latents"], own["unscored"], strict=True), strict=True))
        found, lacking = n.get(LEXICAL, (0, 0))
        labelled = f", {n[LABEL][0]} of them with a label" if LABEL in n else ""
        counts.append(f"{name}: {found} latents scored{labelled}, {lacking} could not be")
    paired = every[every["group"] == "by frequency"]
    wanted = [key for key in SERIES if key[0] != LABEL]
    known = [key in wanted for key in zip(paired["explainer"], paired["judge"], strict=True)]
    paired = paired[pd.Series(known, index=paired.index, dtype=bool)]
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
