"""Explanations of a dictionary's latents, made: lexical, by labels, by a language model, and the controls.

An artifact (kind `explanations`) is a folder of two tables: `windows` (`contexts.WINDOWS`) and `explanations`
(`EXPLANATIONS`), one row per latent and explainer. Nothing here asks a language model by itself: `answered` is given.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tunediff.config.settings import ExplanationSettings
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.explanations import contexts
from tunediff.explanations.contexts import (
    EXPLAIN,
    LISTED,
    RANDOM,
    RANKED,
    SUBJECT,
    UNTRAINED,
    Context,
    each,
)
from tunediff.explanations.lexical import FIRES_FROM, Clause, Corpus, Rule, Spans, applied, find_rule
from tunediff.explanations.prompts import explain_request, marked, read_explanation
from tunediff.explanations.tables import (
    EXPLANATIONS,
    GENERIC,
    KIND,
    LABEL,
    LEXICAL,
    LLM,
    NO_REPLY,
    NO_RULE,
    OK,
    OTHER,
    REFUSED,
    UNREADABLE,
    Explanations,
    Row,
)
from tunediff.latents.examples import Examples
from tunediff.latents.table import LatentTable
from tunediff.markup import per_cent
from tunediff.models.tokenizers import Pieces
from tunediff.pipeline.artifacts import building, provenance, seal
from tunediff.pipeline.progress import tracked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunediff.explanations.asking import Reply, Request

GENERIC_TEXT = "any text"
LEAST_LABEL = 0.7  # of a label's share of the windows to explain from, less its share of other texts
Answered = Callable[[Sequence["Request"]], Mapping[str, "Reply"]]  # replies by digest; those that are missing: budget


@dataclass
class Reader:
    """Reads what is in windows: tokens, masks, labels, texts."""

    tokens: TokenStore
    tokenizer: "PreTrainedTokenizerBase"

    @cached_property
    def pieces(self) -> Pieces:
        """The text of each token."""
        return Pieces(self.tokenizer)

    def piece(self, token_id: int) -> str:
        """Return the text of a token."""
        return self.pieces([token_id])[0]

    def spans(self, windows: pd.DataFrame) -> Spans:
        """Return the tokens of some windows."""
        return Spans.of(self.tokens, windows["start"].to_numpy(np.int64), lengths(windows))

    def texts(self, window: Context) -> list[str]:
        """Return the text of each token of a window."""
        return self.pieces(self.tokens.token_id[window.start : window.stop])


def lengths(windows: pd.DataFrame) -> NDArray[np.int64]:
    """Return the tokens of each window."""
    return windows["activation"].map(len).to_numpy(np.int64)


def activations(windows: pd.DataFrame) -> NDArray[np.float32]:
    """Return the activation of every token, one window after another."""
    return np.concatenate(windows["activation"].to_list())


@dataclass
class Labels:
    """The labelled concepts as explanations: the best that a rule can say, where texts are generated."""

    names: Sequence[str]
    rates: NDArray[np.float64]  # share of windows of other texts that hold each

    @classmethod
    def of(cls, tokens: TokenStore, corpus: Corpus) -> "Labels":
        """Count the labels in the windows of a corpus."""
        names = tokens.concepts
        return cls(names, np.array([labelled(corpus.spans, i).mean() for i in range(len(names))]))

    def best(self, spans: Spans, activation: NDArray[np.floating]) -> int | None:
        """Return the concept that most sets apart the tokens a latent fires on; None where none does."""
        if not self.names:
            return None
        firing = activation >= FIRES_FROM * activation.max()
        own = spans._replace(label=np.where(firing, spans.label, np.uint64(0)))
        gain = np.array([labelled(own, i).mean() for i in range(len(self.names))]) - self.rates
        best = int(gain.argmax())
        return best if gain[best] >= LEAST_LABEL else None


def labelled(spans: Spans, label: int) -> NDArray[np.bool_]:
    """Return in which windows a token has a label."""
    return spans.held(spans.label >> np.uint64(label) & np.uint64(1) != 0)


def rule_json(rule: Rule) -> str:
    """Return the clauses of a rule as they are kept."""
    return json.dumps({"clauses": [[*clause[:3], round(clause.weight, 4)] for clause in rule.clauses]})


def rule_text(rule: Rule, piece: Callable[[int], str]) -> str:
    """Return a rule in words."""
    clauses = " or ".join(clause.text(piece) for clause in rule.clauses)
    return (
        f"{clauses} ({per_cent(rule.found)} of the texts in which it is active, {per_cent(rule.elsewhere)} of others)"
    )


def detects(rule: str, spans: Spans) -> NDArray[np.float64]:
    """Return how sure a kept rule is that a latent fires in each window: above 0.5 yes, 0 no."""
    found = json.loads(rule)
    if "label" in found:
        return labelled(spans, found["label"]).astype(np.float64)
    if "always" in found:
        return np.ones(spans.n_windows)
    return applied([Clause(*clause) for clause in found["clauses"]], spans)


def matched(subjects: Sequence[int], frequency: Mapping[int, float]) -> dict[int, int]:
    """Return for each latent the one of the nearest frequency among the others."""
    order = sorted(subjects, key=lambda latent: (frequency[latent], latent))
    result = {}
    for place, latent in enumerate(order):
        near = [order[other] for other in (place - 1, place + 1) if 0 <= other < len(order)]
        if near:
            result[latent] = min(near, key=lambda other: (abs(frequency[other] - frequency[latent]), other))
    return result


def without_model(
    group: str, latent: int, windows: pd.DataFrame, reader: Reader, corpus: Corpus, labels: Labels
) -> list[Row]:
    """Return the lexical explanation of a latent and the label that fits it, given the windows to explain from."""
    spans, activation = reader.spans(windows), activations(windows)
    rule = find_rule(spans, activation, corpus)
    text = rule_text(rule, reader.piece) if rule.clauses else "no token sets its texts apart"
    rows = [Row(group, latent, LEXICAL, latent, text, rule_json(rule), OK if rule.clauses else NO_RULE)]
    label = labels.best(spans, activation)
    if label is not None:
        rows.append(Row(group, latent, LABEL, latent, labels.names[label], json.dumps({"label": label}), OK))
    return rows


def request_for(windows: pd.DataFrame, reader: Reader, model: str, seed: int) -> "Request":
    """Return the request to explain a latent, given the windows to explain from."""
    least = FIRES_FROM * max(float(np.max(activation)) for activation in windows["activation"])
    texts = [marked(reader.texts(window), (window.activation >= least).tolist()) for window in each(windows)]
    return explain_request(model, seed, texts)


def from_model(
    windows: Mapping[tuple[str, int], pd.DataFrame], reader: Reader, model: str, seed: int, answered: Answered
) -> list[Row]:
    """Return what a language model says of latents, given the windows to explain each from."""
    requests = {subject: request_for(own, reader, model, seed) for subject, own in windows.items()}
    replies, result = answered(list(requests.values())), []
    for (group, latent), request in requests.items():
        reply, text, status = replies.get(request.digest), "", NO_REPLY
        if reply is not None:
            text = read_explanation(reply)
            status = OK if text else REFUSED if reply.refused else UNREADABLE
        result.append(Row(group, latent, LLM, latent, text, "", status))
    return result


def controls(rows: Sequence[Row], drawn: Sequence[int], frequency: Mapping[int, float]) -> list[Row]:
    """Return the controls of some ranked latents: the explanation of another of near frequency, and a generic one."""
    own = {(row.latent, row.explainer): row for row in rows if row.group in (RANKED, LISTED) and row.status == OK}
    result = []
    for explainer in (LEXICAL, LABEL, LLM):
        having = [latent for latent, name in own if name == explainer]
        other = matched(having, frequency)
        for latent in drawn:
            if latent in other:
                row, group = own[other[latent], explainer], own[latent, explainer].group
                result.append(Row(group, latent, explainer + OTHER, row.latent, row.text, row.rule, OK))
    groups = {row.latent: row.group for row in rows if row.group in (RANKED, LISTED)}
    generic = [(groups[latent], latent) for latent in drawn if latent in groups]
    rule = json.dumps({"always": True})
    return result + [Row(group, latent, GENERIC, latent, GENERIC_TEXT, rule, OK) for group, latent in generic]


def drawn_for_controls(group_of: Mapping[int, str], n: int, seed: int) -> list[int]:
    """Return the latents that controls are made for: ranked (or listed) ones, at random, sorted."""
    pool = sorted(latent for latent, group in group_of.items() if group in (RANKED, LISTED))
    return sorted(np.random.default_rng([seed, 3]).permutation(pool)[:n].astype(int).tolist())


def build_explanations(
    table: LatentTable,
    examples: Examples,
    tokens: Mapping[str, TokenStore],
    tokenizer: "PreTrainedTokenizerBase",
    direction_windows: Callable[[NDArray[np.floating]], Mapping[str, pd.DataFrame]],
    settings: ExplanationSettings,
    out: Path,
    *,
    key: str,
    model: str = "",
    answered: Answered | None = None,
    device: str = "cpu",
) -> Explanations:
    """Explain the chosen latents of a dictionary and the controls; write them at `out`, a folder (kind `explanations`).

    `tokens` are the stores of both splits: windows are of validation texts, rates of other texts are of train texts.
    `direction_windows` returns the windows of random directions of some frequencies (`controls.control_windows`). With
    `answered`, which asks the language model `model`, its explanations are made too.
    """
    started, name = time.time(), out.name
    only = list(settings.only.get(name, ())) if settings.only else None
    outside = [latent for latent in only or [] if not 0 <= latent < len(table)]
    if outside:
        raise TunediffError(
            f"explanations.only.{name}: no latent {outside[0]}; give numbers from 0 to {len(table) - 1}"
        )
    group_of = contexts.chosen(table, settings.latents, settings.shared, only, settings.seed)
    drawn = drawn_for_controls(group_of, settings.controls, settings.seed)
    frequency = dict(zip(table.frame["latent"].tolist(), table.frame["frequency"].tolist(), strict=True))
    parts = [contexts.of_latents(examples, group_of, settings.seed)] if group_of else []
    if drawn:
        of_directions = direction_windows(np.array([frequency[latent] for latent in drawn]))
        for group in (RANDOM, UNTRAINED):
            rows = of_directions[group].assign(latent=lambda frame: np.array(drawn)[frame["latent"]])
            parts.append(contexts.contexts(rows, dict.fromkeys(drawn, group), settings.seed))
    empty = pd.DataFrame(columns=contexts.WINDOWS.names)
    windows = pd.concat(parts, ignore_index=True) if parts else empty

    corpus = Corpus(tokens["train"], settings.context, settings.seed)
    labels, reader = Labels.of(tokens["train"], corpus), Reader(tokens["validation"], tokenizer)
    wanted = [(group, latent) for latent, group in group_of.items()]
    wanted += [(group, latent) for group in (RANDOM, UNTRAINED) for latent in drawn]
    explained = windows[windows["use"] == EXPLAIN].groupby(SUBJECT)
    present = {subject: explained.get_group(subject) for subject in wanted if subject in explained.groups}
    made: list[Row] = []
    for subject, own in tracked(present.items(), f"{name} rules", "latent", len(present)):
        made += without_model(*subject, own, reader, corpus, labels)
    if answered is not None:
        made += from_model(present, reader, model, settings.seed, answered)
    made += controls(made, drawn, frequency)
    unseen = [Row(*subject, LEXICAL, subject[1], "", "", "no windows") for subject in wanted if subject not in present]
    place = {subject: number for number, subject in enumerate(wanted)}
    made = sorted(made + unseen, key=lambda row: place[row.group, row.latent])  # stable: explainers as they were made

    facts = {
        "settings": asdict(settings) | {"model": model},
        "concepts": list(labels.names),
        "latents": {group: sum(of == group for of in group_of.values()) for group in sorted(set(group_of.values()))},
        "controls": drawn,
        "corpus_windows": corpus.n_windows,
        "explained": {
            explainer: sum(row.explainer == explainer and row.status == OK for row in made)
            for explainer in sorted({row.explainer for row in made})
        },
        "explain": f"every second strongest window, what bands have left; tokens from {FIRES_FROM} of the maximum on",
        "score": f"{contexts.PER_BAND} windows of a band and those of silence, whose documents are not among those",
    }
    columns = [pa.array([row[i] for row in made], field.type) for i, field in enumerate(EXPLANATIONS)]
    with building(out) as partial:
        partial.mkdir()
        pq.write_table(contexts.as_table(windows), partial / "windows.parquet", compression="zstd")
        pq.write_table(pa.Table.from_arrays(columns, schema=EXPLANATIONS), partial / "explanations.parquet")
    seal(out, KIND, key, facts, provenance(started, device))
    return Explanations.open(out, key=key)
