"""A run with examples whose texts are hostile, and the report of it."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import figure_tables
from example_tables import SOURCES, small_examples
from tunediff.latents.table import LatentTable
from tunediff.report.html.build import build_report
from tunediff.report.inputs import Inputs

VOCAB = 60
LINE = "x" * 1_000_000
HOSTILE = (  # pieces of the first token ids
    "<script>document.title='broken'</script>",
    "</script><script>alert(1)</script>",
    "<!--",
    "<img src=x onerror=alert(1)>",
    "\"'`&amp;",
    "\u202eevil\u202c",
    "\u2028\u2029",
    "\n\n",
    "\x00\x1b[31m",
    LINE,
)
SHOWN = (  # … as the page shows them
    *HOSTILE[:5],
    r"\u202eevil\u202c",
    r"\u2028\u2029",
    "↵↵",
    r"\x00\x1b[31m",
    "x" * 400 + " … (1,000,000 characters)",
)


def decode(ids: Sequence[int]) -> list[str]:
    """Return the text of each token id."""
    return [HOSTILE[i] if i < len(HOSTILE) else f" word{i}" for i in ids]


def tables(size: int) -> dict[str, LatentTable]:
    """Return the latent tables of two dictionaries of `size` latents, with a maximum as `example_tables` has it."""
    few = (0.008, 0.74, 0.002, 0.13, 0.12)
    found = {
        figure_tables.LABELS[0]: figure_tables.latent_table(0, size=size),
        figure_tables.LABELS[1]: figure_tables.latent_table(1, few, size=size),
    }
    for table in found.values():
        table.frame["max_activation"] = (np.arange(size) + 1).astype(np.float32)
    return found


def run_with_examples(folder: Path, size: int = 64, documents: int = 40, length: int = 90, **found: Any) -> Inputs:
    """Return a run of two dictionaries whose live latents have examples on documents of `length` random tokens.

    `found` replaces what `figure_tables.all_results` has; None leaves it out.
    """
    ids = np.random.default_rng(0).integers(0, VOCAB, documents * length).astype(np.int32)
    tokens = SimpleNamespace(token_id=ids, n_tokens=len(ids), sources=list(SOURCES))
    latents = tables(size)
    examples = {
        name: small_examples(
            folder / "examples" / name,
            np.flatnonzero(~table.frame["dead"]).tolist(),
            [length] * documents,
            vocab=VOCAB,
            seed=i,
        )
        for i, (name, table) in enumerate(latents.items())
    }
    budgets = {"train": {"web": 1000, "chat": 2000}, "validation": {"web": 300, "chat": 600}}
    models = {"base": "org/base", "chat": "org/chat", "layer": 3}
    run = Inputs({}, {**figure_tables.CONFIG, "models": models, "results": str(folder), "tokens": {"budgets": budgets}})
    own = figure_tables.all_results() | {"latents": latents, "examples": examples, "tokens": tokens} | found
    vars(run).update({name: value for name, value in own.items() if value is not None})
    return run


def built(folder: Path, **arguments: Any) -> Path:
    """Build the report of `run_with_examples` below `folder`; return it."""
    build_report(run_with_examples(folder, **arguments), folder / "report", decode)
    return folder / "report"
