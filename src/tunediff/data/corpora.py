"""Corpora: streams of documents from the demo, the Hugging Face hub, or local JSONL and Parquet files.

A `source` of the config is one of
``{from: demo, part: web | chat | requests}``,
``{from: hub, path, column, split?, name?, revision?, validation_split?}``,
``{from: local, path (file or glob), column, validation_path?}``.
A column of texts gives plain texts, a column of lists of {role, content} (or {from, value}) gives conversations. A row
that is neither is skipped and counted; a source with too many of them is an error.
"""

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tunediff.config.settings import LocalSource
from tunediff.data.documents import Document, Message, text_digest
from tunediff.errors import TunediffError

SPLITS = ("train", "validation")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
MOST_BAD = 0.05  # share of a source's rows that may be bad
JUDGED_FROM = 1_000  # rows after which the share is judged; of fewer, at the end of the source
TOLD = 5  # bad rows that are named
FIRST_ROWS = 20  # that are read to see whether a source is what its settings say
FIRST_SHARED_CONCEPT = "fact"  # demo.grammar.CONCEPTS lists those of chats only first


class BadRow(TunediffError):  # noqa: N818
    """A row that is no document; the message names file and row."""


@dataclass
class Skipped:
    """The bad rows of a source, which are left out."""

    rows: int = 0  # read, bad ones among them
    bad: int = 0
    first: list[str] = field(default_factory=list)  # what is wrong with the first of them, and where

    def add(self, error: BadRow) -> None:
        """Count a bad row.

        Raises
        ------
        TunediffError
            More than `MOST_BAD` of all rows so far are bad.
        """
        self.bad += 1
        if len(self.first) < TOLD:
            self.first.append(" ".join(str(error).split())[:400])
        self.judge(max(self.rows, JUDGED_FROM))

    def judge(self, rows: int) -> None:
        """Raise a `TunediffError` if more than `MOST_BAD` of so many rows are bad."""
        if self.bad > MOST_BAD * rows:
            raise TunediffError(
                f"{self.bad:,} of {self.rows:,} rows are bad, at most {MOST_BAD:.0%} may be; the first: {self.first[0]}"
            )

    def lines(self, source: str) -> Iterator[str]:
        """Yield what to tell of them, a line each."""
        if self.bad:
            yield f"{source}: skipped {self.bad:,} bad of {self.rows:,} rows; the first:"
            yield from self.first


class Labels(NamedTuple):
    """The concepts whose spans are labelled in some sources."""

    concepts: list[str]  # in the order of the label bits
    chat_only: set[str]  # those that only chats carry: what a chat-specific latent can be about
    kind_of: dict[str, str]  # of a concept that is a kind of another, a refusal about weapons, say: that other


class Source:
    """A source, opened with its settings; what kinds there are stands in `KINDS`."""

    labelled: ClassVar[bool] = False  # whether spans of its documents are labelled with concepts

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    @property
    def has_own_validation(self) -> bool:
        """Whether validation documents are in a split or in files of their own."""
        return any(self.settings.get(name) is not None for name in ("validation_split", "validation_path"))

    def rows(self, split: str) -> Iterator[tuple[str, Any]]:
        """Yield (where it is, value of the column, or a `BadRow`) of every row."""
        raise NotImplementedError

    def glance(self) -> None:
        """Read the first rows of every file and split; a `TunediffError` where none of a split's is a document."""
        for split in SPLITS if self.has_own_validation else SPLITS[:1]:
            rows, bad = list(islice(self.rows(split), FIRST_ROWS)), []
            for where, value in rows:
                try:
                    _document(value, where)
                except BadRow as error:
                    bad.append(error)
            if rows and len(bad) == len(rows):
                raise bad[0]

    def data(self) -> set[Any]:
        """Return what is read, to compare with another source of this kind."""
        return set()

    def labels(self) -> Labels:
        """Return the labelled concepts."""
        return Labels([], set(), {})

    def answer_kinds(self) -> tuple[str, ...]:
        """Return the kinds that `kind_of_answer` tells apart; none where it tells nothing."""
        return ()

    def kind_of_answer(self, text: str) -> str:
        """Return of which of these kinds an answer to a request of this source is, "" where of none."""
        return ""

    def documents(self, split: str, seed: int, whole: bool, skipped: Skipped) -> Iterator[Document]:
        """Yield the documents of a split, as `documents`."""
        share = float(self.settings.get("validation_share", LocalSource.validation_share))
        for where, value in self.rows(split):
            skipped.rows += 1
            try:
                document = _document(value, where)
            except BadRow as error:
                skipped.add(error)
                continue
            if document is not None and (self.has_own_validation or whole or in_split(document, split, share)):
                yield document
        skipped.judge(skipped.rows)


class Demo(Source):
    """Endless generated texts; requests are made for their split, so no two sources share any."""

    labelled = True

    def glance(self) -> None:
        next(self.documents(SPLITS[0], 0, True, Skipped()))

    def labels(self) -> Labels:
        from tunediff.demo import grammar

        names = list(grammar.CONCEPTS)
        return Labels(names, set(names[: names.index(FIRST_SHARED_CONCEPT)]), dict(grammar.KIND_OF))

    def answer_kinds(self) -> tuple[str, ...]:
        from tunediff.demo import grammar

        return tuple(grammar.OPENINGS)

    def kind_of_answer(self, text: str) -> str:
        from tunediff.demo import grammar

        return grammar.kind_of_answer(text)

    def documents(self, split: str, seed: int, whole: bool, skipped: Skipped) -> Iterator[Document]:
        from tunediff.demo import grammar

        parts = {"web": grammar.web_documents, "chat": grammar.chat_documents, "requests": grammar.chat_requests}
        if self.settings.get("part") not in parts:
            raise TunediffError(f"demo source: part '{self.settings.get('part')}' is not one of {', '.join(parts)}")
        yield from parts[self.settings["part"]](seed, split)


class Local(Source):
    """Files, each read as its suffix says."""

    def rows(self, split: str) -> Iterator[tuple[str, Any]]:
        own = self.settings.get("validation_path") if split == "validation" else None
        for path in _files(own or self.settings["path"]):
            yield from self._rows_of(path)

    def _rows_of(self, path: Path) -> Iterator[tuple[str, Any]]:
        return (_parquet if path.suffix == ".parquet" else _jsonl)(path, self.settings["column"])

    def glance(self) -> None:
        for path in self._paths():
            for where, value in islice(self._rows_of(path), FIRST_ROWS):
                _document(value, where)

    def data(self) -> set[Any]:
        return {path.resolve() for path in self._paths()}

    def _paths(self) -> list[Path]:
        given = [self.settings[name] for name in ("path", "validation_path") if self.settings.get(name)]
        return list(dict.fromkeys(path for each in given for path in _files(each)))


class Hub(Source):
    """A data set of the Hugging Face hub, streamed unless offline."""

    def rows(self, split: str) -> Iterator[tuple[str, Any]]:
        path, column = self.settings["path"], self.settings["column"]
        own = self.settings.get("validation_split") if split == "validation" else None
        for number, row in enumerate(self._load(own or self.settings.get("split", "train"))):
            if column not in row:
                raise TunediffError(f"{path}: no column '{column}'; it has {', '.join(map(str, row))}; set `column`")
            yield f"{path} row {number}", row[column]

    def data(self) -> set[Any]:
        return {tuple(self.settings.get(name) for name in ("path", "name", "split"))}

    def _load(self, split: str) -> Iterator[dict[str, Any]]:
        import datasets

        path, name, revision = (self.settings.get(name) for name in ("path", "name", "revision"))
        try:  # a cached data set is read without the network only when not streamed
            yield from datasets.load_dataset(path, name, split=split, revision=revision, streaming=not _offline())
        except Exception as error:  # datasets, the hub and the network raise many kinds
            raise _hub_error(self.settings["path"], error) from error


KINDS: dict[str, type[Source]] = {"demo": Demo, "local": Local, "hub": Hub}  # by `from`


def opened(source: Mapping[str, Any]) -> Source:
    """Return the source of these settings."""
    return KINDS[source["from"]](source)


def documents(
    source: Mapping[str, Any], split: str, seed: int, whole: bool = False, skipped: Skipped | None = None
) -> Iterator[Document]:
    """Yield the documents of one split of a source, lazily and always in the same order.

    Where a source has no validation split of its own, a hash of each document's text decides which split it is in, so
    that no text is in both. With `whole`, such a source is not divided. Bad rows are left out and counted in `skipped`.
    `TunediffError`: the source cannot be read, or more than `MOST_BAD` of its rows (of 1,000 or more, or of all) are
    bad; the message names file and row.
    """
    return opened(source).documents(split, seed, whole, Skipped() if skipped is None else skipped)


def labels(sources: Iterable[Mapping[str, Any]]) -> Labels:
    """Return the concepts labelled in any of some sources."""
    found = [opened(source).labels() for source in sources]
    concepts = dict.fromkeys(name for each in found for name in each.concepts)
    chat_only = {name for each in found for name in each.chat_only}
    return Labels(list(concepts), chat_only, {name: of for each in found for name, of in each.kind_of.items()})


def in_split(document: Document, split: str, validation_share: float) -> bool:
    """Tell whether a document is in `split`, by a stable hash of its text: copies of one text are in one split."""
    in_validation = text_digest(document.messages) < validation_share * 2**64
    return in_validation == (split == "validation")


def reads_same_data(source: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two sources may yield the same documents: one data set and split of the hub, or a common file."""
    return source["from"] == other["from"] and bool(opened(source).data() & opened(other).data())


def _text(text: str, where: str) -> str:
    """Return a text that tokenizers take: without halves of surrogate pairs."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise BadRow(f"{where}: character {error.start} is half of a surrogate pair ({half}); drop it") from error
    return text


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where}: a turn is {type(turn).__name__}, not an object with role and content")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRow(
            f"{where}: a turn has keys {', '.join(map(str, turn)) or 'none'}; it needs role (or from) and content "
            "(or value), both texts"
        )
    return Message(_text(ROLES.get(role, role), where), _text(content, where))


def _document(value: Any, where: str) -> Document | None:
    """Return a row's document; None for an empty one."""
    if isinstance(value, BadRow):
        raise value
    if isinstance(value, str):
        return Document(where, (Message("text", _text(value, where)),)) if value.strip() else None
    if isinstance(value, list):
        turns = tuple(_message(turn, where) for turn in value)
        return Document(where, turns) if turns else None
    kind = "null" if value is None else type(value).__name__
    raise BadRow(f"{where}: holds {kind}, neither a text nor a list of turns; fix or drop it")


def _files(path_or_glob: str) -> list[Path]:
    pattern = str(Path(path_or_glob).expanduser())
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))] or [Path(pattern)]  # noqa: PTH207
    for path in paths:
        if not path.is_file():
            raise TunediffError(f"{path}: no such file; give a file or a glob of {', '.join(SUFFIXES)} files")
        if not path.name.endswith(SUFFIXES):
            raise TunediffError(f"{path}: not a {', '.join(SUFFIXES)} file; convert it to one of these")
    return paths


def _jsonl(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    where = f"{path} line {number}"
                    yield where, _value(line, column, where)
    except (OSError, EOFError, zlib.error) as error:
        raise TunediffError(f"{path}: cannot be read ({error}); replace the file") from error


def _value(line: bytes, column: str, where: str) -> Any:
    """Return the value of a column in a line of JSON, or what is wrong with it; a byte order mark is no fault."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        return BadRow(f"{where}: JSON that is nested too deeply; fix or drop the line")
    except UnicodeDecodeError as error:
        return BadRow(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); fix or drop the line")
    except ValueError as error:
        return BadRow(f"{where}: not JSON ({error}); fix or drop the line")
    if not isinstance(row, dict):
        return BadRow(f"{where}: not a JSON object; fix or drop the line")
    if column not in row:
        return BadRow(f"{where}: no column '{column}'; it has {', '.join(row) or 'none'}; set `column`")
    return row[column]


def _column(column: Any) -> Iterable[Any]:
    """Return the values of a column; in the place of one that is damaged (a text that is not UTF-8), what is wrong."""

    def each(value: Any) -> Any:
        try:
            return value.as_py()
        except (ValueError, OverflowError) as error:
            return error

    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return map(each, column)


def _parquet(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise TunediffError(f"{path}: no column '{column}'; it has {', '.join(names)}; set `column`")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for value in _column(batch.column(0)):
                    where = f"{path} row {number}"
                    yield where, BadRow(f"{where}: {value}; fix or drop it") if isinstance(value, Exception) else value
                    number += 1
    except (OSError, arrow.ArrowException) as error:
        raise TunediffError(f"{path}: not a readable Parquet file ({error}); replace the file") from error


def _offline() -> bool:
    return any(os.environ.get(name, "0").upper() in ("1", "TRUE", "YES", "ON") for name in OFFLINE_VARIABLES)


def _hub_error(path: str, error: Exception) -> TunediffError:
    text = f"{type(error).__name__}: {error}"
    cause = text.strip().splitlines()[0][:200]
    if any(word in text.lower() for word in ("gated", "401", "403", "authenticated", "restricted")):
        remedy = f"accept its terms at https://huggingface.co/datasets/{path} and set HF_TOKEN to a token of yours"
    elif _offline():
        remedy = "it is not in the local cache; unset HF_HUB_OFFLINE to download it, or use a local file"
    else:
        remedy = "check the id, `name` and `split`, and the network; or use a local file (`from: local`)"
    return TunediffError(f"data set {path}: cannot be read ({cause}); {remedy}")
