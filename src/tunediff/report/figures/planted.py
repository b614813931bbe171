"""The planted benchmark: what each crosscoder makes of each kind of concept, and how far each rule can be believed."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.patches import Patch

from tunediff.latents.criterion import Criterion
from tunediff.markup import per_cent
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing
from tunediff.validation.truth import Scores, over_seeds, rates, undecided_up_to

DRAWING = Drawing(
    "figures/planted",
    __name__,
    title="The planted benchmark",
    caption=(
        "What each crosscoder makes of concepts that are planted in artificial activations: how many of each kind "
        "it finds, and which of the found ones each rule calls chat-specific. Below stand precision, false "
        "positives and AUROC of every rule. Intervals are 95 % t intervals over seeds, each with its own concepts; "
        "the null arm has nothing to call."
    ),
    reads=("scores",),
)

RANKINGS = {
    "norm_difference": look.Mark(look.NORM_DIFFERENCE, look.VERMILLION, "o"),
    "rank_sum": look.Mark("rank sum of ν", look.BLUE, "s"),
}
ROW_INCHES = 0.165
HEAD_INCHES = 0.72  # of a row of panels: its titles and axis


def _groups(concepts: pd.DataFrame, criterion: Criterion) -> pd.DataFrame:
    """Return the concepts with a column `group`, what the figure calls their kind; undecided ones and parts dropped."""
    weaker = concepts["kind"] == "weaker"
    kept = concepts[(concepts["kind"] != "part") & ~(weaker & (concepts["factor"] <= undecided_up_to(criterion)))]
    low, high = kept.loc[weaker, "factor"].min(), kept.loc[weaker, "factor"].max()
    weak = f"weaker (×{low:g})" if low == high else f"weaker (×{low:g}–{high:g})"
    frequent = kept["frequency"].map(lambda x: f"chat-only, on {per_cent(x, 0 if x >= 0.01 else 1)}")
    parts = kept["parts"].map(lambda n: f"decoupled ({'co-firing' if n == 1 else f'sum of {n}'})")
    group = kept["kind"].replace("weaker", weak).mask(kept["kind"] == "chat-only", frequent)
    return kept.assign(group=group.mask(kept["kind"] == "decoupled", parts))


ORDER = ("chat-only", "weaker", "amplified", "decoupled", "rotated", "shared", "base-only")


def called(scores: Scores) -> pd.DataFrame:
    """Return, per arm, crosscoder and group of concepts, the shares found, and found and called by each rule."""
    concepts = _groups(scores.concepts, scores.criterion)
    pieces = []
    for rule in ("found", *look.RULES):
        hit = concepts["found"] if rule == "found" else concepts["found"] & concepts[f"chat_{rule}"]
        by = ["arm", "crosscoder", "kind", "group"]
        pieces.append(rates(concepts.assign(hit=hit.astype(float)), by, "hit").assign(rule=rule))
    rows = pd.concat(pieces, ignore_index=True)
    return rows.assign(order=rows["kind"].map(ORDER.index)).sort_values("order", kind="stable", ignore_index=True)


def by_factor(scores: Scores) -> pd.DataFrame:
    """Return, per arm, crosscoder and strength in base, the share of found weaker concepts called by each rule."""
    concepts = scores.concepts[(scores.concepts["kind"] == "weaker") & scores.concepts["found"]]
    by = ["arm", "crosscoder", "factor"]
    pieces = [
        rates(concepts.assign(hit=concepts[f"chat_{rule}"].astype(float)), by, "hit").assign(rule=rule)
        for rule in look.RULES
    ]
    return pd.concat(pieces, ignore_index=True).sort_values(["arm", "factor"], kind="stable", ignore_index=True)


def quality(scores: Scores) -> pd.DataFrame:
    """Return, per arm and crosscoder, precision and false-positive rate of each rule and AUROC of each ranking."""
    quantities = {"precision": look.RULES, "false_positives": look.RULES, "auroc": tuple(RANKINGS)}
    return pd.DataFrame(
        [
            {"arm": arm, "crosscoder": crosscoder, "quantity": quantity, "rule": rule}
            | over_seeds(table[f"{quantity}_{rule}"].to_numpy())._asdict()
            for (arm, crosscoder), table in scores.crosscoders.groupby(["arm", "crosscoder"], sort=False)
            for quantity, rules in quantities.items()
            for rule in rules
        ]
    )


def _points(axes: Axes, rows: pd.DataFrame, positions: Sequence[float], mark: look.Mark, offset: float) -> None:
    """Draw means with their intervals at heights `positions`."""
    y = np.asarray(positions) + offset
    axes.hlines(y, rows["low"], rows["high"], color=mark.colour, linewidth=1.0, zorder=2)
    axes.plot(
        rows["mean"], y, linestyle="", marker=mark.marker, color=mark.colour, markersize=3.4, clip_on=False, zorder=3
    )


def _kinds(axes: Axes, rows: pd.DataFrame, groups: Sequence[str], marks: Mapping[str, look.Mark]) -> None:
    """Draw one crosscoder on one arm: found as bars, calls as marks; a line is left empty where none is planted."""
    height = {group: len(groups) - 1 - n for n, group in enumerate(groups)}
    found = rows[rows["rule"] == "found"]
    axes.barh([height[group] for group in found["group"]], found["mean"], height=0.78, color="#E6E6E6", zorder=0)
    for n, (rule, mark) in enumerate(marks.items()):
        part = rows[rows["rule"] == rule]
        _points(axes, part, [height[group] for group in part["group"]], mark, 0.24 * (1 - n))
    for group in found["group"]:
        if group.startswith("chat-only"):
            axes.plot([1.1], [height[group]], marker="<", color="black", markersize=3, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(groups) - 0.4))
    axes.set_xticks([0, 0.5, 1], labels=["0", "", "100 %"])
    axes.tick_params(axis="y", length=0)


def _panel_title(arm: str, crosscoder: str, scores: Scores) -> str:
    table = scores.crosscoders
    table = table[(table["arm"] == arm) & (table["crosscoder"] == crosscoder)]
    fve = table[["fve_base", "fve_chat"]].to_numpy().mean()
    sizes = " or ".join(map(str, sorted(set(table["dict_size"]))))
    return f"{arm}, {look.kind_name(crosscoder)}\n{sizes} latents\nL0 {table['l0'].mean():.1f}, FVE {per_cent(fve)}"


def _quality(figure: FigureBase, rows: pd.DataFrame, rule_marks: Mapping[str, look.Mark]) -> None:
    """Draw precision, false positives and AUROC, one line per arm and crosscoder."""
    pairs = list(dict.fromkeys(zip(rows["arm"], rows["crosscoder"], strict=True)))
    height = {pair: len(pairs) - 1 - n for n, pair in enumerate(pairs)}
    all_axes = figure.subplots(1, 3, sharey=True)
    titles = {
        "precision": "precision of the calls",
        "false_positives": "other latents called\n(false positives)",
        "auroc": "AUROC of the ranking",
    }
    for axes, (quantity, title) in zip(all_axes, titles.items(), strict=True):
        part = rows[rows["quantity"] == quantity]
        marks = rule_marks if quantity != "auroc" else RANKINGS
        for n, (rule, mark) in enumerate(marks.items()):
            own = part[part["rule"] == rule]
            y = [height[pair] for pair in zip(own["arm"], own["crosscoder"], strict=True)]
            _points(axes, own, y, mark, 0.24 * (1 - n))
        axes.set_title(title)
        axes.set_ylim(-0.6, len(pairs) - 0.4)
        axes.tick_params(axis="y", length=0)
        for arm in dict.fromkeys(rows["arm"]):
            lowest = min(height[pair] for pair in pairs if pair[0] == arm)
            if lowest:
                axes.axhline(lowest - 0.5, color=look.GREY, linewidth=0.4)
        if quantity == "false_positives":
            top = np.nanmax([part["high"].max(), part["mean"].max(), 0.02])
            axes.set_xlim(0, 1.04 * top)
            axes.xaxis.set_major_formatter(lambda x, _: per_cent(x))
            axes.locator_params(axis="x", nbins=3)
        else:
            axes.set_xlim(0.5 if quantity == "auroc" else 0.0, 1)
            axes.set_xticks([0.5, 0.75, 1] if quantity == "auroc" else [0, 0.5, 1])
    all_axes[0].set_yticks(list(height.values()), labels=[f"{arm}, {look.kind_name(name)}" for arm, name in height])


def _factors(
    all_axes: Sequence[Axes],
    rows: pd.DataFrame,
    crosscoders: Sequence[str],
    arm: str,
    marks: Mapping[str, look.Mark],
    undecided: float,
) -> None:
    """Draw, per crosscoder, the share of the found weaker concepts that is called against their strength in base."""
    for axes, name in zip(all_axes, crosscoders, strict=True):
        for n, (rule, mark) in enumerate(marks.items()):
            own = rows[(rows["arm"] == arm) & (rows["crosscoder"] == name) & (rows["rule"] == rule)]
            x = own["factor"].to_numpy() + 0.006 * (n - 1)
            axes.vlines(x, own["low"], own["high"], color=mark.colour, linewidth=1.0)
            axes.plot(x, own["mean"], color=mark.colour, marker=mark.marker, markersize=3, linewidth=0.8, clip_on=False)
        axes.axvspan(0, undecided, color="#F2F2F2", zorder=0)
        axes.set(ylim=(0, 1), title=f"{arm},\nweaker in base,\n{look.kind_name(name)}")
        axes.set_xlabel("strength in base", fontsize="small")
        axes.set_xticks(own["factor"].iloc[::2])
        axes.set_xlim(min(0.05, 0.8 * rows["factor"].min()), rows["factor"].max() + 0.05)
        axes.set_yticks([0, 0.5, 1], labels=["0", "", "100 %"])
    all_axes[0].set_ylabel("called\nof found", fontsize="small")


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw the benchmark: calls per kind of concept for every arm and crosscoder, by strength, and their quality.

    Intervals are 95 % t intervals over seeds, each with its own concepts, tokens and dictionaries.
    """
    scores = results.scores
    kinds, factors, qualities = called(scores), by_factor(scores), quality(scores)
    marks, undecided = look.rule_marks(scores.criterion), undecided_up_to(scores.criterion)
    arms, crosscoders = (list(dict.fromkeys(scores.crosscoders[name])) for name in ("arm", "crosscoder"))
    # Two arms side by side; the strengths fill the place that an odd number of arms leaves.
    panels = [(arm, name) for arm in arms for name in crosscoders] + [("", name) for name in crosscoders]
    across = 2 * len(crosscoders)
    lines = [panels[start : start + across] for start in range(0, len(panels), across)]
    groups = list(dict.fromkeys(kinds["group"]))
    height = HEAD_INCHES + ROW_INCHES * len(groups)
    heights = [height] * len(lines) + [HEAD_INCHES + 0.9 * ROW_INCHES * len(arms) * len(crosscoders)]
    with style.context():
        figure = style.figure(sum(heights) + 1.15)
        parts = look.stacked(figure, heights)
        for part, line in zip(parts, lines, strict=False):
            all_axes = part.subplots(1, across, squeeze=False)[0]
            for n, axes in enumerate(all_axes):
                arm, name = line[n] if n < len(line) else ("", "")
                if not name:
                    axes.axis("off")
                elif arm:
                    _kinds(axes, kinds[(kinds["arm"] == arm) & (kinds["crosscoder"] == name)], groups, marks)
                    names = groups if n == 0 else []
                    axes.set_yticks(range(len(names))[::-1], labels=names) if names else axes.set_yticks([])
                    axes.set_title(_panel_title(arm, name, scores), fontsize=style.small_size)
            if any(not arm for arm, _ in line):
                first = next(n for n, (arm, _) in enumerate(line) if not arm)
                _factors(all_axes[first : first + len(crosscoders)], factors, crosscoders, arms[0], marks, undecided)
                for axes in all_axes[first:]:
                    axes.title.set_fontsize(style.small_size)
        _quality(parts[-1], qualities, marks)
        handles = [
            Patch(color="#E6E6E6", label="found (a latent's activation correlates > 0.7)"),
            *(look.point(mark.marker, mark.colour, mark.name) for mark in marks.values()),
        ]
        handles.append(look.point("<", "black", "all should be called", 3))
        look.legend(figure, handles, "Concepts that are found, and found and called chat-specific by", columns=2)
        n_seeds = scores.crosscoders.groupby("arm")["seed"].nunique()
        counts = " or ".join(map(str, sorted(set(n_seeds))))
        text = (
            f"Lines through marks: 95 % t intervals over {counts} seeds (each with new concepts and dictionaries). "
            f"Shaded: up to ×{undecided:g} a concept is chat-specific by the thresholds themselves, so it counts "
            "neither way. Decoupled: base has the direction in a co-firing latent with a strength of its own, or as a "
            f"sum of others. AUROC: of {look.NORM_DIFFERENCE} and of the rank sum of {look.NU_RECONSTRUCTION} and "
            f"{look.NU_ERROR}."
        )
        look.note(figure, text, style)
    numbers = pd.concat(
        [kinds.assign(panel="kinds"), factors.assign(panel="factors"), qualities.assign(panel="quality")],
        ignore_index=True,
    )
    columns = ["panel", "arm", "crosscoder", "group", "factor", "quantity", "rule", "mean", "low", "high", "n"]
    return look.Drawn(figure, numbers.reindex(columns=columns).rename(columns={"n": "seeds"}))
