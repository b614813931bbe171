"""Checkpoints of a training that goes on with as many processes as there are, whatever their number was before.

One process writes WORK/checkpoint.pt. Each of several writes its latents to a file, WORK/checkpoint-STEP/RANK-of-N.pt.
Such a checkpoint counts when all N files are there, so a kill between two files mixes no steps; the one before it is
kept until then. Every file ends in its sha256.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunediff.dictionaries.base import Dictionary
from tunediff.dictionaries.sharding import Shard
from tunediff.pipeline.artifacts import append_sha256, building, ends_in_sha256

SINGLE, PART = "checkpoint.pt", re.compile(r"(\d+)-of-(\d+)\.pt")


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: what each process wrote, mapped from its file, so that only what is used is read."""

    parts: list[dict[str, Any]]

    def __getitem__(self, name: str) -> Any:
        """Return what is the same in all parts."""
        return self.parts[0][name]

    def restore(self, dictionary: Dictionary, optimizer: torch.optim.Optimizer) -> None:
        """Give a dictionary and its optimiser the state of their own latents."""
        held = [part.get("latents", [(0, dictionary.dict_size)]) for part in self.parts]
        wanted = [(own.start, own.stop) for own in dictionary.own]

        def own(per_latent: bool, values: list[Any]) -> Any:
            return _rows(held, values, wanted) if per_latent else values[0]

        states = [part["dictionary"] for part in self.parts]
        names = {name: own(name in dictionary.per_latent, [state[name] for state in states]) for name in states[0]}
        dictionary.load_state_dict(names)
        moments, states = {}, [part["optimizer"] for part in self.parts]
        for i, (name, _) in enumerate(dictionary.named_parameters()):
            several = [state["state"][i] for state in states]
            moments[i] = {
                key: own(name in dictionary.per_latent and value.ndim > 0, [each[key] for each in several])
                for key, value in several[0].items()
            }
        optimizer.load_state_dict({"state": moments, "param_groups": states[0]["param_groups"]})


def _rows(held: list[list[tuple[int, int]]], parts: list[Tensor], wanted: list[tuple[int, int]]) -> Tensor:
    """Return the rows of ranges of latents, of which each part has those of its own ranges."""
    places = list(accumulate((stop - start for start, stop in wanted), initial=0))
    rows = parts[0].new_empty(places[-1], *parts[0].shape[1:])
    for ranges, part in zip(held, parts, strict=True):
        at = 0
        for start, stop in ranges:
            for (first, last), to in zip(wanted, places, strict=False):
                low, high = max(start, first), min(stop, last)
                if low < high:
                    rows[to + low - first : to + high - first] = part[at + low - start : at + high - start]
            at += stop - start
    return rows


class Checkpoints:
    """The checkpoints of one training in its work folder."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.folder, self.shard = folder, shard

    def load(self) -> Saved | None:
        """Return the newest checkpoint that is whole, and drop all others; of damaged ones a line is printed."""
        found = self.shard.of_first(self._newest)
        if not found:
            return None
        files = [self.folder / name for name in found]
        return Saved([torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files])

    def place(self, step: int) -> Path:
        """Return where the checkpoint of a step is: a file, or the folder of the files of several processes."""
        return self.folder / (SINGLE if self.shard.ranks == 1 else f"checkpoint-{step}")

    def write(self, state: Mapping[str, Any]) -> None:
        """Write this process's part, whole or not at all."""
        place = self.place(state["step"])
        target = place if self.shard.ranks == 1 else place / f"{self.shard.rank}-of-{self.shard.ranks}.pt"
        with building(target) as partial:
            torch.save(state, partial)
            append_sha256(partial)

    def drop(self, written: Path, step: int) -> None:
        """Remove all checkpoints but one that every process has written when it comes here, and that of this step."""
        self.shard.every(None)
        if self.shard.rank == 0:
            self.remove(written, self.place(step))  # another process may write there already

    def remove(self, *but: Path) -> None:
        """Remove all checkpoints but these; for the first process."""
        for path in [self.folder / SINGLE, *self._folders()]:
            if path not in but and path.is_dir():
                shutil.rmtree(path)
            elif path not in but:
                path.unlink(missing_ok=True)

    def _folders(self) -> list[Path]:
        """Return the folders of steps, the newest first."""
        found = [path for path in self.folder.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)

    def _newest(self) -> list[str]:
        """Return the files of the newest whole checkpoint, below the work folder, and remove all others."""
        step, chosen, damaged = -1, list[Path](), list[Path]()
        single = self.folder / SINGLE
        if single.is_file() and ends_in_sha256(single):  # torch itself reads most damaged files without a word
            step = torch.load(single, map_location="cpu", weights_only=True, mmap=True)["step"]
            chosen = [single]
        elif single.is_file():
            damaged.append(single)
        for folder in self._folders():
            if int(folder.name.partition("-")[2]) <= step:
                break
            files = _whole(folder)
            bad = [file for file in files if not ends_in_sha256(file)]
            damaged += bad
            if files and not bad:
                step, chosen = int(folder.name.partition("-")[2]), files
                break
        told = f"goes on from step {step}" if chosen else "starts from the beginning"
        for file in damaged:
            print(f"{file}: damaged (its checksum differs); training {told}", flush=True)
        self.remove(*(file if file == single else file.parent for file in chosen))
        return [file.relative_to(self.folder).as_posix() for file in chosen]


def _whole(folder: Path) -> list[Path]:
    """Return the files of all processes in a folder, by rank; none where one is missing."""
    names = [match for path in folder.iterdir() if (match := PART.fullmatch(path.name))]
    for n in {int(match[2]) for match in names}:
        files = [folder / f"{rank}-of-{n}.pt" for rank in range(n)]
        if all(file.is_file() for file in files):
            return files
    return []
