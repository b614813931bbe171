"""The list of contents of a run: one line per figure and table."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tunediff.pipeline.artifacts import file_sha256, write_text

CONTENTS = {
    "figures/fig2": "ν^ε against ν^r of chat-only and shared latents",
    "figures/fig3": "Δnorm per class; latents under ν thresholds",
    "figures/fig4": "KL to the chat model per intervention",
    "figures/fig4b": "KL reduction against edit energy per ranking; paired differences at equal energy",
    "figures/template": "ν of chat-only latents that fire on template tokens; their template shares",
    "figures/cosine": "cosine of the two decoder directions per class; rank_sum against Δnorm",
    "figures/twins": "activation divergence of chat-only and base-only latents of the same direction",
    "figures/frequency": "how often the latents of each class fire",
    "figures/detection": "labelled chat concepts and the chat-specific latent for each",
    "figures/training": "loss, FVE, L0 and dead latents during training",
    "tables/table1": "counts per class, chat-specific latents and their controls, FVE, L0, dead",
    "tables/ranking": "the twenty latents most specific to the chat model",
    "tables/published": "the paper's numbers beside ours",
    "tables/seeds": "mean and range over training seeds; stable latents",
}


def contents(numbers: Sequence[Path]) -> str:
    """Return one line per figure or table, given the CSVs of their numbers: files, content, rows, digest of the rows.

    A line changes exactly when the numbers do.
    """
    lines = []
    for path in numbers:
        name = f"{path.parent.name}/{path.stem}"
        rows = len(pd.read_csv(path))
        about = CONTENTS.get(name, path.stem)
        lines.append(f"{name}.pdf .png .csv | {about} | {rows:,} rows, sha256 {file_sha256(path)[:12]}")
    return "\n".join(lines) + "\n"


def write_contents(numbers: Sequence[Path], out: Path) -> None:
    """Write the list of contents at `out`."""
    write_text(out, contents(numbers))
