"""What changed, in ten lines: what a run prints at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunediff.report import style as look
from tunediff.report.html import overview
from tunediff.report.inputs import Inputs

LINES = 10
BEFORE, AFTER = 7, 3  # tokens of a snippet around its peak
SNIPPET = 56  # characters of it, at most
PEAK = "⟦{}⟧"


def headline(run: Inputs, first: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the first latents of each kind of dictionary with texts they fire on, and how sure they are.

    `first` holds the first of the ranking per dictionary, as `overview.first_latents` returns them.
    """
    found = {row["name"]: row for row in overview.found(run)}
    names = list(look.selected(run.latents))
    each = max(1, (LINES - 2 - len(names)) // len(names))
    pair = overview.pair_text(run)
    lines = [f"What tuning changed, {pair['base']} → {pair['chat']} {pair['where']}:"]
    for name in names:
        judged = found[name]["judged"]
        lines += [_counts(found[name]), *(_latent(i, row, judged) for i, row in enumerate(first[name][:each], 1))]
    return "\n".join([*lines, f"Read on: {run.folder}/report/index.html (in a browser)"])


def _counts(row: Mapping[str, Any]) -> str:
    if not row["judged"]:
        return f"{row['name']}: of the difference alone; median ν^act {row['median_nu_activation']}"
    controls = "; ".join(f"{each['passing']} of {each['of']} pass {each['name']}" for each in row["controls"])
    nulls = ", ".join(f"{each['name']} {each['called']} ({each['bound']})" for each in row["nulls"])
    return (
        f"{row['name']}: {row['called']} of {row['live']} live latents are chat-specific, {row['confirmed']} "
        f"confirmed; controls: {controls}; nulls: {nulls or 'not run'}"
    )


def _latent(place: int, row: Mapping[str, Any], judged: bool) -> str:
    fires = f"fires on {row['label']}" if row["label"] else "fires on no token in particular"
    if judged:
        sure = "not chat-specific" if row["verdict"] == "no" else row["verdict"]
        sure = f"ν^r {row['nu_r']}, ν^ε {row['nu_e']}, {sure}"
    else:
        sure = f"ν^act {row['nu_a']}".replace("-", "−")
    texts = " | ".join(map(_snippet, row["snippets"]))
    return f"  {place}. {row['latent']} {fires} ({sure}): {texts}"


def _snippet(shown: Mapping[str, Any]) -> str:
    """Return what is around a peak, cut at words from the left."""
    peak, text = shown["peak"], shown["text"]
    before, after = "".join(text[max(0, peak - BEFORE) : peak]), "".join(text[peak + 1 : peak + 1 + AFTER])
    word = text[peak]
    space = word[: len(word) - len(word.lstrip())]
    marked = space + PEAK.format(word.strip()[:SNIPPET] or "␣")
    room = max(0, SNIPPET - len(marked) - len(after[:SNIPPET]))
    if len(before) > room:
        before = "…" + before[len(before) - room :].partition(" ")[2]
    return f"“{(before + marked + after[:SNIPPET]).strip()}”"
