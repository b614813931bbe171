"""Twins and their activation divergence against counting over dense activations."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analysis_fixtures import activation_store, random_crosscoder, token_store
from tunediff.config.settings import LatentSettings
from tunediff.data.masks import LEFT_OUT
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode
from tunediff.latents.measure import build_table
from tunediff.latents.table import LatentTable
from tunediff.latents.twins import SCHEMA, SUFFIX, Classes, Collected, TwinSettings, divergence, pairs, twins
from tunediff.pipeline.artifacts import check

SETTINGS = TwinSettings(random_pairs=7, seed=3)


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Crosscoder, LatentTable, Path, pd.DataFrame, np.ndarray]:
    """A crosscoder with chat-only latents 0-3 and base-only latents 4-8, of which (0, 4), (0, 5), (2, 6) are twins."""
    folder = tmp_path_factory.mktemp("twins")
    tokens = token_store(folder / "tokens.zarr", [20] * 16)
    h = np.random.default_rng(0).normal(size=(320, 2, 6)).astype(np.float32)
    store = activation_store(folder / "part-000.zarr", tokens, h)
    crosscoder = random_crosscoder()
    decoder = crosscoder.decoder_weight
    decoder[:4, 0] *= 0.01
    decoder[4:9, 1] *= 0.01
    for chat_only, base_only in ((0, 4), (0, 5), (2, 6)):
        decoder[base_only, 0] = 3 * decoder[chat_only, 1] + 0.05 * torch.randn(
            6, generator=torch.Generator().manual_seed(base_only)
        )
    crosscoder.encoder_weight[4] = crosscoder.encoder_weight[0]  # the first two fire together, but for the bias
    crosscoder.encoder_bias[4] = crosscoder.encoder_bias[0] + 0.3
    settings = LatentSettings(min_count=5, blocks=8, bootstrap_samples=100, batch_size=37)
    out = folder / "latents.parquet"
    table = build_table(crosscoder, store, store, settings, out, key="k", twin_settings=SETTINGS)
    frame = pd.read_parquet(out.with_suffix(SUFFIX))
    kept = (tokens.mask & int(LEFT_OUT)) == 0
    dense = crosscoder.encode(torch.from_numpy(h[kept])).to_dense(20).numpy()
    return crosscoder, table, out.with_suffix(SUFFIX), frame, dense


def brute(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, token by token."""
    largest = max(a.max(), b.max())
    high_a, high_b, low_a, low_b = a >= 0.4 * largest, b >= 0.4 * largest, a < 0.1 * largest, b < 0.1 * largest
    return ((high_a & low_b).sum() + (low_a & high_b).sum()) / (high_a.sum() + high_b.sum() - (high_a & high_b).sum())


def test_divergence_is_that_of_dense_activations(measured) -> None:
    crosscoder, _, path, frame, dense = measured
    norms = crosscoder.decoder_norms.numpy()
    assert len(frame) == 3 + 7
    for row in frame.itertuples():
        a, b = dense[:, row.chat_only_latent], dense[:, row.base_only_latent]
        assert row.divergence == pytest.approx(brute(a, b), abs=1e-6)
        scaled = brute(a * norms[row.chat_only_latent, 1], b * norms[row.base_only_latent, 0])
        assert row.divergence_scaled == pytest.approx(scaled, abs=1e-6)
        largest = max(a.max(), b.max())
        assert row.n_high == ((a >= 0.4 * largest) | (b >= 0.4 * largest)).sum() > 0
    assert frame["divergence"][0] < 0.2 < frame["divergence"][3:].min()  # (0, 4) share their encoder direction
    facts = check(path, "latents", "k").facts["twins"]
    assert facts["twins"] == 3 and facts["pairs_compared"] == 20 and facts["n_tokens"] == len(dense)


def test_all_twins_are_found_and_the_control_has_none(measured) -> None:
    crosscoder, table, path, frame, _ = measured
    assert table.frame["class_name"].tolist()[:9] == ["chat-only"] * 4 + ["base-only"] * 5
    found = frame[frame["cosine"] > 0.9]
    assert list(zip(found["chat_only_latent"], found["base_only_latent"], strict=True)) == [(0, 4), (0, 5), (2, 6)]
    decoder = crosscoder.decoder_weight.numpy()
    for row in frame.itertuples():
        a, b = decoder[row.chat_only_latent, 1], decoder[row.base_only_latent, 0]
        assert row.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert not frame.duplicated(["chat_only_latent", "base_only_latent"]).any()
    read = pd.read_parquet(path)
    assert {name: str(dtype) for name, dtype in read.dtypes.items()} == SCHEMA and read.attrs == {"twin_cosine": 0.9}


def test_without_norm_taxonomy_there_are_no_twins_and_the_facts_say_why(measured) -> None:
    frame = measured[3]
    dictionary = random_crosscoder(streams=1)
    classes = Classes.of(np.full(20, "difference"))
    empty, facts = twins(dictionary, classes, Collected(np.zeros(0, np.int32), 20, "cpu"), SETTINGS)
    assert empty.empty and list(empty.columns) == list(frame.columns)
    assert "no classes by decoder norms" in facts["left_out"]


def test_random_pairs_depend_on_the_seed_and_end_with_the_classes() -> None:
    decoder = random_crosscoder(dict_size=60).decoder_weight
    chat_only, base_only = np.arange(5), np.arange(10, 16)
    drawn = [pairs(decoder, chat_only, base_only, TwinSettings(8, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0].equals(drawn[1]) and not drawn[0].equals(drawn[2])
    every = pairs(decoder, chat_only, base_only, TwinSettings(1000))
    assert len(every) == 30 and set(every["chat_only_latent"]) == set(range(5))
    assert pairs(decoder, chat_only, base_only[:0], TwinSettings()).empty


def test_divergence_of_hand_made_activations() -> None:
    def sparse(*values: float) -> tuple[np.ndarray, np.ndarray]:
        dense = np.array(values, dtype=np.float32)
        return np.flatnonzero(dense), dense[dense > 0]

    a = sparse(10, 0, 4, 0.5, 0, 3)
    assert divergence(a, a) == (0.0, 2)
    # high: a on tokens 0 and 2, b on 1 and 2; low: b on token 0 (0.9 of 10), a on 1
    assert divergence(a, sparse(0.9, 5, 4, 0, 0, 0)) == (pytest.approx(2 / 3), 3)
    # 1 is neither high nor low
    assert divergence(a, sparse(1, 5, 4, 0, 0, 0)) == (pytest.approx(1 / 3), 3)
    value, high = divergence(sparse(0, 0), sparse(0, 0))
    assert np.isnan(value) and high == 0


def test_a_crosscoder_without_chat_only_latents_has_an_empty_table(measured) -> None:
    crosscoder, _, _, frame, _ = measured
    empty, facts = twins(crosscoder, Classes.of(np.full(20, "shared")), Collected(np.arange(3), 20, "cpu"), SETTINGS)
    assert empty.empty and list(empty.columns) == list(frame.columns) and facts["twins"] == 0


def test_collected_firings_are_those_of_the_chosen_latents_over_all_batches() -> None:
    """In batches, one of which has no firing of them."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(40, 9, generator=generator) * (torch.rand(40, 9, generator=generator) < 0.3)
    dense[10:20, [2, 5, 8]] = 0
    latents = np.array([2, 5, 8])
    collected = Collected(latents, 9, "cpu")
    for part in dense.split(10):
        token, latent = part.nonzero(as_tuple=True)
        collected.add(SparseCode(token, latent, part[token, latent], len(part)))
    fired = collected.firings()
    for i, latent in enumerate(latents):
        token, value = fired.of(i)
        assert token.tolist() == dense[:, latent].nonzero()[:, 0].tolist()
        assert value.tolist() == dense[token, latent].tolist()
    assert collected.n_tokens == 40
