"""The part of the soak that flips bytes: what is read of a damaged file is an error of one line, or what was written.

Files of a finished run, and a checkpoint, are damaged one byte at a time, every kind of file as often as the others.
Then everything that reads the file in a job, a drawing, the report or Python reads it; so does `tunediff inspect`.
"""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soak_fuzz
import soak_runs
import torch
import yaml
from transformers.utils.logging import disable_progress_bar

from tunediff.config.check import check as checked
from tunediff.config.dictionaries import dictionary_settings
from tunediff.config.settings import TrainingSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import FLAT, PER_DOCUMENT, TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.training import _Run
from tunediff.errors import TunediffError
from tunediff.explanations.tables import Explanations, read_judgements
from tunediff.inspection import inspect
from tunediff.latents.examples import SCHEMAS, Examples
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair
from tunediff.pipeline.artifacts import check, manifest_path, store_of
from tunediff.pipeline.keys import stored_key
from tunediff.report.html.pages import copied_drawings, provenance
from tunediff.report.inputs import Inputs
from tunediff.results import READERS, Results

TOLD, HARMLESS = "told in a line by a reader", "of no matter: what is read is equal"
INSPECTED = "told in a line by inspect alone, as what is read is equal"
SKIPPED = (".work", "logs", "benchmarks")
CHECKPOINT = ".work/checkpoint/checkpoint.pt"
NAME = "batchtopk-seed0"


class State(NamedTuple):
    """A copy of the results to damage, and what its readers read of it undamaged."""

    root: Path
    config: dict[str, Any]
    keys: dict[str, str]  # of every manifest, by path without suffix
    kinds: dict[str, list[Path]]
    good: dict[str, Any]  # by name of a reader


_states: dict[Path, State] = {}  # of this process


def kind_of(path: str) -> str:
    """Return the kind of a file of the results."""
    top, name = path.split("/")[0], Path(path).name
    if name.endswith(".provenance.json"):
        return "provenance"
    if path.count("/") == (2 if top == "activations" else 1) and name.count(".") == 1 and name.endswith(".json"):
        return f"{top} manifest"
    inside = "metadata" if name == "zarr.json" else "chunk" if "/c/" in path else Path(path).suffix
    return f"{top} {inside}"


def readers_of(path: str, state: State) -> dict[str, Callable[[], Any]]:
    """Return what reads a file, by name: the functions of jobs, drawings, the report and `Results`."""
    root, keys, run = state.root, state.keys, Results(state.root)
    top, stem = path.split("/")[0].split(".")[0], Path(path).name.split(".")[0]
    name = next((part for part in path.split("/")[1:] if part.startswith(("l1-", "batchtopk-"))), NAME).split(".")[0]
    models = state.config["models"]

    def role(which: str, of: str = "") -> Callable[[], Any]:
        return lambda: run.read(which, of)

    def pair() -> Any:
        read = load_pair(root / "models", models["layer"], models["dtype"], key=keys["models"])
        tokenizer = read.load_tokenizer()
        said = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=True)
        weights = [each.model.state_dict() for each in (read.load_base("cpu"), read.load_chat("cpu", upper=True))]
        return read.d_model, read.tokenizer, list(said), weights

    def drawn() -> Any:
        out = root.parent / "drawn"
        shutil.rmtree(out, ignore_errors=True)
        drawings = [path for folder in ("figures", "tables") for path in sorted((root / folder).glob("*.csv"))]
        copied_drawings(Inputs({"drawings": drawings}, state.config), out)
        return {file.name: file.read_bytes() for file in out.rglob("*.*")}

    def made() -> Any:
        found = provenance(Inputs({}, state.config), keys)
        return found["versions"], found["artifacts"]

    def tokens() -> Any:
        split = next(part for part in ("train", "validation", "conversations") if part in path)
        store = TokenStore.open(root / f"tokens/{split}.zarr", key=keys[f"tokens/{split}"])
        return store.attributes, [store.read(array) for array in (*FLAT, *PER_DOCUMENT)]

    def activations() -> Any:
        split = "train" if "/train/" in path else "validation"
        parts = sorted((root / f"activations/{split}").glob("*.zarr"))
        return list(ActivationStore(parts, key=keys[f"activations/{split}/part-000"]).chunks())

    def crosscoder() -> Any:
        loaded = Crosscoder.load(root / f"crosscoders/{name}", key=keys[f"crosscoders/{name}"])
        return loaded.state_dict(), loaded.config

    def examples() -> Any:
        opened = Examples.open(root / f"examples/{name}", key=keys[f"examples/{name}"])
        return [opened.table(each) for each in SCHEMAS]

    def whole(kind: str, store: str) -> Callable[[], Any]:
        return lambda: check(root / store, kind, keys[store.split(".")[0]]).facts

    own: dict[str, dict[str, Callable[[], Any]]] = {
        "models": {"pair": pair, "Results.pair": lambda: run.pair},
        "hooks": {"Results.pair": lambda: run.pair, "hooks": role("hooks")},
        "tokens": {f"tokens {stem}": tokens},
        "activations": {"activations": activations},
        "crosscoders": {
            "crosscoder": crosscoder,
            "histories": role("histories", name),
            "facts": role("crosscoders", name),
        },
        "latents": {
            "latents": lambda: LatentTable.read(root / f"latents/{name}.parquet", key=keys[f"latents/{name}"]),
            "Results.latents": lambda: run.latents(name),
        },
        "evaluation": {"evaluation": role("evaluation", name)},
        "examples": {"examples": examples},
        "losses": {"losses": role("losses")},
        "twins": {"twins": role("twins", name)},
        "explanations": {
            "explanations": lambda: Explanations.open(root / f"explanations/{name}", key=keys[f"explanations/{name}"])
        },
        "judgements": {
            "judgements": lambda: read_judgements(root / f"judgements/{name}.parquet", key=keys[f"judgements/{name}"])
        },
        "explanation_scores": {each: role(each) for each in ("explanation_scores", "explanation_means")},
        "causal": {each: role(each) for each in ("kl", "kl_table", "sets")},
        "steering": {each: role(each) for each in ("steering", "steering_texts")},
        "concepts": {"concepts": role("concepts")},
        "seeds": {"seeds": role("seeds")},
        "figures": {"drawings": drawn},
        "tables": {"drawings": drawn},
        "summary": {"summary": whole("summary", "summary.txt")},
        "report": {"report": whole("report", "report")},
    }
    if path == CHECKPOINT:
        return {"checkpoint": partial(checkpoint, root, state.config)}
    if path.endswith(".provenance.json"):
        return {"provenance": made}
    return {f"{each} of {name}" if each in PER_NAME else each: reader for each, reader in own[top].items()}


PER_NAME = [role for role, (file, _, _) in READERS.items() if "{}" in file]
PER_NAME += ["crosscoder", "facts", "Results.latents", "activations"]


def checkpoint(root: Path, config: dict[str, Any]) -> Any:
    """Return where a training goes on from the checkpoint, which is made where there is none."""
    settings = dictionary_settings(config["crosscoders"]["l1"])
    store = ActivationStore(sorted((root / "activations/train").glob("*.zarr")))
    training = TrainingSettings(**config["training"], seed=config["seed"], device="cpu")
    run = _Run("l1-seed0", settings, 0, store, training, (root / CHECKPOINT).parent)
    if not run.checkpoint.exists():
        run.step = 50
        run.save()
    if run.step == 0:
        raise TunediffError("damaged; training starts from the beginning")  # as the log says
    return run.step, run.history, run.dictionary.state_dict(), run.optimizer.state_dict()


def same(left: Any, right: Any) -> bool:
    """Whether two results are equal, whatever they are made of."""
    if type(left) is not type(right):
        return False
    if isinstance(left, pd.DataFrame):
        return left.equals(right) and list(left.dtypes) == list(right.dtypes)
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left.nan_to_num(), right.nan_to_num())
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, LatentTable | Explanations) or is_dataclass(left):
        names = [field.name for field in fields(left)] if is_dataclass(left) else sorted(vars(left))
        return all(same(getattr(left, name), getattr(right, name)) for name in names)
    return bool(left == right)


def prepared(results: Path, folder: Path) -> State:
    """Return this process's copy of the results of a finished run."""
    if folder not in _states:
        root = folder.with_name(f"{folder.name}-copy") / "results"
        shutil.rmtree(root.parent, ignore_errors=True)
        shutil.copytree(results, root, ignore=shutil.ignore_patterns(*SKIPPED, ".snakemake*"))
        config = checked(yaml.safe_load((soak_runs.ROOT / "config/ci.yaml").read_text(encoding="utf-8")))
        config["results"] = str(root)
        checkpoint(root, config)
        kinds: dict[str, list[Path]] = {"checkpoint": [root / CHECKPOINT]}
        for path in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"):
            relative = path.relative_to(root)
            if relative.parts[0] not in SKIPPED:
                kinds.setdefault(kind_of(str(relative)), []).append(path)
        manifests = [
            path for path in root.rglob("*.json") if stored_key(path) and not path.is_relative_to(root / "report")
        ]
        keys = {str(path.relative_to(root).with_suffix("")): stored_key(path) or "" for path in manifests}
        _states[folder] = State(root, config, keys, kinds, {})
    return _states[folder]


def look_at_flip(results: Path, rng: random.Random, folder: Path) -> str:
    """Flip one bit of one file, read it by all of its readers, and put it right again."""
    disable_progress_bar()
    state = prepared(results, folder)
    file = rng.choice(state.kinds[rng.choice(sorted(state.kinds))])
    path, content = str(file.relative_to(state.root)), file.read_bytes()
    if not content:
        return HARMLESS
    at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    readers = readers_of(path, state)
    for name, read in readers.items():
        if name not in state.good:
            state.good[name] = read()
    where, outcome = f"{path} byte {at} ^ {bit}", HARMLESS
    stat = file.stat()
    file.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
    try:
        for name, read in readers.items():
            try:
                if not same(read(), state.good[name]):
                    return f"{soak_fuzz.SILENT}: {where} by {name}"
            except TunediffError as error:
                outcome = TOLD
                if "\n" in str(error):
                    raise
        looked = [inspect(state.root)]
        if path != CHECKPOINT:
            looked.append(inspect(store_holding(file, state.root)))
        if any("\n" in line for found in looked for line in found.problems):
            raise AssertionError(f"{where}: inspect tells more than a line")
        if path != CHECKPOINT and outcome == TOLD and not looked[0].problems:
            return f"{soak_fuzz.SILENT}: {where} by inspect"
        return INSPECTED if outcome == HARMLESS and looked[0].problems else outcome
    except Exception as error:
        error.add_note(where)
        raise
    finally:
        file.write_bytes(content)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def store_holding(file: Path, root: Path) -> Path:
    """Return the store that a file is in, or belongs to; the file itself where it is an artifact alone."""
    for folder in [folder for folder in file.parents if folder.is_relative_to(root) and folder != root]:
        if manifest_path(folder).is_file():
            return folder
    store = store_of(manifest_path(file))
    return store if store.exists() else file


def flipped(work: Path, count: int, seed: int, workers: int) -> str:
    """Flip `count` bits of the files of a finished run, one at a time."""
    results = soak_runs.reference(work, workers).results
    return soak_fuzz.counted(soak_fuzz.tried(partial(look_at_flip, results), "flips", count, seed, workers, work))
