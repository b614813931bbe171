"""The soak itself, on a few inputs: what is fuzzed is read or refused, and faults are not taken for success."""

import random
from collections import Counter
from pathlib import Path

import pytest
import soak
import soak_flips
import soak_fuzz
import soak_inputs
import soak_runs

from tunediff.config import estimate
from tunediff.data import rendering
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import seal, write_json

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the soak sets in its worker processes is set back; no hub is asked, whatever was imported before."""
    monkeypatch.setattr(estimate, "calibrate", estimate.calibrate)
    monkeypatch.setattr(rendering, "RENDER_SECONDS", rendering.RENDER_SECONDS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kept_since_its_import in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{kept_since_its_import}.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(ROOT)


def test_a_few_inputs_are_read_or_refused(tmp_path: Path) -> None:
    for look, count in (
        (soak_fuzz.look_at_config, 30),
        (soak_inputs.look_at_texts, 15),
        (soak_inputs.look_at_model, 4),
    ):
        ended = Counter[str]()
        for i in range(count):
            folder = tmp_path / f"{look.__name__}-{i}"
            folder.mkdir()
            outcome, said = soak_fuzz.attempt(look, f"test {i}", folder)
            assert outcome in (soak_fuzz.FINE, soak_fuzz.REFUSED, soak_fuzz.SNAKEMAKE, soak_fuzz.CRASHED), said
            ended[outcome] += 1
        assert ended[soak_fuzz.REFUSED]


def test_tracebacks_and_hangs_are_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(rng: random.Random, folder: Path) -> str:
        raise KeyError("x")

    def refusing(rng: random.Random, folder: Path) -> str:
        raise TunediffError("x: is odd; write y")

    assert soak_fuzz.attempt(broken, "s", tmp_path)[0] == soak_fuzz.TRACEBACK
    assert soak_fuzz.attempt(refusing, "s", tmp_path) == (soak_fuzz.REFUSED, "x: is odd; write y")
    assert soak_runs.traced('OSError in file "x.smk", line 3:\n  File "x.py", line 72, in start\n')
    assert not soak_runs.traced("error: models: the disk is full (x); free some space")
    with pytest.raises(SystemExit) as caught:
        soak.main(["nothing"])
    assert caught.value.code == 2 and "no part nothing" in capsys.readouterr().err


def test_runs_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        results = tmp_path / name / soak_runs.RESULTS
        (results / "latents").mkdir(parents=True)
        (results / "latents/x.parquet").write_text("same")
        seal(results / "latents/x.parquet", "latents", "key", {}, {"wall_seconds": name})
        write_json(results / "hooks.json", {"kind": "hooks", "key": "k"})
    one, two = (soak_runs.Copy(tmp_path / name, 1) for name in ("one", "two"))
    assert soak_runs.require_equal(one, two) == 2
    (two.results / "latents/.x.parquet.0a.partial").write_text("")
    assert [path.name for path in soak_runs.left_over(two.results)] == [".x.parquet.0a.partial"]
    write_json(two.results / "hooks.json", {"kind": "hooks", "key": "other"})
    with pytest.raises(soak_runs.SoakError, match=r"1 artifacts differ, first: \['hooks.json'\]"):
        soak_runs.require_equal(one, two)
    (one.results / "latents/x.parquet").write_text("sane")
    with pytest.raises(soak_runs.SoakError, match="checksum differs"):
        soak_runs.require_equal(one, two)


def test_every_file_of_a_run_has_a_kind() -> None:
    assert soak_flips.kind_of("activations/train/part-000.json") == "activations manifest"
    assert soak_flips.kind_of("activations/train/part-000.zarr/base/c/0/0") == "activations chunk"
    assert soak_flips.kind_of("tokens/train.zarr/zarr.json") == "tokens metadata"
    assert soak_flips.kind_of("figures/fig4.png") == "figures .png"
    assert soak_flips.kind_of("models.provenance.json") == "provenance"
