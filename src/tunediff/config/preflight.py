"""What a config alone does not tell, looked at before anything runs: models, first rows of sources, packages, device.

`tunediff check` looks at all of it, a start of Snakemake at what its jobs need. Nothing heavy is imported: a
config.json of each model, twenty rows of each file, and where a GPU is named a process that asks torch.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tunediff.config.check import is_local, named_models, pairs, require_layer
from tunediff.config.derive import LAYERS, WIDTH, model_config, require_safetensors, shape_value
from tunediff.data.corpora import opened
from tunediff.errors import TunediffError

COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


class Look(NamedTuple):
    """One thing to look at."""

    jobs: tuple[str, ...]  # rules whose jobs need it, a null's with its folder in front (nulls/same/models)
    key: str  # of the config
    value: str
    do: Callable[[], Any]  # raises a `TunediffError` where it is wrong


class Found(NamedTuple):
    """What was looked at, and what is wrong with it; a line each."""

    right: list[str]
    problems: list[str]


def preflight(
    config: Mapping[str, Any],
    shipped: Path,
    jobs: Collection[str] | None = None,
    *,
    environment: bool = True,
    device: bool = True,
) -> Found:
    """Return what is wrong with a checked config, as far as these jobs need it (None: all jobs).

    `shipped` is the folder of the demo's pair. `environment` says whether jobs run in this one, whose packages are then
    looked at; `device` whether they run on this machine, too.
    """
    wanted = list(_looks(config, shipped))
    if environment:
        wanted += _packages(config)
    if environment and device:
        wanted += _devices(config)
    found = Found([], [])
    for look in wanted:
        if jobs is not None and look.jobs and not any(name in jobs for name in look.jobs):
            continue
        try:
            look.do()
        except TunediffError as error:
            found.problems.append(f"config: `{look.key}`: {str(error).removeprefix('config: ')}")
        else:
            found.right.append(f"`{look.key}`: {look.value}")
    return found


def _looks(config: Mapping[str, Any], shipped: Path) -> Iterator[Look]:
    """Yield what is looked at of models and texts; planted pairs have neither."""
    if "planted" in config:
        return
    for where, pair in pairs(config).items():
        jobs = ("models" if where == "models" else f"{where.replace('.', '/')}/models",)
        for side in ("base", "chat"):
            names = " + ".join(name for key, name in named_models(pair) if key.partition(".")[0] == side)
            model = _side(pair, side)
            yield Look(jobs, f"{where}.{side}", names, partial(_model, model, shipped))
        yield Look(jobs, where, "the same width and number of blocks", partial(_agree, pair, shipped))
        layer = {**pair, "layer": config["models"]["layer"]}
        yield Look(
            jobs,
            where,
            f"block {layer['layer']} is there, and not the last",
            partial(require_layer, layer, shipped, fetch=True),
        )
    for name, source in config["tokens"]["sources"].items():
        yield Look(("tokens",), f"tokens.sources.{name}", "first rows", opened(source).glance)
    asked = opened(config["conversations"]["source"])
    yield Look(("conversations",), "conversations.source", "first rows", asked.glance)
    own = config["explanations"]["model"]
    if own and own["from"] == "local":
        model = {"base": own["path"], "base_revision": own["revision"]}
        yield Look(("explain", "judge"), "explanations.model.path", own["path"], partial(_model, model, shipped))


def _packages(config: Mapping[str, Any]) -> Iterator[Look]:
    """Yield what is looked at of the environment."""
    logger, own = config["training"]["log_to"], config["explanations"]["model"]
    if logger != "none":
        yield Look(("train",), "training.log_to", logger, partial(_package, logger))
    if own and own["from"] == "endpoint" and own["key_variable"]:
        name = own["key_variable"]
        yield Look(("explain", "judge"), "explanations.model.key_variable", name, partial(_variable, name))
    if own and own["from"] == "endpoint":
        yield Look(("explain", "judge"), "explanations.model.url", own["url"], _online)


def _devices(config: Mapping[str, Any]) -> Iterator[Look]:
    """Yield what is looked at of this machine."""
    section = "planted" if "planted" in config else "models"
    device, processes = config[section]["device"], config["training"]["devices"]
    if device.startswith("cuda"):
        yield Look((), f"{section}.device", device, partial(_device, device))
    if processes > 1 and device != "cpu":
        told = f"{processes} processes for each crosscoder"
        yield Look(("train",), "training.devices", told, partial(_processes, processes))


def _side(pair: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Return a section of models with this one in the place of the base, where `model_config` reads it."""
    return {**pair, "base": pair[side], "base_revision": pair.get(f"{side}_revision")}


def _model(model: Mapping[str, Any], shipped: Path) -> None:
    """Check that a section's base model is in reach, and has weights that are read."""
    name = model["base"] if isinstance(model["base"], str) else model["base"]["base"]
    if model_config(model, shipped) is None:
        raise TunediffError(
            f"no config.json of {name} is in reach; check the id, accept its terms on the hub and set HF_TOKEN, or "
            "give a directory"
        )
    if is_local(name):
        require_safetensors(Path(name).expanduser(), name)


def _agree(pair: Mapping[str, Any], shipped: Path) -> None:
    found = [model_config(_side(pair, side), shipped) for side in ("base", "chat")]
    for what, names in (("width", WIDTH), ("number of blocks", LAYERS)):
        base, chat = (shape_value(config, *names) for config in found)
        if None not in (base, chat) and base != chat:
            raise TunediffError(f"the {what} differs, base {base}, chat {chat}; give a base and its own tune")


def _package(name: str) -> None:
    if find_spec(name) is None:
        raise TunediffError(f"{name} is not installed; pip install {name}, or write `none`")


def _variable(name: str) -> None:
    if not os.environ.get(name):
        raise TunediffError(f"the environment has no {name}; set it to the key")


def _online() -> None:
    """Check that the client of endpoints will connect: offline, it refuses a server on this machine too."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise TunediffError("HF_HUB_OFFLINE is set, and the client then connects to no server; unset it")


def _gpus() -> int:
    """Return the number of GPUs that torch sees here, from a process of its own."""
    command = [sys.executable, "-c", COUNT_GPUS]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return int(said) if said.isdecimal() else 0


def _processes(processes: int) -> None:
    """Check that each process that trains a crosscoder has a GPU; with `auto` and no GPU all are on the CPU."""
    there = _gpus()
    if processes > there > 0:
        raise TunediffError(f"is {processes}, but torch sees {there} GPU here; write {there}, or set `device: cpu`")


def _device(device: str) -> None:
    there = _gpus()
    if int(device.partition(":")[2] or 0) >= there:
        raise TunediffError(
            f"is {device}, but torch sees {there or 'no'} GPU here; write `auto`, `cpu` or one that it sees"
        )
