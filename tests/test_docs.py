"""What code and documents say of each other is there: cited sections, named modules, linked files."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "config/README.md"]


def test_every_cited_section_of_the_method_exists() -> None:
    headings = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs/method.md").read_text(encoding="utf-8"), re.MULTILINE))
    cited: dict[str, str] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for numbers in re.findall(
            r"method\.md,? sections? (\d+(?:(?:, | and )\d+)*)", path.read_text(encoding="utf-8")
        ):
            cited |= dict.fromkeys(re.findall(r"\d+", numbers), path.name)
    assert {"2", "3", "4", "5"} <= set(cited)
    assert {number: name for number, name in cited.items() if number not in headings} == {}


@pytest.mark.parametrize("name", ["method.md", "architecture.md"])
def test_named_modules_and_folders_exist(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    modules = set(re.findall(r"`(tunediff(?:\.\w+)+)`", text)) - {"tunediff.open_results"}
    folders = set(re.findall(r"`((?:src|rules|workflow|config|profiles|envs)/[\w/.]*)`", text))
    assert modules | folders
    assert [module for module in sorted(modules) if importlib.util.find_spec(module) is None] == []
    assert [folder for folder in sorted(folders) if not (ROOT / folder).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_targets_come_before_configs_in_every_example() -> None:
    """Snakemake reads every word after --configfile as a config."""
    wrong = re.compile(r"snakemake [^`#\n]*--configfile (?:[^\s`]+yaml )+(\w[^\s`]*)(?<!yaml)(?=[\s`]|$)")
    assert wrong.findall("snakemake -n --configfile config/a.yaml all") == ["all"]
    places = ("*.md", "*.yaml", "*.smk", "*.py", "*.ipynb", "Makefile", "Snakefile", ".ci/run")
    files = {path for place in places for path in ROOT.rglob(place)}
    shipped = [path for path in files if path.relative_to(ROOT).parts[0] not in ("tests", ".venv", "results")]
    assert {path.name: found for path in shipped if (found := wrong.findall(path.read_text(encoding="utf-8")))} == {}
