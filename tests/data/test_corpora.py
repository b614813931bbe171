"""Corpora: local files of every kind, disjoint splits, and errors that name file and row."""

import gzip
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunediff.data import corpora
from tunediff.data.corpora import Skipped, documents, labels
from tunediff.data.documents import Message
from tunediff.errors import TunediffError

TEXTS = [f"text number {i}" for i in range(300)]
CHATS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(300)]


def jsonl(path: Path, rows: list) -> Path:
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as stream:
            stream.write(text)
    else:
        path.write_text(text)
    return path


def local(path: Path, column: str = "text", **more) -> dict:
    return {"from": "local", "path": str(path), "column": column, **more}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_file_kind_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    rows = [{"text": t, "messages": c} for t, c in zip(TEXTS, CHATS, strict=True)]
    if suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        jsonl(path, rows)
    for column, wanted in (("text", TEXTS), ("messages", [c[1]["content"] for c in CHATS])):
        split = {s: [d.messages[-1].content for d in documents(local(path, column), s, 0)] for s in corpora.SPLITS}
        assert sorted(split["train"] + split["validation"]) == sorted(wanted)
        assert 10 <= len(split["validation"]) <= 55  # a tenth of 300
        assert split["train"] == [t for t in wanted if t in set(split["train"])]  # the file's order


def test_split_depends_on_content_alone(tmp_path: Path) -> None:
    one = local(jsonl(tmp_path / "one.jsonl", [{"text": t} for t in TEXTS]))
    twice = local(jsonl(tmp_path / "two.jsonl", [{"text": t} for t in reversed(TEXTS * 2)]))
    first, second = ({d.messages[0].content for d in documents(s, "validation", 0)} for s in (one, twice))
    assert first == second and not second & {d.messages[0].content for d in documents(twice, "train", 0)}


def test_copies_that_differ_in_case_or_space_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"text": text} for i in range(100) for text in (f"Text {i}", f"text  {i} ", f"TEXT {i}")]
    source = local(jsonl(tmp_path / "one.jsonl", rows), validation_share=0.5)
    train, validation = ({d.messages[0].content.split()[1] for d in documents(source, s, 0)} for s in corpora.SPLITS)
    assert len(train) + len(validation) == 100 and train and validation
    assert len(list(documents(source, "train", 0, whole=True))) == 300


def test_sources_that_read_the_same_data(tmp_path: Path) -> None:
    one, two = (local(jsonl(tmp_path / f"{n}.jsonl", [{"text": n}])) for n in "ab")
    assert corpora.reads_same_data(one, dict(one, column="other"))
    assert corpora.reads_same_data(one, local(tmp_path / "*.jsonl"))
    assert corpora.reads_same_data(two, dict(one, validation_path=two["path"]))
    assert not corpora.reads_same_data(one, two)
    hub = {"from": "hub", "path": "o/d", "split": "train", "name": None}
    assert corpora.reads_same_data(hub, dict(hub, column="x"))
    assert not corpora.reads_same_data(hub, dict(hub, split="test")) and not corpora.reads_same_data(hub, one)
    demo = {"from": "demo", "part": "chat"}
    assert not corpora.reads_same_data(demo, demo)  # its requests are made for their split


def test_own_validation_files_are_used_whole(tmp_path: Path) -> None:
    train, other = (jsonl(tmp_path / f"{n}.jsonl", [{"text": f"{n}{i}"} for i in range(30)]) for n in "ab")
    source = local(train, validation_path=str(other))
    assert len(list(documents(source, "train", 0))) == len(list(documents(source, "validation", 0))) == 30
    assert next(documents(source, "validation", 0)).messages[0].content == "b0"


def test_globs_and_other_names_of_turns(tmp_path: Path) -> None:
    for i in range(3):
        jsonl(
            tmp_path / f"part{i}.jsonl", [{"c": [{"from": "human", "value": f"x{i}"}, {"from": "gpt", "value": "y"}]}]
        )
    found = list(documents(local(tmp_path / "part*.jsonl", "c", validation_share=1e-9), "train", 0))
    assert [d.messages for d in found] == [(Message("user", f"x{i}"), Message("assistant", "y")) for i in range(3)]
    assert len({d.id for d in found}) == 3


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"text": "a"}\n{"text": ', r"d\.jsonl line 2: not JSON"),
        ('{"other": 1, "more": 2}', r"d\.jsonl line 1: no column 'text'; it has other, more"),
        ("[1]", r"line 1: not a JSON object"),
        ('{"text": 5}', r"line 1: holds int, neither a text nor a list"),
        ('{"text": [{"who": "x"}]}', r"line 1: a turn has keys who"),
        ('{"text": ["x"]}', r"line 1: a turn is str"),
    ],
)
def test_malformed_rows_name_file_and_row(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(content)
    with pytest.raises(TunediffError, match=match) as caught:
        list(documents(local(path, validation_share=1e-9), "train", 0))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    good = jsonl(tmp_path / "good.jsonl", [{"text": "a"}])
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 but not really")
    gz = tmp_path / "torn.jsonl.gz"
    gz.write_bytes(b"not gzip")
    (tmp_path / "x.csv").write_text("text\n")
    for path, column, match in (
        (tmp_path / "no.jsonl", "text", "no such file"),
        (torn, "text", r"torn\.parquet: not a readable Parquet file"),
        (gz, "text", r"torn\.jsonl\.gz: cannot be read"),
        (tmp_path / "x.csv", "text", r"not a \.jsonl"),
        (good, "body", "no column 'body'"),
    ):
        with pytest.raises(TunediffError, match=match):
            next(documents(local(path, column), "train", 0))


def test_hub_rows_splits_and_errors(monkeypatch) -> None:
    import datasets

    asked = []

    def load(path, name, *, split, revision, streaming):
        asked.append((path, name, split, revision, streaming))
        if path == "lmsys/lmsys-chat-1m":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' is a gated dataset on the Hub.")
        if path == "no/where":
            raise ConnectionError("no network\nsecond line")
        return iter([{"text": t} for t in TEXTS])

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in corpora.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    hub = {"from": "hub", "path": "a/b", "column": "text", "split": "s", "revision": "r", "validation_split": None}
    parts = [[d.messages[0].content for d in documents(hub, s, 0)] for s in corpora.SPLITS]
    assert sorted(parts[0] + parts[1]) == sorted(TEXTS) and asked[-1] == ("a/b", None, "s", "r", True)
    own = hub | {"validation_split": "test"}
    assert len(list(documents(own, "validation", 0))) == 300 and asked[-1][2] == "test"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    next(documents(own, "train", 0))
    assert asked[-1][-1] is False  # from the cache
    monkeypatch.delenv("HF_HUB_OFFLINE")
    gated = hub | {"path": "lmsys/lmsys-chat-1m", "column": "conversation"}
    wanted = r"https://huggingface\.co/datasets/lmsys/lmsys-chat-1m and set HF_TOKEN"
    with pytest.raises(TunediffError, match=wanted):
        next(documents(gated, "train", 0))
    with pytest.raises(TunediffError, match=r"no network.*check the id") as caught:
        next(documents(hub | {"path": "no/where"}, "train", 0))
    assert "\n" not in str(caught.value)
    with pytest.raises(TunediffError, match="no column 'body'; it has text"):
        next(documents(hub | {"column": "body"}, "train", 0))


def test_demo_source_and_its_chat_concepts() -> None:
    sources = {part: {"from": "demo", "part": part} for part in ("web", "chat")}
    assert not next(documents(sources["web"], "train", 0)).is_chat
    concepts, own, kind_of = labels(sources.values())
    carried = {
        part: {s.concept for d in islice(documents(source, "train", 0), 800) for m in d.messages for s in m.spans}
        for part, source in sources.items()
    }
    assert own & carried["chat"] and not own & carried["web"]
    assert set(concepts) >= own | carried["web"]
    assert kind_of["refusal_theft_onset"] == "refusal_onset"
    assert labels([{"from": "local"}]) == ([], set(), {})
    with pytest.raises(TunediffError, match="part 'poems'"):
        next(documents({"from": "demo", "part": "poems"}, "train", 0))


BAD_LINES = {
    "not JSON": b'{"text": ',
    "half of a surrogate pair": b'{"text": "a \\ud800 b"}',
    "nested too deeply": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "holds null": b'{"text": null}',
    "both texts": b'{"text": [{"role": "user", "content": null}]}',
    "not UTF-8": b'{"text": "\xff"}',
    "not a JSON object": b"[1]",
    "no column 'text'": b'{"other": 1}',
    "not JSON (Exceeds": b'{"text": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("why", BAD_LINES)
def test_a_bad_row_is_skipped_and_counted_with_its_line(tmp_path: Path, why: str) -> None:
    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"text": text}).encode() for text in TEXTS]
    path.write_bytes(b"\n".join([*lines[:7], BAD_LINES[why], *lines[7:]]))
    skipped = corpora.Skipped()
    found = [d.messages[0].content for d in documents(local(path), "train", 0, whole=True, skipped=skipped)]
    assert found == TEXTS
    assert (skipped.bad, skipped.rows) == (1, 301)
    head, line = skipped.lines("web")
    assert head == "web: skipped 1 bad of 301 rows; the first:" and line.startswith(f"{path} line 8: ") and why in line


def test_a_byte_order_mark_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes("\ufeff".encode() + jsonl(tmp_path / "x.jsonl", [{"text": t} for t in TEXTS]).read_bytes())
    skipped = corpora.Skipped()
    assert len(list(documents(local(path), "train", 0, whole=True, skipped=skipped))) == 300 and skipped.bad == 0


@pytest.mark.parametrize(("rows", "bad", "read"), [(100, 5, 100), (100, 6, 100), (5000, 50, 5000), (5000, 51, 51)])
def test_above_the_share_of_bad_rows_a_source_is_an_error(tmp_path: Path, rows: int, bad: int, read: int) -> None:
    """The bad rows come first: a thousand rows, or the end of the source, are waited for."""
    lines = [{"text": 1}] * bad + [{"text": f"t{i}"} for i in range(rows - bad)]
    source = local(jsonl(tmp_path / "d.jsonl", lines))
    if bad in (5, 50):
        assert len(list(documents(source, "train", 0, whole=True))) == rows - bad
    else:
        wanted = rf"{bad} of {read} rows are bad, at most 5% may be; the first: .*d\.jsonl line 1: holds int"
        with pytest.raises(TunediffError, match=wanted):
            list(documents(source, "train", 0, whole=True))


def test_a_parquet_text_that_is_not_utf_8_is_a_bad_row(tmp_path: Path) -> None:
    rows = [b"good", b"bad \xa5", b"good too"] + [b"more"] * 30
    offsets = np.cumsum([0, *map(len, rows)]).astype("int32")
    text = pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(b"".join(rows)))
    pq.write_table(pa.table({"text": text}), tmp_path / "x.parquet")
    source = {"from": "local", "path": str(tmp_path / "x.parquet"), "column": "text"}
    skipped = Skipped()
    found = [each.messages[0].content for each in documents(source, "train", 0, whole=True, skipped=skipped)]
    assert found[:2] == ["good", "good too"] and len(found) == 32
    assert skipped.bad == 1 and skipped.first[0].startswith(f"{tmp_path}/x.parquet row 1: 'utf-8' codec can't decode")
