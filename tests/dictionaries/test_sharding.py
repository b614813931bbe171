"""Latents over two processes of gloo against one process: every kind, ties, checkpoints, errors."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from tunediff.config.dictionaries import BatchTopKSettings
from tunediff.config.settings import TrainingSettings
from tunediff.dictionaries import DICTIONARIES, Dictionary, base, build, dictionary_settings, training
from tunediff.dictionaries.base import LatentGroup
from tunediff.dictionaries.batchtopk import BatchTopK
from tunediff.dictionaries.checkpoints import Checkpoints
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.losses import LossTerm
from tunediff.dictionaries.sharding import WHOLE, Ranks, Shard
from tunediff.dictionaries.sparse import select_largest
from tunediff.dictionaries.training import make_optimizer, optimizer_step, train
from tunediff.errors import TunediffError

D, STEPS, RANKS = 8, 24, 2
DEAD = {"aux_k": 2, "dead_after_tokens": 40, "threshold_start": 5, "clip_norm": 0.5}
SECTIONS: dict[str, dict[str, Any]] = {
    "l1": {"mu": "auto", "target_l0": 4.0, "norm_init": 0.2, "dead_after_tokens": 200},
    "batchtopk": {"k": 1, **DEAD},
    "diff_sae": {"k": 1, **DEAD},
}
F = 41  # two unequal shares
KILLED_AT = 15


def total_activation(x: torch.Tensor, error: torch.Tensor, code: Any) -> torch.Tensor:
    return code.value.sum() / len(x)


class Parts(BatchTopK):
    """Groups, a mask, ties and a term that is a sum over latents; not registered."""

    loss_terms = (LossTerm("total", 0.01, total_activation, adds_latents=True),)

    def latent_groups(self) -> tuple[LatentGroup, ...]:
        return LatentGroup("own", 0, 13, 1), LatentGroup("shared", 13, self.dict_size, self.settings.k - 1)

    def latent_mask(self) -> torch.Tensor:
        mask = torch.ones(self.dict_size, 2, dtype=torch.bool)
        mask[:4, 0], mask[9:15, 1] = False, False
        return mask

    def tied_latents(self) -> torch.Tensor:
        return torch.arange(self.dict_size) >= 30


class Unsaid(BatchTopK):
    """As `Parts`, but nobody says that the term is a sum."""

    loss_terms = (LossTerm("total", 0.01, total_activation),)


class KilledError(Exception):
    """Stands for the end of the machine."""


class Store:
    """Batches that are a function of the step; those of some latents' atoms stop, so that latents die."""

    def __init__(self, die_at: int = -1) -> None:
        self.die_at, self.asked = die_at, list[int]()
        self.atoms = torch.randn(24, 2, D, generator=torch.Generator().manual_seed(0))

    def batches(self, size: int, seed: int, chunks: int, start: int = 0, into: Any = None) -> Iterator[Any]:
        self.asked.append(start)
        for step in range(start, 10_000):
            if step == self.die_at:
                raise KilledError
            generator = torch.Generator().manual_seed(1000 * seed + step)
            weight = torch.rand(size, 24, generator=generator)
            weight = weight * (torch.rand(size, 24, generator=generator) < 0.15)
            yield SimpleNamespace(activations=torch.einsum("na,amd->nmd", weight, self.atoms) + 2)


def trained(folder: Path, kind: str, shard: Shard = WHOLE, die_at: int = -1) -> Store:
    """Train a dictionary, or until it is killed; return the store it read."""
    own = {"batch_size": 32, "steps": STEPS, "learning_rate": 3e-3, "warmup_steps": 5, "checkpoint_every": 6}
    values = TrainingSettings(**own, log_every=4, normalization_tokens=100, seed=5)
    store, settings = Store(die_at), dictionary_settings({"kind": kind, "dict_size": F, **SECTIONS[kind]})
    try:
        train(settings, 0, store, values, folder / "x", folder / "work", key="k", shard=shard)  # type: ignore[arg-type]
    except KilledError:
        assert die_at >= 0
    return store


def steps_of(cls: type[Dictionary], shard: Shard) -> dict[str, Any]:
    """Take training steps; return losses and the own rows of everything."""
    settings = BatchTopKSettings(dict_size=F, k=3, **DEAD)
    dictionary = cls(settings, D, 0, STEPS, 5, shard)
    optimizer = make_optimizer(dictionary, TrainingSettings(learning_rate=3e-3))
    losses, auxiliary = [], 0.0
    for batch, _ in zip(Store().batches(32, 5, 1), range(STEPS), strict=False):
        if not losses:
            dictionary.prepare(batch.activations)
        loss, metrics = optimizer_step(dictionary, optimizer, batch.activations)
        losses.append({"loss": float(loss), **{name: float(value) for name, value in metrics.items()}})
        auxiliary = max(auxiliary, losses[-1]["auxiliary"])
    state = {name: value for name, value in dictionary.state_dict().items() if isinstance(value, torch.Tensor)}
    return {"losses": losses, "state": state, "own": dictionary.own, "auxiliary": auxiliary}


def scores(case: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return preactivations with many equal scores, scales and how many are kept."""
    generator = torch.Generator().manual_seed(case)
    preactivations = (torch.randn(12, F, generator=generator) * 2).round() / 2
    return preactivations, torch.ones(F) if case % 2 else 2.0 ** (torch.arange(F) % 3), (1, 7, 40, 12 * F)[case % 4]


def selected(case: int, shard: Shard) -> tuple[set[tuple[int, int, float]], float]:
    """Return the own entries of a selection, with the latents of the whole dictionary, and the smallest score."""
    preactivations, scale, count = scores(case)
    own = shard.part(0, F)
    part = slice(own.start, own.stop)
    code, least = select_largest(preactivations[:, part], count, scale[part])
    code, least = shard.keep_largest(code, scale[part], count, least)
    latents = (code.latent + own.start).tolist()
    return set(zip(code.token.tolist(), latents, code.value.tolist(), strict=True)), float(least)


def chosen(case: int, shard: Shard) -> torch.Tensor:
    preactivations, _, _ = scores(case)
    own = shard.part(0, F)
    return shard.among_largest(preactivations[:, own.start : own.stop], 1 + case % 5)


def process(rank: int, folder: Path) -> None:
    """Do what one of two processes does of all cases."""
    torch.set_num_threads(1)
    training.L0_TOLERANCE = math.inf
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS)
    shard = Ranks(rank, RANKS)
    told = {
        "parts": steps_of(Parts, shard),
        "selected": [selected(case, shard) for case in range(16)],
        "chosen": [chosen(case, shard) for case in range(16)],
    }
    for kind in SECTIONS:
        trained(folder / kind, kind, shard)
        trained(folder / "cut" / kind, kind, shard, die_at=KILLED_AT)
        if (folder / "two" / kind).exists():  # killed as one process
            told[f"asked {kind}"] = trained(folder / "two" / kind, kind, shard).asked
    shutil.copytree(folder / "cut", folder / "again", dirs_exist_ok=True) if rank == 0 else None
    shard.every(None)
    for kind in SECTIONS:
        told[f"again {kind}"] = trained(folder / "again" / kind, kind, shard).asked
    with pytest.raises(TunediffError, match=r"disagree at step 4 on one of loss, .*adds_latents"):
        DICTIONARIES["batchtopk"] = Unsaid
        trained(folder / "unsaid", "batchtopk", shard)
    torch.save(told, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


class Made:
    """What two processes and one have made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind in SECTIONS:
            trained(folder / "whole" / kind, kind)
            trained(folder / "two" / kind, kind, die_at=KILLED_AT)
        multiprocessing.spawn(process, (folder,), nprocs=RANKS)
        self.ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]

    def compare(self, folder: str, kind: str) -> None:
        """Compare a training with that of one process: weights, facts, history."""
        paths = [self.folder / "whole" / kind / "x", self.folder / folder / kind / "x"]
        one, two = (Crosscoder.load(path) for path in paths)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=f"{kind} {name}")
        assert one.config.keys() == two.config.keys()
        for name, value in one.config.items():
            if name != "final":
                assert two.config[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name
        assert two.config["final"] == pytest.approx(one.config["final"], rel=1e-5)
        histories = [pd.read_parquet(path.with_suffix(".history.parquet")) for path in paths]
        columns = [frame.drop(columns="tokens_per_second") for frame in histories]
        pd.testing.assert_frame_equal(*columns, rtol=1e-5, atol=1e-7)
        assert not (self.folder / folder / kind / "work").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "L0_TOLERANCE", math.inf)
        return Made(tmp_path_factory.mktemp("sharding"))


def test_every_kind_is_here() -> None:
    assert set(SECTIONS) == set(DICTIONARIES)


@pytest.mark.parametrize("kind", SECTIONS)
def test_two_processes_train_what_one_trains(made: Made, kind: str) -> None:
    made.compare(".", kind)
    history = pd.read_parquet(made.folder / "whole" / kind / "x.history.parquet")
    if kind != "l1":  # of many dead latents two are chosen
        assert history["auxiliary"].max() > 0 and F * history["dead_fraction"].median() > SECTIONS[kind]["aux_k"] + 2


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_killed_training_goes_on_with_another_number_of_processes(
    made: Made, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "L0_TOLERANCE", math.inf)
    assert all(rank[f"asked {kind}"][0] == 12 for rank in made.ranks)  # one, then two
    made.compare("two", kind)
    assert all(rank[f"again {kind}"][0] == 12 for rank in made.ranks)  # two, then two
    made.compare("again", kind)
    cut = made.folder / "cut" / kind
    kept = sorted(path.relative_to(cut / "work").as_posix() for path in cut.rglob("*.pt"))
    assert kept == [f"checkpoint-{step}/{rank}-of-2.pt" for step in (12, 6) for rank in range(2)]
    assert trained(cut, kind).asked[0] == 12  # two, then one
    made.compare("cut", kind)


def test_groups_masks_ties_and_sums_over_latents_are_those_of_one_process(made: Made) -> None:
    one, two = steps_of(Parts, WHOLE), [rank["parts"] for rank in made.ranks]
    assert one["auxiliary"] > 0 and [own for own in two[0]["own"]] == [range(0, 6), range(13, 27)]
    for rank in two:
        for expected, actual in zip(one["losses"], rank["losses"], strict=True):
            assert actual == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True)
        for name, value in one["state"].items():
            own = torch.cat([value[each.start : each.stop] for each in rank["own"]])
            expected = own if name in Parts.per_latent else value
            torch.testing.assert_close(rank["state"][name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_equal_scores_are_kept_as_one_process_keeps_them(made: Made) -> None:
    for case in range(16):
        kept, least = selected(case, WHOLE)
        parts = [rank["selected"][case] for rank in made.ranks]
        assert parts[0][0] | parts[1][0] == kept and not parts[0][0] & parts[1][0]
        assert [part[1] for part in parts] == [least] * RANKS
        count = 1 + case % 5
        both = torch.cat([rank["chosen"][case] for rank in made.ranks], dim=1)
        assert (both.sum(dim=1) == count).all()
        found = scores(case)[0].masked_fill(both == 0, -math.inf).topk(count, dim=1).values
        assert torch.equal(found, scores(case)[0].topk(count, dim=1).values)


@pytest.mark.parametrize("dict_size", [5, 8191, 8192, 20_001])
def test_the_rows_of_a_start_are_those_of_the_seed(dict_size: int) -> None:
    settings = BatchTopKSettings(dict_size=dict_size, k=1)
    whole = torch.randn(dict_size, 3, generator=torch.Generator().manual_seed(7))
    whole = whole / torch.linalg.vector_norm(whole, dim=1, keepdim=True)
    for rank in range(3):
        dictionary = build(settings, 3, 7, shard=Ranks(rank, 3))
        (own,) = dictionary.own
        torch.testing.assert_close(dictionary.decoder_weight[:, 0], whole[own.start : own.stop])
    assert base.DRAWN % 16 == 0


class Pretended(Ranks):
    """One of several processes that do not wait for one another."""

    def of_first(self, make: Any) -> Any:
        return make()

    def every(self, value: Any) -> list[Any]:
        return [value]


def save(folder: Path, ranks: int, step: int, only: int | None = None) -> None:
    """Write the checkpoint of a step, whose numbers say their latent, of all processes or one."""
    for rank in range(ranks) if only is None else [only]:
        shard = Pretended(rank, ranks) if ranks > 1 else WHOLE
        dictionary, optimizer = state(shard)
        with torch.no_grad():
            dictionary.encoder_bias.copy_(torch.cat([torch.tensor(own) for own in dictionary.own]) + 1000 * step)
        dictionary.encoder_bias.grad = dictionary.encoder_bias.detach().clone()
        optimizer.step()
        dictionary.threshold.fill_(step)
        latents = [(own.start, own.stop) for own in dictionary.own]
        held = {"dictionary": dictionary.state_dict(), "optimizer": optimizer.state_dict()}
        for parameter in dictionary.parameters():
            optimizer.state.setdefault(parameter, {})
        held["optimizer"]["state"] = {i: held["optimizer"]["state"].get(i, {}) for i in range(4)}
        Checkpoints(folder, shard).write({"latents": latents, **held, "step": step})


def state(shard: Shard) -> tuple[Parts, torch.optim.Adam]:
    dictionary = Parts(BatchTopKSettings(dict_size=F, k=3), D, 0, STEPS, 5, shard)
    return dictionary, make_optimizer(dictionary, TrainingSettings())


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (3, 2), (2, 5)])
def test_latents_find_their_rows_in_another_number_of_files(tmp_path: Path, before: int, after: int) -> None:
    save(tmp_path, before, 6)
    for rank in range(after):
        shard = Pretended(rank, after) if after > 1 else WHOLE
        dictionary, optimizer = state(shard)
        saved = Checkpoints(tmp_path, shard).load()
        assert saved is not None
        saved.restore(dictionary, optimizer)
        wanted = torch.cat([torch.tensor(own) for own in dictionary.own]) + 6000.0
        torch.testing.assert_close(dictionary.encoder_bias.detach(), wanted, rtol=0, atol=1e-2)
        torch.testing.assert_close(optimizer.state[dictionary.encoder_bias]["exp_avg"], 0.1 * wanted)
        assert dictionary.threshold.tolist() == [6, 6]


def test_a_checkpoint_that_lacks_a_file_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def newest() -> int | None:
        saved = Checkpoints(tmp_path, Pretended(0, 2)).load()
        return None if saved is None else saved["step"]

    save(tmp_path, 2, 12, only=1)
    assert newest() is None
    save(tmp_path, 2, 6)
    save(tmp_path, 2, 12, only=1)
    save(tmp_path, 3, 12, only=0)
    assert newest() == 6  # killed while the next one was written; not 0-of-3 with 1-of-2
    assert not (tmp_path / "checkpoint-12").exists()  # or half of it could meet half of a later one
    save(tmp_path, 2, 12)
    part = tmp_path / "checkpoint-12/1-of-2.pt"
    part.write_bytes(part.read_bytes()[:-50] + bytes(50))
    assert capsys.readouterr().out == ""
    assert newest() == 6
    assert capsys.readouterr().out.endswith("1-of-2.pt: damaged (its checksum differs); training goes on from step 6\n")
    save(tmp_path, 1, 9)
    assert newest() == 9 and not (tmp_path / "checkpoint-6").exists()
    save(tmp_path, 2, 18)
    assert newest() == 18 and not (tmp_path / "checkpoint.pt").exists()


def test_fewer_latents_than_processes_are_an_error() -> None:
    with pytest.raises(TunediffError, match=r"training\.devices: is 14, and batchtopk has a group of fewer latents"):
        state(Pretended(0, 14))


FAILS = """
import os, signal, sys
from tunediff.dictionaries.sharding import torchrun
from tunediff.errors import TunediffError
from tunediff.pipeline.job import from_shell, job

with torchrun() as shard, job(from_shell(*sys.argv[1:]), shard.rank == 0, shard.tells) as work:
    print("only the first prints")
    shard.every(None)
    if shard.rank == 1 and work.config["how"] == "error":
        raise TunediffError("key: is wrong; mend it")
    if shard.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    shard.every(None)
"""


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("error", "error: key: is wrong; mend it"),
        ("kill", "error: training.devices: another process of this training has died"),
    ],
)
def test_an_error_of_one_process_ends_all_in_one_line(tmp_path: Path, how: str, line: str) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    log, params = tmp_path / "logs/x.log", {"content_keys": {"own": "k"}}
    given = {"input": {}, "output": {}, "params": params, "config": {"how": how}, "wildcards": {}}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [*launcher, str(tmp_path / "fails.py"), json.dumps(given), str(log), "1"],
        **{"capture_output": True, "text": True, "timeout": 120, "env": environment, "check": False},
    )
    assert done.returncode
    assert done.stdout.startswith(line) and len(done.stdout.splitlines()) == 1, done.stdout
    first, last = log.read_text().splitlines()
    assert first == "only the first prints" and last == done.stdout.strip()
