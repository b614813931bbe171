"""`tunediff inspect`: what it says of each artifact, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from figure_tables import OTHER, latent_table
from part_fixtures import DAMAGE, LAYOUT, flip, seal_part, write_part
from results_fixtures import DICTIONARIES, small_results
from tunediff.cli import main
from tunediff.data.masks import Mask
from tunediff.data.rendering import ChatRenderer
from tunediff.data.sampling import write_store
from tunediff.inspection import inspect
from tunediff.models.pair import PairInfo
from tunediff.pipeline.artifacts import manifest_path, provenance, seal


@pytest.fixture
def tokens_path(prepared_pair: PairInfo, tmp_path: Path) -> Path:
    from tunediff.data.documents import Document, Message

    document = Document("a", (Message("user", "The lazy dog."), Message("assistant", "I am sorry")))
    encodings = ChatRenderer(prepared_pair.load_tokenizer()).chats([document] * 3, 100)
    attributes = {"sources": ["chat"], "concepts": ["apology"], "split": "train", "seed": 0}
    out = Path(prepared_pair.chat).parent / "unused"  # the tokenizer is found beside the store only
    out = tmp_path / "tokens" / "train.zarr"
    write_store(out, encodings, [0] * 3, attributes, {}, "k", 0.0)
    return out


def test_tokens(tokens_path: Path, prepared_pair: PairInfo, capsys) -> None:
    assert main(["inspect", str(tokens_path), "--documents", "1", "--tokenizer", prepared_pair.chat]) == 0
    text = capsys.readouterr().out
    for wanted in ("[BOS] '<bos>'", "[USER] 'The lazy dog.'", "[ASSISTANT] 'I am sorry'", "tokens_by_source: chat"):
        assert wanted in text
    assert "[TEMPLATE+ASSISTANT] '<end_of_turn>'" in text and "compression" in text and "wall_seconds" in text
    assert main(["inspect", str(manifest_path(tokens_path)), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["kind"] == "tokens" and values["summary"]["documents"] == 3 and not values["problems"]
    assert values["summary"]["tokens_by_mask"]["BOS"] == 3
    assert "[BOS] '2'" in values["documents"][0]  # no tokenizer known: ids


def test_the_tokenizer_of_the_same_results_is_found(prepared_pair: PairInfo, tokens_path: Path, monkeypatch) -> None:
    import shutil

    models = tokens_path.parent.parent / "models"
    source = next(p for p in Path(prepared_pair.chat).parents if (p / "base").is_dir())
    from tunediff.models.pair import prepare_pair

    prepare_pair({"base": str(source / "base"), "chat": str(source / "chat")}, source, models, key="k")
    assert "lazy dog" in inspect(tokens_path).documents[0]
    assert inspect(models).kind == "models"
    shutil.rmtree(models)


def test_activations_norms_and_outliers(tmp_path: Path, capsys) -> None:
    path = tmp_path / "part-000.zarr"
    mask = np.zeros(96, np.uint8)
    mask[:5] = Mask.BOS
    values = write_part(path, 96, 16, LAYOUT, mask=mask)
    result = inspect(path)
    norms = values[5:, 1].norm(dim=1).numpy()
    assert result.summary["norm_chat"]["0.5"] == pytest.approx(np.quantile(norms, 0.5), rel=1e-3)
    assert result.summary["norm_chat"]["1"] == pytest.approx(norms.max(), rel=1e-3)
    assert result.summary["rows_counted"] == 91
    assert result.summary["outliers_left_out"].startswith("not looked for")
    arrays = {array["name"]: array for array in result.arrays}
    assert arrays["base"]["shards"] == [32, 16] and arrays["base"]["chunks"] == [8, 16]
    assert arrays["base"]["dtype"] == "bfloat16" and arrays["base"]["files"] == 3
    assert main(["inspect", str(path)]) == 0
    assert "all checksums as in the manifest" in capsys.readouterr().out


def test_massive_activations_are_listed_per_source(tmp_path: Path, capsys) -> None:
    path = tmp_path / "part-000.zarr"
    mask = np.zeros(96, np.uint8)
    mask[7] = Mask.OUTLIER
    write_part(path, 96, 16, LAYOUT, mask=mask)
    facts = {"factor": 5.0, "norm": {"base": 9.0, "chat": 9.5}, "median": {"base": 1.8, "chat": 1.9}}
    tokens = {"tokens": {"web": 1, "chat": 0}, "of": {"web": 60, "chat": 36}}
    seal_part(path, {"outliers": {**facts, **tokens}})
    result = inspect(path)
    assert result.summary["outliers_left_out"] == {"chat": "0 of 36", "web": "1 of 60"}
    assert result.summary["rows_counted"] == 95
    assert main(["inspect", str(path)]) == 0
    assert "outliers_left_out: chat 0 of 36  web 1 of 60" in capsys.readouterr().out


def test_a_latent_table_states_its_criterion(tmp_path: Path, capsys) -> None:
    path = tmp_path / "l1-seed0.parquet"
    latent_table(size=40, criterion=OTHER).write(path)
    seal(path, "latents", "k", {})
    assert main(["inspect", str(path)]) == 0
    assert f"chat_specific_if: {OTHER.text}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_exits_1(tmp_path: Path, kind: str, capsys) -> None:
    path = tmp_path / "part-000.zarr"
    write_part(path, 96, 16, LAYOUT)
    DAMAGE[kind](path / "base" / "c" / "2" / "0")
    assert main(["inspect", str(path)]) == 1
    captured = capsys.readouterr()
    assert "base/c/2/0" in captured.err and "PROBLEMS" in captured.out
    assert main(["inspect", str(path), "--no-checksums"]) == (0 if kind == "bit flip" else 1) or kind == "bit flip"


def test_unfinished_and_absent(tmp_path: Path, capsys) -> None:
    path = tmp_path / "part-000.zarr"
    write_part(path, 96, 16, LAYOUT)
    manifest_path(path).unlink()
    assert main(["inspect", str(path)]) == 1
    assert "part-000.json: missing" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nothing.zarr")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "folder").mkdir()
    assert main(["inspect", str(tmp_path / "folder")]) == 1


def test_crosscoder_and_tables(tmp_path: Path, capsys) -> None:
    store = tmp_path / "l1-seed0"
    store.mkdir()
    decoder = np.zeros((4, 2, 3), dtype=np.float32)
    decoder[0, 1] = 1  # chat-only
    decoder[1, 0] = 1  # base-only
    decoder[2] = 1  # shared
    decoder[3, 0], decoder[3, 1] = 1, 0.5  # other
    save_file({"decoder_weight": decoder}, store / "crosscoder.safetensors")
    (store / "config.json").write_text('{"kind": "l1"}')
    seal(store, "crosscoder", "k", {}, provenance(0.0))
    result = inspect(store)
    assert result.summary["classes_dead_included"] == {"base-only": 1, "chat-only": 1, "other": 1, "shared": 1}
    frame = pd.DataFrame({"latent": [0, 1, 2], "class_name": ["shared", "shared", "dead"], "nu": [0.5, np.nan, 1.5]})
    table = tmp_path / "l1-seed0.parquet"
    frame.to_parquet(table)
    history = tmp_path / "l1-seed0.history.parquet"
    frame.to_parquet(history)
    seal(table, "latents", "k", {}, beside=[".history.parquet"])
    columns = inspect(table).summary["columns"]
    assert columns["nu"] == "float64, 1 missing, 0.5 … 1 … 1.5" and "shared: 2, dead: 1" in columns["class_name"]
    assert main(["inspect", str(history)]) == 0
    assert f"{history}: history, {history.stat().st_size:,} bytes" in capsys.readouterr().out
    table.write_bytes(b"torn")
    assert main(["inspect", str(table)]) == 1
    assert "l1-seed0.parquet" in capsys.readouterr().err


def test_command_line() -> None:
    help_ = subprocess.run([sys.executable, "-m", "tunediff.cli", "--help"], capture_output=True, text=True)
    assert help_.returncode == 0 and "inspect" in help_.stdout and "examples" in help_.stdout
    wrong = subprocess.run([sys.executable, "-m", "tunediff.cli", "dance"], capture_output=True, text=True)
    assert wrong.returncode == 2


GARBAGE = {
    "empty": b"",
    "torn": b'{"kind": "la',
    "no object": b"[1, 2]",
    "nested": b"[" * 100_000,
    "binary": b"\xff\xfe\x00",
    "other types": b'{"kind": 1, "key": [], "files": [3], "facts": 7}',
    "files of numbers": b'{"kind": "tokens", "key": "k", "files": {"a": 3}, "facts": {}}',
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole folder of results, with a null, a figure, the summary and the report."""
    root = tmp_path / "results"
    small_results(root)
    small_results(root / "nulls/same")
    for path in (root, root / "nulls/same"):
        (path / "causal/kl.sets.json").write_text("{}")
        for name in DICTIONARIES:
            pd.DataFrame({"step": [1]}).to_parquet(path / f"crosscoders/{name}.history.parquet")
            seal(path / "crosscoders" / name, "crosscoder", "k", {}, beside=[".history.parquet"])
    (root / "figures").mkdir()
    for suffix in ("csv", "pdf", "png"):
        (root / f"figures/fig4.{suffix}").write_text("set,kl\na,0.5\nb,0.25\n")
    (root / "figures/fig4_more.csv").write_text("x\n1\n")
    seal(root / "figures/fig4.csv", "drawing", "k", {"title": "Figure 4"}, beside=(".pdf", ".png"))
    (root / "summary.txt").write_text("Found: nothing.\n")
    seal(root / "summary.txt", "summary", "k", {})
    (root / "report").mkdir()
    (root / "report/headline.txt").write_text("1 of 2 latents\n")
    seal(root / "report", "report", "k", {"pieces": 3})
    for name in ("logs", ".work"):
        (root / name).mkdir()
        (root / name / "half.json").write_text("{")
    return root


def told(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    """The problems of an inspection, one line each; its exit status tells whether there are any."""
    status = main(["inspect", str(path), *more])
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert status == bool(lines) and "Traceback" not in captured.out + captured.err
    assert all(line.startswith("tunediff: ") for line in lines)
    return lines


@pytest.mark.parametrize("what", GARBAGE)
def test_damaged_json_manifests_and_array_metadata_are_one_line(run: Path, what: str, capsys) -> None:
    for name in (
        *("hooks.json", "tokens/train.json", "latents/l1-seed0.json", "figures/fig4.json", "report.json"),
        *("evaluation/l1-seed0.json", "tokens/train.zarr/token_id/zarr.json", "tokens/train.zarr/zarr.json"),
        "activations/train/part-000.zarr/base/zarr.json",
    ):
        file, inside = run / name, next((p for p in Path(name).parents if p.suffix == ".zarr"), None)
        good = file.read_bytes()
        file.write_bytes(GARBAGE[what])
        for more in ([], ["--no-checksums"]):
            lines = told(run / (inside or name), capsys, *more)
            plain = what in ("other types", "files of numbers") and name in ("hooks.json", "evaluation/l1-seed0.json")
            assert plain or lines, (name, more)
            assert all(len(line) < 500 for line in lines) and (plain or str(file.parent) in lines[0])
            assert plain or str(file.with_suffix("")).removesuffix("/zarr") in " ".join(told(run, capsys, *more))
        file.write_bytes(good)
    assert told(run, capsys) == []


def test_figures_summary_and_report(run: Path, capsys) -> None:
    for name in ("figures/fig4.csv", "figures/fig4.pdf", "figures/fig4.png", "figures/fig4.json"):
        assert main(["inspect", str(run / name)]) == 0
        text = capsys.readouterr().out
        assert "fig4.csv: drawing" in text and "title: Figure 4" in text and "rows: 2" in text
    for name, line in (("summary.txt", "Found: nothing."), ("report", "1 of 2 latents")):
        assert main(["inspect", str(run / name)]) == 0
        assert f"\n{line}\n" in capsys.readouterr().out
    (run / "figures/fig4.pdf").unlink()
    (line,) = told(run / "figures/fig4.json", capsys)
    assert "fig4.pdf: missing" in line


def test_a_whole_run_is_checked(run: Path, capsys) -> None:
    assert main(["inspect", str(run)]) == 0
    text = capsys.readouterr().out
    assert f"{run}: run, " in text and "tokens: 4" in text and "crosscoder: 4" in text and "drawing: 1" in text
    assert "all checksums as in the manifest" in text
    damaged = {
        "nulls/same/latents/l1-seed0.parquet": lambda path: path.write_bytes(b"torn"),
        "activations/train/part-000.zarr/base/c/0/0": flip,
        "activations/train/part-002.json": lambda path: path.write_text((path.parent / "part-000.json").read_text()),
        "causal/kl.json": Path.unlink,
        "causal/summary.parquet": Path.unlink,
        "crosscoders/l1-seed0.json": Path.unlink,
        "crosscoders/batchtopk-seed0.history.parquet": Path.unlink,
        "figures/fig4.png": Path.unlink,
        "hooks.json": lambda path: path.write_text("{"),
    }
    for name, damage in damaged.items():
        damage(run / name)
    lines = told(run, capsys)
    named = {name: (name, str(Path(name).with_suffix(".json"))) for name in damaged}
    assert [name for name in damaged if not any(one in line for line in lines for one in named[name])] == []
    assert sum("part-001.json: missing" in line for line in lines) == 1
    assert len(lines) == len(damaged) + 1
    assert told(run / "nulls", capsys) == [line for line in lines if "nulls/same" in line]
    assert not any("base/c/0/0" in line for line in told(run, capsys, "--no-checksums"))
