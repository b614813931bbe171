"""docs/explore.ipynb runs from top to bottom on a folder of results."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import figure_tables
from helpers import TinyPair
from live_fixtures import DIFFERENCE, NAME, live_results
from results_fixtures import sealed_frame
from tunediff.pipeline.artifacts import write_json

NOTEBOOK = Path(__file__).parents[1] / "docs/explore.ipynb"


@pytest.fixture(scope="module")
def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_ten_cells_without_outputs_or_paths_of_a_machine(read: nbformat.NotebookNode) -> None:
    nbformat.validate(read)
    assert len(read.cells) == 10
    assert [cell.cell_type for cell in read.cells] == ["markdown", "code"] * 5
    for cell in read.cells[1::2]:
        assert cell.outputs == [] and cell.execution_count is None
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not [path for path in ("/home", "/root", "/tmp", "/data", "/work", "C:") if path in text]


def test_it_runs(
    read: nbformat.NotebookNode, tiny_pairs: Callable[[str], TinyPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = live_results(tmp_path / "results", tiny_pairs("gemma2"))
    (root / "evaluation").mkdir()
    for name in (NAME, DIFFERENCE):
        evaluation = asdict(figure_tables.evaluation(fve=0.875, l0=20.5))
        write_json(root / f"evaluation/{name}.json", {"key": "key", **evaluation})
    sealed_frame(root / "causal/summary.parquet", "kl-summary", figure_tables.kl_summary()[0])
    sealed_frame(root / "concepts/concepts.parquet", "concepts", figure_tables.concepts())
    null = root / "nulls/same"
    for part in ("models", "latents", "crosscoders"):
        shutil.copytree(root / part, null / part)
    for part in ("models.json", "hooks.json"):
        shutil.copy(root / part, null / part)
    (tmp_path / "docs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1] / "src"))
    for directory in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(directory, str(tmp_path / "jupyter"))

    done = NotebookClient(read, timeout=300, resources={"metadata": {"path": str(tmp_path / "docs")}}).execute()

    said = {i: done.cells[i].outputs for i in range(1, 10, 2)}
    printed = {i: "".join(output.get("text", "") for output in outputs) for i, outputs in said.items()}
    pages = {
        i: [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
        for i, outputs in said.items()
    }
    assert "FVE base 0.875" in printed[1] and len(pages[1]) == 1
    assert len(pages[3]) == 4 and all("<svg" in page for page in pages[3][1:])  # a table and three cards
    assert f"{NAME}: " in printed[5] and printed[5].count("null ") == 2 and "confirmed" in printed[5]
    assert f"{NAME}: " in pages[7][1] and "tokens after block 1" in pages[7][0]
    assert len(pages[9]) == 3 and all("unsteered" in page for page in pages[9])
