"""The part of the soak that fuzzes text files and directories of models, and reads them as jobs do."""

import gzip
import json
import random
import shutil
import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soak_fuzz
import torch
from safetensors.torch import load_file, save_file
from soak_fuzz import DEMO_PAIR, FINE, ODD, WORDS, damaged, nodes, odd_value
from transformers.utils.logging import disable_progress_bar

from tunediff.config.check import complete
from tunediff.config.preflight import preflight
from tunediff.data import rendering
from tunediff.data.corpora import Skipped, documents, opened
from tunediff.data.documents import Document, Message
from tunediff.data.rendering import ChatRenderer
from tunediff.data.sampling import tokenize_split
from tunediff.errors import TunediffError
from tunediff.models.pair import load_pair, prepare_pair, verify_pair
from tunediff.models.tokenizers import load_tokenizer, pieces

RENDERED = 4.0  # seconds of the processor that a chat template has here; in a run they are more, and a bound as well
CHATS = [
    Document("a", (Message("user", "Why is the sky blue?"), Message("assistant", "It scatters light."))),
    Document("b", (Message("user", " "), Message("assistant", "🙂 日本\n"))),
    Document("c", (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))),
]
TEMPLATES = (
    *(
        "",
        "{{",
        "{% for %}",
        "{{ messages }}",
        "{{ messages[0]['content'] }}",
        "{{ x.y.z }}",
        "{{ 1 / 0 }}",
        "{{ ''.join(1) }}",
    ),
    "{% for i in range(10 ** 9) %}{% for j in range(10 ** 9) %}{% endfor %}{% endfor %}",
    "{% for i in range(10 ** 6) %}{{ messages }}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ raise_exception('no\nsuch\nthing') }}",
    "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
    "{% for m in messages %}{{ m['role'] }}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    "{% set x = namespace(a=1) %}{{ x.a.b }}{{ messages | tojson }}",
    "{{ messages[99]['content'] }}",
    "{% include 'x' %}",
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}",
)


# -- text files --------------------------------------------------------------------------------------------------------


def text_value(rng: random.Random) -> Any:
    """Return what may stand in a column of texts."""
    if rng.random() < 0.1:
        return odd_value(rng, "text")
    return " ".join(rng.choices(WORDS, k=rng.choice((0, 1, 10, 60, 3_000)) if rng.random() < 0.2 else 20))


def chat_value(rng: random.Random) -> Any:
    """Return what may stand in a column of conversations."""
    if rng.random() < 0.1:
        return odd_value(rng, [])
    role, content = rng.choice((("role", "content"), ("from", "value")))
    turns: list[Any] = []
    for i in range(rng.choice((0, 1, 2, 3, 6))):
        who = (
            rng.choice(("user", "assistant", "system", "human", "gpt", "tool", "", "🙂"))
            if rng.random() < 0.2
            else None
        )
        turn = {role: who if who is not None else ("user", "assistant")[i % 2], content: text_value(rng)}
        if rng.random() < 0.05:
            turn[rng.choice((role, content))] = rng.choice(ODD)
        turns.append(rng.choice(ODD) if rng.random() < 0.02 else turn)
    return turns


def line(row: Any) -> str:
    """Return a row of JSON, as other programs write it: NaN and halves of surrogate pairs too."""
    return json.dumps(row, ensure_ascii=True, skipkeys=True, default=str) + "\n"


def write_jsonl(rng: random.Random, folder: Path, value: Callable[[random.Random], Any]) -> Path:
    """Write lines of JSON, some of them damaged, perhaps compressed."""
    lines = [line({"text": value(rng), "id": i}).encode() for i in range(rng.choice((0, 1, 30, 300)))]
    for _ in range(rng.choice((0, 0, 1, 3, len(lines)))):
        at, cut = (
            rng.randrange(len(lines) + 1),
            rng.choice((b"", b"\n", b"null\n", b"[]\n", b"{}\n", b'"x"\n', b"\xff\xfe\n")),
        )
        lines.insert(
            at, rng.choice((cut, b"\xef\xbb\xbf", rng.randbytes(30) + b"\n", b"[" * 10_000 + b"\n", b"{'a': 1}\n"))
        )
    content = b"".join(lines)
    if rng.random() < 0.2 and content:
        at = rng.randrange(len(content))
        content = rng.choice(
            (content[:at], content[:at] + rng.randbytes(9) + content[at:], content.replace(b"\n", b"\r\n"))
        )
    name = rng.choice(("x.jsonl", "x.jsonl", "x.jsonl.gz", "x.txt", "x.json", "x.csv", "x.jsonl.zst", "x.parquet"))
    if name.endswith(".gz") and rng.random() < 0.8:
        content = gzip.compress(content)
        if rng.random() < 0.3:
            content = bit_rot(rng, content)
    path = folder / name
    path.write_bytes(content)
    return path


def bit_rot(rng: random.Random, content: bytes) -> bytes:
    """Return content cut, or with a few other bytes in it."""
    if not content:
        return content
    at = rng.randrange(len(content))
    if rng.random() < 0.3:
        return content[:at]
    several = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 40))):
        several[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(several)


def write_parquet(rng: random.Random, folder: Path, value: Callable[[random.Random], Any]) -> Path:
    """Write a Parquet file of some type, perhaps damaged."""
    path, count = folder / "x.parquet", rng.choice((0, 1, 30, 300))
    values: list[Any] = [value(rng) for _ in range(count)]
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds = [pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float32(), pa.list_(pa.string()), pa.null()]
    kinds += [turns, pa.timestamp("ns"), pa.decimal128(5, 2), pa.dictionary(pa.int32(), pa.string())]
    try:
        column = pa.array(values, rng.choice(kinds)) if rng.random() < 0.5 else pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeError):
        column = pa.array([str(each).encode("utf-8", "replace").decode() for each in values[:50]], pa.string())
    pq.write_table(pa.table({rng.choice(("text", "text", "text", "Text", "")): column}), path)
    if rng.random() < 0.5:
        path.write_bytes(bit_rot(rng, path.read_bytes()))
    return path


def look_at_texts(rng: random.Random, folder: Path) -> str:
    """Read a file of texts as the look before a run, derived budgets and the job that tokenises do."""
    value = text_value if rng.random() < 0.5 else chat_value
    path = (write_jsonl if rng.random() < 0.6 else write_parquet)(rng, folder, value)
    source = {"from": "local", "path": str(path), "column": "text", "validation_share": 0.3}
    refused = None
    for read in (
        lambda: opened(source).glance(),
        lambda: list(islice(documents(source, "train", 0, skipped=Skipped()), 1_000)),
        lambda: from_template(folder, {"tokens": {"sources": {"web": source}}}),
        lambda: tokenize_split({"web": source}, {"web": rng.choice((1, 64, 512))}, rng.choice(("train", "validation")),
                               load_tokenizer(DEMO_PAIR / "chat"), 64, 0, 0, folder / "t.zarr", key="k"),
    ):  # fmt: skip
        refused = told(read) or refused
    if refused:
        raise refused
    return FINE


def told(read: Callable[[], Any]) -> TunediffError | None:
    """Read; return the error of one line that it ended in, None where it did not."""
    try:
        read()
    except TunediffError as error:
        if "\n" in str(error):
            raise
        return error
    return None


def from_template(folder: Path, changes: dict[str, Any]) -> None:
    """Check a config made from the template, and look at what it names."""
    config = soak_fuzz.local_config(folder)
    config = {**config, **changes}
    checked = complete(config, DEMO_PAIR).config
    problems = preflight(checked, DEMO_PAIR, device=False).problems
    if problems:
        raise TunediffError(max(problems, key=lambda problem: "\n" in problem))


# -- directories of models ---------------------------------------------------------------------------------------------


def change_json(rng: random.Random, path: Path) -> None:
    """Change values and keys of a JSON file, or damage its text."""
    if rng.random() < 0.25:
        path.write_text(damaged(rng, path.read_text(encoding="utf-8")), encoding="utf-8", errors="surrogatepass")
        return
    tree = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = [each for each in nodes(tree) if "vocab" not in each[:2] or rng.random() < 0.02]
        if not places:
            break
        place = rng.choice(places)
        parent = tree
        for key in place[:-1]:
            parent = parent[key]
        if rng.random() < 0.25:
            del parent[place[-1]]
        else:
            parent[place[-1]] = odd_value(rng, parent[place[-1]])
    path.write_text(json.dumps(rng.choice(([], "x", *[tree] * 20))), encoding="utf-8")


def change_weights(rng: random.Random, path: Path) -> None:
    """Damage a safetensors file: bytes, header, tensors missing, renamed, not finite, of another shape or type."""
    kind = rng.randrange(9)
    content = path.read_bytes()
    if kind == 0:
        path.write_bytes(bit_rot(rng, content))
        return
    if kind == 1:
        size = rng.choice((0, 1, 7, 2**20, 2**31, 2**63 - 1, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", size) + content[8:])
        return
    if kind == 2:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        name = rng.choice([each for each in header if each != "__metadata__"])
        key = rng.choice(("dtype", "shape", "data_offsets"))
        wrong: tuple[Any, ...] = ("F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", [0], [1], [-1, 2], [2**62, 8], [], None)
        wrong = (*wrong, [0, 1], [5, 1], [0, 2**62])
        header[name][key] = rng.choice(wrong)
        own = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(own)) + own + content[8 + length :])
        return
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    if kind == 3:
        del tensors[name]
    elif kind == 4:
        tensors[rng.choice(("x", "", "model.x", name + ".weight", "a" * 999))] = tensors.pop(name)
    elif kind == 5:
        tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = rng.choice((np.nan, np.inf, -np.inf, 1e38))
    elif kind == 6:
        own = tensors[name]
        tensors[name] = rng.choice((own[:-1], own[:0], own.reshape(-1), own[None]))
    elif kind == 7:
        types = (torch.float16, torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn)
        tensors[name] = tensors[name].to(rng.choice(types))
    else:
        path.unlink()
        other = rng.choice(("pytorch_model.bin", "model.safetensors.index.json", "model-00001-of-00002.safetensors"))
        path.with_name(other).write_bytes(
            content[:4096] if other.endswith(".bin") else b"{}" if "json" in other else content
        )
        return
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def change_model(rng: random.Random, folder: Path) -> None:
    """Change one or two files of a directory of a model."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        files = [*sorted(folder.iterdir()), *folder.glob("config.json"), *folder.glob("*.safetensors")]
        path = rng.choice(files)
        if rng.random() < 0.08:
            path.unlink()
        elif rng.random() < 0.08:
            path.write_bytes(bit_rot(rng, path.read_bytes()))
        elif path.name == "chat_template.jinja":
            text = path.read_text(encoding="utf-8", errors="replace")
            path.write_text(damaged(rng, text) if rng.random() < 0.3 else rng.choice(TEMPLATES), encoding="utf-8")
        elif path.suffix == ".json":
            change_json(rng, path)
        elif path.suffix == ".safetensors":
            change_weights(rng, path)


def look_at_model(rng: random.Random, folder: Path) -> str:
    """Take a pair of models as the look before a run, and the jobs that resolve, prove and render with it, do."""
    rendering.RENDER_SECONDS = RENDERED
    for side in ("base", "chat"):
        shutil.copytree(DEMO_PAIR / side, folder / side)
    before = json.loads((folder / "chat/config.json").read_text(encoding="utf-8"))
    change_model(rng, folder / rng.choice(("base", "chat", "chat")))
    models = {side: str(folder / side) for side in ("base", "chat")}

    def jobs() -> None:
        prepare_pair(models, DEMO_PAIR, folder / "models", key="k")
        pair = load_pair(folder / "models", before["num_hidden_layers"] // 2, "float32", key="k")
        tokenizer = pair.load_tokenizer()
        pieces(tokenizer, range(50))
        renderer = ChatRenderer(tokenizer)
        renderer.chats(CHATS, 64)
        renderer.texts([Document("t", (Message("text", "A plain text."),))], 64)
        told(lambda: renderer.stop_ids)
        verify_pair(pair, "cpu", folder / "hooks.json", key="k")

    refused = None
    for read in (lambda: from_template(folder, {"models": models}), jobs):
        refused = told(read) or refused
    if refused:
        raise refused
    return FINE


def look_at_input(rng: random.Random, folder: Path) -> str:
    """Make and read a file of texts or a directory of a model."""
    disable_progress_bar()
    return (look_at_texts if rng.random() < 0.5 else look_at_model)(rng, folder)


def inputs(work: Path, count: int, seed: int, workers: int) -> str:
    """Read `count` fuzzed files of texts and directories of models."""
    return soak_fuzz.counted(soak_fuzz.tried(look_at_input, "inputs", count, seed, workers, work))
