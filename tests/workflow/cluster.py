"""A throw-away SLURM of one node on loopback: its controller, its node and its keys live in one folder.

It needs root and the Debian packages slurm-wlm and munge. The node pretends to have more CPUs than the machine and one
GPU (a device file that nothing opens). Accounting is off, so a head must ask `squeue` for the state of its jobs.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

CPUS, MEMORY_MB = 8, 12000
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
# The jobs of Snakemake's plugin drop every SLURM_* variable, so the configuration lies where SLURM looks by itself.
SYSTEM = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf", "cgroup.conf")
# Ports of this cluster alone; `-c` of the controller forgets the state of an earlier one.
CONTROLLER, NODE = 16817, 16818


def missing() -> str | None:
    """Return why no cluster can be started here, or None."""
    lacks = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacks:
        return f"no {', '.join(lacks)}: install the Debian packages slurm-wlm and munge"
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    taken = [name for name in FILES if (SYSTEM / name).exists() and not (SYSTEM / name).is_symlink()]
    return f"{SYSTEM / taken[0]} belongs to another cluster" if taken else None


class Cluster:
    """A running cluster with the partitions cpu, gpu and short (jobs of a minute)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "munge/munge.socket"
        self.pids: list[Path] = []

    def _configure(self) -> None:
        host, state = socket.gethostname().split(".")[0], self.folder
        version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True).stdout
        major = int(re.search(r"(\d+)\.", version)[1])  # type: ignore[index]
        lines = {
            "ClusterName": "throwaway",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            "AuthInfo": f"socket={self.socket},cred_expire=5",  # a requeued job waits for so long
            "SlurmctldPort": CONTROLLER,
            "SlurmdPort": NODE,
            "SlurmctldPidFile": state / "slurmctld.pid",
            "SlurmdPidFile": state / "slurmd.pid",
            "SlurmctldLogFile": state / "slurmctld.log",
            "SlurmdLogFile": state / "slurmd.log",
            "StateSaveLocation": state / "state",
            "SlurmdSpoolDir": state / "spool",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "SchedulerType": "sched/builtin",
            "SchedulerParameters": "batch_sched_delay=1",
            "SlurmdParameters": "config_overrides",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "MailProg": "/bin/true",
            "ReturnToService": 2,
            "AccountingStorageType": "accounting_storage/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "JobRequeue": 1,
            "MinJobAge": 300,
            "KillWait": 5,
            "GresTypes": "gpu",
        }
        node = f"NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:fake:1 State=UNKNOWN"
        partitions = [
            f"PartitionName={name} Nodes={host} Default={default} MaxTime={limit} State=UP"
            for name, default, limit in (("cpu", "YES", "INFINITE"), ("gpu", "NO", "INFINITE"), ("short", "NO", 1))
        ]
        # nothing uses cgroups; versions before 23.02 cannot say so
        cgroup = "CgroupPlugin=disabled" if major >= 23 else "CgroupPlugin=cgroup/v1"
        texts = (
            [*(f"{name}={value}" for name, value in lines.items()), node, *partitions],
            [f"NodeName={host} Name=gpu Type=fake File=/dev/zero"],
            [cgroup],
        )
        SYSTEM.mkdir(exist_ok=True)
        for name, text in zip(FILES, texts, strict=True):
            (state / name).write_text("\n".join(text) + "\n")
            (SYSTEM / name).unlink(missing_ok=True)
            (SYSTEM / name).symlink_to(state / name)

    def start(self) -> None:
        """Start the daemons and wait until the node is idle."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        for folder in (self.folder, self.folder / "munge"):
            folder.chmod(0o755)
        key = self.folder / "munge/munge.key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(1024))
        self._configure()
        munge = {"key-file": key, "socket": self.socket, "pid-file": self.folder / "munge/munged.pid"}
        munge |= {"log-file": self.folder / "munge/munged.log", "seed-file": self.folder / "munge/munged.seed"}
        self.pids = [self.folder / "slurmd.pid", self.folder / "slurmctld.pid", munge["pid-file"]]
        subprocess.run(["munged", "--force", *(f"--{name}={value}" for name, value in munge.items())], check=True)
        subprocess.run(["slurmctld", "-c"], check=True)
        subprocess.run(["slurmd"], check=True)
        end = time.monotonic() + 60
        while (state := self.ask("sinfo", "-h", "-p", "cpu", "-o", "%t").strip()) != "idle":
            if time.monotonic() > end:
                logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
                raise RuntimeError(f"SLURM did not come up (node: {state or 'no answer'})\n{logs}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Cancel all jobs, end the daemons and remove the links."""
        self.ask("scancel", "--user", "root")
        time.sleep(1)
        for path in self.pids:
            if path.is_file() and path.read_text().strip():
                subprocess.run(["kill", path.read_text().strip()], check=False)
        for name in FILES:
            link = SYSTEM / name
            if link.is_symlink() and link.readlink() == self.folder / name:
                link.unlink()

    def ask(self, *command: str) -> str:
        """Return what one of SLURM's commands prints; nothing if it fails."""
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout

    def jobs(self, *states: str) -> dict[int, str]:
        """Return the comments (`rule_train_wildcards_…`) of the jobs in these states, by number."""
        rows = self.ask("squeue", "-h", f"--states={','.join(states) or 'all'}", "--format=%i|%k").splitlines()
        return {int(number): comment for number, comment in (row.split("|", 1) for row in rows)}

    def wait_for(self, rule: str, *states: str, timeout: float = 180) -> int:
        """Return the number of the first job of a rule that comes into one of these states."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for number, comment in self.jobs(*states).items():
                if comment.startswith(f"rule_{rule}"):
                    return number
            time.sleep(0.2)
        raise AssertionError(f"no job of {rule} in {states} after {timeout} s: {self.jobs()}")
