"""`make env`: an environment whose installation was interrupted is made again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """\
#!/bin/sh
{python} "$@" --without-pip || exit 1
cp pip .venv/bin/pip
"""
PIP = """\
#!/bin/sh
echo "$@" >> pip.log
touch .venv/half
test ! -e interrupt
"""


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_an_interrupted_environment_is_made_again(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "envs/requirements.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    script(tmp_path / "python", PYTHON.format(python=sys.executable))
    script(tmp_path / "pip", PIP)
    log, left, stamp = tmp_path / "pip.log", tmp_path / ".venv/of-the-first", tmp_path / ".venv/.installed"

    def make() -> int:
        log.unlink(missing_ok=True)
        return subprocess.run(["make", "env", "PYTHON=./python"], cwd=tmp_path, capture_output=True).returncode

    (tmp_path / "interrupt").touch()
    assert make() != 0 and (tmp_path / ".venv/half").exists() and not stamp.exists()
    left.touch()
    (tmp_path / "interrupt").unlink()
    assert make() == 0 and stamp.exists() and not left.exists()  # nothing of the half-made one is left
    assert make() == 0 and not log.exists()  # nothing to do

    left.touch()
    os.utime(tmp_path / "envs/requirements.lock", (stamp.stat().st_mtime + 10,) * 2)
    (tmp_path / "interrupt").touch()  # an update that is interrupted
    assert make() != 0 and left.exists() and not stamp.exists()
    (tmp_path / "interrupt").unlink()
    assert make() == 0 and stamp.exists() and not left.exists()
