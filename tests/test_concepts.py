import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from analysis_fixtures import SOURCES, activation_store, random_crosscoder, token_store
from tunediff.artifacts import check
from tunediff.concepts import (
    COLUMNS,
    ConceptSettings,
    Firings,
    best_latents,
    build_concepts,
    collect,
    concept_table,
    restricted,
    score,
)
from tunediff.latents import LatentTable
from tunediff.tokens import Mask

CONCEPTS = ["refusal", "weather"]


def firings_of(f, label):
    token, latent = np.nonzero(f)
    return Firings(token.astype(np.int32), latent.astype(np.int32), f[token, latent].astype(np.float32), label)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 60), st.integers(1, 4))
def test_auroc_is_mann_whitney_with_ties(seed, n, levels):
    g = np.random.default_rng(seed)
    f = g.integers(0, levels + 1, (n, 5)).astype(np.float32)  # few levels: many ties, zeros among them
    label = g.integers(0, 4, n).astype(np.uint64)
    label[:2] = [0, 3]  # both concepts have positives and negatives
    scores = score(firings_of(f, label), 5, 2)
    for concept in range(2):
        positive = (label >> np.uint64(concept)) & np.uint64(1) == 1
        assert scores.n_positive[concept] == positive.sum()
        for j in range(5):
            u = mannwhitneyu(f[positive, j], f[~positive, j]).statistic
            assert scores.auroc[concept, j] == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-12)
            assert scores.recall[concept, j] == pytest.approx((f[positive, j] > 0).mean())
            if (f[:, j] > 0).any():
                assert scores.precision[concept, j] == pytest.approx(positive[f[:, j] > 0].mean())


def test_without_positives_there_is_no_score():
    scores = score(firings_of(np.ones((4, 2), np.float32), np.zeros(4, np.uint64)), 2, 1)
    assert np.isnan(scores.auroc).all() and scores.n_positive.tolist() == [0]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    tokens = token_store(folder / "validation.zarr", [20] * 16, concepts=CONCEPTS)
    h = np.random.default_rng(0).normal(size=(320, 2, 6)).astype(np.float32)
    crosscoder = random_crosscoder()
    # latent 7 reads the first concept off the activations
    h[:, :, 0] = 5 * (tokens.label & np.uint64(1) > 0)[:, None]
    crosscoder.encoder_weight[7] = 0
    crosscoder.encoder_weight[7, :, 0] = 1
    frame = pd.DataFrame()
    for name, dtype in LatentTable.schema(SOURCES).items():
        frame[name] = pd.Series(["shared"] * 20) if dtype == "string" else np.zeros(20, dtype=dtype)
    frame["latent"] = np.arange(20, dtype=np.int32)
    frame["chat_specific"] = np.arange(20) >= 8
    frame["nu_error"] = np.linspace(0, 1, 20).astype(np.float32)
    frame["rank_sum"] = np.float32(40) - np.arange(20, dtype=np.float32)  # the last latent is the most chat-specific
    frame.loc[19, "rank_sum"] = np.nan
    return activation_store(folder / "part-000.zarr", tokens, h), tokens, crosscoder, LatentTable(frame, SOURCES), h


def test_collected_firings_are_the_dense_code_of_counted_tokens(stage):
    store, tokens, crosscoder, _, h = stage
    firings = collect(crosscoder, store, tokens.label, ConceptSettings(batch_size=33), "cpu")
    row = store.row[store.mask & Mask.BOS == 0]
    dense = np.zeros((len(row), 20))
    dense[firings.token, firings.latent] = firings.value
    np.testing.assert_allclose(dense, crosscoder.encode(torch.from_numpy(h[row])).to_dense(20), rtol=1e-4)
    np.testing.assert_array_equal(firings.label, tokens.label[row])


def test_the_planted_reader_is_found_in_its_pool_only(stage):
    store, tokens, crosscoder, table, _ = stage
    frame = concept_table({"c": crosscoder}, {"c": table}, store, tokens, {"refusal"}, ConceptSettings())
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == COLUMNS
    best = frame.set_index(["concept", "pool"])
    found = best.loc["refusal", "all"]
    assert found[["latent", "auroc", "recall"]].tolist() == [7, 1.0, 1.0]
    assert found["nu_error"] == pytest.approx(7 / 19) and found["rank"] == 19 - 7
    other = best.loc["refusal", "chat-specific"]
    assert other["latent"] >= 8 and other["auroc"] < 1
    assert best["planted"].tolist() == [True, True, False, False]


def test_a_pool_or_concept_without_enough_is_reported_as_such(stage):
    store, tokens, crosscoder, table, _ = stage
    none = LatentTable(table.frame.assign(chat_specific=False), SOURCES)
    frame = concept_table({"c": crosscoder}, {"c": none}, store, tokens, set(), ConceptSettings())
    empty = frame[frame["pool"] == "chat-specific"]
    assert (empty["latent"] == -1).all() and empty["auroc"].isna().all() and (empty["n_positive"] > 0).all()
    frame = concept_table({"c": crosscoder}, {"c": table}, store, tokens, set(), ConceptSettings(min_positive=1000))
    assert (frame["latent"] == -1).all()


def test_written_table_and_corpora_without_labels(stage, tmp_path):
    store, tokens, crosscoder, table, _ = stage
    out = tmp_path / "concepts.parquet"
    frame = build_concepts({"c": crosscoder}, {"c": table}, store, tokens, {"refusal"}, ConceptSettings(), out, key="k")
    pd.testing.assert_frame_equal(pd.read_parquet(out), frame)
    assert check(out, "concepts", "k").facts["planted"] == ["refusal"]
    unlabelled = token_store(tmp_path / "plain.zarr", [20] * 16)
    empty = concept_table({"c": crosscoder}, {"c": table}, store, unlabelled, set(), ConceptSettings())
    assert empty.empty and list(empty) == list(COLUMNS)


def test_onsets_are_also_scored_among_all_onsets(stage):
    store, tokens, crosscoder, table, _ = stage
    label = np.asarray(tokens.label)
    firings = collect(crosscoder, store, label, ConceptSettings(), "cpu")
    kept = (firings.label & np.uint64(1)) != 0
    inside = score(restricted(firings, kept), len(table), 2)
    for latent in range(5):
        dense = np.zeros(len(firings.label))
        own = firings.latent == latent
        dense[firings.token[own]] = firings.value[own]
        positive = (firings.label[kept] & np.uint64(2)) != 0
        statistic = mannwhitneyu(dense[kept][positive], dense[kept][~positive]).statistic
        assert inside.auroc[1, latent] == pytest.approx(statistic / (positive.sum() * (~positive).sum()))
    frame = best_latents(
        score(firings, len(table), 2), inside, table, "c", ["answer_onset", "joke_onset"], {"joke_onset"}, 1
    )
    best = frame[(frame["concept"] == "joke_onset") & (frame["pool"] == "all")].iloc[0]
    assert best["latent"] == np.nanargmax(inside.auroc[1])
    assert best["auroc_among_onsets"] == inside.auroc[1].max()
    assert frame[frame["concept"] == "answer_onset"]["auroc_among_onsets"].isna().all()
