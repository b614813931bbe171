"""Documents to token ids, masks and labels, by one single tokenisation.

A conversation is rendered by the chat template, and that text is tokenised once; which characters are the template's
own is found by rendering the same turns with sentinels in place of their contents.
"""

import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray

from tunediff.data.documents import ANSWER_ONSET, ONSET, Document, Message
from tunediff.data.masks import Mask
from tunediff.errors import TunediffError

if TYPE_CHECKING:  # takes half a second; who reads tokens needs no tokenizer
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"  # Llama's templates write today's date where none is given; runs must not depend on the day
MAX_CONCEPTS = 64  # bits of a label
RENDER_SECONDS = 20.0  # of the processor, for a batch of conversations; an ordinary one takes a thousandth of it
RENDER_BYTES = 1 << 30  # by which the process may grow meanwhile
STATM = Path("/proc/self/statm")  # begins with the size of this process, in pages
TEMPLATE_CHARACTERS = 1 << 20  # that a chat template may write beside the contents
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


class _OutOfTimeError(BaseException):
    """A batch takes too long; not an `Exception`, which the template engine would take for one of the template's."""


@contextmanager
def limited(tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    """Bound what a batch takes that is rendered inside: a chat template is a program that comes with a model.

    In the main thread alone: signals reach no other, and limits of the process would be set back out of turn.

    Raises
    ------
    TunediffError
        A bound is reached.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _OutOfTimeError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(STATM.read_bytes().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        most = [size + RENDER_BYTES, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(most), hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, RENDER_SECONDS)
        yield
    except (_OutOfTimeError, MemoryError, RecursionError) as error:
        what = {
            _OutOfTimeError: f"takes more than {RENDER_SECONDS:g} s",
            MemoryError: f"takes more than {RENDER_BYTES >> 20} MiB",
        }.get(type(error), "calls itself without end")
        raise TunediffError(
            f"{tokenizer.name_or_path}: its chat template {what} for a few conversations; correct the model's "
            "chat_template.jinja, or give a model with another"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _sentinel(number: int) -> str:
    return f"\ue000{number}\ue001"


class Rendered(NamedTuple):
    """A conversation as text, and where each message's content went."""

    text: str
    content: list[tuple[int, int, int]]  # per message: first and one past the last character, characters stripped left


def apply_template(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]], prompt: bool) -> str:
    """Return the text that the chat template makes of turns; to be called within `limited`.

    `RenderError`: the template refuses them. `TunediffError`: it writes too much beside their contents.
    """
    try:
        made = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, date_string=DATE)
    except (MemoryError, RecursionError):  # told by `limited`
        raise
    except Exception as error:  # a program raises what it likes
        raise RenderError(str(error)) from error
    text = str(made)
    if len(text) > TEMPLATE_CHARACTERS + sum(len(turn["content"]) for turn in turns):
        raise TunediffError(
            f"{tokenizer.name_or_path}: its chat template writes {len(text):,} characters for a conversation of "
            f"{len(turns)} turns; correct the model's chat_template.jinja, or give a model with another"
        )
    return text


def render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], prompt: bool = False) -> Rendered:
    """Render messages with the chat template and find their contents in the text.

    With `prompt` the template ends with the header of the assistant's answer. `RenderError`: the template refuses the
    messages (roles, order), or changes a content beyond stripping white space.
    """
    text = apply_template(tokenizer, [{"role": m.role, "content": m.content} for m in messages], prompt)
    marked = apply_template(
        tokenizer, [{"role": m.role, "content": _sentinel(i)} for i, m in enumerate(messages)], prompt
    )
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
        self, tokenizer: "PreTrainedTokenizerBase", concepts: Sequence[str] = (), ignore_first_tokens: int = 0
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
        self._added = np.array(sorted(tokenizer.added_tokens_decoder), dtype=np.int64)
        self._bos = tokenizer.bos_token_id

    @cached_property
    def end_of_turn(self) -> int | None:
        """Id of the token that the template writes after an assistant turn; None where it is not one added token.

        `TunediffError`: the template refuses a request with an answer.
        """
        encoding = self.chats([Document("probe", (Message("user", "a"), Message("assistant", "b")))], 1 << 16)[0]
        if isinstance(encoding, RenderError):
            raise TunediffError(
                f"{self.tokenizer.name_or_path}: its chat template refuses a request with an answer ({encoding}); "
                "correct the model's chat_template.jinja, or give a model with another"
            )
        closing = (encoding.mask & np.uint8(Mask.ASSISTANT) != 0) & (encoding.mask & np.uint8(Mask.TEMPLATE) != 0)
        return int(encoding.token_id[closing][-1]) if closing.any() else None

    @cached_property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the template's end of turn and the tokenizer's end of a text.

        `TunediffError`: the tokenizer has neither, or the template refuses a request with an answer.
        """
        ends = dict.fromkeys((self.end_of_turn, self.tokenizer.eos_token_id))
        found = [int(i) for i in ends if i is not None]
        if not found:
            raise TunediffError(
                f"{self.tokenizer.name_or_path}: its tokenizer has no end-of-turn and no eos token; set eos_token"
            )
        return found

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
        original = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        spans = original.copy()
        if len(spans) > 1:
            before = np.maximum.accumulate(spans[:-1, 1])
            trimmed = ~np.isin(token_id[1:], self._added)
            spans[1:, 0] = np.where(trimmed, np.minimum(spans[1:, 0], np.maximum(before, 0)), spans[1:, 0])
            # Several tokens of one character share its offsets; a token never ends before it starts.
            empty = spans[:, 1] <= spans[:, 0]
            spans[empty] = original[empty]
        return spans

    def chats(self, batch: Sequence[Document], max_length: int, prompt: bool = False) -> list[Encoding | RenderError]:
        """Render and tokenise conversations, cut to `max_length` tokens; what the template refuses is returned so."""
        results: list[Any] = []
        with limited(self.tokenizer):
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
