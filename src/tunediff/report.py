"""Five lines on what a run shows, from its tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tunediff.artifacts import write_text
from tunediff.documents import ANSWER_ONSET, ONSET


def _percent(row: Mapping[Any, Any]) -> str:
    return f"{-100 * row['reduction']:+.0f} % [{-100 * row['reduction_high']:+.0f}, {-100 * row['reduction_low']:+.0f}]"


def _metric(metrics: Sequence[Mapping], metric: str, model: str) -> float:
    return next(m["value"] for m in metrics if (m["metric"], m["model"], m["subset"]) == (metric, model, "all"))


def summary(
    kl: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    metrics: Mapping[str, Sequence[Mapping]],
    concepts: pd.DataFrame,
    figures: Path,
) -> str:
    """Return where the figures are and what they show.

    `kl` is causal/summary.parquet; `tables` and `metrics` (latent table, list of held-out metrics) are per crosscoder;
    `concepts` is concepts.parquet.
    """
    rows = kl[kl["positions"] == "all"].to_dict("records")
    every = {(row["crosscoder"], row["intervention"]): row for row in rows}
    none, template = every["", "none"], every["", "template"]
    edits, halves, quality, counts, found = [], [], [], [], []
    for name, table in tables.items():
        edits.append(f"{name} {_percent(every[name, 'all'])}")
        best, worst = (every[name, f"latent_scaling_{half}"] for half in ("best", "worst"))
        halves.append(f"{name} {_percent(best)} against {_percent(worst)}")
        fve = [_metric(metrics[name], "fve", model) for model in ("base", "chat")]
        l0 = _metric(metrics[name], "l0", "both")
        quality.append(f"{name} FVE {fve[0]:.3f} (base) {fve[1]:.3f} (chat), L0 {l0:.1f}")
        chat_only = table[table["class_name"] == "chat-only"]
        decoupled = int((chat_only["nu_reconstruction"] >= 0.5).sum())
        counts.append(
            f"{name} {len(chat_only)} chat-only by Δnorm ({decoupled} of them with ν^r ≥ 0.5), "
            f"{int(table['chat_specific'].sum())} chat-specific by ν"
        )
        own = concepts[(concepts["crosscoder"] == name) & (concepts["pool"] == "chat-specific") & concepts["planted"]]
        onsets = own[own["concept"].str.endswith(ONSET) & (own["concept"] != ANSWER_ONSET)]
        if len(onsets):
            good = onsets[(onsets["auroc"] >= 0.9) & (onsets["auroc_among_onsets"] >= 0.9)]
            names = ", ".join(sorted(good["concept"].str.removesuffix(ONSET))) or "none"
            found.append(f"{name} {len(good)} of {len(onsets)} ({names})")
    lines = [
        f"KL to the chat model: base activation {none['mean']:.3f} nats, template tokens restored "
        f"{template['mean']:.3f}; all latents' differences added: {'; '.join(edits)}.",
        f"Best against worst half of the effective chat-only latents by Latent Scaling: {'; '.join(halves)}.",
        f"Held-out quality: {'; '.join(quality)}.",
        f"Latents: {'; '.join(counts)}.",
        "Planted chat concepts whose onset one chat-specific latent detects, with AUROC ≥ 0.9 among all validation "
        f"tokens and among the onsets of all answers: {'; '.join(found)}."
        if found
        else "The corpora carry no concept labels, so no concept was scored.",
    ]
    return "\n".join(
        [f"Figures: {figures}/fig4.pdf and beside it", *(f"{i}. {line}" for i, line in enumerate(lines, 1))]
    )


def write_summary(
    kl: Path, tables: Mapping[str, Path], metrics: Mapping[str, Path], concepts: Path, figures: Path, out: Path
) -> None:
    """Read the tables and write the lines at `out`."""
    text = summary(
        pd.read_parquet(kl),
        {name: pd.read_parquet(path) for name, path in tables.items()},
        {name: json.loads(path.read_text(encoding="utf-8"))["metrics"] for name, path in metrics.items()},
        pd.read_parquet(concepts),
        figures,
    )
    write_text(out, text + "\n")
