"""What SLURM's commands print becomes what a person must know (the real SLURM: tests/workflow/test_slurm.py)."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tunediff.errors import TunediffError
from tunediff.pipeline import cluster

Commands = Callable[..., None]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A function that puts commands, which print a text, first on the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def put(**texts: str) -> None:
        for name, text in texts.items():
            path = tmp_path / name
            (tmp_path / f"{name}.txt").write_text(text)
            path.write_text(f"#!/bin/sh\ncat {tmp_path}/{name}.txt\n")
            path.chmod(0o755)

    return put


@pytest.mark.parametrize(
    ("accounting", "status", "refused"),
    [
        ("accounting_storage/none", "sacct", True),
        ("(null)", "sacct", False),
        ("accounting_storage/slurmdbd", "sacct", False),
        ("accounting_storage/none", "squeue", False),
    ],
)
def test_a_cluster_without_accounting_is_refused(
    commands: Commands, accounting: str, status: str, refused: bool
) -> None:
    commands(scontrol=f"Configuration data\nAccountingStoragePort   = 0\nAccountingStorageType   = {accounting}\n")
    if refused:
        with pytest.raises(TunediffError, match=r"slurm-status-command: squeue.*profile\.yaml"):
            cluster.check_accounting(status)
    else:
        cluster.check_accounting(status)


ROWS = """7|RUNNING|None|gpu|rule_train_wildcards_l1-seed0|/home/me/run
8|PENDING|PartitionTimeLimit|gpu|rule_train_wildcards_batchtopk-seed0|/home/me/run
9|PENDING|Resources|gpu|rule_latents|/home/me/run
10|PENDING|QOSMaxCpuPerJobLimit|gpu|rule_causal|/home/me/run
11|PENDING|QOSMaxCpuPerUserLimit|gpu|rule_causal|/home/me/run
12|PENDING|launch failed requeued held|gpu|rule_causal|/home/me/run
13|PENDING|PartitionTimeLimit|gpu|somebody's|/home/me/other
slurm_load_jobs error: Socket timed out
"""


def test_jobs_that_can_never_start_are_named_with_the_remedy(commands: Commands) -> None:
    commands(squeue=ROWS)
    jobs = cluster.jobs_of(Path("/home/me/run"))
    assert [job.number for job in jobs] == ["7", "8", "9", "10", "11", "12"]
    lines = cluster.stuck_lines(jobs)
    assert [line.split()[1] for line in lines] == ["8", "10", "12"]
    assert "(train batchtopk-seed0) can never start: PartitionTimeLimit in partition gpu" in lines[0]
    assert "profiles/slurm/partitions.yaml" in lines[0]


def test_a_run_waits_for_the_jobs_of_an_earlier_one(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    commands(squeue="")
    assert not cluster.wait_for(Path("/home/me/run"), said.append) and not said
    commands(squeue=ROWS)
    monkeypatch.setattr(cluster.time, "sleep", lambda _: commands(squeue=""))
    assert cluster.wait_for(Path("/home/me/run"), said.append)
    assert len(said) == 1 and "7 (train l1-seed0)" in said[0] and "scancel 7 8 9" in said[0]


def test_a_cluster_that_does_not_answer_has_no_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cluster.jobs_of(tmp_path) == []
