"""The door for outsiders: every artifact is found and read, what is missing or damaged says what to run."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import tunediff
from analysis_fixtures import token_store
from figure_tables import kl_summary, latent_table
from results_fixtures import D_MODEL, DICTIONARIES, N_TOKENS, small_results
from tunediff.pipeline.artifacts import seal
from tunediff.results import Results


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A whole folder of results and its activations, to be read only."""
    root = tmp_path_factory.mktemp("run") / "results"
    return root, small_results(root)


@pytest.fixture
def results(made: tuple[Path, np.ndarray]) -> Results:
    return tunediff.open_results(made[0])


@pytest.fixture
def copy(made: tuple[Path, np.ndarray], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made[0], tmp_path / "results"))


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, tunediff\n"
        "heavy = {'torch', 'numpy', 'pandas', 'zarr', 'transformers', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "tunediff.open_results, tunediff.LatentTable\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_reading_results_loads_neither_models_nor_statistics() -> None:
    code = (
        "import sys, tunediff.data.activations, tunediff.data.tokens, tunediff.latents.table, tunediff.report.inputs\n"
        "heavy = {'transformers', 'nnsight', 'scipy.stats'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_those_of_their_modules() -> None:
    homes = {name: getattr(tunediff, name) for name in tunediff.__all__ if name != "__version__"}
    assert {name: thing.__name__ for name, thing in homes.items()} == {name: name for name in homes}
    assert set(homes) <= set(dir(tunediff))
    with pytest.raises(AttributeError, match="'tunediff' has no attribute 'nothing'"):
        tunediff.nothing  # noqa: B018


def test_the_pair(results: Results) -> None:
    assert results.pair._asdict() == {
        "base": "org/base", "chat": "org/chat", "base_revision": "abc", "chat_revision": None,
        "layer": 1, "dtype": "float32", "d_model": D_MODEL, "n_layers": 4,
    }  # fmt: skip


def test_a_crosscoder_encodes_and_decodes_given_activations(results: Results) -> None:
    assert results.dictionaries == list(DICTIONARIES)
    crosscoder = results.crosscoder("l1-seed0")
    x = torch.randn(7, 2, D_MODEL, generator=torch.Generator().manual_seed(3))
    w = {name: tensor.double() for name, tensor in crosscoder.state_dict().items()}
    f = torch.einsum("nmd,lmd->nl", x.double(), w["encoder_weight"]) + w["encoder_bias"]
    f = torch.where(f > w["threshold"], f, 0)
    assert f.any()
    decoded = torch.einsum("nl,lmd->nmd", f, w["decoder_weight"]) + w["decoder_bias"]
    torch.testing.assert_close(crosscoder.encode(x).to_dense(len(f.T)).double(), f, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(crosscoder.decode(crosscoder.encode(x)).double(), decoded, rtol=1e-5, atol=1e-5)


def test_tables_are_what_was_written(results: Results) -> None:
    pd.testing.assert_frame_equal(results.latents("l1-seed0").frame, latent_table(1).frame)
    pd.testing.assert_frame_equal(results.kl(), kl_summary()[0])
    assert results.kl_table()["kl_sum_all"].tolist() == [0.5, 0.25]
    fve = [row["value"] for row in results.evaluation("l1-seed0").metrics if row["metric"] == "fve"]
    assert fve[0] == 0.625


def test_activations_and_tokens(results: Results, made: tuple[Path, np.ndarray]) -> None:
    store = results.activations("validation")
    batch = next(store.chunks(chunks_per_batch=store.n_chunks))
    np.testing.assert_array_equal(batch.activations[np.argsort(batch.row)], made[1])
    tokens = results.tokens("validation")
    np.testing.assert_array_equal(tokens.token_id[batch.row], batch.token_id)


def test_the_overview(results: Results) -> None:
    lines = repr(results).splitlines()
    assert lines[0] == f"{results.path}: org/base → org/chat, after block 1 of 0–3, d_model 6"
    assert [line.split()[0] for line in lines[1:]] == list(DICTIONARIES)
    frame = latent_table(1).frame
    called, confirmed = int(frame["chat_specific"].sum()), int(frame["chat_specific_validation"].sum())
    null = frame[["nu_reconstruction_random", "nu_error_random"]].to_numpy()
    passed = ((null >= -0.1) & (null <= 2) & (null < [0.5, 0.2])).all(axis=1).sum()
    assert 0 < confirmed < called and passed > 0
    assert "L0 20.5, FVE base 0.875, chat 0.865, difference 0.575;" in lines[1]
    assert "L0 20.5, FVE base 0.625, chat 0.615, difference 0.325;" in lines[2]
    assert f"; {called:,} of {len(frame):,} latents chat-specific ({confirmed:,} confirmed); " in lines[2]
    assert lines[2].endswith(f"control: {passed:,} of {np.isfinite(null).all(axis=1).sum():,} random directions")


def test_a_run_that_has_not_ended(copy: Path) -> None:
    for name in ("latents/l1-seed0.json", "evaluation/batchtopk-seed0.json", "crosscoders/l1-seed0.json", "hooks.json"):
        (copy / name).unlink()
    results = tunediff.open_results(copy)
    assert results.dictionaries == ["batchtopk-seed0"]
    assert "hooks.json: not made yet" in repr(results) and "no evaluation/batchtopk-seed0.json yet" in repr(results)
    with pytest.raises(
        tunediff.TunediffError, match=r"hooks.json: not made yet; run `snakemake .*hooks.json --cores all`"
    ):
        results.pair  # noqa: B018
    with pytest.raises(tunediff.TunediffError, match=r"no finished dictionary 'l1-seed0', there are: batchtopk-seed0;"):
        results.latents("l1-seed0")
    with pytest.raises(tunediff.TunediffError, match=r"evaluation/batchtopk-seed0.json: not made yet; run `snakemake"):
        results.evaluation("batchtopk-seed0")
    shutil.rmtree(copy / "crosscoders")
    assert repr(results).endswith("no dictionary is finished yet")


@pytest.mark.parametrize("method", ["kl", "kl_table"])
def test_every_missing_table_says_what_to_run(copy: Path, method: str) -> None:
    shutil.rmtree(copy / "causal")
    with pytest.raises(tunediff.TunediffError, match=r"\.parquet: not made yet; run `snakemake .*parquet --cores all`"):
        getattr(tunediff.open_results(copy), method)()


def test_a_missing_part_of_activations_is_named(copy: Path) -> None:
    results = tunediff.open_results(copy)
    shutil.rmtree(copy / "tokens/train.zarr")
    token_store(copy / "tokens/train.zarr", [16] * 6)  # of a run whose second part is not harvested
    with pytest.raises(tunediff.TunediffError, match=r"part-001.zarr: 48 of 96 tokens are harvested; run `snakemake"):
        results.activations("train")
    (copy / "activations/validation/part-000.json").unlink()
    with pytest.raises(tunediff.TunediffError, match=r"validation/part-000.json: missing, .* run snakemake again"):
        results.activations("validation")
    shutil.rmtree(copy / "activations/train")
    with pytest.raises(tunediff.TunediffError, match=r"part-000.zarr: 0 of 96 tokens are harvested"):
        results.activations("train")


def test_a_null_reads_the_tokens_of_its_run(copy: Path) -> None:
    null = copy / "nulls/same"
    shutil.copytree(copy / "activations", null / "activations")
    results = tunediff.open_results(null)
    assert results.tokens("validation").n_tokens == results.activations("validation").n_tokens == N_TOKENS


def test_verify_finds_every_artifact_and_names_the_damaged(copy: Path) -> None:
    results = tunediff.open_results(copy)
    sealed_csv = copy / "nulls/summary.csv"
    sealed_csv.parent.mkdir()
    sealed_csv.write_text("a\n1\n")
    seal(sealed_csv, "drawing", "key", {})
    (copy / "summary.txt").write_text("Found: nothing.\n")
    seal(copy / "summary.txt", "summary", "key", {})
    (copy / ".work").mkdir()
    (copy / ".work/half.json").write_text('{"kind": "x", "key": "k", "files": {"": {"bytes": 1, "sha256": ""}}}')
    found = {path.relative_to(copy).as_posix() for path in results.verify()}
    expected = {"models", "causal/kl.parquet", "causal/summary.parquet", "nulls/summary.csv", "summary.txt"}
    expected |= {"hooks.json", *(f"evaluation/{name}.json" for name in DICTIONARIES)}
    expected |= {f"tokens/{split}.zarr" for split in ("train", "validation")}
    expected |= {f"activations/{split}/part-000.zarr" for split in ("train", "validation")}
    expected |= {f"crosscoders/{name}" for name in DICTIONARIES} | {f"latents/{name}.parquet" for name in DICTIONARIES}
    assert found == expected

    shard = copy / "activations/train/part-000.zarr/base/c/0/0"
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    with pytest.raises(tunediff.TunediffError, match=r"base/c/0/0: checksum differs") as caught:
        results.verify()
    assert "more artifacts" not in str(caught.value)
    (copy / "causal/kl.parquet").unlink()
    with pytest.raises(tunediff.TunediffError, match=r"\(1 more artifacts are damaged\)"):
        results.verify()
    content[0] ^= 1
    shard.write_bytes(content)
    (copy / "causal/kl.json").write_text("{")
    with pytest.raises(tunediff.TunediffError, match=r"causal/kl.json: not a JSON object"):
        results.verify()


def test_a_folder_without_results(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(tunediff.TunediffError, match=r"holds no results; give a config's `results` folder"):
            tunediff.open_results(path)
