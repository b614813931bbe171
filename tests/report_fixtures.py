"""A run with examples whose texts are hostile, and the report of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

import figure_tables
from example_tables import SOURCES, small_examples
from tunediff.explanations import contexts
from tunediff.explanations.scores import build_scores
from tunediff.explanations.tables import EXPLANATIONS, JUDGEMENTS, Explanations
from tunediff.latents.examples import Examples
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


EXPLAINED = 6  # latents of the first dictionary, the first of its ranking
SAID = f'"{HOSTILE[0]}" in an answer or "{HOSTILE[1]}" after " word11"'
LEXICAL = f"{SAID} (60 % of the texts in which it is active, 7 % of others)"
SENTENCE = f"{HOSTILE[3]} and {HOSTILE[5]}, where the answer begins"


def explanations(latents: Sequence[int], examples: Examples) -> tuple[Explanations, pd.DataFrame]:
    """Return explanations of ranked latents and of five random directions, and how their windows were judged.

    All have a lexical explanation. A language model explains the first and refuses the second; the first has controls;
    the last has too few windows to be scored. Rules are wrong in every fourth window, from its number on: by a p of
    number / 100, or of 1 − number / 100 in silent ones. The model is wrong in every fifth window, from the second on,
    in the mean over its orders alone; of its last window no reply could be read.
    """
    first, second, *_, last = latents
    rows = pd.concat([examples.of("windows", latent) for latent in sorted(latents)], ignore_index=True)
    windows = contexts.contexts(rows, dict.fromkeys(latents, contexts.RANKED), 0)
    random = windows[windows["latent"].isin(latents[:-1])].assign(group=contexts.RANDOM)
    lacking = (windows["latent"] == last) & (windows["use"] == contexts.EXPLAIN) & (windows["number"] > 1)
    windows = pd.concat([windows[~lacking], random], ignore_index=True)
    rule = json.dumps({"clauses": [["role", 0, 1, 0.5]]})
    made = [("ranked", latent, "lexical", latent, LEXICAL, rule, "ok") for latent in latents]
    made += [
        ("ranked", first, "llm", first, SENTENCE, "", "ok"),
        ("ranked", second, "llm", second, "", "", "refused"),
        ("ranked", first, "lexical of another", second, LEXICAL, rule, "ok"),
        ("ranked", first, "generic", first, "any text", rule, "ok"),
        *(("random", latent, "lexical", latent, "a rule", rule, "ok") for latent in latents[:-1]),
    ]
    facts = {"settings": {"model": "tiny"}}
    own = Explanations(Path("unused"), facts, windows, pd.DataFrame(made, columns=EXPLANATIONS.names))
    judged: list[tuple[Any, ...]] = []
    for group, latent, explainer, *_, text, _, status in made:
        scored = own.scored_on.get((group, latent))
        if scored is None or status != "ok":
            continue
        for number, fires in zip(scored["number"].tolist(), contexts.fires(scored).tolist(), strict=True):
            right = float(fires)
            if text == SENTENCE:
                lacks = number == len(scored) - 1
                wrong = (0.4 + 0.2 * right, 0.9 - 0.8 * right)  # 0.6 and 0.1 where it fires, 0.4 and 0.9 elsewhere
                for rotation, p in enumerate(wrong if number % 5 == 1 else (right, right)):
                    said = (np.nan, "unreadable reply") if lacks else (p, "ok")
                    judged.append((group, latent, explainer, "llm", number, rotation, rotation, *said))
            else:
                p = number / 100 if fires else 1 - number / 100
                p = p if number % 4 == 0 else 0.9 * right
                judged.append((group, latent, explainer, "rule", number, 0, 0, p, "ok"))
    return own, pd.DataFrame(judged, columns=JUDGEMENTS.names)


def run_with_examples(folder: Path, size: int = 64, documents: int = 40, length: int = 90, **found: Any) -> Inputs:
    """Return a run of two dictionaries whose live latents have examples on documents of `length` random tokens.

    `found` replaces what `figure_tables.all_results` has; None leaves it out.
    """
    ids = np.random.default_rng(0).integers(0, VOCAB, documents * length).astype(np.int32)
    of_source = np.arange(documents) % len(SOURCES)
    tokens = SimpleNamespace(token_id=ids, n_tokens=len(ids), sources=list(SOURCES), doc_source=of_source)
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
    own = figure_tables.all_results() | {"latents": latents, "examples": examples, "tokens": tokens}
    own |= explained(folder, latents, examples) | found
    vars(run).update({name: value for name, value in own.items() if value is not None})
    return run


def explained(folder: Path, latents: dict[str, LatentTable], examples: dict[str, Examples]) -> dict[str, Any]:
    """Return the explanations of the first dictionary alone, and their scores."""
    name, table = next(iter(latents.items()))
    ranked = table.first(EXPLAINED)["latent"].tolist()
    if len(ranked) < EXPLAINED:
        return dict.fromkeys(("explanations", "judgements", "explanation_scores", "explanation_means"))
    own, judgements = explanations(ranked, examples[name])
    out = folder / "explanation_scores/scores.parquet"
    rows, means = build_scores({name: own}, {name: judgements}, {name: table}, out, key="k")
    of = {"explanations": {name: own}, "judgements": {name: judgements}}
    return of | {"explanation_scores": rows, "explanation_means": means}


def built(folder: Path, **arguments: Any) -> Path:
    """Build the report of `run_with_examples` below `folder`; return it."""
    build_report(run_with_examples(folder, **arguments), folder / "report", decode)
    return folder / "report"
