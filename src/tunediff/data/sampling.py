"""Sources to token stores: exact budgets per source, mixed in proportion."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunediff.data.corpora import Skipped, documents, labels
from tunediff.data.documents import Distinct, Document
from tunediff.data.masks import Mask
from tunediff.data.rendering import ChatRenderer, Encoding, RenderError, cut
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import building, provenance, seal
from tunediff.pipeline.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENISER_BATCH = 256  # documents per call of the tokenizer


class _Source:
    """Encodings of one source, one after the other, with a count of what was left out."""

    def __init__(self, stream: Iterator[Document], renderer: ChatRenderer, max_length: int) -> None:
        self.skipped = {"skipped_system": 0, "skipped_template": 0, "skipped_empty": 0, "skipped_copy": 0}
        self.is_chat: bool | None = None
        self.last_refusal = ""
        self.encodings = self._encode(stream, renderer, max_length)

    def _encode(self, stream: Iterator[Document], renderer: ChatRenderer, max_length: int) -> Iterator[Encoding]:
        distinct = Distinct()
        different = (document for document in stream if distinct.is_new(document.messages))
        while batch := list(islice(different, TOKENISER_BATCH)):
            self.skipped["skipped_copy"] = distinct.copies
            self.is_chat = batch[0].is_chat
            if any(document.is_chat != self.is_chat for document in batch):
                raise TunediffError(f"{batch[0].id}: plain texts and conversations are mixed; make them two sources")
            results: Sequence[Encoding | RenderError]
            results = renderer.chats(batch, max_length) if self.is_chat else renderer.texts(batch, max_length)
            for document, result in zip(batch, results, strict=True):
                if isinstance(result, RenderError):
                    system = any(message.role == "system" for message in document.messages)
                    self.skipped["skipped_system" if system else "skipped_template"] += 1
                    self.last_refusal = str(result)
                elif len(result.token_id) == 0:
                    self.skipped["skipped_empty"] += 1
                else:
                    yield result


def encode_budgets(
    streams: Mapping[str, Iterator[Document]],
    budgets: Mapping[str, int],
    renderer: ChatRenderer,
    max_length: int,
    description: str = "tokens",
    bad: Mapping[str, Skipped] | None = None,
) -> tuple[list[Encoding], list[int], dict[str, Any]]:
    """Encode documents until each source has exactly its budget of tokens, sources mixed in proportion.

    `bad` counts the bad rows of each source. Returns the encodings in order, the number of the source of each, and
    facts (documents and skips per source).
    `TunediffError`: a source has fewer tokens than its budget.
    """
    names = list(streams)
    sources = [_Source(streams[name], renderer, max_length) for name in names]
    done = [0] * len(names)

    def left_out(i: int) -> dict[str, int]:
        rows = bad[names[i]].bad if bad else 0
        return {**sources[i].skipped, **({"skipped_bad": rows} if rows else {})}

    encodings: list[Encoding] = []
    doc_source: list[int] = []
    total = sum(budgets[name] for name in names)
    with Progress(total, description, "tok") as bar:
        while sum(done) < total:
            # The source that is furthest behind its share comes next.
            unfinished = [i for i, name in enumerate(names) if done[i] < budgets[name]]
            i = min(unfinished, key=lambda i: done[i] / budgets[names[i]])
            budget, encoding = budgets[names[i]], next(sources[i].encodings, None)
            if encoding is None:
                skipped = ", ".join(f"{n} {kind}" for kind, n in left_out(i).items() if n)
                last = f"; last: {sources[i].last_refusal}" if sources[i].last_refusal else ""
                raise TunediffError(
                    f"source '{names[i]}' has only {done[i]} tokens, its budget is {budget}"
                    + (f" ({skipped}{last})" if skipped else "")
                    + "; lower the budget or give a larger source"
                )
            encodings.append(cut(encoding, budget - done[i]))
            doc_source.append(i)
            done[i] += len(encodings[-1].token_id)
            bar.update(len(encodings[-1].token_id))
    facts = {}
    for i, name in enumerate(names):
        kind = "chat" if sources[i].is_chat else "text"
        facts[name] = {"tokens": done[i], "documents": doc_source.count(i), "kind": kind, **left_out(i)}
    return encodings, doc_source, facts


def tokenize_split(
    sources: Mapping[str, Mapping[str, Any]],
    budgets: Mapping[str, int],
    split: str,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    ignore_first_tokens: int,
    seed: int,
    out: Path,
    *,
    key: str,
) -> TokenStore:
    """Write the tokens of one split: exactly `budgets[name]` tokens of each source, documents mixed in proportion.

    Documents are cut to `max_length` tokens and not packed; the last of a source is cut to meet its budget. A copy of
    an earlier text of its source is left out and counted (`skipped_copy`), and so is a row that is no document
    (`skipped_bad`, where there are any; the first are printed). `TunediffError`: a source is too small or
    unreadable, or the tokenizer is slow or has no chat template.
    """
    started = time.time()
    concepts = labels(sources.values()).concepts
    wanted = {name: source for name, source in sources.items() if budgets.get(name, 0) > 0}
    renderer = ChatRenderer(tokenizer, concepts, ignore_first_tokens)
    bad = {name: Skipped() for name in wanted}
    encodings, doc_source, per_source = encode_budgets(
        {name: documents(source, split, seed, skipped=bad[name]) for name, source in wanted.items()},
        budgets,
        renderer,
        max_length,
        f"tokens {split}",
        bad,
    )
    for name, skipped in bad.items():
        for line in skipped.lines(f"tokens.sources.{name}"):
            print(line, file=sys.stderr)
    attributes = {
        "sources": list(wanted),
        "kinds": [per_source[name]["kind"] for name in wanted],
        "concepts": concepts,
        "split": split,
        "seed": seed,
        "max_length": max_length,
        "ignore_first_tokens": ignore_first_tokens,
    }
    return write_store(out, encodings, doc_source, attributes, per_source, key, started)


def write_store(
    out: Path,
    encodings: Sequence[Encoding],
    doc_source: Sequence[int],
    attributes: Mapping[str, Any],
    facts: Mapping[str, Any],
    key: str,
    started: float,
    device: str = "cpu",
) -> TokenStore:
    """Build and seal a token store; `facts` (by source) go to the manifest."""
    with building(out) as partial:
        TokenStore.create(partial, encodings, doc_source, attributes)
    counts = {bit.name: int(sum(np.count_nonzero(e.mask & np.uint8(bit)) for e in encodings)) for bit in Mask}
    n_tokens = int(sum(len(e.token_id) for e in encodings))
    seal(
        out,
        "tokens",
        key,
        {**attributes, "n_tokens": n_tokens, "n_documents": len(encodings), "masks": counts, "by_source": dict(facts)},
        provenance(started, device),
    )
    return TokenStore.open(out)
