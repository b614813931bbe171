"""The Python of README runs as it stands, in a folder that holds results."""

import re
from pathlib import Path

import pytest

from figure_tables import latent_table
from results_fixtures import small_results

README = Path(__file__).parents[1] / "README.md"


def test_the_ten_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    section = README.read_text(encoding="utf-8").partition("## Ten lines of Python\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 1
    activations = small_results(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(blocks[0], str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("results: org/base → org/chat")
    for latent in latent_table(0).first(5)["latent"]:
        assert re.search(rf"^{latent} ", printed, re.MULTILINE)
    assert f"torch.Size([{len(activations) // 4}, 2, 6])" in printed  # one chunk
    assert re.search(r"none +0\.\d+ +0\.\d+ +0\.\d+", printed)
