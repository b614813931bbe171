"""Documents: what a corpus yields, before tokenisation."""

from dataclasses import dataclass
from typing import NamedTuple

# A concept NAME + ONSET labels the position that predicts the first token of NAME: where a model decides to begin it.
ONSET = "_onset"
ANSWER_ONSET = "answer" + ONSET  # the position before any assistant answer


class Span(NamedTuple):
    """A stretch of a message's content in which a concept is active: the ground truth of planted corpora."""

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
