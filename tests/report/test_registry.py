"""Every file of the rooms is a drawing, found without running it; runs have those whose results they have."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from figure_tables import CONFIG
from tunediff.errors import TunediffError
from tunediff.pipeline.graph import Graph
from tunediff.report import registry
from tunediff.report.registry import READS, Drawing, declared, drawings, drawings_of

DECLARATION = """
import pandas as pd

DRAWING = Drawing("figures/new", __name__, "New", "On {conversations[count]} conversations.", reads=(READ,))
"""


def test_the_registry_loads_no_library_that_only_drawing_needs() -> None:
    said = "import sys, tunediff.report.registry as r; print(len(r.drawings()), *sys.modules)"
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) == len(drawings())
    assert not {"torch", "matplotlib", "pandas", "numpy", "scipy"} & set(found[1:])


@pytest.mark.parametrize("path", drawings())
def test_what_is_read_without_running_a_file_is_what_the_file_declares(path: str) -> None:
    drawing = drawings()[path]
    module = import_module(drawing.module)
    assert Path(module.__file__ or "") == drawing.file and callable(module.draw)
    own = vars(module.DRAWING) | {"requires": None}
    assert own == vars(drawing) | {"requires": None}
    assert drawing.path == f"{drawing.folder}/{drawing.labels['name']}"
    assert 1 <= drawing.caption.count(". ") + 1 <= 4 and drawing.caption.endswith(".")
    about = drawing.about(CONFIG)
    assert about["title"] == drawing.title and "{" not in about["caption"]


def test_every_file_of_a_room_is_a_drawing() -> None:
    rooms = Path(registry.__file__).parent
    files = {file for room in registry.ROOMS for file in (rooms / room).glob("*.py") if file.name != "__init__.py"}
    assert {drawing.file for drawing in drawings().values()} == files and len(files) == len(drawings())


def test_a_new_file_needs_a_declaration_of_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "new.py"
    file.write_text(DECLARATION.replace("READ", '"kl"'))
    drawing = declared(file, "some.new")
    assert (drawing.path, drawing.module, drawing.reads) == ("figures/new", "some.new", ("kl",))
    assert drawing.about(CONFIG)["caption"] == "On 512 conversations."
    unread = (DECLARATION, "cannot be read .*READ"), ("DRAWN = 1", "declares no DRAWING"), ("a = (", "line 1: .*closed")
    for wrong, said in unread:
        file.write_text(wrong)
        with pytest.raises(TunediffError, match=said):
            declared(file, "some.new")
    file.write_text(DECLARATION.replace("READ", '"klm"'))
    with pytest.raises(TunediffError, match=f"some.new: reads 'klm'; choose among {', '.join(READS)}"):
        declared(file, "some.new")


def plan(**changes: object) -> SimpleNamespace:
    config = {"tokens": {"sources": {"web": {"from": "demo"}}}, "nulls": {}}
    made = SimpleNamespace(config=config | changes, trained={"l1-seed0": ()}, with_norms=["l1-seed0"])
    made.labelled = Graph.labelled.fget(made)
    return made


def test_a_run_has_the_drawings_of_its_results() -> None:
    usual = set(drawings_of(plan()))
    assert {"figures/fig4", "figures/detection", "figures/training", "tables/seeds"} <= usual
    assert not {"nulls/summary", "figures/planted", "tables/planted"} & usual
    assert set(drawings_of(plan(nulls={"same": {}}))) == usual | {"nulls/summary"}
    published = plan()
    published.trained = {}
    assert set(drawings_of(published)) == usual - {"figures/training", "tables/seeds"}
    without = plan()
    without.with_norms = []
    assert {"figures/fig2", "figures/twins", "tables/ranking"} <= usual - set(drawings_of(without))
    unlabelled = plan(tokens={"sources": {"web": {"from": "hub"}}})
    assert set(drawings_of(unlabelled)) == usual - {"figures/detection"}
    assert set(drawings_of(plan(planted={}))) == {"figures/planted", "tables/planted"}


def test_a_drawing_is_drawn_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "some_new", SimpleNamespace(draw=lambda results, style: (results, style)))
    drawing = Drawing("figures/new", "some_new", "New", "New.", ("kl",))
    assert drawing.draw("results", "style") == ("results", "style")
