"""Documents: what a corpus yields, before tokenisation."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tunediff.errors import TunediffError

# A concept NAME + ONSET labels the position that predicts the first token of NAME: where a model decides to begin it.
ONSET = "_onset"
ANSWER_ONSET = "answer" + ONSET  # the position before any assistant answer

MAX_COPIES = 100_000  # copies in a row after which a source is taken to hold no other text


class Span(NamedTuple):
    """A stretch of a message's content in which a concept is active: the ground truth of labelled corpora."""

    start: int  # first character, in the message's content
    end: int  # one past the last character
    concept: str  # name of the concept


@dataclass(frozen=True)
class Message:
    """One turn of a chat, or the whole of a plain text."""

    role: str  # "user", "assistant", "system"; "text" for plain text
    content: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Document:
    """A plain text (one message of role "text") or a conversation; `id` is unique within its source."""

    id: str
    messages: tuple[Message, ...]

    @property
    def is_chat(self) -> bool:
        """Whether the document is rendered with the chat template."""
        return self.messages[0].role != "text"


def text_digest(messages: Sequence[Message]) -> int:
    """Return a 64-bit digest of what a reader sees: Unicode form, case and white space do not count."""
    digest = hashlib.blake2b(digest_size=8)
    for message in messages:
        text = " ".join(unicodedata.normalize("NFKC", message.content).casefold().split())
        digest.update(f"{message.role}\0{text}\0".encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "big")


class Distinct:
    """Tells texts from copies of earlier ones: what is resampled later must be independent."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._in_a_row = 0
        self.copies = 0  # texts that had been there before

    def is_new(self, messages: Sequence[Message]) -> bool:
        """Return whether this text was not asked about before, and remember it.

        `TunediffError`: `MAX_COPIES` copies came in a row: a source without end has no other text.
        """
        digest = text_digest(messages)
        if digest not in self._seen:
            self._seen.add(digest)
            self._in_a_row = 0
            return True
        self.copies += 1
        self._in_a_row += 1
        if self._in_a_row >= MAX_COPIES:
            raise TunediffError(
                f"the source repeats itself: {MAX_COPIES:,} copies in a row after {len(self._seen):,} different texts; "
                "ask for less of it, or give a larger source"
            )
        return False
