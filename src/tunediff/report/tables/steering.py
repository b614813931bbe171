"""Steering: what happens to answers while the direction of a latent is added, beside directions of the same norm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tunediff.interventions.steering_table import verdicts
from tunediff.markup import per_cent
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.layout import ruled, typeset
from tunediff.report.registry import Drawing

DRAWING = Drawing(
    "tables/steering",
    __name__,
    title="Steering by the latents most specific to the chat model",
    caption=(
        "What the chat model answers while α times the largest activation of a latent times its chat direction is "
        "added to the residual stream. In parentheses: the mean over random directions of the same norm. A rate moves "
        "where its Wilson interval is apart from those of the unsteered answers and of every control of equal dose. "
        "Ablation subtracts the latent's own contribution where it fires."
    ),
    reads=("steering",),
)
HEADS = (
    *("", "dose, % of\nthe stream", "KL\n(random)", "loss\n(random)", "repeated\n(random)", "own logits\n(random)"),
    *("rate of\nits kind", "un-\nsteered", "controls", "", "ablation: KL\nfires | else | random"),
)


def draw(results: Inputs, style: look.Style) -> look.Drawn:
    """Typeset the first seed of each crosscoder; the numbers are `steering`, with every seed."""
    table = steering(results.steering)
    shown = look.selected({label: None for label in table["crosscoder"].unique()})
    parts = []
    for label in shown:
        part = [[look.display_name(label), *("" for _ in HEADS[1:])]]
        last = -1
        for row in table[table["crosscoder"] == label].to_dict("records"):
            part.append(_line(row, row["latent"] != last))
            last = row["latent"]
        parts.append(part)
    n = int(results.steering.loc[results.steering["arm"] == "unsteered", "n"].max())
    note = (
        f"{n} requests. Dose: norm of what is added over the mean norm of the residuals. KL(chat ‖ steered) on the "
        "unsteered answers, and loss of the steered answers under the unsteered model, in nats a token. Repeated: "
        "3-grams that the answer had before. Own logits: mean change of the latent's 15 highest direct logits over "
        "that of all. Rate of its kind: of the kind of answer in which the latent fires on other requests; brackets: "
        "Wilson's 95 % intervals; controls: outermost ends of the intervals of sign flip, base direction, a shared "
        "latent and random directions of equal dose. Ablation: KL where the latent fires, elsewhere in these "
        "conversations, and where it fires with a random direction. The CSV has every arm of every seed."
    )
    title = "Steering: the latents most specific to the chat model, added to its residuals"
    return look.Drawn(typeset(HEADS, *ruled(parts), title, note, style, first_width=1.75), table)


def steering(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `verdicts` with the KL of each latent's ablation: where it fires, elsewhere, and of a random direction."""
    table = verdicts(rows)
    ablated = rows[rows["arm"].str.startswith("ablation")]
    columns = {
        "ablation_firing": ("ablation", "firing"),
        "ablation_elsewhere": ("ablation", "elsewhere"),
        "ablation_random": ("ablation_random", "firing"),
    }
    for name, (arm, positions) in columns.items():
        one = ablated[(ablated["arm"] == arm) & (ablated["positions"] == positions)]
        values = one.set_index(["crosscoder", "latent"])["value"].rename(name)
        table = table.join(values, on=["crosscoder", "latent"])
    return table


def steered_name(row: Mapping[Any, Any]) -> str:
    """Return how a latent and its dose are printed."""
    where = "" if row["positions"] == "all" else ", prompt only"
    return f"{row['latent']}, α = {row['alpha']:g}{where}"


def _line(row: Mapping[Any, Any], first: bool) -> list[str]:
    def beside(name: str, form: str, scale: float = 1.0) -> str:
        both = (f"{scale * row[key]:{form}}".replace("-", "−") for key in (name, f"{name}_random"))
        return "{} ({})".format(*both)

    cells = [steered_name(row), f"{100 * row['dose_share']:.0f} %", beside("kl", ".2f"), beside("nll", ".2f")]
    cells += [f"{beside('repetition', '.0f', 100)} %", beside("logit_shift", "+.1f")]
    if row["kind"]:
        rate, low, high = (round(100 * row[name]) for name in ("rate", "low", "high"))
        ends = [round(100 * row[name]) for name in ("control_low", "control_high")]
        cells += [f"{row['kind'].replace('_', ' ')} {rate} [{low}, {high}] %", per_cent(row["unsteered"])]
        cells += [f"{ends[0]}–{ends[1]} %", row["moves"] or "–"]
    else:
        cells += ["of no kind", "", "", ""]
    ablated = [row[f"ablation_{name}"] for name in ("firing", "elsewhere", "random")]
    shown = first and np.isfinite(ablated).all()
    return [*cells, " | ".join(f"{value:.3f}" for value in ablated) if shown else ""]
