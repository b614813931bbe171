"""Each kind of crosscoder checks its own values and derives those that are left out."""

from pathlib import Path
from typing import Any

import pytest

from tunediff.config.dictionaries import (
    BatchTopKSettings,
    CrosscoderSettings,
    L1Settings,
    PublishedSettings,
    Run,
    latents_per_token,
    trained,
)
from tunediff.errors import TunediffError


def test_kinds_are_found_by_name_and_have_a_version() -> None:
    kinds = CrosscoderSettings.kinds
    assert (kinds["l1"], kinds["batchtopk"], kinds["published"]) == (L1Settings, BatchTopKSettings, PublishedSettings)
    assert all(isinstance(kind.version, int) and kind.version >= 1 for kind in kinds.values())
    sections = {"a": {"kind": "published", "path": "x/y"}, "b": {"kind": "l1"}}
    assert trained(sections) == {"b": (L1Settings, {"kind": "l1"})}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("l1", {"mu": 0.1, "target_l0": 4.0}, r"l1\.target_l0: is 4\.0, must be given with `mu: auto`"),
        ("l1", {"mu": "auto", "target_l0": 8}, r"l1\.target_l0: is 8, must be below dict_size \(8\)"),
        ("batchtopk", {"k": 9}, r"batchtopk\.k: is 9, must be at most dict_size \(8\)"),
        ("batchtopk", {"k": 2, "k_max": 4}, r"batchtopk\.k_max: is 4, must be given together with `k_anneal_steps`"),
        ("batchtopk", {"k": 2, "k_anneal_steps": 4}, r"batchtopk\.k_max: is None, must be given together"),
        ("batchtopk", {"k": 2, "k_max": 9, "k_anneal_steps": 4}, r"batchtopk\.k_max: is 9, must be null, or from k"),
    ],
)
def test_values_that_do_not_go_together(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(TunediffError, match=message):
        CrosscoderSettings.kinds[kind](dict_size=8, **values)


@pytest.mark.parametrize(("train", "size", "k"), [(1000, 8 * 64, 16), (20_000_001, 32 * 640, 100), (10**6, 5120, 50)])
def test_values_are_derived_from_the_run(train: int, size: int, k: int) -> None:
    run = Run(train, steps=600, batch_size=50, width=lambda: size // (8 if train <= 20_000_000 else 32))
    own: dict[str, Any] = {"kind": "batchtopk"}
    for key, value in BatchTopKSettings.derived(own, run).items():
        own[key] = value()
    del own["kind"]
    assert own == {
        **{"dict_size": size, "k": k, "aux_k": min(512, size // 8)},
        **{"dead_after_tokens": 6000, "threshold_start": 200},
    }
    assert BatchTopKSettings(**own).k == latents_per_token(size, train) == BatchTopKSettings.asked_l0(own)
    for written, l0, expected in (({}, 7, ("auto", 7)), ({}, None, ("auto", k)), ({"mu": 0.1}, 7, (0.1, None))):
        found: dict[str, Any] = {"dict_size": size, **written}
        for key, value in L1Settings.matched(found, run, l0).items():
            found.setdefault(key, value())
        assert (found["mu"], found["target_l0"]) == expected


def test_a_published_crosscoder_knows_its_files(tmp_path: Path) -> None:
    for name in ("cfg.json", "cc_weights.pt", "other.pt", "notes.txt"):
        (tmp_path / name).write_text("")
    whole = PublishedSettings(path=str(tmp_path))
    assert whole.weights == tmp_path
    assert [path.name for path in whole.files()] == ["cc_weights.pt", "cfg.json", "other.pt"]
    one = PublishedSettings(path=str(tmp_path), file="cc_weights.pt")
    assert one.weights == tmp_path / "cc_weights.pt"
    assert [path.name for path in one.files()] == ["cc_weights.pt", "cfg.json"]
    assert PublishedSettings(path=str(tmp_path / "cc_weights.pt")).files() == one.files()
    assert PublishedSettings(path="org/name").weights is None and PublishedSettings(path="org/name").files() == []
    assert PublishedSettings(path="./gone").weights == Path("gone")
