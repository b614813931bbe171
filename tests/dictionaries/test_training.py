"""The training loop: resume, sharing of batches, what is kept and what is published."""

import math
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import pytest
import torch

from analysis_fixtures import activation_store, token_store
from tunediff.config.dictionaries import BatchTopKSettings, CrosscoderSettings
from tunediff.config.settings import LatentSettings, TrainingSettings
from tunediff.dictionaries import DICTIONARIES, Dictionary, build, dictionary_settings, training
from tunediff.dictionaries.base import LatentGroup
from tunediff.dictionaries.batchtopk import BatchTopK
from tunediff.dictionaries.checkpoints import Checkpoints
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.losses import LossTerm
from tunediff.dictionaries.sharding import WHOLE
from tunediff.dictionaries.training import (
    HISTORY,
    PREFETCHED,
    PinnedRing,
    _Run,
    make_optimizer,
    measure_normalization,
    optimizer_step,
    prefetch,
    train,
)
from tunediff.errors import TunediffError
from tunediff.latents.measure import build_table
from tunediff.pipeline.artifacts import check

D = 8
L1 = {"kind": "l1", "dict_size": 32, "mu": "auto", "target_l0": 4.0, "norm_init": 0.2}
TOPK = {"kind": "batchtopk", "dict_size": 32, "k": 3, "aux_k": 4, "dead_after_tokens": 200, "threshold_start": 5}


@pytest.fixture(autouse=True)
def any_l0(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs are too short to reach an L0; the tests of that set the tolerance themselves."""
    monkeypatch.setattr("tunediff.dictionaries.training.L0_TOLERANCE", math.inf)


class KilledError(Exception):
    """Stands for the end of the machine."""


class FakeBatch(NamedTuple):
    activations: torch.Tensor


class FakeStore:
    """Batches that are a function of (seed, step); dies at `die_at`, and remembers what it was asked."""

    def __init__(self, die_at: int = -1, broken_at: int = -1) -> None:
        self.die_at, self.broken_at, self.asked = die_at, broken_at, []
        generator = torch.Generator().manual_seed(0)
        self.atoms = torch.randn(24, 2, D, generator=generator)

    def batches(
        self, batch_size: int, seed: int, pool_chunks: int, start_step: int = 0, into: Any = None
    ) -> Iterator[FakeBatch]:
        self.asked.append(start_step)
        step = start_step
        while True:
            if step == self.die_at:
                raise KilledError
            generator = torch.Generator().manual_seed(1000 * seed + step)
            weight = torch.rand(batch_size, 24, generator=generator)
            weight = weight * (torch.rand(batch_size, 24, generator=generator) < 0.15)
            x = torch.einsum("na,amd->nmd", weight, self.atoms) * torch.tensor([1.0, 3.0])[:, None] + 2
            yield FakeBatch(x * math.nan if step == self.broken_at else x)
            step += 1


def settings(**values: Any) -> TrainingSettings:
    base = {"batch_size": 32, "steps": 40, "learning_rate": 3e-3, "warmup_steps": 5, "checkpoint_every": 7}
    defaults = {"log_every": 4, "normalization": "mean_scale", "normalization_tokens": 100, "seed": 5}
    return TrainingSettings(**{**base, **defaults, **values})


KEYS = {"l1-seed0": "one", "batchtopk-seed0": "two"}
SECTIONS = {"l1-seed0": L1, "batchtopk-seed0": TOPK}


def run(
    tmp_path: Path, store: Any, section: dict[str, Any], name: str = "x", key: str = "k", seed: int = 0, **values: Any
) -> None:
    own, work = dictionary_settings(section), tmp_path / "work" / key
    train(own, seed, store, settings(**values), tmp_path / "out" / name, work, key=key, facts={"layer": 3})


def run_both(tmp_path: Path, store: Any, **values: Any) -> None:
    for name, section in SECTIONS.items():
        run(tmp_path, store, section, name, KEYS[name], **values)


def weights(tmp_path: Path, name: str) -> dict[str, torch.Tensor]:
    return Crosscoder.load(tmp_path / "out" / name).state_dict()


def test_a_whole_run_publishes_sealed_dictionaries_and_histories(tmp_path: Path) -> None:
    run(tmp_path, FakeStore(), {**L1, "mu": 0.02, "target_l0": None}, "l1-seed0", "one")
    run(tmp_path, FakeStore(), TOPK, "batchtopk-seed0", "two")
    for name, key in KEYS.items():
        manifest = check(tmp_path / "out" / name, "crosscoder", key)
        assert manifest.facts["layer"] == 3 and manifest.facts["steps"] == 40
        history = pd.read_parquet(tmp_path / "out" / f"{name}.history.parquet")
        assert tuple(history.columns) == HISTORY
        assert history["step"].tolist() == list(range(4, 41, 4))
        assert history["tokens"].tolist() == [32 * step for step in range(4, 41, 4)]
        assert history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]
        assert history["learning_rate"].iloc[0] == pytest.approx(3e-3 * 4 / 5)
        assert (tmp_path / "out" / f"{name}.provenance.json").is_file()
        assert not (tmp_path / "work" / key).exists()
    config = Crosscoder.load(tmp_path / "out" / "batchtopk-seed0").config
    assert config["kind"] == "batchtopk" and config["k"] == 3 and config["theta"] > 0


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("die_at", [3, 20, 39])
def test_resume_is_bit_for_bit(tmp_path: Path, die_at: int, name: str) -> None:
    run(tmp_path / "whole", FakeStore(), SECTIONS[name], name)
    with pytest.raises(KilledError):
        run(tmp_path / "cut", FakeStore(die_at=die_at), SECTIONS[name], name)
    store = FakeStore()
    run(tmp_path / "cut", store, SECTIONS[name], name)
    assert die_at // 7 * 7 in store.asked  # continued from the last checkpoint
    expected, actual = weights(tmp_path / "whole", name), weights(tmp_path / "cut", name)
    for tensor in expected:
        assert torch.equal(expected[tensor], actual[tensor]), tensor
    histories = [pd.read_parquet(tmp_path / t / "out" / f"{name}.history.parquet") for t in ("whole", "cut")]
    pd.testing.assert_frame_equal(*(h.drop(columns="tokens_per_second") for h in histories))


@pytest.mark.parametrize("name", SECTIONS)
def test_a_checkpoint_written_while_training_goes_on_holds_the_state_of_its_step(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", FakeStore(), SECTIONS[name], name)
    monkeypatch.setattr(training, "WRITTEN_BESIDE", ("cpu",))
    later = threading.Event()
    write = Checkpoints.write

    def slow(self: Checkpoints, state: Any) -> None:
        assert later.wait(60)  # until training is over
        write(self, state)

    monkeypatch.setattr(Checkpoints, "write", slow)
    store = FakeStore(die_at=13)
    monkeypatch.setattr(_Run, "close", lambda _: later.set())
    with pytest.raises(KilledError):
        run(tmp_path / "cut", store, SECTIONS[name], name)
    monkeypatch.undo()
    monkeypatch.setattr(training, "L0_TOLERANCE", math.inf)
    store = FakeStore()
    run(tmp_path / "cut", store, SECTIONS[name], name)
    assert 7 in store.asked
    expected, actual = weights(tmp_path / "whole", name), weights(tmp_path / "cut", name)
    for tensor in expected:
        assert torch.equal(expected[tensor], actual[tensor]), tensor


def test_a_checkpoint_that_cannot_be_written_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Checkpoints, state: Any) -> None:
        raise TunediffError("the disk is full")

    monkeypatch.setattr(training, "WRITTEN_BESIDE", ("cpu",))
    monkeypatch.setattr(Checkpoints, "write", full)
    with pytest.raises(TunediffError, match="the disk is full"):
        run(tmp_path, FakeStore(), TOPK, steps=8)  # one checkpoint, and no other that would wait for it


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    run(tmp_path, FakeStore(), TOPK, seed=2, normalization="none")
    dictionary = build(dictionary_settings(TOPK), D, 2, 40, 5)
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=1.0)
    for step, batch in zip(range(40), FakeStore().batches(32, 5, 16), strict=False):
        if step == 0:
            dictionary.prepare(batch.activations)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 5)
        optimizer.zero_grad()
        dictionary.step(batch.activations).loss.backward()
        torch.nn.utils.clip_grad_norm_(dictionary.parameters(), 1.0)
        optimizer.step()
    trained = weights(tmp_path, "x")
    assert torch.allclose(trained["decoder_weight"], dictionary.decoder_weight, atol=1e-4)
    assert torch.allclose(trained["encoder_bias"], dictionary.encoder_bias, atol=1e-4)


def test_no_place_of_the_ring_is_filled_before_its_copy_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Recorded by the copy; done when somebody waits for it."""

        pending = False

        def record(self) -> None:
            self.pending = True

        def synchronize(self) -> None:
            self.pending = False

    stream = SimpleNamespace(wait_event=lambda event: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    ring = PinnedRing((3,), torch.float32, torch.device("cpu"))
    filled: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for number, slot in enumerate(ring.free()):
            place = next(i for i, each in enumerate(ring.slots) if each is slot)
            assert not ring.copied[place].pending
            filled.append(place)
            yield slot.fill_(number)

    copies = ring.copies(prefetch(islice(batches(), 30), lambda slot: slot))
    assert [batch.tolist() for batch in copies] == [[number] * 3 for number in range(30)]
    assert filled == [number % len(ring.slots) for number in range(30)]
    assert len(ring.slots) == PREFETCHED + 1  # with one fewer a place is filled while it is being copied


def test_clipping_by_the_fused_update_equals_clip_grad_norm() -> None:
    x = next(FakeStore().batches(64, 0, 1)).activations
    results: list[Dictionary] = []
    for fused in (True, False):
        dictionary = build(dictionary_settings({**TOPK, "clip_norm": 0.01}), D, 0)
        optimizer = make_optimizer(dictionary, settings())
        if not fused:
            optimizer = torch.optim.Adam(dictionary.parameters(), lr=3e-3)
            optimizer.defaults["fused"] = False
        # An Adam step hardly depends on the gradient's scale, its second moment does.
        optimizer_step(dictionary, optimizer, x)
        dictionary.second = optimizer.state[dictionary.decoder_weight]["exp_avg_sq"]
        results.append(dictionary)
    assert torch.allclose(results[0].second, results[1].second, rtol=1e-3, atol=0)
    assert float(results[0].second.sum()) == pytest.approx(0.001 * 1e-4, rel=0.9)


class Fixed:
    """A store of known activations, in order."""

    def __init__(self, activations: torch.Tensor) -> None:
        self.activations = activations

    def batches(
        self, batch_size: int, seed: int, pool_chunks: int, start_step: int = 0, into: Any = None
    ) -> Iterator[FakeBatch]:
        yield from map(FakeBatch, self.activations.split(batch_size))


def test_normalisation_is_that_of_the_first_tokens() -> None:
    store = FakeStore()
    stream = store.batches(32, 5, 16)
    x = torch.cat([next(stream).activations for _ in range(4)]).double()  # 100 tokens: four batches of 32
    norms = x.norm(dim=2)
    assert (norms < 5 * norms.median(0).values).all()  # so nothing is trimmed
    mean, scale = measure_normalization(store, settings())
    assert torch.allclose(mean, x.mean(0))
    assert torch.allclose(scale, math.sqrt(D) / (x - x.mean(0)).norm(dim=2).median(0).values)
    mean, scale = measure_normalization(store, settings(normalization="scale"))
    assert not mean.any()
    assert torch.allclose((x * scale[:, None]).norm(dim=2).median(0).values, torch.tensor(math.sqrt(D)).double())
    mean, scale = measure_normalization(store, settings(normalization="none"))
    assert not mean.any() and scale.tolist() == [1, 1]


def test_normalisation_hardly_sees_massive_activations() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 2, D, generator=generator) + 3
    massive = x.clone()
    massive[::100] *= 50
    plain, robust = (measure_normalization(Fixed(v), settings(normalization_tokens=2000)) for v in (x, massive))
    assert torch.allclose(plain.mean, robust.mean, rtol=0.02)
    assert torch.allclose(plain.scale, robust.scale, rtol=0.02)
    assert (massive.double().mean(0) > 1.3 * robust.mean).all()  # a plain mean moves by half


def test_normalisation_refuses_values_that_are_not_finite() -> None:
    x = torch.randn(64, 2, D)
    x[3, 1, 2] = math.nan
    with pytest.raises(TunediffError, match="holds values that are not finite"):
        measure_normalization(Fixed(x), settings())


def test_a_difference_is_scaled_by_its_own_norms() -> None:
    stream = FakeStore().batches(32, 5, 16)
    x = torch.cat([next(stream).activations for _ in range(4)]).double()
    delta = x[:, 1] - x[:, 0]
    norms = delta.norm(dim=1)
    assert (norms < 5 * norms.median()).all()
    mean, scale = measure_normalization(FakeStore(), settings(), "difference")
    assert torch.allclose(mean, delta.mean(0)[None])
    assert torch.allclose(scale, math.sqrt(D) / (delta - delta.mean(0)).norm(dim=1).median()[None])


def test_a_dictionary_of_the_difference_trains_on_it(tmp_path: Path) -> None:
    run(tmp_path, FakeStore(), {**TOPK, "kind": "diff_sae"}, "diff")
    diff = Crosscoder.load(tmp_path / "out" / "diff")
    assert diff.reconstructs == "difference" and len(diff.config["normalization"]["scale"]) == 1
    history = pd.read_parquet(tmp_path / "out" / "diff.history.parquet")
    assert tuple(history.columns) == (*HISTORY, "fve_difference")
    assert history["fve_base"].isna().all() and history["fve_difference"].iloc[-1] > history["fve_difference"].iloc[0]
    x = next(FakeStore().batches(512, 5, 16, 40)).activations
    delta = x[:, 1] - x[:, 0]
    error = delta - diff(x)[:, 0]
    fve = 1 - float(error.pow(2).sum() / (delta - delta.mean(0)).pow(2).sum())
    assert fve == pytest.approx(diff.config["final"]["fve_difference"], abs=0.1)


class Tuned:
    """A base model of dense atoms; chat adds sparse sums of 6 orthogonal `added` directions; both are noisy."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.atoms = torch.randn(32, 16, generator=generator)
        self.added = 3 * torch.linalg.qr(torch.randn(6, 16, generator=generator).T)[0].T.contiguous()

    def batches(
        self, batch_size: int, seed: int, pool_chunks: int, start_step: int = 0, into: Any = None
    ) -> Iterator[FakeBatch]:
        step = start_step
        while True:
            generator = torch.Generator().manual_seed(1000 * seed + step)
            base = torch.rand(batch_size, 32, generator=generator) @ self.atoms
            amount = torch.rand(batch_size, 6, generator=generator) + 0.5
            amount *= torch.rand(batch_size, 6, generator=generator) < 0.3
            pair = torch.stack([base, base + amount @ self.added], dim=1)
            yield FakeBatch(pair + 0.05 * torch.randn(pair.shape, generator=generator))
            step += 1


def test_a_diff_sae_finds_the_directions_that_only_chat_has(tmp_path: Path) -> None:
    section = {"kind": "diff_sae", "dict_size": 12, "k": 2, "aux_k": 0, "threshold_start": 200}
    values = {"steps": 250, "batch_size": 128, "learning_rate": 0.01, "normalization_tokens": 1000, "log_every": 100}
    store = Tuned()
    run(tmp_path, store, section, **values)
    found = Crosscoder.load(tmp_path / "out/x").difference_directions
    cosine = torch.nn.functional.normalize(found, dim=1) @ torch.nn.functional.normalize(store.added, dim=1).T
    assert (cosine.max(dim=0).values > 0.9).all()
    assert (cosine.max(dim=0).indices.unique()).numel() == 6  # one latent each


def gap(x: torch.Tensor, error: torch.Tensor, code: Any) -> torch.Tensor:
    return (error[:, 1] - error[:, 0]).pow(2).sum(dim=1).mean()


@pytest.fixture
def novel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that a reader adds: latents of one model alone, a k for these, and a term that counts the difference."""
    monkeypatch.setattr(CrosscoderSettings, "kinds", dict(CrosscoderSettings.kinds))

    @dataclass(frozen=True, kw_only=True)
    class NovelSettings(BatchTopKSettings):
        kind: ClassVar[str] = "novel"

    class Novel(BatchTopK):
        settings_type = NovelSettings
        loss_terms = (LossTerm("gap", 0.5, gap),)

        def latent_groups(self) -> tuple[LatentGroup, ...]:
            return LatentGroup("exclusive", 0, 8, 1), LatentGroup("shared", 8, self.dict_size, self.settings.k - 1)

        def latent_mask(self) -> torch.Tensor:
            mask = torch.ones(self.dict_size, 2, dtype=torch.bool)
            mask[:4, 0], mask[4:8, 1] = False, False
            return mask

    monkeypatch.setitem(DICTIONARIES, "novel", Novel)


def test_a_new_kind_trains_and_reaches_a_latent_table_by_its_class_alone(tmp_path: Path, novel: None) -> None:
    section = {**TOPK, "kind": "novel"}
    run(tmp_path, FakeStore(), section, "novel-seed0", normalization="none", log_every=10)
    history = pd.read_parquet(tmp_path / "out/novel-seed0.history.parquet")
    added = ["gap", "threshold_exclusive", "threshold_shared"]
    assert tuple(history.columns) == (*HISTORY, *added) and history[added].notna().all(axis=None)
    crosscoder = Crosscoder.load(tmp_path / "out/novel-seed0", key="k")
    config = crosscoder.config
    assert [group["name"] for group in crosscoder.groups] == ["exclusive", "shared"]
    assert {"k", "theta_exclusive", "theta_shared"} <= set(config)
    stream = FakeStore().batches(32, 5, 16, 40)
    batches = [next(stream).activations for _ in range(16)]
    errors = [x - crosscoder(x) for x in batches]
    assert config["final"]["gap"] == pytest.approx(
        float(sum(gap(x, e, None) for x, e in zip(batches, errors, strict=True))) / 16, rel=1e-3
    )

    tokens = token_store(tmp_path / "tokens.zarr", [20] * 16)
    rows = torch.cat(batches)[:320].numpy()
    store = activation_store(tmp_path / "part-000.zarr", tokens, rows)
    settings = LatentSettings(min_count=5, blocks=8, bootstrap_samples=100)
    table = build_table(crosscoder, store, store, settings, tmp_path / "latents.parquet", key="k")
    classes = table.frame["class_name"]
    assert set(classes[:4]) <= {"chat-only", "dead"} and set(classes[4:8]) <= {"base-only", "dead"}
    assert table.has_norm_taxonomy and table.frame["nu_activation"].notna().any()


def test_a_missed_l0_is_not_published_and_leaves_its_history(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tunediff.dictionaries.training.L0_TOLERANCE", 0.1)
    impossible = {**L1, "target_l0": 31.0}  # of 32 latents
    with pytest.raises(TunediffError) as caught:
        run(tmp_path, FakeStore(), impossible, "l1-seed0", steps=400, learning_rate=0.01)
    text = str(caught.value)
    assert text.startswith("l1-seed0: L0 is ") and "31 was asked (mu " in text and "raise training.steps" in text
    assert "\n" not in text and str(tmp_path / "work/k/history.parquet") in text
    assert not (tmp_path / "out").exists()
    assert pd.read_parquet(tmp_path / "work/k/history.parquet")["step"].iloc[-1] == 400
    run(tmp_path, FakeStore(), TOPK, key="other", steps=400, learning_rate=0.01)
    final = check(tmp_path / "out/x", "crosscoder", "other").facts["final"]
    assert final["l0"] == pytest.approx(3, rel=0.1) and final["tokens"] == 16 * 32


def test_the_final_l0_is_that_of_the_published_weights_on_the_next_batches(tmp_path: Path) -> None:
    run_both(tmp_path, FakeStore())
    for name in SECTIONS:
        crosscoder = Crosscoder.load(tmp_path / "out" / name)
        stream = FakeStore().batches(32, 5, 16, 40)
        counts = [len(crosscoder.encode(next(stream).activations).value) / 32 for _ in range(16)]
        assert crosscoder.config["final"]["l0"] == pytest.approx(sum(counts) / 16, rel=1e-3)


def test_dead_latents_are_stated(tmp_path: Path) -> None:
    section = {**TOPK, "dict_size": 400, "dead_after_tokens": 64, "aux_k": 0}
    run(tmp_path, FakeStore(), section)
    config = Crosscoder.load(tmp_path / "out/x").config
    dead = config["dead_fraction"]
    assert dead > 0.5 and config["warnings"] == [f"{dead:.0%} of the latents are dead at the end of training"]
    history = pd.read_parquet(tmp_path / "out/x.history.parquet")
    assert history["dead_fraction"].iloc[-1] == pytest.approx(dead)


def test_a_weight_that_is_not_finite_reaches_no_checkpoint(tmp_path: Path, monkeypatch) -> None:
    def poisoned(dictionary: Dictionary, *rest: Any) -> Any:
        result = optimizer_step(dictionary, *rest)
        if dictionary.steps_taken == 18:
            with torch.no_grad():
                dictionary.decoder_weight[3, 1, 2] = math.inf
        return result

    monkeypatch.setattr("tunediff.dictionaries.training.optimizer_step", poisoned)
    with pytest.raises(TunediffError, match=r"x: \w+ is not finite at step 21; lower training"):
        run(tmp_path, FakeStore(), {**TOPK, "clip_norm": None}, log_every=50)
    state = torch.load(tmp_path / "work/k/checkpoint.pt", weights_only=True)
    assert state["step"] == 14
    assert all(torch.isfinite(t).all() for t in state["dictionary"].values() if torch.is_tensor(t))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TunediffError, match=r"loss is nan at step 24; lower training\.learning_rate"):
        run(tmp_path, FakeStore(broken_at=22), TOPK)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TunediffError, match=r"training\.normalization: is 'unit'"):
        settings(normalization="unit")
    with pytest.raises(TunediffError, match=r"training\.device: is 'cuda' but torch sees no GPU"):
        if torch.cuda.is_available():
            pytest.skip("has a GPU")
        run(tmp_path, FakeStore(), TOPK, device="cuda")


def test_a_damaged_checkpoint_is_told_and_training_starts_from_the_beginning(tmp_path: Path, capsys) -> None:
    run(tmp_path / "whole", FakeStore(), TOPK)
    with pytest.raises(KilledError):
        run(tmp_path / "cut", FakeStore(die_at=10), TOPK)
    checkpoint = tmp_path / "cut/work/k/checkpoint.pt"
    content = checkpoint.read_bytes()
    weight = content.index(torch.load(checkpoint)["dictionary"]["decoder_weight"].numpy().tobytes())
    damaged = bytearray(content)
    damaged[weight + 41] ^= 1  # torch reads it without a word
    checkpoint.write_bytes(damaged)
    store = FakeStore()
    run(tmp_path / "cut", store, TOPK)
    assert 7 not in store.asked  # not from the checkpoint
    told = [line for line in capsys.readouterr().out.splitlines() if "checkpoint" in line]
    assert len(told) == 1 and told[0].endswith(
        "/work/k/checkpoint.pt: damaged (its checksum differs); training starts from the beginning"
    )
    expected, actual = weights(tmp_path / "whole", "x"), weights(tmp_path / "cut", "x")
    for tensor in expected:
        assert torch.equal(expected[tensor], actual[tensor]), tensor


def test_no_flipped_byte_of_a_checkpoint_is_read_as_another_state(tmp_path: Path, capsys) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, FakeStore(die_at=10), TOPK)
    checkpoint = tmp_path / "work/k/checkpoint.pt"
    content = checkpoint.read_bytes()
    kept = Checkpoints(checkpoint.parent, WHOLE).load()
    assert kept is not None and kept["step"] == 7
    flipped = (content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :] for i in range(0, len(content), 7))
    for damaged in (*flipped, b"broken", b"", content[:-9], content[:-32], content + b"x"):
        checkpoint.write_bytes(damaged)
        assert Checkpoints(checkpoint.parent, WHOLE).load() is None
        assert capsys.readouterr().out.count("checkpoint.pt: damaged") == 1


def test_a_missing_logger_is_known_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    store = FakeStore()
    with pytest.raises(TunediffError, match="wandb is not installed; pip install wandb"):
        run(tmp_path, store, TOPK, log_to="wandb")
    assert store.asked == []


def test_prefetch_keeps_order_and_ends_its_thread() -> None:
    assert list(prefetch(iter(range(50)), lambda i: i)) == list(range(50))
    feed = prefetch(iter(range(10**9)), lambda i: i)
    assert next(feed) == 0
    feed.close()


def test_settings_come_from_the_config_section() -> None:
    made = TrainingSettings(**{"steps": 3, "seeds": [0, 1]})
    assert (made.steps, made.seeds, made.pool_chunks) == (3, (0, 1), 128)


def test_the_history_goes_to_tensorboard_where_configured(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, FakeStore(), TOPK, "batchtopk-seed0", log_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "work/k/tensorboard")).Reload()
    history = pd.read_parquet(tmp_path / "out/batchtopk-seed0.history.parquet")
    logged = events.Scalars("batchtopk-seed0/loss")
    assert [event.step for event in logged] == history["step"].tolist()
    assert [event.value for event in logged] == pytest.approx(history["loss"].tolist(), rel=1e-6)
