"""The chain to Figure 4 on a throw-away SLURM: jobs are cancelled and requeued, the head is killed and restarted."""

import json
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import ROOT, Checkout, make_checkout
from cluster import CPUS, MEMORY_MB, Cluster, missing

FIGURE = "results/ci/figures/fig4.pdf"
LARGE = ("conversations", "hooks", "models", "activations", "train", "latents", "causal")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := missing():
        print(f"tests of SLURM are skipped: {why}")
        pytest.skip(why)
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    started.folder.parent.chmod(0o755)  # munge refuses a socket below a folder that others cannot read
    try:
        started.start()
        yield started
    finally:
        started.stop()


def checkout(root: Path) -> Checkout:
    """A checkout with config/ci.yaml and the SLURM profile; only keys that the profile's comments name are changed."""
    run = make_checkout(root, yaml.safe_load((ROOT / "config/ci.yaml").read_text()))
    limits = {"max_runtime": 2880, "max_mem_mb": MEMORY_MB, "max_threads": CPUS}
    partitions(run, {"cpu": limits, "gpu": limits | {"max_gpu": 1}})
    edit(
        run,
        {
            "slurm-status-command": "squeue",
            "slurm-init-seconds-before-status-checks": 3,
            "latency-wait": 5,
            "set-threads": dict.fromkeys(LARGE, 1),  # as the local run has: threads move the last bits
        },
    )
    return run


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The same, run on this machine to Figure 4."""
    run = checkout(tmp_path_factory.mktemp("local") / "run")
    run.run(FIGURE)
    return run


def partitions(run: Checkout, limits: dict[str, Any]) -> None:
    (run.root / "profiles/slurm/partitions.yaml").write_text(yaml.safe_dump({"partitions": limits}))


def edit(run: Checkout, changes: dict[str, Any]) -> None:
    """Set keys of the SLURM profile; None removes one."""
    path = run.root / "profiles/slurm/profile.yaml"
    profile = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({name: value for name, value in profile.items() if value is not None}))


class Head:
    """A head of the run; its output goes to a file."""

    def __init__(self, run: Checkout, *arguments: str) -> None:
        command = [*run.command(*arguments)[: 3 + len(arguments)], "--workflow-profile", "profiles/slurm"]
        command += ["--configfile", str(run.config)]
        self.log = run.root / f"head-{len(list(run.root.glob('head-*.log')))}.log"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                command, cwd=run.root, env=run.environment(), stdout=stream, stderr=subprocess.STDOUT
            )

    def wait(self, timeout: float = 600) -> int:
        return self.process.wait(timeout)

    def wait_for_line(self, pattern: str, timeout: float) -> str:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if found := re.search(rf"^.*{pattern}.*$", self.log.read_text(), re.MULTILINE):
                return found[0]
            time.sleep(0.2)
        raise AssertionError(f"no line with {pattern} after {timeout} s:\n{self.log.read_text()[-4000:]}")


def until(found: Callable[[], Any], what: str, timeout: float = 240) -> None:
    end = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < end, f"{what}: not seen in {timeout} s"
        time.sleep(0.05)


def contents(run: Checkout) -> dict[str, Any]:
    """Return what every manifest below results says; without times (history) and PDFs, whose tenth digits vary."""
    found = {}
    for path in sorted((run.root / "results/ci").rglob("*.json")):
        manifest = json.loads(path.read_text())
        if isinstance(manifest, dict) and "files" in manifest:
            timed = ("history.parquet", ".pdf")
            files = {name: of for name, of in manifest["files"].items() if not name.endswith(timed)}
            found[str(path.relative_to(run.root))] = (manifest["key"], manifest["facts"], files)
    return found


def test_a_local_run_makes_figure_4_and_a_second_one_finds_nothing_to_do(local: Checkout) -> None:
    assert (local.root / FIGURE).stat().st_size > 0
    assert local.planned(FIGURE) == {}


def test_cancelled_requeued_and_killed_it_ends_with_the_results_of_a_local_run(
    cluster: Cluster, local: Checkout, tmp_path: Path
) -> None:
    run = checkout(tmp_path / "slurm")
    results = run.root / "results/ci"
    running: Counter[str] = Counter()  # the most jobs of one training that ran at a time
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            now = Counter(name for name in cluster.jobs("RUNNING").values() if name.startswith("rule_train"))
            for name, count in now.items():
                running[name] = max(running[name], count)

    watching = threading.Thread(target=look)
    watching.start()
    head = Head(run, FIGURE)
    try:
        harvest = cluster.wait_for("activations", "RUNNING")
        asked = cluster.ask("squeue", "-h", "-j", str(harvest), "-o", "%C %m %l").strip()
        one = re.search(r"rule activations:\n.*?mem_mb=(\d+)", head.log.read_text(), re.DOTALL)
        assert one and asked == f"1 {one[1]}M 1-00:00:00"  # of one part, for all parts one after the other
        until(lambda: list(results.glob(".work/*/part-000.json")), "a finished part")
        cluster.ask("scancel", str(harvest))

        until(lambda: list(results.glob(".work/*/checkpoint*")), "checkpoint")
        training = {number: name for number, name in cluster.jobs("RUNNING").items() if name.startswith("rule_train")}
        for number, name in training.items():
            cluster.ask(*(["scancel"] if "l1" in name else ["scontrol", "requeue"]), str(number))
        until(lambda: not training.keys() & cluster.jobs("RUNNING").keys(), "end of the jobs")
        cluster.wait_for("train", "RUNNING")
        head.process.send_signal(signal.SIGKILL)
        head.wait()

        again = Head(run, FIGURE)
        again.wait_for_line("jobs of an earlier run are still on the cluster: .*train", 60)
        assert again.wait() == 0, again.log.read_text()[-6000:]
    finally:
        done.set()
        watching.join()
    assert contents(run) == contents(local) != {}
    assert set(running.values()) == {1} and len(running) == 2


def test_without_accounting_a_head_names_the_key_to_set(cluster: Cluster, tmp_path: Path) -> None:
    run = checkout(tmp_path)
    edit(run, {"slurm-status-command": None})
    head = Head(run, FIGURE)
    assert head.wait(60) == 1
    line = head.wait_for_line("keeps no accounting", 1)
    assert "slurm-status-command: squeue" in line and "profiles/slurm/profile.yaml" in line
    assert "Traceback" not in head.log.read_text() and cluster.jobs("PENDING", "RUNNING") == {}


def test_a_job_that_can_never_start_is_said_within_a_minute(cluster: Cluster, tmp_path: Path) -> None:
    run = checkout(tmp_path)
    partitions(run, {"short": {"max_runtime": 2880, "max_mem_mb": MEMORY_MB, "max_threads": CPUS, "max_gpu": 1}})
    head = Head(run, "results/ci/models.json")
    try:
        number = cluster.wait_for("models", "PENDING", timeout=60)
        line = head.wait_for_line("can never start", 60)
        assert f"job {number} (models)" in line and "PartitionTimeLimit" in line and "partitions.yaml" in line
    finally:
        head.process.kill()
        head.wait()
        cluster.ask("scancel", "--user", "root")


def test_a_job_that_fails_is_tried_as_often_as_the_profile_says(cluster: Cluster, tmp_path: Path) -> None:
    run = checkout(tmp_path)
    (run.root / "workflow/scripts/models.py").write_text('open("tried", "a").write("x")\nraise SystemExit(1)\n')
    head = Head(run, "results/ci/models.json")
    assert head.wait(180) == 1
    assert (run.root / "tried").read_text() == "xx"  # `retries: 1`
