"""Values of a section that do not go together are named where the section's object is made."""

from typing import Any

import pytest

from tunediff.config.fields import Settings
from tunediff.config.planted import PlantedArm
from tunediff.config.settings import ConversationSettings, HarvestSettings, LocalSource
from tunediff.errors import TunediffError


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            HarvestSettings,
            {"chunk_tokens": 24, "shard_tokens": 64},
            r"activations\.shard_tokens: is 64, must be a multiple of `activations\.chunk_tokens` \(24\), such as 72",
        ),
        (
            HarvestSettings,
            {"chunk_tokens": 8, "shard_tokens": 96, "part_tokens": 256},
            r"activations\.part_tokens: is 256, must be a multiple of `activations\.shard_tokens` \(96\), such as 288",
        ),
        (HarvestSettings, {"codec": "zip"}, r"activations\.codec: is 'zip', must be one of crc32c, blosc"),
        (
            ConversationSettings,
            {"max_prompt_tokens": 64, "max_tokens": 64},
            r"conversations\.max_prompt_tokens: is 64, must be below max_tokens \(64\)",
        ),
        (
            PlantedArm,
            {"burstiness": 0.5, "correlation": 0.6},
            r"planted\.correlation: is 0\.6, .* at most .*\(0\.5;",
        ),
        (PlantedArm, {"frequency": [0.3]}, r"planted\.decoupled_alone: is 2\.0, must be below .*\(1\.67\)"),
        (LocalSource, {"path": "x", "column": "c", "validation_share": 1}, r"local\.validation_share: .* below 1"),
    ],
)
def test_values_that_do_not_go_together(section: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(TunediffError, match=message):
        section(**values)


def test_the_config_names_the_place() -> None:
    from tunediff.config.check import check

    config = {
        "planted": {"arms": {"a": {"frequency": [0.3]}}},
        "crosscoders": {"l1": {"kind": "l1", "dict_size": 8, "mu": 0.1}},
    }
    with pytest.raises(TunediffError) as caught:
        check(config)
    expected = "config: `planted.arms.a.decoupled_alone` must be below 0.5 / max(frequency) (1.67), not 2.0"
    assert str(caught.value) == expected
