"""Tokens: every position of every document, with masks and labels made by one single tokenisation.

A conversation is rendered by the chat template, and that text is tokenised once; which characters are the template's
own is found by rendering the same turns with sentinels in place of their contents.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from jaxtyping import Bool, Int, UInt8
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from zarr.codecs import Crc32cCodec, ZstdCodec

from tunediff.data.corpora import concepts as source_concepts
from tunediff.data.corpora import documents
from tunediff.data.documents import ANSWER_ONSET, ONSET, Distinct, Document, Message
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import building, check, provenance, seal


class Mask(IntFlag):
    """What a token position is; several bits may be set."""

    BOS = 1  # the beginning-of-sequence token
    TEMPLATE = 2  # written by the chat template
    ASSISTANT = 4  # content and end-of-turn token of an assistant turn
    USER = 8  # content of a user turn
    IGNORED = 16  # among the first `ignore_first_tokens` of its document
    OUTLIER = 32  # a massive activation in one of the models: set in activation stores, by their harvest


LEFT_OUT = Mask.BOS | Mask.IGNORED | Mask.OUTLIER  # of training and of every metric
KEEP_ALL = Mask(0)

FLAT = {"token_id": "int32", "doc": "int32", "pos": "int32", "mask": "uint8", "label": "uint64"}
PER_DOCUMENT = {"doc_start": "int64", "doc_source": "uint8"}
STORE_CHUNK = 1 << 20  # positions

DATE = "26 Jul 2024"  # Llama's templates write today's date where none is given; runs must not depend on the day
MAX_CONCEPTS = 64  # bits of a label
CHARACTERS_PER_TOKEN = 8  # a plain text is cut there before tokenisation, where that changes none of the kept tokens


class Encoding(NamedTuple):
    """One tokenised document."""

    token_id: Int[np.ndarray, "position"]
    mask: UInt8[np.ndarray, "position"]
    label: Int[np.ndarray, "position"]  # bit i: concept i is active


def cut(encoding: Encoding, length: int) -> Encoding:
    """Return the first `length` tokens of an encoding."""
    return Encoding(encoding.token_id[:length], encoding.mask[:length], encoding.label[:length])


class RenderError(ValueError):
    """The chat template refuses a conversation."""


def _sentinel(number: int) -> str:
    return f"\ue000{number}\ue001"


class Rendered(NamedTuple):
    """A conversation as text, and where each message's content went."""

    text: str
    content: list[tuple[int, int, int]]  # per message: first and one past the last character, characters stripped left


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, date_string=DATE)
    except (TemplateError, ValueError, KeyError, TypeError) as error:
        raise RenderError(str(error)) from error
    return str(text)


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: bool = False) -> Rendered:
    """Render messages with the chat template and find their contents in the text.

    With `prompt` the template ends with the header of the assistant's answer.

    Raises
    ------
    RenderError
        The template refuses the messages (roles, order), or changes a content beyond stripping white space.
    """
    text = _apply(tokenizer, [{"role": m.role, "content": m.content} for m in messages], prompt)
    marked = _apply(tokenizer, [{"role": m.role, "content": _sentinel(i)} for i, m in enumerate(messages)], prompt)
    pieces, rest = [], marked
    for number in range(len(messages)):
        piece, found, rest = rest.partition(_sentinel(number))
        if not found:
            raise RenderError(f"the chat template leaves out message {number}")
        pieces.append(piece)
    pieces.append(rest)
    if not text.startswith(pieces[0]):
        raise RenderError("the chat template's own text depends on the contents")
    place, content = len(pieces[0]), []
    for message, piece in zip(messages, pieces[1:], strict=True):
        raw = message.content
        for candidate in (raw, raw.strip(), raw.lstrip(), raw.rstrip()):
            if text.startswith(candidate + piece, place):
                content.append((place, place + len(candidate), raw.find(candidate) if candidate else 0))
                place += len(candidate) + len(piece)
                break
        else:
            raise RenderError(f"the chat template changes the content of a {message.role} message")
    if place != len(text):
        raise RenderError("the chat template's own text depends on the contents")
    return Rendered(text, content)


class ChatRenderer:
    """Turns documents into token ids, masks and labels with one tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, concepts: Sequence[str] = (), ignore_first_tokens: int = 0
    ) -> None:
        if not tokenizer.is_fast:
            raise TunediffError(
                f"tokenizer {tokenizer.name_or_path}: not a fast one, so tokens cannot be mapped to characters; "
                "save it with tokenizers (tokenizer.json)"
            )
        if not tokenizer.chat_template:
            raise TunediffError(
                f"tokenizer {tokenizer.name_or_path}: has no chat template; add chat_template.jinja to its directory"
            )
        if len(concepts) > MAX_CONCEPTS:
            raise TunediffError(f"{len(concepts)} concepts are labelled, a label has {MAX_CONCEPTS} bits; drop some")
        self.tokenizer = tokenizer
        self.concept_bit = {name: np.uint64(1 << i) for i, name in enumerate(concepts)}
        self._onset_bit = {
            self.concept_bit.get(name.removesuffix(ONSET), np.uint64(0)): bit
            for name, bit in self.concept_bit.items()
            if name.endswith(ONSET) and name != ANSWER_ONSET
        }
        self.ignore_first_tokens = ignore_first_tokens
        added = tokenizer.added_tokens_decoder
        self._added = np.array(sorted(added), dtype=np.int64)
        self._bos = tokenizer.bos_token_id

    @cached_property
    def end_of_turn(self) -> int | None:
        """Id of the token that the template writes after an assistant turn; None where it is not one added token."""
        encoding = self.chats([Document("probe", (Message("user", "a"), Message("assistant", "b")))], 1 << 16)[0]
        assert isinstance(encoding, Encoding)
        closing = (encoding.mask & np.uint8(Mask.ASSISTANT) != 0) & (encoding.mask & np.uint8(Mask.TEMPLATE) != 0)
        return int(encoding.token_id[closing][-1]) if closing.any() else None

    def _finish(self, token_id: NDArray[Any], mask: NDArray[Any], label: NDArray[Any]) -> Encoding:
        if len(token_id) and self._bos is not None and token_id[0] == self._bos:
            mask[0] = Mask.BOS
        mask[: self.ignore_first_tokens] |= np.uint8(Mask.IGNORED)
        return Encoding(token_id, mask, label)

    def _labels(self, message: Message, spans: NDArray[Any], start: int, label: NDArray[Any]) -> None:
        """Set the concept bits of the tokens that overlap a span; `start` is where character 0 of the content is."""
        for span in message.spans:
            if span.concept not in self.concept_bit:
                raise TunediffError(f"concept '{span.concept}' is labelled in the corpus but not among its concepts")
            overlapping = (spans[:, 0] < start + span.end) & (spans[:, 1] > start + span.start)
            label[overlapping] |= self.concept_bit[span.concept]

    def _label_onset(self, first: int, label: NDArray[Any]) -> None:
        """Label the position that predicts an answer's first token with the onsets of the concepts of that token."""
        if first > 0:
            label[first - 1] |= self.concept_bit.get(ANSWER_ONSET, np.uint64(0))
            for concept, onset in self._onset_bit.items():
                if label[first] & concept:
                    label[first - 1] |= onset

    def texts(self, batch: Sequence[Document], max_length: int) -> list[Encoding]:
        """Tokenise plain texts as the tokenizer does by itself (with its BOS), cut to `max_length` tokens."""
        contents = [document.messages[0].content for document in batch]
        limit = CHARACTERS_PER_TOKEN * max_length
        encoded = self.tokenizer([text[:limit] for text in contents], return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        for i, text in enumerate(contents):
            if len(text) > limit and len(ids[i]) < max_length + 32:  # the cut may show in the tokens that are kept
                whole = self.tokenizer(text, return_offsets_mapping=True)
                ids[i], offsets[i] = whole["input_ids"], whole["offset_mapping"]
        encodings = []
        for document, row, pairs in zip(batch, ids, offsets, strict=True):
            token_id = np.array(row[:max_length], dtype=np.int32)
            label = np.zeros(len(token_id), dtype=np.uint64)
            if document.messages[0].spans:
                self._labels(document.messages[0], self._spans(token_id, pairs[:max_length]), 0, label)
            encodings.append(self._finish(token_id, np.zeros(len(token_id), dtype=np.uint8), label))
        return encodings

    def _spans(self, token_id: NDArray[Any], offsets: Any) -> NDArray[Any]:
        """Return the characters [start, end) of each token, white space that the tokenizer trims given back."""
        spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        if len(spans) > 1:
            before = np.maximum.accumulate(spans[:-1, 1])
            trimmed = ~np.isin(token_id[1:], self._added)
            spans[1:, 0] = np.where(trimmed, np.minimum(spans[1:, 0], np.maximum(before, 0)), spans[1:, 0])
            # Several tokens of one character share its offsets; a token never ends before it starts.
            empty = spans[:, 1] <= spans[:, 0]
            original = np.array(offsets, dtype=np.int64).reshape(-1, 2)
            spans[empty] = original[empty]
        return spans

    def chats(self, batch: Sequence[Document], max_length: int, prompt: bool = False) -> list[Encoding | RenderError]:
        """Render and tokenise conversations, cut to `max_length` tokens; what the template refuses is returned so."""
        results: list[Any] = []
        for document in batch:
            try:
                results.append(render(self.tokenizer, document.messages, prompt))
            except RenderError as error:
                results.append(error)
        texts = [result.text for result in results if isinstance(result, Rendered)]
        if not texts:
            return results
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        rows = iter(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        for i, document in enumerate(batch):
            if isinstance(results[i], Rendered):
                row, offsets = next(rows)
                results[i] = self._chat(document, results[i], row[:max_length], offsets[:max_length])
        return results

    def _chat(self, document: Document, rendered: Rendered, row: Any, offsets: Any) -> Encoding:
        token_id = np.array(row, dtype=np.int32)
        spans = self._spans(token_id, offsets)
        mask = np.full(len(token_id), Mask.TEMPLATE, dtype=np.uint8)
        label = np.zeros(len(token_id), dtype=np.uint64)
        added = np.isin(token_id, self._added)
        for message, (start, end, stripped) in zip(document.messages, rendered.content, strict=True):
            # A token that holds any character of a content is content, as in `return_assistant_tokens_mask`.
            inside = (spans[:, 0] < end) & (spans[:, 1] > start)
            mask[inside] = {"assistant": Mask.ASSISTANT, "user": Mask.USER}.get(message.role, 0)
            if message.role == "assistant":
                after = np.flatnonzero((spans[:, 0] >= end) & ~inside)
                # The end of turn is the template's first added token after the content, white space aside.
                for position in after:
                    if added[position]:
                        mask[position] |= np.uint8(Mask.ASSISTANT)
                        break
                    if rendered.text[spans[position, 0] : spans[position, 1]].strip():
                        break
            if message.spans:
                self._labels(message, spans, start - stripped, label)
            if message.role == "assistant" and inside.any():
                self._label_onset(int(np.flatnonzero(inside)[0]), label)
        return self._finish(token_id, mask, label)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, document: Document, max_length: int, concepts: Sequence[str] = ()
) -> Encoding:
    """Return token ids, masks and labels of one conversation.

    Raises
    ------
    RenderError
        The chat template refuses the conversation.
    """
    result = ChatRenderer(tokenizer, concepts).chats([document], max_length)[0]
    if isinstance(result, RenderError):
        raise result
    return result


def response_positions(mask: UInt8[np.ndarray, "position"]) -> Bool[np.ndarray, "position"]:
    """Return which positions of ONE document predict an assistant token (the assistant mask, one to the left)."""
    predicting = np.zeros(len(mask), dtype=bool)
    predicting[:-1] = mask[1:] & np.uint8(Mask.ASSISTANT) != 0
    return predicting


def first_response_positions(mask: UInt8[np.ndarray, "position"], n: int = 10) -> Bool[np.ndarray, "position"]:
    """Return the first `n` predicting positions of each assistant turn of ONE document, without template tokens."""
    predicting = response_positions(mask)
    starts = np.flatnonzero(predicting & ~np.concatenate([[False], predicting[:-1]]))
    first = np.zeros(len(mask), dtype=bool)
    for start in starts:
        first[start : start + n] = True
    return first & predicting & (mask & np.uint8(Mask.TEMPLATE) == 0)


@dataclass
class TokenStore:
    """A zarr group of flat arrays over all positions, and where each document starts."""

    path: Path
    attributes: dict[str, Any]
    _group: Any = field(repr=False)

    @classmethod
    def open(cls, path: Path, *, key: str | None = None, checksums: bool = False) -> "TokenStore":
        """Open a finished store, having checked that its files are there and whole.

        Raises
        ------
        TunediffError
            Missing, unfinished, damaged (the file is named), or made by other inputs than `key` says.
        """
        check(path, "tokens", key, checksums)
        group = zarr.open_group(str(path), mode="r")
        return cls(path, dict(group.attrs), group)

    @classmethod
    def create(
        cls, path: Path, encodings: Sequence[Encoding], doc_source: Sequence[int], attributes: Mapping[str, Any]
    ) -> None:
        """Write a store at `path` (inside `building`); the caller seals it."""
        lengths = np.array([len(e.token_id) for e in encodings], dtype=np.int64)
        arrays = {
            "token_id": np.concatenate([e.token_id for e in encodings]),
            "doc": np.repeat(np.arange(len(encodings)), lengths),
            "pos": np.concatenate([np.arange(n) for n in lengths]),
            "mask": np.concatenate([e.mask for e in encodings]),
            "label": np.concatenate([e.label for e in encodings]),
            "doc_start": np.concatenate([[0], np.cumsum(lengths)]),
            "doc_source": np.array(doc_source),
        }
        group = zarr.create_group(str(path), zarr_format=3, attributes=dict(attributes))
        for name, dtype in (FLAT | PER_DOCUMENT).items():
            array = group.create_array(
                name,
                shape=(len(arrays[name]),),
                chunks=(min(STORE_CHUNK, max(1, len(arrays[name]))),),
                dtype=dtype,
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
                config={"write_empty_chunks": True},
            )
            array[:] = arrays[name].astype(dtype)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read positions [start, stop) of one array; a damaged chunk is a `TunediffError`."""
        try:
            return np.asarray(self._group[name][slice(start, stop)])
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise TunediffError(
                f"{self.path / name}: damaged ({str(error).splitlines()[0][:120]}); delete "
                f"{self.path.with_suffix('.json')} and run snakemake again"
            ) from error

    @cached_property
    def token_id(self) -> Int[np.ndarray, "token"]:
        """Token ids."""
        return self.read("token_id")

    @cached_property
    def doc(self) -> Int[np.ndarray, "token"]:
        """Number of the document each position is in."""
        return self.read("doc")

    @cached_property
    def pos(self) -> Int[np.ndarray, "token"]:
        """Position within the document."""
        return self.read("pos")

    @cached_property
    def mask(self) -> UInt8[np.ndarray, "token"]:
        """Bits of `Mask`."""
        return self.read("mask")

    @cached_property
    def label(self) -> Int[np.ndarray, "token"]:
        """Bit i: concept i is active."""
        return self.read("label")

    @cached_property
    def doc_start(self) -> Int[np.ndarray, "document_plus_one"]:
        """First position of each document, and the number of positions."""
        return self.read("doc_start")

    @cached_property
    def doc_source(self) -> UInt8[np.ndarray, "document"]:
        """Number of the source of each document, an index into `sources`."""
        return self.read("doc_source")

    @property
    def sources(self) -> list[str]:
        """Names of the sources."""
        return list(self.attributes["sources"])

    @property
    def concepts(self) -> list[str]:
        """Names of the labelled concepts, in the order of the label bits."""
        return list(self.attributes["concepts"])

    @property
    def n_tokens(self) -> int:
        """Number of positions."""
        return int(self._group["token_id"].shape[0])

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return int(self._group["doc_source"].shape[0])

    def document(self, i: int) -> slice:
        """Return the positions of document `i`."""
        return slice(int(self.doc_start[i]), int(self.doc_start[i + 1]))


TOKENISER_BATCH = 256  # documents per call of the tokenizer


class _Source:
    """Encodings of one source, one after the other, with a count of what was left out."""

    def __init__(self, stream: Iterator[Document], renderer: ChatRenderer, max_length: int) -> None:
        self.skipped = {"skipped_system": 0, "skipped_template": 0, "skipped_empty": 0, "skipped_copy": 0}
        self.is_chat: bool | None = None
        self.last_refusal = ""
        self._encodings = self._encode(stream, renderer, max_length)

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

    def __next__(self) -> Encoding | None:
        return next(self._encodings, None)


def encode_budgets(
    streams: Mapping[str, Iterator[Document]],
    budgets: Mapping[str, int],
    renderer: ChatRenderer,
    max_length: int,
    description: str = "tokens",
) -> tuple[list[Encoding], list[int], dict[str, Any]]:
    """Encode documents until each source has exactly its budget of tokens, sources mixed in proportion.

    Returns the encodings in order, the number of the source of each, and facts (documents and skips per source).

    Raises
    ------
    TunediffError
        A source has fewer tokens than its budget.
    """
    names = list(streams)
    sources = [_Source(streams[name], renderer, max_length) for name in names]
    done = [0] * len(names)
    encodings: list[Encoding] = []
    doc_source: list[int] = []
    total = sum(budgets[name] for name in names)
    with tqdm(total=total, desc=description, unit="tok", unit_scale=True, mininterval=5, file=sys.stderr) as bar:
        while sum(done) < total:
            # The source that is furthest behind its share comes next.
            i = min(
                (i for i, name in enumerate(names) if done[i] < budgets[name]),
                key=lambda i: done[i] / budgets[names[i]],
            )
            encoding = next(sources[i])
            if encoding is None:
                skipped = ", ".join(f"{n} {kind}" for kind, n in sources[i].skipped.items() if n)
                raise TunediffError(
                    f"source '{names[i]}' has only {done[i]} tokens, its budget is {budgets[names[i]]}"
                    + (f" ({skipped}; last: {sources[i].last_refusal})" if skipped else "")
                    + "; lower the budget or give a larger source"
                )
            encoding = cut(encoding, budgets[names[i]] - done[i])
            done[i] += len(encoding.token_id)
            encodings.append(encoding)
            doc_source.append(i)
            bar.update(len(encoding.token_id))
    facts = {
        name: {
            "tokens": done[i],
            "documents": doc_source.count(i),
            "kind": "chat" if sources[i].is_chat else "text",
            **sources[i].skipped,
        }
        for i, name in enumerate(names)
    }
    return encodings, doc_source, facts


def tokenize_split(
    sources: Mapping[str, Mapping[str, Any]],
    budgets: Mapping[str, int],
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    ignore_first_tokens: int,
    seed: int,
    out: Path,
    *,
    key: str,
) -> TokenStore:
    """Write the tokens of one split: exactly `budgets[name]` tokens of each source, documents mixed in proportion.

    Documents are cut to `max_length` tokens and not packed; the last of a source is cut to meet its budget. A copy of
    an earlier text of its source is left out and counted (`skipped_copy`).

    Raises
    ------
    TunediffError
        A source is too small or unreadable, or the tokenizer is slow or has no chat template.
    """
    started = time.time()
    concepts = list(dict.fromkeys(name for source in sources.values() for name in source_concepts(source)))
    wanted = {name: source for name, source in sources.items() if budgets.get(name, 0) > 0}
    renderer = ChatRenderer(tokenizer, concepts, ignore_first_tokens)
    encodings, doc_source, per_source = encode_budgets(
        {name: iter(documents(source, split, seed)) for name, source in wanted.items()},
        budgets,
        renderer,
        max_length,
        f"tokens {split}",
    )
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
