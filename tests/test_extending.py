"""The worked examples of docs/extending.md do what the page says."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from figure_tables import given, latent_tables
from tunediff.config.dictionaries import CrosscoderSettings
from tunediff.config.settings import CausalSettings, TrainingSettings
from tunediff.dictionaries import DICTIONARIES, dictionary_settings
from tunediff.dictionaries.training import train
from tunediff.interventions import registry
from tunediff.report.registry import declared
from tunediff.report.style import Style

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python ([a-z ]+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Execute blocks of the page in one namespace, in a folder of their own."""
    monkeypatch.chdir(tmp_path)

    def execute(*names: str) -> dict[str, Any]:
        space: dict[str, Any] = {"__name__": "example"}
        for name in names:
            exec(compile(BLOCKS[name], name, "exec"), space)
        return space

    return execute


def test_every_example_is_executed_here() -> None:
    assert set(BLOCKS) == {"kind settings", "kind class", "figure", "intervention", "family", "source"}


class Noise:
    """Batches of random activations."""

    def batches(self, batch_size: int, seed: int, pool_chunks: int, start_step: int = 0, into: Any = None) -> Any:
        step = start_step
        while True:
            generator = torch.Generator().manual_seed(step)
            yield SimpleNamespace(activations=torch.randn(batch_size, 2, 8, generator=generator))
            step += 1


def test_the_kind_trains(run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(CrosscoderSettings, "kinds", dict(CrosscoderSettings.kinds))
    monkeypatch.setattr("tunediff.dictionaries.training.L0_TOLERANCE", float("inf"))
    space = run("kind settings", "kind class")
    assert CrosscoderSettings.kinds["dedicated"] is space["DedicatedSettings"]
    monkeypatch.setitem(DICTIONARIES, "dedicated", space["Dedicated"])
    settings = dictionary_settings({"kind": "dedicated", "dict_size": 64, "k": 16, "difference_weight": 2.0})
    training = TrainingSettings(batch_size=32, steps=20, warmup_steps=2, log_every=10, normalization_tokens=64)
    train(settings, 0, Noise(), training, tmp_path / "mine", tmp_path / "work", key="k")
    history = pd.read_parquet(tmp_path / "mine.history.parquet")
    assert (history["error_difference"] > 0).all()


def test_the_figure_is_declared_and_drawn(run: Callable, tmp_path: Path) -> None:
    file = tmp_path / "maximum.py"
    file.write_text(BLOCKS["figure"])
    drawing = declared(file, "example")
    assert drawing.path == "figures/maximum" and drawing.reads == ("latents",)
    tables = latent_tables()
    drawn = run("figure")["draw"](given(latents=tables), Style(dpi=60))
    live = sum(int((~table.frame["dead"]).sum()) for table in tables.values())
    assert len(drawn.numbers) == live and len(drawn.figure.axes) == len(tables)


def test_the_intervention_runs_and_edits_twice(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = run("intervention")["twice"]
    before = registry.count(CausalSettings(), registry.CROSSCODER)
    monkeypatch.setitem(registry.INTERVENTIONS, twice.name, twice)
    assert registry.count(CausalSettings(), registry.CROSSCODER) == before + 1
    case = type(
        "Case", (), {"base": torch.zeros(1), "at": torch.ones(1), "before": torch.ones(3), "whole": torch.ones(3)}
    )
    assert twice.edit(case).values.tolist() == [3, 3, 3]


def test_the_family_passes_the_proof_of_the_hooks(run: Callable) -> None:
    assert run("family")["proof"]["logits_from_own_residual"] <= 1e-5


def test_the_source_is_read_whole(run: Callable) -> None:
    assert len(run("source")["read"]) == 40
