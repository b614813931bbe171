"""Figure 2: ν^ε against ν^r of chat-only latents and as many shared ones."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from tunediff.latents.table import LatentTable
from tunediff.markup import per_cent
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "figures/fig2",
    __name__,
    title="ν^ε against ν^r of chat-only and shared latents",
    caption=(
        "Latent Scaling of every chat-only latent, ν^ε against ν^r, with as many shared latents drawn at random "
        "beside them. The dashed box is the criterion of chat-specific latents; the band is the central 95 % of "
        "ν^r of shared latents, and the share of chat-only latents inside it is below each panel. All numbers are "
        "fitted on train tokens; the legend counts the latents."
    ),
    reads=("latents",),
    by_norm=True,
)

RANGE = (-0.2, 1.6)  # of both axes
TICKS = (0, 0.5, 1, 1.5)
BINS = 50
SHARED_WITHOUT_CHAT_ONLY = 200  # shared latents drawn when there is no chat-only one to compare with


class SharedInterval(NamedTuple):
    """Where chat-only latents lie against the shared ones."""

    low: float  # 2.5 % quantile of ν^r over shared latents
    high: float  # 97.5 % quantile
    share: float  # of the chat-only latents with ν^r, inside the interval; NaN if there is none


def shared_interval(latents: pd.DataFrame) -> SharedInterval:
    """Return the central 95 % interval of ν^r over shared latents and the share of chat-only latents within it."""
    nu = latents["nu_reconstruction"].astype(np.float64)
    finite = np.isfinite(nu)
    shared = nu[finite & (latents["class_name"] == "shared")]
    chat_only = nu[finite & (latents["class_name"] == "chat-only")]
    if shared.empty:
        return SharedInterval(np.nan, np.nan, np.nan)
    low, high = (float(bound) for bound in np.quantile(shared, [0.025, 0.975]))
    share = float(chat_only.between(low, high).mean()) if len(chat_only) else np.nan
    return SharedInterval(low, high, share)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Draw ν^ε (x) against ν^r (y), one panel per crosscoder, with marginal histograms (paper, figure 2).

    The numbers have one row per point (`item` = point), per histogram bin and per summary value; the run's seed
    draws the random sample of shared latents.
    """
    shown = look.selected(results.with_norms)
    look.one_criterion(shown)
    return look.each_crosscoder(shown, partial(_panel, style=style, seed=results.seed), 4.1, style)


def _panel(
    panel: SubFigure, label: str, latents: LatentTable, width: float, style: look.Style, seed: int
) -> list[pd.DataFrame]:
    table, criterion = latents.frame, latents.criterion
    finite = np.isfinite(table["nu_error"]) & np.isfinite(table["nu_reconstruction"])
    chat_only = table[finite & (table["class_name"] == "chat-only")]
    shared = table[finite & (table["class_name"] == "shared")]
    wanted = len(chat_only) or SHARED_WITHOUT_CHAT_ONLY
    sample = shared.sample(min(wanted, len(shared)), random_state=seed).sort_values("latent")
    interval = shared_interval(table)
    specific = int(chat_only["chat_specific"].sum())
    n_chat_only = int((table["class_name"] == "chat-only").sum())

    axes = panel.subplots(2, 2, width_ratios=(4, 1), height_ratios=(1, 4))
    joint, top, right = axes[1, 0], axes[0, 0], axes[1, 1]
    axes[0, 1].axis("off")
    edges = np.linspace(*RANGE, BINS + 1)
    pieces = []
    outside = {}
    for group, colour, marker in ((sample, look.ORANGE, "s"), (chat_only, look.BLUE, "o")):
        class_name = "chat-only" if group is chat_only else "shared"
        x, y = group["nu_error"].to_numpy(np.float64), group["nu_reconstruction"].to_numpy(np.float64)
        edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.25}
        joint.scatter(x, y, s=7, marker=marker, facecolor=colour, alpha=0.75, rasterized=True, **edge)
        outside[class_name] = int(((x < RANGE[0]) | (x > RANGE[1]) | (y < RANGE[0]) | (y > RANGE[1])).sum())
        for name, values, marginal in (("nu_error", x, top), ("nu_reconstruction", y, right)):
            heights = look.counts(values, edges)
            look.steps(marginal, heights, edges, colour, horizontal=marginal is right)
            pieces.append(look.histogram_rows(heights, edges, item=f"histogram_{name}", class_name=class_name))
        pieces.append(group[["class_name", "latent", "nu_error", "nu_reconstruction"]].assign(item="point"))

    if np.isfinite(interval.low):
        joint.axhspan(interval.low, interval.high, color=look.ORANGE, alpha=0.13, linewidth=0, zorder=0)
    dashed: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8}
    low, below = criterion.lowest, (criterion.nu_error_below, criterion.nu_reconstruction_below)
    sides = below[0] - low, below[1] - low
    joint.add_patch(Rectangle((low, low), *sides, fill=False, edgecolor=look.DARK_GREY, zorder=1, **dashed))
    joint.set(xlim=RANGE, ylim=RANGE, xlabel=look.NU_ERROR, ylabel=look.NU_RECONSTRUCTION, xticks=TICKS, yticks=TICKS)
    top.set(xlim=RANGE, ylabel="latents", xticks=TICKS, xticklabels=[])
    right.set(ylim=RANGE, xlabel="latents", yticks=TICKS, yticklabels=[])
    for marginal, axis in ((top, top.yaxis), (right, right.xaxis)):
        axis.get_major_locator().set_params(nbins=2, integer=True)
        if not len(chat_only) and not len(sample):
            marginal.set(xticks=[], yticks=[])
    if chat_only.empty:
        points = sample["nu_reconstruction"]
        height = 0.12 if (points < 0.2).sum() <= (points > 1.2).sum() else 0.91  # where there are fewer
        said = f"no chat-only latent to draw\n({n_chat_only} chat-only, 0 of them with ν)"
        look.statement(joint, said, style, height)

    handles: list[Any] = [
        look.point("o", look.BLUE, f"chat-only (n = {len(chat_only):,}, {specific:,} chat-specific)"),
        look.point("s", look.ORANGE, f"shared, random (n = {len(sample):,} of {len(shared):,})"),
        Line2D([], [], color=look.DARK_GREY, label=look.rule_label(criterion), **dashed),
    ]
    if np.isfinite(interval.low):
        handles.append(Patch(color=look.ORANGE, alpha=0.25, label=f"95 % of shared {look.NU_RECONSTRUCTION}"))
    look.legend(panel, handles, look.display_name(label), columns=1)
    inside = f"Chat-only inside the shared 95 % interval of {look.NU_RECONSTRUCTION} "
    inside += f"[{interval.low:.2f}, {interval.high:.2f}]: ".replace("-", "−")
    inside += f"{per_cent(interval.share, 1)}." if len(chat_only) else "none to compare."
    if not np.isfinite(interval.low):
        inside = "No shared latent has ν, so there is no interval to compare with."
    left_out = f"Outside the axes: {outside['chat-only']} chat-only, {outside['shared']} shared."
    without = n_chat_only - len(chat_only)
    if without:
        left_out += f" Chat-only without ν: {without}."
    turned = int(chat_only["reversed"].sum())
    if turned:
        left_out += f" Reversed (a ν under {look.signed(criterion.lowest)}): {turned} of the chat-only."
    look.note(panel, f"{inside}\n{left_out}", style, width)

    summary = {
        "chat_only": n_chat_only,
        "chat_only_with_nu": len(chat_only),
        "shared_with_nu": len(shared),
        "shared_sample": len(sample),
        "chat_only_outside_axes": outside["chat-only"],
        "shared_outside_axes": outside["shared"],
        "shared_interval_low": interval.low,
        "shared_interval_high": interval.high,
        "chat_only_in_shared_interval": interval.share,
        "chat_only_reversed": turned,
        "chat_only_chat_specific": specific,
        **criterion.as_dict(),
    }
    pieces.append(pd.DataFrame({"item": list(summary), "value": list(summary.values())}))
    numbers = pd.concat([piece for piece in pieces if len(piece)], ignore_index=True)
    columns = ["item", "class_name", "latent", "nu_error", "nu_reconstruction", "low", "high", "count", "value"]
    return [numbers.reindex(columns=columns).astype({"latent": "Int64", "count": "Int64"})]
