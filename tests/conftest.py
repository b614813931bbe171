"""Fixtures shared by all tests: tiny model pairs, made once per session."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers import FAMILIES, TinyPair, save_pair

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyPair]:
    """A function from family (gemma2, llama3, qwen2) to its saved tiny pair."""
    made: dict[str, TinyPair] = {}

    def get(family: str) -> TinyPair:
        if family not in made:
            made[family] = save_pair(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture(params=FAMILIES)
def tiny_pair(request: pytest.FixtureRequest, tiny_pairs: Callable[[str], TinyPair]) -> TinyPair:
    """A tiny pair of each family in turn."""
    return tiny_pairs(request.param)


@pytest.fixture(scope="session")
def prepared_models(tiny_pairs: Callable[[str], TinyPair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/models of the tiny Gemma 2 pair, layer 1, float32."""
    from tunediff.models import prepare_pair

    pair = tiny_pairs("gemma2")
    out = tmp_path_factory.mktemp("results") / "models"
    prepare_pair(str(pair.base), str(pair.chat), 1, "float32", "cpu", {}, None, out, key="k")
    return out
