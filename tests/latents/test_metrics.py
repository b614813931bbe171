"""The one reader of held-out metrics."""

from pathlib import Path

import numpy as np
import pytest

from figure_tables import evaluation
from tunediff.errors import TunediffError
from tunediff.latents.metrics import Evaluation
from tunediff.pipeline.artifacts import write_json


def test_a_metric_is_found_by_model_and_subset_and_nan_where_not_measured(tmp_path: Path) -> None:
    written = evaluation(fve=0.88, l0=52.3)
    rows = [*written.metrics, {"metric": "empty", "model": "base", "subset": "all", "value": None}]
    path = tmp_path / "l1-seed0.json"
    write_json(path, {"key": "k", "metrics": rows, "n_tokens": written.n_tokens})
    found = Evaluation.read(path)
    assert found.value("fve", "chat", "template") == pytest.approx(0.87) and found.value("l0") == 52.3
    assert found.n_tokens["all"] == 1_000_000
    assert np.isnan(found.value("empty", "base")) and np.isnan(found.value("cross_entropy_recovered", "base"))


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "missing; run"), ("{", "not a JSON object"), ("{}", "states no digest"), ("empty", "holds no metrics")],
)
def test_a_file_without_metrics_is_named_in_one_line(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "l1-seed0.json"
    if text == "empty":
        write_json(path, {})
    elif text is not None:
        path.write_text(text)
    with pytest.raises(TunediffError, match=said) as error:
        Evaluation.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
