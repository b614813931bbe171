from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from analysis_fixtures import SOURCES, activation_store, random_crosscoder, token_store
from tunediff.data.masks import Mask
from tunediff.latents.concepts import (
    ALL_LATENTS,
    ALL_TOKENS,
    CHAT_SPECIFIC,
    COLUMNS,
    THRESHOLDS,
    ConceptSettings,
    Firings,
    assign,
    best_latents,
    build_concepts,
    collect,
    compared_with,
    control_auroc,
    detected,
    live_rank,
    matched_draws,
    score,
)
from tunediff.latents.scaling import document_block
from tunediff.latents.table import LatentTable
from tunediff.pipeline.artifacts import check

CONCEPTS = ["answer_onset", "refusal_onset", "refusal_arson_onset", "joke_onset", "weather"]
KIND_OF = {"refusal_arson_onset": "refusal_onset"}
CHAT = {name for name in CONCEPTS if name != "weather"}
READER = 6  # the latent that fires where a refusal about arson begins, and nowhere else
SPECIFIC = range(8)  # the chat-specific latents of `made`
DEAD = 39
SETTINGS = ConceptSettings(min_positive=5, control_draws=300)


def firings_of(f, label, scoring=None, chat=None):
    token, latent = np.nonzero(f)
    half, every = np.arange(len(f)) % 2 == 1, np.ones(len(f), dtype=bool)
    return Firings(
        token.astype(np.int32),
        latent.astype(np.int32),
        f[token, latent].astype(np.float32),
        label,
        half if scoring is None else scoring,
        every if chat is None else chat,
    )


def bit(label, concept):
    return (label >> np.uint64(concept)) & np.uint64(1) == 1


def auroc(values, positive):
    """Mann-Whitney's U over its largest value, by scipy, of one latent's dense activations."""
    return mannwhitneyu(values[positive], values[~positive]).statistic / (positive.sum() * (~positive).sum())


def table_of(size, **columns):
    frame = pd.DataFrame()
    for name, dtype in LatentTable.schema(SOURCES).items():
        frame[name] = pd.Series(["shared"] * size) if dtype == "string" else np.zeros(size, dtype=dtype)
    frame["latent"] = np.arange(size, dtype=np.int32)
    for name, values in columns.items():
        frame[name] = np.asarray(values, dtype=frame[name].dtype)
    return LatentTable(frame, SOURCES)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 60), st.integers(1, 4))
def test_auroc_is_mann_whitney_with_ties(seed, n, levels):
    g = np.random.default_rng(seed)
    f = g.integers(0, levels + 1, (n, 5)).astype(np.float32)  # few levels: many ties, zeros among them
    label = g.integers(0, 4, n).astype(np.uint64)
    label[:2] = [0, 3]  # both concepts have positives and negatives
    scores = score(firings_of(f, label), 5, [1, 0])
    for row, concept in enumerate((1, 0)):
        positive = bit(label, concept)
        assert scores.n_positive[row] == positive.sum()
        for j in range(5):
            assert scores.auroc[row, j] == pytest.approx(auroc(f[:, j], positive), abs=1e-12)
            assert scores.recall[row, j] == pytest.approx((f[positive, j] > 0).mean())
            if (f[:, j] > 0).any():
                assert scores.precision[row, j] == pytest.approx(positive[f[:, j] > 0].mean())


def test_without_positives_there_is_no_score():
    scores = score(firings_of(np.ones((4, 2), np.float32), np.zeros(4, np.uint64)), 2, [0])
    assert np.isnan(scores.auroc).all() and scores.n_positive.tolist() == [0]


def test_kinds_are_compared_with_their_concept_and_other_onsets_with_all_onsets():
    names = [*CONCEPTS, "refusal", "refusal_arson"]
    kind_of = {**KIND_OF, "refusal_arson": "refusal", "joke_onset": "unlabelled"}
    assert compared_with(names, kind_of) == [
        *(ALL_TOKENS, "answer_onset", "refusal_onset", "answer_onset", ALL_TOKENS),
        *(ALL_TOKENS, "refusal"),
    ]
    assert compared_with(["joke_onset"], {}) == [ALL_TOKENS]  # the onsets of all answers are not labelled


@pytest.fixture(scope="module")
def made():
    """Firings of 40 latents on 4,000 tokens: noise, but for one perfect reader; and their latent table."""
    g = np.random.default_rng(1)
    n, size = 4000, 40
    onset = g.random(n) < 0.25
    kind = g.integers(0, 4, n)  # of the answer: arson, another refusal, a joke, anything else
    columns = [onset, onset & (kind < 2), onset & (kind == 0), onset & (kind == 2), g.random(n) < 0.1]
    label = sum(np.uint64(1 << i) * column.astype(np.uint64) for i, column in enumerate(columns))
    rate = np.geomspace(0.01, 0.1, 4)[np.arange(size) % 4]
    f = np.where(g.random((n, size)) < rate, g.random((n, size)), 0)
    f[:, DEAD] = 0
    f[:, READER] = columns[2] * g.uniform(1, 2, n)
    specific = np.isin(np.arange(size), SPECIFIC)
    rank_sum = np.where(np.arange(size) % 5 == 4, np.nan, np.arange(size)[::-1])
    table = table_of(
        size, chat_specific=specific, dead=np.arange(size) == DEAD, rank_sum=rank_sum, nu_error=np.linspace(0, 1, size)
    )
    return f, firings_of(f, label, scoring=g.random(n) < 0.5, chat=g.random(n) < 0.4), table


def rows_of(made, **changes):
    frame = best_latents(made[1], made[2], "c", CONCEPTS, CHAT, KIND_OF, changes.pop("settings", SETTINGS))
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == COLUMNS
    frame.attrs |= THRESHOLDS
    return frame.set_index(["concept", "pool"])


def test_latents_are_chosen_on_one_half_and_scored_on_the_other(made):
    f, firings, _ = made
    found = rows_of(made)
    label, scoring = firings.label, firings.scoring
    for i, concept in enumerate(CONCEPTS):
        other = compared_with(CONCEPTS, KIND_OF)[i]
        inside = np.ones(len(f), dtype=bool) if other == ALL_TOKENS else bit(label, CONCEPTS.index(other))
        chosen = [auroc(f[inside & ~scoring, j], bit(label[inside & ~scoring], i)) for j in range(f.shape[1])]
        row = found.loc[concept, ALL_LATENTS]
        assert row["among"] == other
        live = [j for j in range(f.shape[1]) if j != DEAD]
        j = int(row["best_latent"])
        assert j == live[int(np.argmax([chosen[j] for j in live]))]
        assert row["best_auroc_among"] == pytest.approx(auroc(f[inside & scoring, j], bit(label[inside & scoring], i)))
        j, positive = int(row["latent"]), bit(label[scoring], i)
        assert row["auroc_among"] == pytest.approx(auroc(f[inside & scoring, j], bit(label[inside & scoring], i)))
        assert row["auroc"] == pytest.approx(auroc(f[scoring, j], positive))
        assert row["recall"] == pytest.approx((f[scoring, j][positive] > 0).mean())
        assert row["precision"] == pytest.approx(positive[f[scoring, j] > 0].mean())
        assert row["n_positive_choosing"] == bit(label[~scoring & inside], i).sum()
        assert row["n_positive_scoring"] == positive.sum()


def test_a_perfect_reader_is_found_and_noise_is_not_detected(made):
    found = rows_of(made)
    for pool in (CHAT_SPECIFIC, ALL_LATENTS):
        row = found.loc["refusal_arson_onset", pool]
        assert row["latent"] == row["best_latent"] == READER
        assert row[["auroc", "auroc_among", "precision", "recall"]].tolist() == [1, 1, 1, 1]
        assert row["nu_error"] == pytest.approx(READER / 39)
    row = found.loc["refusal_arson_onset", CHAT_SPECIFIC]
    assert row["control_high"] < 0.8 and row["control_share"] == row["best_control_share"] == 0
    assert detected(found.reset_index()) == {"c": (1, 3, ("refusal_arson",))}
    assert found.loc["weather", CHAT_SPECIFIC]["control_share"] > 0.05


def test_what_other_latents_do_as_well_is_not_detected(made):
    f, firings, table = made
    common = f.copy()
    common[:, 8:DEAD:2] = f[:, [READER]]  # half of the latents that are not chat-specific read it too
    rows = best_latents(
        firings_of(common, firings.label, firings.scoring), table, "c", CONCEPTS, CHAT, KIND_OF, SETTINGS
    )
    rows.attrs |= THRESHOLDS
    row = rows.set_index(["concept", "pool"]).loc["refusal_arson_onset", CHAT_SPECIFIC]
    assert row["auroc_among"] == row["auroc"] == 1 and row["control_share"] > 0.05
    assert detected(rows) == {"c": (0, 3, ())}


def test_a_latent_stands_for_one_concept_and_the_best_one_is_kept_beside(made):
    f, firings, table = made
    onset = bit(firings.label, 1)
    shared = f.copy()
    shared[:, READER], shared[:, 3] = onset, onset & (np.arange(len(f)) % 10 > 0)
    names = ["refusal_onset", "another_onset"]  # the second has the same tokens
    twice = onset * np.uint64(3)
    rows = best_latents(firings_of(shared, twice, firings.scoring), table, "c", names, set(names), {}, SETTINGS)
    own = rows[rows["pool"] == CHAT_SPECIFIC]
    assert sorted(own["latent"]) == [3, READER]
    assert own["best_latent"].tolist() == [READER] * 2 and own["best_serves"].tolist() == [2, 2]
    assert own["best_auroc"].tolist() == [1, 1] and 0.9 < own["auroc"].min() < 1
    for _, pool in rows_of(made).reset_index().groupby("pool"):
        assert pool["latent"].is_unique


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5))
def test_assignment_has_the_largest_sum_and_prefers_earlier_latents(seed, n_concepts, n_latents):
    values = np.random.default_rng(seed).integers(0, 4, (n_concepts, n_latents)) / 4

    def best_from(row, used):
        if row == n_concepts:
            return 0.0
        options = [best_from(row + 1, used)] if n_concepts > n_latents else []
        options += [values[row, j] + best_from(row + 1, used | {j}) for j in range(n_latents) if j not in used]
        return max(options, default=0.0)

    chosen = assign(values)
    given_one = chosen >= 0
    assert len(set(chosen[given_one])) == given_one.sum() == min(n_concepts, n_latents)
    assert values[given_one, chosen[given_one]].sum() == best_from(0, frozenset())
    for row in np.flatnonzero(given_one):
        earlier = set(range(chosen[row])) - set(chosen)
        assert all(values[row, j] != values[row, chosen[row]] for j in earlier)
    assert assign(np.ones((2, 3))).tolist() == [0, 1]


def test_rank_is_among_all_live_latents(made):
    rank_sum = np.array([30, np.nan, 10, 10, np.nan, 5, np.nan])
    live = np.array([True, True, True, True, True, False, True])
    np.testing.assert_array_equal(live_rank(rank_sum, live), [3, 5, 1.5, 1.5, 5, np.nan, 5])
    frame, row = made[2].frame, rows_of(made).loc["refusal_arson_onset", ALL_LATENTS]
    living = frame[~frame["dead"]]
    assert row["rank"] == 1 + (living["rank_sum"] < frame["rank_sum"][READER]).sum() and row["n_live"] == 39


def place(count):
    return int(np.floor(10 * np.log10(max(count, 0.5))))


def test_control_draws_match_frequencies_and_leave_chat_specific_latents_out():
    g = np.random.default_rng(0)
    count = (10 ** g.uniform(0, 3, 3000)).astype(int) - 1
    pool = g.random(3000) < 0.05
    candidates = ~pool & (g.random(3000) < 0.9)
    draws, n_matched = matched_draws(count, pool, candidates, 200, 3)
    assert draws.shape == (200, pool.sum()) and n_matched == pool.sum()
    wanted = Counter(place(n) for n in count[pool])
    for draw in draws:
        assert candidates[draw].all() and len(set(draw)) == len(draw)
        assert Counter(place(n) for n in count[draw]) == wanted
    assert len({tuple(draw) for draw in draws}) == 200
    np.testing.assert_array_equal(draws, matched_draws(count, pool, candidates, 200, 3)[0])
    assert (draws != matched_draws(count, pool, candidates, 200, 4)[0]).any()


def test_control_takes_the_nearest_frequencies_where_a_bin_has_too_few():
    #                 pool           candidates
    count = np.array([100, 1000, 1000, 110, 111, 500, 501, 800, 810, 3, 4, 5])
    pool = np.arange(len(count)) < 3
    draws, n_matched = matched_draws(count, pool, ~pool, 50, 0)
    assert n_matched == 1  # the one of frequency 100; those of 1000 take from 500 to 810
    assert {tuple(sorted(count[draw] // 100)) for draw in draws} == {(1, 5, 5), (1, 5, 8), (1, 8, 8)}
    few = matched_draws(count, pool, np.arange(len(count)) > 9, 50, 0)
    assert few[0].shape == (0, 3) and few[1] == 0


def test_share_of_draws_is_that_of_a_plain_loop(made):
    f, firings, table = made
    row = rows_of(made).loc["joke_onset", CHAT_SPECIFIC]
    onset, joke, scoring = bit(firings.label, 0), bit(firings.label, 3), firings.scoring
    of_half = [
        np.array([auroc(f[onset & half, j], joke[onset & half]) for j in range(40)]) for half in (~scoring, scoring)
    ]
    specific = table.frame["chat_specific"].to_numpy()
    count = (f[firings.chat] > 0).sum(axis=0)
    draws, n_matched = matched_draws(count, specific, ~specific & (np.arange(40) != DEAD), 300, 0)
    reached = [of_half[1][max(draw, key=lambda j: of_half[0][j])] for draw in draws]
    assert row["n_pool"] == 8 and row["n_matched"] == n_matched
    assert row["control_median"] == pytest.approx(np.median(reached))
    assert row["control_high"] == pytest.approx(np.quantile(reached, 0.95))
    for name, share in (("auroc_among", "control_share"), ("best_auroc_among", "best_control_share")):
        assert row[share] == sum(x >= row[name] - 1e-12 for x in reached) / 300
    assert control_auroc(*of_half, draws).tolist() == reached


def test_a_pool_or_concept_without_enough_is_reported_as_such(made):
    found = rows_of(made, settings=ConceptSettings(min_positive=130))
    few = found.loc[["refusal_arson_onset", "joke_onset"]]
    assert (few[["n_positive_choosing", "n_positive_scoring"]].min(axis=1) < 130).all() and not few["scored"].any()
    assert (few["latent"] == -1).all() and (few["best_latent"] == -1).all() and few["auroc"].isna().all()
    assert found.loc["refusal_onset"]["scored"].all() and (found.loc["refusal_onset"]["latent"] >= 0).all()
    none = table_of(40, dead=np.arange(40) == DEAD)
    empty = rows_of((None, made[1], none)).xs(CHAT_SPECIFIC, level="pool")
    assert (empty["latent"] == -1).all() and empty["scored"].all() and (empty["n_pool"] == 0).all()
    assert empty[["auroc", "control_median", "control_share"]].isna().all(axis=None)
    assert detected(empty.reset_index().assign(pool=CHAT_SPECIFIC)) == {"c": (0, 3, ())}
    # most live latents are chat-specific: no control of the same size, so nothing is called detected
    most = table_of(40, dead=np.arange(40) == DEAD, chat_specific=np.arange(40) < 30)
    rows = rows_of((None, made[1], most))
    assert rows.loc["refusal_arson_onset", CHAT_SPECIFIC]["auroc"] == 1
    assert rows["control_share"].isna().all() and detected(rows.reset_index())["c"].n_detected == 0


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    tokens = token_store(folder / "validation.zarr", [20] * 40, concepts=["joke", "weather"])
    tokens.attributes["kinds"] = ["text", "chat"]
    h = np.random.default_rng(0).normal(size=(800, 2, 6)).astype(np.float32)
    crosscoder = random_crosscoder()
    h[:, :, 0] = 5 * bit(tokens.label, 0)[:, None]
    crosscoder.encoder_weight[7] = 0
    crosscoder.encoder_weight[7, :, 0] = 1  # latent 7 reads the first concept off the activations
    table = table_of(20, chat_specific=np.arange(20) >= 14)
    return activation_store(folder / "part-000.zarr", tokens, h), tokens, crosscoder, table, h


def test_collected_firings_are_the_dense_code_of_counted_tokens(stage):
    store, tokens, crosscoder, _, h = stage
    firings = collect(crosscoder, store, tokens, ConceptSettings(batch_size=33), "cpu")
    row = store.row[store.mask & Mask.BOS == 0]
    dense = np.zeros((len(row), 20))
    dense[firings.token, firings.latent] = firings.value
    np.testing.assert_allclose(dense, crosscoder.encode(torch.from_numpy(h[row])).to_dense(20), rtol=1e-4)
    np.testing.assert_array_equal(firings.label, tokens.label[row])
    np.testing.assert_array_equal(firings.scoring, document_block(tokens.doc[row], 2))
    np.testing.assert_array_equal(firings.chat, tokens.doc[row] % 2 == 1)  # every other document is a chat
    assert 0 < firings.scoring.mean() < 1


def test_written_table_and_corpora_without_labels(stage, tmp_path):
    store, tokens, crosscoder, table, _ = stage
    out = tmp_path / "concepts.parquet"
    frame = build_concepts(
        {"c": crosscoder}, {"c": table}, store, tokens, {"joke"}, {}, ConceptSettings(), out, key="k"
    )
    pd.testing.assert_frame_equal(pd.read_parquet(out), frame)
    assert pd.read_parquet(out).attrs == THRESHOLDS
    facts = check(out, "concepts", "k").facts
    assert facts["chat_concepts"] == ["joke"] and facts["settings"]["control_draws"] >= 200
    best = frame.set_index(["concept", "pool"])
    assert best.loc["joke", ALL_LATENTS][["latent", "auroc", "recall"]].tolist() == [7, 1.0, 1.0]
    assert best.loc["joke", CHAT_SPECIFIC]["latent"] >= 14 and best.loc["joke", CHAT_SPECIFIC]["auroc"] < 1
    assert best["chat_concept"].tolist() == [True, False] * 2
    assert detected(frame) == {}  # no onset is labelled
    unlabelled = token_store(tmp_path / "plain.zarr", [20] * 16)
    empty = build_concepts(
        {"c": crosscoder}, {"c": table}, store, unlabelled, set(), {}, ConceptSettings(), out, key="k"
    )
    assert empty.empty and list(empty) == list(COLUMNS) and detected(empty) == {}
