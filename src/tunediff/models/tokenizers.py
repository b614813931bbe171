"""The tokenizers of a pair, and in what they differ."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path

import transformers

from tunediff.errors import TunediffError


def reading_error(what: str, path: str, error: Exception) -> TunediffError:
    """Turn what transformers and the hub raise into one line with a remedy."""
    text = str(error).strip() or type(error).__name__
    cause = text.splitlines()[0][:200]
    if "gated" in text.lower() or "401" in cause or "403" in cause:
        remedy = f"accept the terms at https://huggingface.co/{path} and set HF_TOKEN"
    elif Path(path).exists():
        remedy = "the directory needs config.json, *.safetensors and the tokenizer files of save_pretrained"
    else:
        remedy = "give a local directory, or an id of the hub that is cached or reachable (HF_HUB_OFFLINE unset)"
    return TunediffError(f"{path}: cannot read the {what} ({cause}); {remedy}")


def load_tokenizer(path: str | Path, revision: str | None = None) -> "transformers.PreTrainedTokenizerBase":
    """Load a fast tokenizer.

    Raises
    ------
    TunediffError
        It cannot be read, or it is not a fast one (only those map tokens to characters).
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path), revision=revision)
    except Exception as error:  # transformers and tokenizers raise all kinds for a damaged file
        raise reading_error("tokenizer", str(path), error) from error
    if not tokenizer.is_fast:
        raise TunediffError(f"{path}: its tokenizer is not a fast one (no character offsets); save it with tokenizers")
    return tokenizer


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _torn(token: str, decoded: str) -> str:
    """Return the text of a token that is not text alone, its loose bytes as <0xE2>."""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return token
    table = _bytes_of_characters()
    if not all(character in table for character in token):
        return decoded
    text = bytes(table[character] for character in token).decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", text)


def pieces(tokenizer: "transformers.PreTrainedTokenizerBase", ids: Iterable[int]) -> list[str]:
    """Return the text of each token alone, as it stands within a text: spaces and newlines kept, special tokens shown.

    Bytes that are no text alone come as <0xE2>; an id that the tokenizer does not know as <id 7>.
    """
    wanted = [int(i) for i in ids]
    unique = sorted(set(wanted))

    def decoded(*tokens: int) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    # behind another token, or the space that begins a word would be lost
    anchor = list(islice((i for i in range(len(tokenizer)) if decoded(i).isalnum()), 1))
    head = decoded(*anchor)
    found: dict[int, str] = {}
    for i, token in zip(unique, tokenizer.convert_ids_to_tokens(unique), strict=True):
        if token is None:
            found[i] = f"<id {i}>"
            continue
        text = decoded(*anchor, i)
        own = text.removeprefix(head) if text.startswith(head) else decoded(i)
        found[i] = _torn(token, own) if "\ufffd" in own else own or token
    return [found[i] for i in wanted]


class Pieces:
    """The text of tokens (`pieces`), each made once."""

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each token."""
        wanted = [int(i) for i in ids]
        new = sorted(set(wanted) - self._known.keys())
        if new:
            self._known.update(zip(new, pieces(self._tokenizer, new), strict=True))
        return [self._known[i] for i in wanted]


def load_tokenizers(
    base: str | Path,
    chat: str | Path,
    replacements: Mapping[int, int],
    base_revision: str | None = None,
    chat_revision: str | None = None,
    told: tuple[str, str] | None = None,
) -> "transformers.PreTrainedTokenizerBase":
    """Load the chat tokenizer, having checked that the base model reads the same ids as the same tokens.

    `told` is how errors name the two, if not by their paths.

    Raises
    ------
    TunediffError
        No chat template, or ids that stand for different tokens and are not in `replacements`.
    """
    tokenizer = load_tokenizer(chat, chat_revision)
    base_told, chat_told = told or (str(base), str(chat))
    if not tokenizer.chat_template:
        raise TunediffError(
            f"{chat_told}: the tokenizer has no chat template; add chat_template.jinja to its directory"
        )
    of_base = {index: token for token, index in load_tokenizer(base, base_revision).get_vocab().items()}
    of_chat = {index: token for token, index in tokenizer.get_vocab().items()}
    differing = sorted(i for i, token in of_chat.items() if of_base.get(i) != token and i not in replacements)
    if differing:
        shown = ", ".join(f"{i}: {of_base.get(i)!r} / {of_chat[i]!r}" for i in differing[:5])
        shown += ", …" if len(differing) > 5 else ""
        raise TunediffError(
            f"{base_told} and {chat_told}: {len(differing)} ids differ (base / chat {shown}); "
            "use a pair with one tokenizer, or map these ids in `models.base_token_replacements`"
        )
    return tokenizer
