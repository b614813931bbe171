"""Artifacts are rebuilt exactly when what they depend on changes; the known traps are closed."""

import base64
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkout import Checkout, assert_complete, family_checkout

from helpers import TinyPair


@pytest.fixture(scope="module")
def finished(tiny_pairs: Callable[[str], TinyPair], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A whole run with a Llama-3-architecture pair, local models, local chats and texts."""
    pair = tiny_pairs("llama3")
    vocabulary = pair.tokenizer.get_vocab()
    replaced = {str(vocabulary["<|eot_id|>"]): vocabulary["."]}
    folder = tmp_path_factory.mktemp("rebuild") / "run"
    checkout = family_checkout(folder, pair, ignore_first_tokens=3, base_token_replacements=replaced)
    checkout.run()
    return checkout


@pytest.fixture
def run(finished: Checkout) -> Iterator[Checkout]:
    """The finished run; config and sources are put back after each test."""
    config = finished.config.read_bytes()
    kept = finished.root.parent / "src"
    shutil.copytree(finished.root / "src", kept)
    yield finished
    finished.config.write_bytes(config)
    shutil.rmtree(finished.root / "src")
    kept.rename(finished.root / "src")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_llama_pair_runs_to_every_figure(finished: Checkout) -> None:
    assert_complete(finished, ("fig2", "fig3", "fig4", "training"))


def test_touching_every_file_rebuilds_nothing(run: Checkout) -> None:
    assert run.planned() == {}
    for path in [
        *run.root.rglob("*.py"),
        *run.root.rglob("*.smk"),
        *run.root.rglob("*.json"),
        *run.root.rglob("*.zarr"),
    ]:
        if ".snakemake" not in path.parts:
            path.touch()
    for path in run.root.glob("texts/*"):
        path.touch()
    assert run.planned() == {}


def test_code_rebuilds_nothing_but_by_its_version(run: Checkout) -> None:
    for path in (run.root / "src/tunediff").rglob("*.py"):
        path.write_text(path.read_text() + "\nEXTRA = 1\n")
    assert run.planned() == {}
    edit(run.root / "src/tunediff/pipeline/graph.py", '"latents": Stage(2,', '"latents": Stage(3,')
    planned = set(run.planned())
    assert {"latents", "causal", "drawing"} <= planned
    assert not planned & {"train", "activations", "models", "tokens"}


@pytest.mark.parametrize(
    ("key", "value", "rebuilt", "spared"),
    [
        ("figures.font_size", 9, {"drawing"}, {"latents", "causal", "train", "concepts"}),
        ("crosscoders.batchtopk.k", 9, {"train", "latents", "causal"}, {"activations", "tokens", "conversations"}),
        ("seed", 2, {"tokens", "activations", "train", "conversations"}, {"models", "hooks"}),
    ],
)
def test_values_rebuild_what_depends_on_them(
    run: Checkout, key: str, value: object, rebuilt: set[str], spared: set[str]
) -> None:
    run.edit_config(key, value)
    planned = set(run.planned())
    assert rebuilt <= planned and not planned & spared


def test_a_changed_source_text_is_seen(run: Checkout) -> None:
    path = run.root / "texts/requests.jsonl"
    text = path.read_text()
    path.write_text(text.replace("fox", "wolf", 1))
    planned = set(run.planned())
    assert {"conversations", "causal"} <= planned and "train" not in planned
    path.write_text(text)


def test_only_the_changed_crosscoder_is_trained_again(run: Checkout) -> None:
    before = (run.root / "results/crosscoders/l1-seed0.json").read_text()
    run.edit_config("crosscoders.batchtopk.k", 9)
    planned = run.planned()
    assert (planned["train"], planned["latents"], planned["evaluation"]) == (1, 1, 1)
    run.run("results/crosscoders/batchtopk-seed0.json")
    assert (run.root / "results/crosscoders/l1-seed0.json").read_text() == before
    assert "train" not in run.planned() and "latents" in run.planned()
    run.edit_config("crosscoders.batchtopk.k", 8)
    run.run()


def test_deleted_caches_are_made_again_only_when_needed(run: Checkout) -> None:
    shutil.rmtree(run.root / "results/activations/train/part-000.zarr")
    assert run.planned() == {}
    run.edit_config("crosscoders.batchtopk.k", 9)
    planned = run.planned()
    assert planned["activations"] == planned["train"] == planned["latents"] == 1  # of what else reads them nothing
    other = run.root / "results/activations/train/part-001.zarr"
    number = other.stat().st_ino
    run.run("results/activations/train/part-000.zarr")
    assert other.stat().st_ino == number  # one job makes all parts, but those that are there are kept
    run.edit_config("crosscoders.batchtopk.k", 8)
    run.run("--forcerun", "activations", "--until", "activations")


def lose(run: Checkout, *folders: str) -> Path:
    """Put folders of the results aside, as if a run had ended before them; return where they are."""
    kept = Path(tempfile.mkdtemp(dir=run.root.parent))
    for folder in folders:
        (run.root / "results" / folder).rename(kept / folder)
    return kept


def restore(run: Checkout, kept: Path) -> None:
    for folder in kept.iterdir():
        shutil.rmtree(run.root / "results" / folder.name, ignore_errors=True)
        folder.rename(run.root / "results" / folder.name)


def test_what_an_ended_run_left_out_is_made_with_what_has_changed(run: Checkout) -> None:
    kept = lose(run, "latents", "evaluation", "concepts", "causal", "figures", "tables")
    first_part = run.planned("results/figures/fig4.pdf", "results/figures/fig2.pdf")
    run.edit_config("crosscoders.batchtopk.k", 9)
    changed = run.planned("results/figures/fig4.pdf", "results/figures/fig2.pdf")
    assert changed.pop("train") == 1 and changed == first_part and first_part["drawing"] == 2
    run.edit_config("crosscoders.batchtopk.k", 8)
    forced = run.planned("results/figures/fig4.pdf", "results/figures/fig2.pdf", "--forcerun", "train")
    assert forced.pop("train") == 2 and forced == first_part
    restore(run, kept)
    assert run.planned() == {}


def test_what_was_finished_as_its_run_was_killed_stays(run: Checkout) -> None:
    kept = lose(run, "figures")
    drawings = run.planned()
    for suffix in (".json", ".history.parquet", ""):  # as Snakemake marks the outputs of a job that runs
        name = base64.b64encode(f"results/crosscoders/l1-seed0{suffix}".encode()).decode()
        (run.root / ".snakemake/incomplete" / name).write_text("")
    assert run.planned() == drawings == {"drawing": drawings["drawing"]}
    restore(run, kept)


def test_a_failed_upstream_job_is_planned_again_with_all_after_it(run: Checkout) -> None:
    chunk = max((run.root / "results/tokens/train.zarr").rglob("c/*"), key=lambda path: path.stat().st_size)
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    run.edit_config("models.layer", 0)
    failed = run.run(check=False)
    assert failed.returncode != 0
    error = next(line for line in (failed.stdout + failed.stderr).splitlines() if line.startswith("error: "))
    assert "tokens/train.zarr" in error
    planned = set(run.planned())
    assert {"activations", "train", "latents", "causal", "drawing"} <= planned
    chunk.write_bytes(good)
    run.edit_config("models.layer", 1)
    run.run()
    run.run("results/activations/train/part-000.json")  # deleted with the failed job, needed by none of this config


def test_a_changed_chunk_stops_the_next_reader_and_names_the_shard(run: Checkout) -> None:
    part = run.root / "results/activations/train/part-001.zarr"
    shard = next(path for path in sorted((part / "chat/c").rglob("*")) if path.is_file())
    good = shard.read_bytes()
    bad = bytearray(good)
    bad[1000] ^= 1
    shard.write_bytes(bad)
    run.edit_config("crosscoders.batchtopk.k", 10)  # not trained before, so it reads the shard
    failed = run.run("results/crosscoders/batchtopk-seed0.json", check=False)
    assert failed.returncode != 0
    error = next(line for line in (failed.stdout + failed.stderr).splitlines() if line.startswith("error: "))
    assert "part-001.zarr/chat" in error and "snakemake" in error
    shard.write_bytes(good)
    run.edit_config("crosscoders.batchtopk.k", 8)
    run.run()


def test_results_in_another_checkout_are_those_of_their_config(run: Checkout, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".snakemake"))
    copy = Checkout(tmp_path / "copy", tmp_path / "copy/run.yaml")
    for path in sorted((copy.root / "results").rglob("*"), reverse=True):  # no order of times is left
        path.touch()
    assert copy.planned() == {}
    for key, value, rebuilt, spared in (
        ("crosscoders.batchtopk.k", 7, {"train", "latents", "causal", "drawing"}, {"activations", "tokens"}),
        ("models.layer", 0, {"hooks", "activations", "train"}, {"models", "tokens"}),
        ("seed", 7, {"tokens", "activations", "train", "conversations"}, {"models", "hooks"}),
    ):
        kept = copy.config.read_text()
        copy.edit_config(key, value)
        planned = set(copy.planned())
        assert rebuilt <= planned and not planned & spared
        copy.config.write_text(kept)
    assert copy.planned() == {}
