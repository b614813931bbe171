"""Triton's kernels equal plain PyTorch, under Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


def test_kernels_equal_their_twins() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kernels.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stderr[-3000:]
