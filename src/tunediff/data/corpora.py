"""Corpora: streams of documents from the demo, the Hugging Face hub, or local JSONL and Parquet files.

A `source` of the config is one of
``{from: demo, part: web | chat | requests}``,
``{from: hub, path, column, split?, name?, revision?, validation_split?}``,
``{from: local, path (file or glob), column, validation_path?}``.
A column of texts gives plain texts, a column of lists of {role, content} (or {from, value}) gives conversations.
"""

import glob
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunediff.config.settings import LocalSource
from tunediff.data.documents import Document, Message, text_digest
from tunediff.errors import TunediffError

SPLITS = ("train", "validation")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

FIRST_SHARED_CONCEPT = "fact"  # demo.grammar.CONCEPTS lists those of chats only first


def documents(source: Mapping[str, Any], split: str, seed: int, whole: bool = False) -> Iterator[Document]:
    """Yield the documents of one split of a source, lazily and always in the same order.

    Where a source has no validation split of its own, a hash of each document's text decides which split it is in, so
    that no text is in both. With `whole`, such a source is not divided.

    Raises
    ------
    TunediffError
        The source cannot be read or holds a malformed row; the message names file and row.
    """
    if source["from"] == "demo":
        yield from _demo(source, split, seed)
        return
    own_split = any(source.get(name) is not None for name in ("validation_split", "validation_path"))
    share = float(source.get("validation_share", LocalSource.validation_share))
    for where, value in _values(source, split):
        document = _document(value, where)
        if document is not None and (own_split or whole or in_split(document, split, share)):
            yield document


def concepts(source: Mapping[str, Any]) -> list[str]:
    """Return the names of the concepts labelled in a source, in the order of the label bits."""
    if source["from"] != "demo":
        return []
    from tunediff.demo import grammar

    return list(grammar.CONCEPTS)


def chat_concepts(sources: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the labelled concepts that only chats carry: what a chat-specific latent can be about."""
    if not any(source["from"] == "demo" for source in sources.values()):
        return set()
    from tunediff.demo import grammar

    names = list(grammar.CONCEPTS)
    return set(names[: names.index(FIRST_SHARED_CONCEPT)])


def concept_kinds(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the labelled concept that each kind is of, for those that are kinds: a refusal about weapons, say."""
    if not any(source["from"] == "demo" for source in sources.values()):
        return {}
    from tunediff.demo import grammar

    return dict(grammar.KIND_OF)


def in_split(document: Document, split: str, validation_share: float) -> bool:
    """Tell whether a document is in `split`, by a stable hash of its text: copies of one text are in one split."""
    in_validation = text_digest(document.messages) < validation_share * 2**64
    return in_validation == (split == "validation")


def reads_same_data(source: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two sources may yield the same documents: one data set and split of the hub, or a common file."""
    if source["from"] != other["from"] or source["from"] == "demo":
        return False
    if source["from"] == "hub":
        return all(source.get(name) == other.get(name) for name in ("path", "name", "split"))
    files = [
        {path.resolve() for name in ("path", "validation_path") if one.get(name) for path in _files(one[name])}
        for one in (source, other)
    ]
    return bool(files[0] & files[1])


def _demo(source: Mapping[str, Any], split: str, seed: int) -> Iterator[Document]:
    from tunediff.demo import grammar

    parts = {
        "web": grammar.web_documents,
        "chat": grammar.chat_documents,
        "requests": grammar.chat_requests,
    }
    if source.get("part") not in parts:
        raise TunediffError(f"demo source: part '{source.get('part')}' is not one of {', '.join(parts)}")
    yield from parts[source["part"]](seed, split)


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise TunediffError(f"{where}: a turn is {type(turn).__name__}, not an object with role and content")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise TunediffError(
            f"{where}: a turn has keys {', '.join(map(str, turn)) or 'none'}; it needs role (or from) and content "
            "(or value), both texts"
        )
    return Message(ROLES.get(role, role), content)


def _document(value: Any, where: str) -> Document | None:
    """Return a row's document; None for an empty one."""
    if isinstance(value, str):
        return Document(where, (Message("text", value),)) if value.strip() else None
    if isinstance(value, list):
        turns = tuple(_message(turn, where) for turn in value)
        return Document(where, turns) if turns else None
    raise TunediffError(f"{where}: holds {type(value).__name__}, neither a text nor a list of turns; fix or drop it")


def _values(source: Mapping[str, Any], split: str) -> Iterator[tuple[str, Any]]:
    """Yield (where it is, value of the column) of every row."""
    column = source["column"]
    if source["from"] == "hub":
        for number, row in enumerate(_hub(source, split)):
            if column not in row:
                raise TunediffError(
                    f"{source['path']}: no column '{column}'; it has {', '.join(map(str, row))}; set `column`"
                )
            yield f"{source['path']} row {number}", row[column]
        return
    for path in _files(_path(source, split)):
        yield from _rows(path, column)


def _rows(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    return _parquet(path, column) if path.suffix == ".parquet" else _jsonl(path, column)


def _path(source: Mapping[str, Any], split: str) -> str:
    own = source.get("validation_path") if split == "validation" else None
    return str(own or source["path"])


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
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                where = f"{path} line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise TunediffError(f"{where}: not JSON ({error}); fix or drop the line") from error
                if not isinstance(row, dict):
                    raise TunediffError(f"{where}: not a JSON object; fix or drop the line")
                if column not in row:
                    raise TunediffError(f"{where}: no column '{column}'; it has {', '.join(row)}; set `column`")
                yield where, row[column]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TunediffError(f"{path}: cannot be read ({error}); replace the file") from error


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
                for value in batch.column(0).to_pylist():
                    yield f"{path} row {number}", value
                    number += 1
    except (OSError, arrow.ArrowException) as error:
        raise TunediffError(f"{path}: not a readable Parquet file ({error}); replace the file") from error


def _offline() -> bool:
    return any(os.environ.get(name, "0").upper() in ("1", "TRUE", "YES", "ON") for name in OFFLINE_VARIABLES)


OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def _hub(source: Mapping[str, Any], split: str) -> Iterator[dict[str, Any]]:
    import datasets

    chosen = source.get("split", "train")
    if split == "validation" and source.get("validation_split") is not None:
        chosen = source["validation_split"]
    try:
        rows = datasets.load_dataset(
            source["path"],
            source.get("name"),
            split=chosen,
            revision=source.get("revision"),
            streaming=not _offline(),  # a cached data set is read without the network only when not streamed
        )
        yield from rows
    except TunediffError:
        raise
    except Exception as error:  # datasets, the hub and the network raise many kinds
        raise _hub_error(source["path"], error) from error


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


def check_source(source: Mapping[str, Any], name: str) -> None:
    """Fail early, in one line, where the first row of a source cannot be read; the demo is always readable.

    Raises
    ------
    TunediffError
        Missing file or column, malformed first row, gated or unreachable data set; the message names the source.
    """
    if source.get("from") == "demo":
        return
    if source.get("from") not in ("hub", "local"):
        raise TunediffError(f"source '{name}': `from` is '{source.get('from')}'; use demo, hub or local")
    try:
        if source["from"] == "local":
            for path in sorted({path for split in SPLITS for path in _files(_path(source, split))}):
                values = (
                    _parquet(path, source["column"]) if path.suffix == ".parquet" else _jsonl(path, source["column"])
                )
                first = next(values, None)
                if first is None:
                    raise TunediffError(f"{path}: holds no rows; remove it or fill it")
                _document(first[1], first[0])
        else:
            for split in SPLITS:
                first = next(_values(source, split), None)
                if first is None:
                    raise TunediffError(f"data set {source['path']}: the split for {split} has no rows; set `split`")
                _document(first[1], first[0])
    except TunediffError as error:
        raise TunediffError(f"source '{name}': {error}") from error
