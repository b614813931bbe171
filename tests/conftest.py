"""Fixtures shared by all tests: tiny model pairs, made once per session."""

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from helpers import FAMILIES, TinyPair, save_pair
from tunediff.models.pair import PairInfo, load_pair, prepare_pair

torch.set_num_threads(1)
hypothesis.settings.register_profile("shared", deadline=None)  # a busy machine is not an error
hypothesis.settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the whole runs first: they are the longest."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)


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
def prepared_pair(tiny_pairs: Callable[[str], TinyPair], tmp_path_factory: pytest.TempPathFactory) -> PairInfo:
    """The tiny Gemma 2 pair as results/models, read after block 1 in float32."""
    pair = tiny_pairs("gemma2")
    out = tmp_path_factory.mktemp("results") / "models"
    prepare_pair({"base": str(pair.base), "chat": str(pair.chat)}, Path("unused"), out, key="k")
    return load_pair(out, 1, "float32")
