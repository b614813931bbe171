"""Triton's kernels equal plain PyTorch, under Triton's interpreter; and they compile for a GPU that is not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested")


@pytest.mark.parametrize(("script", "interpreted"), [("interpreted.py", "1"), ("compiled.py", "0")])
def test_kernels(script: str, interpreted: str) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script))],
        env={**os.environ, "TRITON_INTERPRET": interpreted, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stderr[-3000:]
