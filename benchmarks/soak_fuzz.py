"""The parts of the soak that fuzz what a user gives: configs, text files, directories of models.

Every input is made from its own seed and read by worker processes as a start or a job reads it. It must be read, or be
refused by a `TunediffError` of one line, within ten seconds: of the processor, as the machine may be busy, or a minute
on the clock. A worker that takes longer is killed: a hang.
"""

import json
import multiprocessing
import os
import random
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from soak_runs import ROOT, SoakError

from tunediff.errors import TunediffError

SECONDS, WAITED = 10.0, 60.0  # for one input: of the processor, on the clock
PREPARING = 60.0  # more for the first of a process, which imports and prepares what the others need
TOLD = 5  # faults that are printed
FINE, REFUSED, SNAKEMAKE = "read", "refused", "refused by Snakemake"
CRASHED = "not read by Snakemake for an error of its own, which `tunediff check` tells in a line"
TRACEBACK, HANG, LONG, SILENT = "TRACEBACK", "HANG", "MORE THAN A LINE", "SILENT"
DEMO_PAIR = ROOT / "resources/demo-pair"
WORDS = [
    "The",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "near",
    "a",
    "quiet",
    "river",
    "in",
    "Zürich",
    "日本",
    "and",
    "asks",
    "who",
    "pays",
]

Look = Callable[[random.Random, Path], str]  # makes and reads one input in a folder; returns what came of it


# -- worker processes --------------------------------------------------------------------------------------------------


def attempt(look: Look, seed: str, folder: Path) -> tuple[str, str]:
    """Return what came of one input, and what was said of it."""
    try:
        return look(random.Random(seed), folder), ""
    except TunediffError as error:
        return (REFUSED if "\n" not in str(error) else LONG), str(error)
    except Exception:
        return TRACEBACK, traceback.format_exc()


def _serve(look: Look, folder: Path, pipe: Connection) -> None:
    os.chdir(ROOT)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            pipe.send(attempt(look, pipe.recv(), folder))


class Worker:
    """A process that tries inputs, one at a time."""

    def __init__(self, look: Look, folder: Path) -> None:
        self.look, self.folder, self.seed, self.since, self.used, self.first = look, folder, "", 0.0, 0.0, True
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.look, self.folder, other), daemon=True)
        self.process.start()
        other.close()
        self.first = True

    def give(self, seed: str) -> None:
        """Let it try the input of this seed."""
        self.seed, self.since, self.used = seed, monotonic(), self._used()
        self.pipe.send(seed)

    def _used(self) -> float:
        """Return the seconds of the processor that the process has used."""
        found = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(found[11]) + int(found[12])) / os.sysconf("SC_CLK_TCK")

    def result(self) -> tuple[str, str] | None:
        """Return what came of it; None where it is not done."""
        if self.pipe.poll():
            with suppress(EOFError):
                self.first = False
                return self.pipe.recv()
            self._start()
            return TRACEBACK, "the process died"
        more = PREPARING if self.first else 0.0
        if monotonic() - self.since > more + WAITED or self._used() - self.used > more + SECONDS:
            self.process.kill()
            self._start()
            return HANG, f"more than {SECONDS:g} s"
        return None


def tried(look: Look, kind: str, count: int, seed: int, workers: int, work: Path) -> Counter[str]:
    """Try `count` inputs; return how many ended how. A `SoakError` names the first faults."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # of the workers
    ended, faults = Counter[str](), []
    waiting = iter([f"{kind} {seed} {i}" for i in range(count)])
    pool = [Worker(look, work / f"{kind}-{i}") for i in range(workers)]
    busy = [worker for worker, first in zip(pool, waiting, strict=False) if not worker.give(first)]
    while busy:
        wait([worker.pipe for worker in busy], timeout=0.5)
        for worker in list(busy):
            result = worker.result()
            if result is None:
                continue
            outcome, said = result
            ended[outcome] += 1
            if outcome.startswith((TRACEBACK, HANG, LONG, SILENT)):
                faults.append(f"{worker.seed}: {outcome}\n{said}")
                print(f"  {faults[-1]}", flush=True)
            if sum(ended.values()) % 500 == 0:
                print(f"  {kind}: {dict(ended)}", flush=True)
            following = next(waiting, None)
            if following is None:
                busy.remove(worker)
            else:
                worker.give(following)
    for worker in pool:
        worker.process.kill()
    if faults:
        raise SoakError(f"{dict(ended)}; {len(faults)} faults, the first:\n" + "\n".join(faults[:TOLD]))
    return ended


def counted(ended: Counter[str]) -> str:
    """Return in words how many inputs ended how."""
    return ", ".join(f"{count:,} {outcome}" for outcome, count in ended.most_common()) + "; 0 tracebacks, 0 hangs"


# -- f: configs --------------------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 4096, 65_536, 10**9, 10**12, 2**31, 2**63, 2**64, 10**30),
    *(10**400, -0.0, 0.5, 1.0, 200.0, 1e-300, 1e300, 1e308, float("nan"), float("inf"), -float("inf"), 1 / 3),
    *("", " ", "null", "nan", "auto", "cpu", "cuda", "cuda:99", "demo", "demo-base", "../..", "/", "~", "~nobody/x"),
    *("/dev/null", "/proc/self/mem", ".", "..", "a/b", "a/b/c", "a\tb", "a\nb", "x" * 300, "é", "\u202e", "🙂", "日本"),
    *("{x}", "{{}}", "%s", "$HOME", "`id`", "'", '"', "1e-3", "1_000", "0x10", "08", "yes", "~", "<<", "*", "["),
    *(
        "\ud800",
        "\0",
        "results",
        "results/ci",
        "resources/demo-pair/base",
        "google/gemma-2-2b",
        "mu",
        "l1",
        "batchtopk",
    ),
    *("**/*", [], [[]], [1], [1, 1], [0, 1, 2], [-1], ["a"], [None], {}, {"a": 1}, {"from": "demo"}, {"from": "local"}),
    *({1: 2}, {"from": "hub", "path": "a/b", "column": "text"}, {"kind": "l1"}, {"kind": "none"}),
    {"base": "demo", "adapter": "x"},
)
DAMAGE = (
    *(
        "\t",
        ":",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "!!python/none ",
        "!!int ",
        "|",
        ">",
        "'",
        '"',
        "#",
        "?",
        "---",
    ),
    *("...", "%YAML 9.9", "\r", "\x00", "\x85", "\ufeff", "<<: *a", "<<: {}", "!!binary aGk=", "2020-01-01", "!x "),
)


def nodes(tree: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value of a config, so many levels down."""
    inside = tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:99] if isinstance(tree, list) else ()
    for key, value in inside:
        yield (*where, key)
        if len(where) < 12:
            yield from nodes(value, (*where, key))


def odd_value(rng: random.Random, old: Any) -> Any:
    """Return something else than a value."""
    if isinstance(old, int | float) and not isinstance(old, bool) and rng.random() < 0.5:
        changed = (old + 1, old - 1, -old, old * 2, old // 2, old * 1000, float(old), old + 0.5, str(old), [old], 0)
        return rng.choice(changed)
    if isinstance(old, str) and rng.random() < 0.3:
        changed_text = (old + "x", old[:-1], old.upper(), f" {old}", f"{old}\n", [old], {old: old}, f"{old}/{old}")
        return rng.choice(changed_text)
    if rng.random() < 0.03:
        deep: Any = rng.choice(ODD)
        for _ in range(rng.choice((3, 20, 45, 60, 100))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    if rng.random() < 0.01:
        wide = rng.choice((50, 20_000, 200_000))
        return list(range(wide)) if rng.random() < 0.5 else {f"k{i}": i for i in range(wide)}
    return rng.choice(ODD)


def mutated(rng: random.Random, tree: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a config with one to five changes: values, keys left out, added, renamed or taken from other configs."""
    for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 3))):
        places = list(nodes(tree))
        if not places:
            break
        place = rng.choice(places)
        parent: Any = tree
        for key in place[:-1]:
            parent = parent[key]
        last, change = place[-1], rng.random()
        if change < 0.55:
            parent[last] = odd_value(rng, parent[last])
        elif change < 0.7:
            del parent[last]
        elif change < 0.8 and isinstance(parent, dict):
            parent[
                rng.choice(("unknown", "x y", "", "é", str(last) + "s", str(last).upper(), 1, "a.b", "__use_yte"))
            ] = 1
        elif change < 0.9 and isinstance(parent, dict):
            parent[str(odd_value(rng, str(last)))[:400]] = parent.pop(last)
        else:
            other = rng.choice(others)
            key = rng.choice(list(other))
            tree[key] = json.loads(json.dumps(other[key]))
    return tree


def damaged(rng: random.Random, text: str) -> str:
    """Return text with one to four places damaged as no editor would leave it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = text.splitlines(keepends=True) or [""]
        line, at = rng.randrange(len(lines)), rng.randrange(len(text) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            text = text[:at] + rng.choice(DAMAGE) + text[at:]
        elif kind == 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[line])  # a key twice
            text = "".join(lines)
        elif kind == 2:
            del lines[line]
            text = "".join(lines)
        elif kind == 3:
            lines[line] = " " * rng.choice((1, 2, 4)) + lines[line]
            text = "".join(lines)
        elif kind == 4:
            text = text[:at]
        elif kind == 5 and rng.random() < 0.1:
            levels = rng.choice((60, 400, 3_000, 100_000))  # deeper than what is written of values
            text += f"deep: {rng.choice(('[', '{a: ')) * levels}"
        elif kind == 5:
            text = text[:at] + chr(rng.choice((0, 7, 9, 27, 127, 0x2028, 0xFEFF, 0xFFFD, 0x1F642))) + text[at + 1 :]
        else:
            lines[line] = lines[line].lstrip()
            text = "".join(lines)
    return text


def bomb(rng: random.Random) -> str:
    """Return YAML whose aliases stand for a billion values or more."""
    of = rng.choice(("[{}]", "{{{}}}"))
    lines = [f"a0: &a0 {of.format('x: 1' if of[0] == '{' else '1, 2')}"]
    for level in range(1, 12):
        refs = ", ".join(f"{'' if of[0] == '[' else f'k{i}: '}*a{level - 1}" for i in range(9))
        lines.append(f"a{level}: &a{level} {of.format(refs)}")
    return "\n".join(lines) + "\n"


def local_config(folder: Path) -> dict[str, Any]:
    """Return the template with models and texts of this machine, written to `folder`."""
    rng, config = random.Random("texts"), yaml.safe_load((ROOT / "config/template.yaml").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(5, 60)))} for _ in range(400)]
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chats = [[{"role": "user", "content": row["text"]}, {"role": "assistant", "content": "Yes."}] for row in rows]
    pq.write_table(pa.table({"messages": chats}), folder / "chat.parquet")
    config["models"] |= {side: str(DEMO_PAIR / side) for side in ("base", "chat")}
    config["tokens"] = {
        "sources": {
            "web": {"from": "local", "path": str(folder / "web.jsonl"), "column": "text", "validation_share": 0.3},
            "chat": {
                "from": "local",
                "path": str(folder / "chat.parquet"),
                "column": "messages",
                "validation_share": 0.3,
            },
        }
    }
    return config


@cache
def shipped_configs() -> str:
    """Return the configs of the project, as JSON."""
    trees = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "config").glob("*.yaml"))]
    return json.dumps([tree for tree in trees if "crosscoders" in tree or "models" in tree])


def look_at_config(rng: random.Random, folder: Path) -> str:
    """Make a config and check it as `tunediff check` and a start of Snakemake do, estimate and graph included."""
    from snakemake.common.configfile import load_configfile
    from snakemake.utils import update_config
    from snakemake_interface_common.exceptions import WorkflowError

    from tunediff.config import estimate
    from tunediff.config.check import check, complete
    from tunediff.config.preflight import preflight
    from tunediff.config.written import MOST_BYTES, check_files, load
    from tunediff.pipeline.graph import Graph, PlantedGraph

    # The speed of this machine is measured for each report: a tenth of a second that is not what is looked at.
    estimate.calibrate = lambda cores, dtype, seconds=0.1: estimate.Rates(1e11, 1e11, 1e10)  # type: ignore[assignment]
    trees = [*json.loads(shipped_configs()), local_config(folder)]
    path, kind = folder / "config.yaml", rng.random()
    tree = mutated(rng, rng.choice(trees), trees) if kind < 0.8 or kind > 0.97 else rng.choice(trees)
    text = json.dumps(tree) if kind > 0.97 else yaml.dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5)
    if 0.75 < kind < 0.96:
        text = damaged(rng, text)
    exploding = 0.96 < kind < 0.97
    path.write_text(bomb(rng) + text if exploding else text, encoding="utf-8", errors="surrogatepass")

    refused = None
    try:
        check(load(path))
    except TunediffError as error:
        if "\n" in str(error):
            raise
        refused = error
    # Snakemake reads and merges what --configfile names before it reads a line of this project. It takes a minute for
    # some megabytes, and for ever for aliases without end: not tried here, where `tunediff check` refuses both.
    if exploding or path.stat().st_size > MOST_BYTES:
        if refused is None:
            raise AssertionError("aliases without end, or a file of megabytes, were not refused")
        return REFUSED
    config: dict[str, Any] = {}
    try:
        update_config(config, load_configfile(path))
    except WorkflowError:
        return SNAKEMAKE
    except Exception:
        if refused is None:
            raise
        return CRASHED
    check_files([path], Path(str(config.get("results", "results"))))
    config, derived = complete(config, DEMO_PAIR)
    graph = (PlantedGraph if "planted" in config else Graph)(config, DEMO_PAIR)
    setting = estimate.setting(config, DEMO_PAIR)
    estimate.memory_mb(setting)
    estimate.report(setting, derived, graph.n_jobs, 4)
    graph.on_disk()
    for name in graph.artifacts:
        graph.inputs(name)
        graph.expected(name)
    problems = preflight(config, DEMO_PAIR, device=False).problems
    return REFUSED if problems or refused else FINE


def configs(work: Path, count: int, seed: int, workers: int) -> str:
    """Check `count` fuzzed configs."""
    return counted(tried(look_at_config, "configs", count, seed, workers, work))
