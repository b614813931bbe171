"""What a run says of jobs that were killed, and of a folder that it may not write."""

from pathlib import Path

import pytest

from tunediff.errors import TunediffError
from tunediff.pipeline.running import Running, killed_lines

LOG = """
[Sun Nov 29 20:48:19 2026]
localrule train:
    output: results/crosscoders/l1-seed0
    jobid: 3
    resources: tmpdir=/tmp, gpu=0, mem_mb=1234, mem=1.23 GB, mem_mib=1177
RuleException:
CalledProcessError in file "rules/crosscoders.smk", line 8:
Command 'python3.11 train.py' {ended}
[Sun Nov 29 20:48:19 2026]
Error in rule train:
    jobid: 3
"""


def test_a_job_killed_for_memory_is_named_with_its_limit() -> None:
    for ended in ("died with <Signals.SIGKILL: 9>.", "returned non-zero exit status 137."):
        (line,) = killed_lines(LOG.format(ended=ended) * 2, 8 * 10**9)
        assert line.startswith("train: killed by signal 9") and "8.0 GB" in line and "1,234 MB" in line
        assert "--cores" in line and "\n" not in line
    assert killed_lines(LOG.format(ended="returned non-zero exit status 1."), 8 * 10**9) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(TunediffError, match=r"results: cannot be written \(.*results/\.work\); make room or get"):
        Running(tmp_path / "results").start()
