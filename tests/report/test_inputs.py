"""Drawings read what they declare, through the class that owns each format."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from figure_tables import CONFIG, NULLS, all_results, evaluation, nulls_table
from tunediff.errors import TunediffError
from tunediff.latents.table import LatentTable
from tunediff.pipeline.artifacts import seal, write_json
from tunediff.report.inputs import Inputs
from tunediff.report.registry import READS
from tunediff.report.style import Drawn, Style, save
from tunediff.results import READERS


def test_every_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    every, files = all_results(), {}
    single = ("kl", "concepts", "seeds", "steering", "explanation_scores", "explanation_means")
    for name in ("twins", "histories"):
        file, kind, _ = READERS[name]
        files[name] = [stored(tmp_path / file.format(label), frame, kind) for label, frame in every[name].items()]
    for name in single:
        file, kind, _ = READERS[name]
        files[name] = [stored(tmp_path / file, every[name], kind)]
    (tmp_path / "causal/kl.sets.json").write_text(json.dumps(every["sets"]))
    every["kl"].to_parquet(tmp_path / "causal/kl.parquet")
    seal(tmp_path / "causal/kl.parquet", "kl", "k", {}, beside=[".sets.json"])
    scores = tmp_path / "explanation_scores/scores.parquet"
    seal(scores, "explanation_scores", "k", {}, beside=[".overall.parquet"])
    seal(tmp_path / "crosscoders/l1-seed0.history.parquet", "crosscoder", "k", {"settings": {"k": 20}})
    files |= {"sets": [tmp_path / "causal/kl.sets.json"], "crosscoders": [tmp_path / "crosscoders/l1-seed0.json"]}
    # as a job has them: one file is a string, several are a list
    listed = {
        name: str(paths[0]) if len(paths) == 1 else [str(path) for path in paths] for name, paths in files.items()
    }
    config = {**CONFIG, "results": str(tmp_path), "seed": 3}
    results = Inputs.of(SimpleNamespace(input=listed, config=config, params={}))
    for name in ("twins", "histories"):
        found = getattr(results, name)
        assert list(found) == list(every[name])
        for label, frame in every[name].items():
            pd.testing.assert_frame_equal(found[label], frame)
    for name in single:
        pd.testing.assert_frame_equal(getattr(results, name), every[name], check_dtype=False)
    assert results.sets == every["sets"] and results.crosscoders == {"l1-seed0": {"settings": {"k": 20}}}
    assert results.seed == 3


def stored(path: Path, frame: pd.DataFrame, kind: str) -> Path:
    """Write a table, sealed where it is an artifact's store."""
    path.parent.mkdir(exist_ok=True)
    frame.to_parquet(path)
    if kind:
        seal(path, kind, "k", {})
    return path


def test_every_pair_of_the_nulls_has_its_own_tables(tmp_path: Path) -> None:
    files = []
    for i, pair in enumerate(("", *NULLS)):
        root = tmp_path / "nulls" / pair if pair else tmp_path
        (root / "latents").mkdir(parents=True)
        (root / "evaluation").mkdir()
        for label, table in all_results()["latents"].items():
            files += [root / f"latents/{label}.parquet", root / f"evaluation/{label}.json"]
            LatentTable(table.frame, table.sources).write(files[-2])
            seal(files[-2], "latents", "k", {})
            own = evaluation(l0=10.0 + i)
            write_json(files[-1], {"metrics": own.metrics, "n_tokens": own.n_tokens})
    found = Inputs({"pairs": files[::-1]}, {**CONFIG, "results": str(tmp_path)}).pairs
    assert list(found) == ["", "same", "reseeded"]
    for i, (tables, metrics) in enumerate(found.values()):
        assert set(tables) == set(metrics) == {"l1-seed0", "batchtopk-seed0"}
        assert {own.value("l0") for own in metrics.values()} == {10.0 + i}


def test_nulls_are_read_under_their_key_or_have_not_run(tmp_path: Path) -> None:
    drawn = Drawn(Style().figure(1), nulls_table())
    save(drawn, tmp_path / "nulls/summary", Style(dpi=60))
    seal(tmp_path / "nulls/summary.csv", "drawing", "k", {})
    config = {**CONFIG, "results": str(tmp_path)}
    found = Inputs({}, config, "k").nulls
    assert found is not None and found["chat_only"].tolist() == drawn.numbers["chat_only"].tolist()
    assert Inputs({}, config, "").nulls is None
    with pytest.raises(TunediffError, match="'nulls' is not declared"):
        _ = Inputs({}, config).nulls


@pytest.mark.parametrize("name", sorted(READS.keys() - {"activations_train", "activations_validation"}))
def test_what_is_not_declared_is_an_error(name: str) -> None:
    with pytest.raises(TunediffError, match=f"'{name}' is not declared; add it to `reads`"):
        getattr(Inputs({}, CONFIG), name)


def test_a_missing_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    config = {**CONFIG, "results": str(tmp_path)}
    results = Inputs({"kl": [tmp_path / "causal/summary.parquet"], "sets": [tmp_path / "causal/kl.sets.json"]}, config)
    for name in ("kl", "sets"):
        with pytest.raises(TunediffError, match="not made yet; run `snakemake"):
            getattr(results, name)


def test_outlier_tokens_of_all_parts(tmp_path: Path) -> None:
    parts, folder = [], tmp_path / "activations/train"
    folder.mkdir(parents=True)
    for i, factor in enumerate((1, 3)):
        facts = {
            "factor": 5.0, "norm": {"base": 10.0 * factor, "chat": 12.0}, "median": {"base": 2.0 * factor, "chat": 2.4},
            "tokens": {"web": 2 + i, "chat": 0}, "of": {"web": 40, "chat": 60},
        }  # fmt: skip
        parts.append(folder / f"part-{i}.json")
        write_json(parts[-1], {"kind": "activations", "key": "k", "files": {}, "facts": {"outliers": facts}})
    config = {**CONFIG, "results": str(tmp_path)}
    found = Inputs({"activations_train": parts}, config).outliers
    assert list(found) == ["train"] and found["train"] is not None
    assert found["train"].tokens == {"web": 5, "chat": 0} and found["train"].of == {"web": 80, "chat": 120}
    assert found["train"].norm == {"base": 30.0, "chat": 12.0} and found["train"].share == pytest.approx(5 / 200)
    write_json(parts[0], {"kind": "activations", "key": "k", "files": {}, "facts": {"outliers": None}})
    assert Inputs({"activations_train": parts[:1]}, config).outliers == {"train": None}
