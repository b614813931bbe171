"""Harvest against direct forward passes; store round trips; damage of every kind; shuffled, seekable batches."""

import json
import math
import shutil
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from part_fixtures import DAMAGE, LAYOUT, seal_part, write_part
from tunediff.config.settings import HarvestSettings
from tunediff.data import activations
from tunediff.data.activations import STORAGE, ActivationStore, to_stored
from tunediff.data.harvest import Harvester, Wanted, _write_shard, create_part, harvest, harvest_part, length_batches
from tunediff.data.masks import KEEP_ALL, LEFT_OUT, Mask
from tunediff.data.rendering import Encoding
from tunediff.data.sampling import write_store
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.models.pair import PairInfo
from tunediff.pipeline.artifacts import check, manifest_path, set_aside

SETTINGS = HarvestSettings(
    part_tokens=256, shard_tokens=64, chunk_tokens=16, batch_tokens=120, codec="crc32c", dtype="float32"
)
LENGTHS = [40, 7, 33, 50, 64, 1, 100, 25, 90, 38]  # documents straddle shards and the border of the parts


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, prepared_pair: PairInfo) -> TokenStore:
    rng = np.random.default_rng(0)
    encodings = []
    for length in LENGTHS:
        mask = rng.choice([0, 2, 4, 8], length).astype(np.uint8)
        mask[0] = Mask.BOS
        ids = rng.integers(0, prepared_pair.vocab_size, length).astype(np.int32)
        encodings.append(Encoding(ids, mask, np.zeros(length, dtype=np.uint64)))
    attributes = {"sources": ["web", "chat"], "concepts": [], "split": "train", "seed": 0}
    out = tmp_path_factory.mktemp("tokens") / "train.zarr"
    return write_store(out, encodings, [i % 2 for i in range(len(LENGTHS))], attributes, {}, "t", 0.0)


@pytest.fixture(scope="module")
def parts(tokens: TokenStore, prepared_pair: PairInfo, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("activations")
    paths = [folder / f"part-{i:03d}.zarr" for i in range(2)]
    for i, path in enumerate(paths):
        harvest_part(tokens, prepared_pair, i, SETTINGS, path, 5, "cpu", key="a")
    return paths


def direct_residuals(tokens: TokenStore, pair: PairInfo) -> torch.Tensor:
    """The reference: each document alone through transformers, hidden_states[layer + 1]; [token, model, d_model]."""
    columns = []
    for path in (pair.base, pair.chat):
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        rows = []
        for i in range(tokens.n_documents):
            ids = torch.from_numpy(tokens.token_id[tokens.document(i)].astype(np.int64))[None]
            with torch.no_grad():
                rows.append(model(input_ids=ids, output_hidden_states=True).hidden_states[pair.layer + 1][0])
        columns.append(torch.cat(rows))
    return torch.stack(columns, 1)


def test_harvest_equals_direct_forward(tokens: TokenStore, parts: list[Path], prepared_pair: PairInfo) -> None:
    store = ActivationStore(parts, key="a")
    assert (store.n_tokens, store.d_model, store.sources) == (448, 32, ["web", "chat"])
    reference = direct_residuals(tokens, prepared_pair)
    seen = []
    for batch in store.chunks(chunks_per_batch=3):
        torch.testing.assert_close(batch.activations, reference[torch.from_numpy(batch.row)], rtol=1e-4, atol=1e-4)
        assert np.array_equal(batch.token_id, tokens.token_id[batch.row])
        assert np.array_equal(batch.doc, tokens.doc[batch.row])
        assert np.array_equal(batch.pos, tokens.pos[batch.row])
        assert np.array_equal(batch.mask, tokens.mask[batch.row])
        assert np.array_equal(batch.source, tokens.doc_source[batch.doc])
        seen.append(batch.row)
    assert sorted(np.concatenate(seen).tolist()) == list(range(448))
    # Rows are permuted, but stay in their shard.
    assert np.array_equal(store.row // 64, np.arange(448) // 64)
    assert not np.array_equal(store.row, np.arange(448))


def test_base_model_gets_replaced_tokens(tokens: TokenStore, prepared_pair: PairInfo, tmp_path: Path) -> None:
    from dataclasses import replace

    from tunediff.models.residual import replace_tokens

    table = {int(tokens.token_id[3]): 11, int(tokens.token_id[20]): 12}
    out = tmp_path / "p.zarr"
    harvest_part(tokens, replace(prepared_pair, replacements=table), 0, SETTINGS, out, 5, "cpu", key="a")
    batch = next(ActivationStore([out]).chunks(chunks_per_batch=16))
    first = batch.activations[np.argsort(batch.row)][:40]
    ids = torch.from_numpy(tokens.token_id[:40].astype(np.int64))[None]
    for m, (load, own) in enumerate(((prepared_pair.load_base, table), (prepared_pair.load_chat, {}))):
        wanted = load("cpu").residual(replace_tokens(ids, own))[0]
        torch.testing.assert_close(first[:, m], wanted, rtol=1e-4, atol=1e-4)


def test_harvest_is_reproducible_and_seeded(tokens: TokenStore, parts, prepared_pair: PairInfo, tmp_path: Path) -> None:
    again, other = tmp_path / "part-001.zarr", tmp_path / "other.zarr"
    harvest_part(tokens, prepared_pair, 1, SETTINGS, again, 5, "cpu", key="a")
    assert manifest_path(again).read_text() == manifest_path(parts[1]).read_text()
    harvest_part(tokens, prepared_pair, 1, SETTINGS, other, 6, "cpu", key="a")
    assert not np.array_equal(ActivationStore([other]).row, ActivationStore([again]).row)


def test_a_killed_harvest_goes_on_at_the_next_part_with_one_load_of_the_models(
    tokens: TokenStore, parts: list[Path], prepared_pair: PairInfo, tmp_path: Path, monkeypatch
) -> None:
    loads, made, window = [], [], Harvester.window
    monkeypatch.setattr(PairInfo, "load_base", lambda *a, load=PairInfo.load_base: loads.append("base") or load(*a))
    wanted = [Wanted(tokens, i, tmp_path / "train" / path.name, "a") for i, path in enumerate(parts)]
    work = tmp_path / ".work"

    def dying(self, part, *rest):
        if part == 1 and not made:
            raise KeyboardInterrupt
        return window(self, part, *rest)

    monkeypatch.setattr(Harvester, "window", dying)
    with pytest.raises(KeyboardInterrupt):
        harvest(wanted, prepared_pair, SETTINGS, work, 5, "cpu")
    assert loads == ["base"] and not (tmp_path / "train").exists()
    monkeypatch.setattr(Harvester, "window", lambda self, part, *rest: made.append(part) or window(self, part, *rest))
    harvest(wanted, prepared_pair, SETTINGS, work, 5, "cpu")
    assert made == [1] and loads == ["base", "base"] and not list(work.iterdir())
    for each, path in zip(wanted, parts, strict=True):
        assert manifest_path(each.out).read_text() == manifest_path(path).read_text()
        check(each.out, "activations", "a")  # sha256 of files as written are those of the files
    made.clear()
    shutil.rmtree(wanted[0].out)  # one part is lost, another is there
    set_aside({each.out: each.key for each in wanted}, work)
    assert not wanted[1].out.exists()
    harvest(wanted, prepared_pair, SETTINGS, work, 5, "cpu")
    assert made == [0] and len(loads) == 3
    assert ActivationStore([each.out for each in wanted], key="a").n_tokens == 448


def test_windows_change_nothing(tokens, parts, prepared_pair: PairInfo, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tunediff.data.harvest.WINDOW_BYTES", 1)  # one shard at a time
    out = tmp_path / "p.zarr"
    harvest_part(tokens, prepared_pair, 0, SETTINGS, out, 5, "cpu", key="a")
    a, b = (torch.cat([batch.activations for batch in ActivationStore([p]).chunks()]) for p in (out, parts[0]))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_massive_activations_are_marked_as_a_plain_rule_marks_them(
    tokens: TokenStore, parts: list[Path], prepared_pair: PairInfo, tmp_path: Path
) -> None:
    from dataclasses import replace

    factor = 1.2  # this pair's norms are alike; some tokens are above
    paths = [tmp_path / path.name for path in parts]
    for i, path in enumerate(paths):
        harvest_part(tokens, prepared_pair, i, replace(SETTINGS, outlier_factor=factor), path, 5, "cpu", key="a")
    limits = []
    for path in paths:
        batch = next(ActivationStore([path]).chunks(chunks_per_batch=100))
        original, source = tokens.mask[batch.row], tokens.doc_source[batch.doc]
        counted = [m & (Mask.BOS | Mask.IGNORED) == 0 for m in original]
        norms = np.array([[np.linalg.norm(h) for h in pair] for pair in batch.activations.numpy()])
        limit = [factor * np.median(norms[counted, m]) for m in range(2)]
        massive = [norm[0] > limit[0] or norm[1] > limit[1] for norm in norms]
        assert 0 < sum(massive) < len(massive)
        assert batch.mask.tolist() == [m | 32 * out for m, out in zip(original.tolist(), massive, strict=True)]
        facts = json.loads(manifest_path(path).read_text())["facts"]["outliers"]
        of_web, of_chat = (
            sum(o and c and s == k for o, c, s in zip(massive, counted, source, strict=True)) for k in (0, 1)
        )
        assert facts["tokens"] == {"web": of_web, "chat": of_chat}
        np.testing.assert_allclose(list(facts["norm"].values()), limit, rtol=1e-6)
        limits.append(limit)
    store = ActivationStore(paths)
    np.testing.assert_allclose(store.outlier_norm, np.max(limits, axis=0), rtol=1e-6)
    left = store.kept(LEFT_OUT)
    assert not (store.mask[left] & np.uint8(Mask.OUTLIER)).any() and left.sum() < (store.mask & np.uint8(17) == 0).sum()
    plain = tmp_path / "plain.zarr"
    harvest_part(tokens, prepared_pair, 0, replace(SETTINGS, outlier_factor=None), plain, 5, "cpu", key="a")
    assert ActivationStore([plain]).outlier_norm is None
    assert not (ActivationStore([plain]).mask & np.uint8(Mask.OUTLIER)).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_residual_that_is_not_finite_stops_every_reader(tmp_path: Path, value: float) -> None:
    path = tmp_path / "part-000.zarr"
    layout = HarvestSettings(shard_tokens=32, chunk_tokens=8, dtype="float32")
    write_part(path, 64, 4, layout)
    group = zarr.open_group(str(path), mode="r+")
    stored = np.asarray(group["chat"][:])
    stored[41, 2] = value
    for shard in range(2):
        group["chat"][shard * 32 : (shard + 1) * 32] = stored[shard * 32 : (shard + 1) * 32]
    seal_part(path)
    store = ActivationStore([path])
    for read in (lambda: list(store.chunks()), lambda: list(islice(store.batches(16, 0, 2), 8))):
        with pytest.raises(TunediffError, match=r"part-000.zarr: the residual of token 41 is not finite"):
            read()


def test_non_finite_and_overflow_name_the_model(tokens, prepared_pair: PairInfo, tmp_path: Path, monkeypatch) -> None:
    from dataclasses import replace

    from tunediff.models.residual import ResidualModel

    original = ResidualModel.residual
    out = tmp_path / "p.zarr"
    half = replace(SETTINGS, dtype="float16")
    for factor, settings_, match in (
        (float("nan"), SETTINGS, "base model, part 1: residuals after block 1 are not finite"),
        (1e6, half, r"overflow float16 \(largest .*activations.dtype: bfloat16"),
    ):
        monkeypatch.setattr(ResidualModel, "residual", lambda *a, factor=factor: original(*a) * factor)
        with pytest.raises(TunediffError, match=match):
            harvest_part(tokens, prepared_pair, 1, settings_, out, 5, "cpu", key="a")
    assert not list(tmp_path.iterdir())


def test_sizes_must_divide_and_parts_must_exist(tokens, prepared_pair: PairInfo, tmp_path: Path) -> None:
    from dataclasses import replace

    uneven = replace(SETTINGS, part_tokens=512, shard_tokens=128)
    with pytest.raises(TunediffError, match=r"448 tokens are not a multiple of `activations.shard_tokens` \(128\)"):
        harvest_part(tokens, prepared_pair, 0, uneven, tmp_path / "p.zarr", 5, "cpu", key="a")
    with pytest.raises(TunediffError, match="none for part 2"):
        harvest_part(tokens, prepared_pair, 2, SETTINGS, tmp_path / "p.zarr", 5, "cpu", key="a")


@given(lengths=st.lists(st.integers(1, 100), max_size=40), budget=st.integers(1, 400))
def test_length_batches_cover_and_fit(lengths: list[int], budget: int) -> None:
    batches = length_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


# -- stores of known content -------------------------------------------------------------------------------------------


def of_bits(array: np.ndarray, dtype: str) -> torch.Tensor:
    """A bfloat16 is the upper half of a float32."""
    return torch.from_numpy((array.astype(np.uint32) << 16).view("f4") if dtype == "bfloat16" else array.astype("f4"))


@settings(max_examples=12, deadline=None)
@given(
    d=st.integers(1, 40),
    chunk=st.integers(1, 9),
    per_shard=st.integers(1, 4),
    shards=st.integers(1, 3),
    codec=st.sampled_from(["crc32c", "blosc"]),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
)
def test_round_trip(tmp_path_factory, d: int, chunk: int, per_shard: int, shards: int, codec: str, dtype: str) -> None:
    n = chunk * per_shard * shards
    layout = HarvestSettings(
        part_tokens=n, shard_tokens=chunk * per_shard, chunk_tokens=chunk, codec=codec, dtype=dtype
    )
    path = tmp_path_factory.mktemp("round") / "part-000.zarr"
    values = write_part(path, n, d, layout)
    store = ActivationStore([path])
    read = torch.cat([batch.activations for batch in store.chunks()])
    assert torch.equal(read, values)
    array = store.parts[0].group["base"]  # the file is plain zarr
    assert torch.equal(of_bits(np.asarray(array[:]), dtype), values[:, 0])


def test_bfloat16_of_bfloat16_is_lossless_and_value_casts_are_refused(tmp_path: Path) -> None:
    x = torch.randn(64, 8).to(torch.bfloat16)
    assert torch.equal(of_bits(to_stored(x.float(), "bfloat16"), "bfloat16").to(torch.bfloat16), x)
    group = create_part(tmp_path / "p.zarr", 64, 8, HarvestSettings(shard_tokens=64, chunk_tokens=16), {})
    with pytest.raises(TypeError, match="float32 for an array of uint16"):
        _write_shard(group["base"], 0, 64, x.float().numpy())


@pytest.mark.parametrize("codec", ["crc32c", "blosc"])
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("when", ["before opening", "after opening"])
def test_damage_is_loud_and_names_the_shard(tmp_path: Path, codec: str, kind: str, when: str) -> None:
    from dataclasses import replace

    path = tmp_path / "part-000.zarr"
    write_part(path, 96, 16, replace(LAYOUT, codec=codec))
    file = path / "chat" / "c" / "1" / "0"
    if when == "before opening":
        DAMAGE[kind](file)
    with pytest.raises(TunediffError, match=r"chat/c/1/0: .*delete .*part-000\.json and run snakemake") as caught:
        store = ActivationStore([path])
        DAMAGE[kind](file) if when == "after opening" else None
        list(store.chunks())
    assert "\n" not in str(caught.value)
    if kind != "missing" or when == "before opening":
        with pytest.raises(TunediffError):
            next(iter(ActivationStore([path]).batches(64, 0, 12)))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_row_arrays_are_loud(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "part-000.zarr"
    write_part(path, 96, 16, LAYOUT)
    store = ActivationStore([path])
    file = path / "row" / "c" / "1"
    DAMAGE[kind](file) if kind != "truncation" else file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(TunediffError, match="row"):
        _ = store.row


def test_stores_that_do_not_belong_together(tmp_path: Path) -> None:
    a, b = tmp_path / "part-000.zarr", tmp_path / "part-001.zarr"
    write_part(a, 32, 16, LAYOUT)
    write_part(b, 32, 8, LAYOUT)
    with pytest.raises(TunediffError, match="d_model 8 differs from 16"):
        ActivationStore([a, b])
    with pytest.raises(TunediffError, match="other inputs"):
        ActivationStore([a], key="x")
    with pytest.raises(TunediffError, match="no parts"):
        ActivationStore([])
    manifest_path(a).unlink()
    with pytest.raises(TunediffError, match=r"part-000\.json: missing"):
        ActivationStore([a])


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, torch.Tensor]:
    """Three parts, 480 rows; rows 0, 9, 18, … are BOS, some are ignored."""
    folder, values, first = tmp_path_factory.mktemp("known"), [], 0
    for i, n in enumerate((192, 192, 96)):
        mask = np.zeros(n, dtype=np.uint8)
        mask[::9] = Mask.BOS
        mask[5::40] = Mask.IGNORED | Mask.USER
        mask[7::11] |= np.uint8(Mask.TEMPLATE)
        values.append(write_part(folder / f"part-{i:03d}.zarr", n, 6, LAYOUT, i, mask, first))
        first += n
    paths = sorted(folder.glob("part-*.zarr"))
    return ActivationStore(paths), torch.cat(values)


def positions(batch, values: torch.Tensor) -> np.ndarray:
    """Rows of the table that a batch holds, found by their values (parts number their own rows)."""
    table = {tuple(v.flatten().tolist()): i for i, v in enumerate(values)}
    return np.array([table[tuple(v.flatten().tolist())] for v in batch.activations])


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 130),
    pool=st.integers(1, 70),
    skip=st.integers(0, 12),
    seed=st.integers(0, 3),
)
def test_batches_are_seekable(known, batch: int, pool: int, skip: int, seed: int) -> None:
    store, _ = known
    straight = list(islice(store.batches(batch, seed, pool), skip, skip + 3))
    for expected, found in zip(straight, islice(store.batches(batch, seed, pool, start_step=skip), 3), strict=True):
        assert torch.equal(expected.activations, found.activations)
        for name in ("row", "token_id", "doc", "pos", "mask", "source"):
            assert np.array_equal(getattr(expected, name), getattr(found, name))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_batches_as_they_are_stored_are_written_where_they_are_wanted(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "part-000.zarr"
    write_part(path, 192, 6, replace(LAYOUT, dtype=dtype))
    store = ActivationStore([path])
    places = [torch.empty(150, 2, 6, dtype=STORAGE[dtype].torch) for _ in range(2)]
    wanted = islice(store.batches(150, 0, 4), 4)
    for step, (plain, stored) in enumerate(zip(wanted, store.batches(150, 0, 4, into=cycle(places)), strict=False)):
        assert stored.activations is places[step % 2]
        assert torch.equal(stored.activations.float(), plain.activations)
        assert np.array_equal(stored.row, plain.row)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_stored_value_that_is_not_finite_is_found_without_widening(tmp_path: Path, dtype: str, value: float) -> None:
    path = tmp_path / "part-000.zarr"
    write_part(path, 192, 6, replace(LAYOUT, dtype=dtype))
    store = ActivationStore([path])
    batch = torch.full((5, 2, 6), torch.finfo(STORAGE[dtype].torch).max, dtype=STORAGE[dtype].torch)
    store.require_finite(store._of_rows(-batch, np.arange(5)))
    batch[3, 1, 2] = value
    with pytest.raises(TunediffError, match="the residual of token 3 is not finite"):
        store.require_finite(store._of_rows(batch, np.arange(5)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_threads_fill_a_batch_with_the_same_values_and_find_what_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    path = tmp_path / "part-000.zarr"
    write_part(path, 192, 6, replace(LAYOUT, dtype=dtype))
    store = ActivationStore([path])
    alone = next(store.batches(150, 0, 4))
    monkeypatch.setattr(activations, "SHARED_FROM", 1)
    monkeypatch.setattr(activations, "GATHERED_VALUES", 24)
    assert torch.equal(next(store.batches(150, 0, 4)).activations, alone.activations)
    read = store._read

    def damaged(chunks: np.ndarray, buffer: np.ndarray) -> np.ndarray:
        read(chunks, buffer)[1, 0, 5] = STORAGE[dtype].exponent.view(buffer.dtype)  # an infinity
        return buffer

    monkeypatch.setattr(store, "_read", damaged)
    with pytest.raises(TunediffError, match=r"the residual of token \d+ is not finite"):
        next(store.batches(192, 0, 12, drop=KEEP_ALL))


def test_each_epoch_visits_each_kept_row_once(known) -> None:
    store, values = known
    nonzero = values.abs().sum((1, 2)) > 0
    kept = store.kept()
    assert kept.sum() == 480 - np.count_nonzero(store.mask & np.uint8(Mask.BOS | Mask.IGNORED)) > 300
    n = int(kept.sum())
    epochs = []
    for epoch in range(3):
        batch = next(store.batches(n, 0, 4, start_step=epoch))
        assert not (batch.mask & np.uint8(Mask.BOS | Mask.IGNORED)).any()
        assert np.array_equal(np.bincount(batch.row), np.bincount(store.row[kept]))  # the parts number their own rows
        living = [i for i, v in enumerate(batch.activations) if v.abs().sum() > 0]
        places = positions(batch._replace(activations=batch.activations[living]), values)
        assert sorted(places.tolist()) == np.flatnonzero(kept & nonzero.numpy()).tolist()
        epochs.append(places.tolist())
    assert epochs[0] != epochs[1] != epochs[2]


def test_metadata_follows_the_rows_and_order_depends_on_the_seed(known) -> None:
    store, values = known
    batch = next(store.batches(200, 1, 5))
    living = [i for i, v in enumerate(batch.activations) if v.abs().sum() > 0]
    places = positions(batch._replace(activations=batch.activations[living]), values)
    assert np.array_equal(store.token_id[places], batch.token_id[living])
    assert np.array_equal(store.mask[places], batch.mask[living])
    assert not torch.equal(batch.activations, next(store.batches(200, 2, 5)).activations)
    everything = next(store.batches(480, 1, 5, drop=Mask(0)))
    assert (everything.mask & np.uint8(Mask.BOS) != 0).sum() == (store.mask & np.uint8(Mask.BOS) != 0).sum()


def test_seeking_reads_nothing_that_is_skipped(known, monkeypatch) -> None:
    store, _ = known
    read: list[int] = []
    original = ActivationStore._read
    monkeypatch.setattr(ActivationStore, "_read", lambda *a: read.extend(a[1]) or original(*a))
    next(store.batches(10, 0, 4, start_step=1000))
    assert len(read) <= 3 * 4


def test_pools_mix_chunks(known) -> None:
    store, _ = known
    chunks_seen = len(set(next(store.batches(40, 0, 20)).row // 8))
    assert chunks_seen > 10


def test_a_store_without_usable_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-000.zarr"
    write_part(path, 32, 4, LAYOUT, mask=np.full(32, Mask.IGNORED, dtype=np.uint8))
    with pytest.raises(TunediffError, match="every token is masked out"):
        next(ActivationStore([path]).batches(4, 0, 4))
    shutil.rmtree(path)
