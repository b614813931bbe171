"""Endpoints are asked in these tests, also where the hub is offline, as .ci/run says: the client then refuses all."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def online() -> Iterator[None]:
    """Let the client connect to the test's server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        assert "HF_HUB_OFFLINE" not in os.environ
        yield
