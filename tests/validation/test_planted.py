"""The planted pair is what its settings say, Latent Scaling sees it so, and the scores are those of a case by hand."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from analysis_fixtures import random_crosscoder
from figure_tables import given
from tunediff.config.check import check
from tunediff.config.planted import PlantedArm
from tunediff.config.settings import HarvestSettings, LatentSettings, TrainingSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.masks import LEFT_OUT, Mask
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries import dictionary_settings
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.training import train
from tunediff.errors import TunediffError
from tunediff.latents.criterion import Criterion
from tunediff.latents.measure import build_table
from tunediff.latents.scaling import ScalingSums, betas, direction_terms, nu, scaling_directions
from tunediff.latents.table import LatentTable
from tunediff.pipeline.graph import PlantedGraph
from tunediff.report.registry import drawings
from tunediff.report.style import Style, save
from tunediff.validation.planted import (
    BASE,
    CHAT,
    KINDS,
    plant,
    planted_code,
    planted_crosscoder,
    sample,
    strengths,
    write_split,
)
from tunediff.validation.truth import (
    auroc,
    calls,
    codes,
    metrics,
    over_seeds,
    rates,
    read_scores,
    score_concepts,
    score_latents,
    score_pair,
    summary,
    undecided_up_to,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = PlantedArm(
    d_model=24, shared=6, chat_only=4, base_only=4, weaker=10, amplified=2, rotated=2, decoupled=4,
    frequency=(0.1, 0.04), shared_frequency=(0.12, 0.06),
)  # fmt: skip
LAYOUT = HarvestSettings(part_tokens=8192, shard_tokens=4096, chunk_tokens=512, dtype="float32")


def kinds(pair):
    return pair.concepts["kind"].to_numpy()


def test_geometry_of_every_kind():
    pair = plant(SMALL, 3)
    kind, concepts = kinds(pair), pair.concepts
    base, chat = pair.decoder[:, BASE], pair.decoder[:, CHAT]
    norms = np.linalg.norm(pair.decoder, axis=2)
    assert list(dict.fromkeys(kind)) == list(KINDS)
    assert (norms[kind == "chat-only"] == [0, pytest.approx(1)]).all() and not norms[kind == "base-only", CHAT].any()
    assert np.array_equal(base[kind == "shared"], chat[kind == "shared"])
    weaker = kind == "weaker"
    np.testing.assert_allclose(base[weaker], concepts["factor"].to_numpy()[weaker, None] * chat[weaker])
    assert sorted(set(concepts["factor"][weaker])) == [0.1, 0.2, 0.3, 0.4, 0.5]
    # every frequency meets every factor
    assert concepts[weaker].groupby(["frequency", "factor"]).size().tolist() == [1] * 10
    np.testing.assert_allclose(norms[kind == "amplified"], [[1, 2]] * 2)
    rotated = kind == "rotated"
    np.testing.assert_allclose((base[rotated] * chat[rotated]).sum(1), 0.8)
    np.testing.assert_allclose(norms[rotated], 1)
    for owner in np.flatnonzero(kind == "decoupled"):
        parts = np.flatnonzero(concepts["owner"] == owner)
        assert len(parts) == (1 if np.isnan(concepts["weight"][parts[0]]) else 2) and not chat[parts].any()
        weight = 1.0 if len(parts) == 1 else concepts["weight"][parts].to_numpy()[:, None]
        np.testing.assert_allclose((weight * base[parts]).sum(axis=0), chat[owner], atol=1e-12)


def test_frequencies_strengths_and_moments_hold():
    pair = plant(replace(SMALL, burstiness=0.2), 0)
    drawn = sample(pair, 64 * 6000, [1])
    f = drawn.strength.reshape(6000, 64, -1)
    assert not f[:, 0].any()  # BOS
    f = f[:, 1:].reshape(-1, f.shape[2]).astype(np.float64)
    p = pair.concepts["frequency"].to_numpy()
    owner = pair.concepts["owner"].to_numpy()
    expected = np.where(owner >= 0, p + p[owner] - p * p[owner], p)
    np.testing.assert_allclose((f > 0).mean(0), expected, rtol=0.06)
    assert (f > 0).sum(1).mean() == pytest.approx(pair.l0, rel=0.01)
    plain = owner < 0
    mean = f.sum(0) / (f > 0).sum(0)
    np.testing.assert_allclose(mean[plain], 1, atol=0.02)
    moments, diagonal = pair.second_moments(), np.eye(len(p), dtype=bool)
    related = diagonal | (owner[:, None] == np.arange(len(p))) | (owner == np.arange(len(p))[:, None])
    np.testing.assert_allclose((f.T @ f / len(f))[related], moments[related], rtol=0.1)


def test_parts_of_a_decoupled_concept_add_up_exactly():
    pair = plant(SMALL, 1)
    drawn = sample(pair, 64 * 200, [2])
    for owner in np.flatnonzero(kinds(pair) == "decoupled"):
        parts = np.flatnonzero(pair.concepts["owner"] == owner)
        tokens = drawn.strength[:, owner] > 0
        assert (drawn.strength[tokens][:, parts] > 0).all()  # they fire wherever it does
        assert (drawn.strength[~tokens][:, parts] > 0).any()  # and elsewhere
        written = drawn.strength[tokens][:, parts] @ pair.decoder[parts, BASE]
        wanted = drawn.strength[tokens][:, [owner]] * pair.decoder[owner, CHAT]
        if len(parts) > 1:
            np.testing.assert_allclose(written, wanted, atol=1e-5)
        else:  # a strength of its own, along the same direction
            ratio = (written @ pair.decoder[owner, CHAT]) / drawn.strength[tokens, owner]
            assert ratio.std() > 0.2
            along = np.outer(written @ pair.decoder[owner, CHAT], pair.decoder[owner, CHAT])
            np.testing.assert_allclose(along, written, atol=1e-5)


def test_groups_children_documents_and_tails():
    settings = replace(SMALL, correlation=0.6, hierarchy=0.5, tail=1.0)
    pair = plant(settings, 0)
    f = sample(pair, 64 * 3000, [0]).strength
    fires = f > 0
    for child, parent in enumerate(pair.concepts["parent"]):
        if parent >= 0:
            assert kinds(pair)[parent] == "shared" and not (fires[:, child] & ~fires[:, parent]).any()
    assert (pair.concepts["parent"] >= 0).sum() == round(
        0.5 * (pair.concepts["frequency"] < 0.12)[kinds(pair) != "part"].sum()
    )
    free = np.flatnonzero((pair.concepts["parent"] < 0) & (kinds(pair) != "part"))
    group = pair.concepts["group"].to_numpy()
    c = np.corrcoef(fires[:, free].T.astype(float))
    same = (group[free][:, None] == group[free]) & ~np.eye(len(free), dtype=bool)
    assert c[same].mean() > 0.15 and abs(c[~same & ~np.eye(len(free), dtype=bool)].mean()) < 0.02
    assert np.log(f[:, 0][fires[:, 0]]).std() == pytest.approx(1.0, rel=0.1)
    # a concept comes in bursts: documents vary more in their counts than independent tokens would
    counts = fires[:, free[0]].reshape(-1, 64).sum(1)
    assert counts.var() > 2 * counts.mean()


def test_noise_is_as_asked():
    settings = replace(SMALL, noise=0.1, document_noise=0.2)
    pair = plant(settings, 0)
    drawn = sample(pair, 64 * 500, [0])
    rest = drawn.activations - np.einsum("tc,cmd->tmd", drawn.strength, pair.decoder)
    rest = rest.reshape(500, 64, -1)[:, 1:]
    assert rest.std() == pytest.approx(np.hypot(0.1, 0.2), rel=0.02)
    assert rest.mean(axis=1).std() == pytest.approx(0.2, rel=0.03)
    np.testing.assert_allclose(np.linalg.norm(drawn.activations[::64], axis=2), 30, rtol=1e-5)


def test_latent_scaling_sees_what_was_planted():
    """With the planted code and decoder, ν is the closed form: 0 chat-only, the factor where weaker; ν^r decoupled."""
    pair = plant(replace(SMALL, burstiness=0.1), 0)
    drawn = sample(pair, 64 * 4000, [5])
    counted = np.arange(len(drawn.strength)) % 64 > 0
    crosscoder, code = planted_crosscoder(pair), planted_code(drawn.strength[counted])
    h = torch.from_numpy(drawn.activations[counted])
    sums = ScalingSums.zeros(1, crosscoder.dict_size)
    block = torch.zeros(len(h), dtype=torch.int64)
    sums.add(code, torch.cat([h, crosscoder.decode(code)], dim=1), scaling_directions(crosscoder), block)
    beta = betas(sums.total(), direction_terms(crosscoder))
    truth, kind, factor = pair.true_nu(), kinds(pair), pair.concepts["factor"].to_numpy()
    written = ~np.isin(kind, ("base-only", "part"))  # chat has no direction of these
    for target in ("error", "reconstruction"):
        np.testing.assert_allclose(nu(beta[target][0])[written], truth[target][written], atol=0.03)
        assert np.isnan(truth[target][~written]).all()
    np.testing.assert_allclose(truth["error"][written], np.where(kind == "decoupled", 0, factor)[written], atol=1e-12)
    assert (truth["reconstruction"][kind == "decoupled"] > 0.6).all()
    assert (np.abs(truth["reconstruction"][kind == "chat-only"]) < 0.4).all()


def test_the_null_arm_has_nothing_of_one_model_alone_but_parts():
    pair = plant(replace(SMALL, chat_only=0, base_only=0), 0)
    norms = np.linalg.norm(pair.decoder, axis=2)
    assert not {"chat-only", "base-only"} & set(kinds(pair))
    alone = (norms == 0).any(axis=1)
    assert set(kinds(pair)[alone]) == {"decoupled", "part"}


def test_bad_settings_are_one_line():
    with pytest.raises(TunediffError, match=r"planted\.correlation"):
        PlantedArm(correlation=0.9)
    with pytest.raises(TunediffError, match=r"planted\.hierarchy"):
        plant(replace(SMALL, shared=0, hierarchy=0.5), 0)
    with pytest.raises(TunediffError, match="whole documents"):
        sample(plant(SMALL, 0), 100, [0])


def test_stores_hold_the_sample(tmp_path):
    pair = plant(SMALL, 4)
    parts = write_split(pair, "validation", 16384, LAYOUT, tmp_path, 4, key="k")
    tokens = TokenStore.open(tmp_path / "tokens/validation.zarr", key="k")
    store = ActivationStore(parts, key="k")
    strength = strengths(pair, "validation", 16384, LAYOUT, 4)
    assert len(parts) == 2 and store.n_tokens == tokens.n_tokens == 16384 and tokens.n_documents == 256
    seen = np.zeros(16384, dtype=bool)
    for batch in store.chunks():
        seen[batch.row] = True
        for name in ("token_id", "doc", "pos", "mask"):
            assert np.array_equal(getattr(batch, name), getattr(tokens, name)[batch.row])
        assert np.array_equal(batch.source, tokens.doc_source[batch.doc])
        written = np.einsum("tc,cmd->tmd", strength[batch.row], pair.decoder)
        noise = batch.activations.numpy() - written
        assert noise[batch.mask & LEFT_OUT == 0].std() < 0.08
    assert seen.all()
    fires = strength[:, : len(tokens.concepts)] > 0
    assert np.array_equal(fires, (tokens.label[:, None] >> np.arange(fires.shape[1], dtype=np.uint64)) & np.uint64(1))
    assert tokens.concepts[0] == "chat-only-000"
    assert {Mask(int(m)) for m in np.unique(tokens.mask)} == {
        Mask(0), Mask.BOS, Mask.TEMPLATE, Mask.USER, Mask.ASSISTANT, Mask.ASSISTANT | Mask.TEMPLATE,
    }  # fmt: skip
    again = write_split(pair, "validation", 16384, LAYOUT, tmp_path / "again", 4, key="k")
    assert [p.with_suffix(".json").read_text() for p in again] == [p.with_suffix(".json").read_text() for p in parts]


def test_codes_are_correlation_l0_and_fve(tmp_path):
    pair = plant(SMALL, 4)
    store = ActivationStore(write_split(pair, "validation", 8192, LAYOUT, tmp_path, 4, key="k"))
    crosscoder = random_crosscoder(24, 10)
    strength = strengths(pair, "validation", 8192, LAYOUT, 4)
    seen = codes(crosscoder, store, strength, batch_size=1000)
    batch = next(store.chunks(LEFT_OUT, 16))
    assert len(batch.row) == 8192 - 128
    code = crosscoder.encode(batch.activations)
    dense = code.to_dense(10).double().numpy()
    f = strength[batch.row].astype(np.float64)
    expected = np.corrcoef(f.T, dense.T)[: f.shape[1], f.shape[1] :]
    np.testing.assert_allclose(seen.correlation, np.nan_to_num(expected), atol=1e-9)
    assert seen.l0 == pytest.approx((dense > 0).sum(1).mean())
    h = batch.activations.double()
    error = (h - crosscoder.decode(code)).square().sum(dim=(0, 2)) / (h - h.mean(0)).square().sum(dim=(0, 2))
    assert [seen.fve_base, seen.fve_chat] == pytest.approx((1 - error).tolist())


def by_hand():
    """Four concepts and five latents: chat-only well found, shared called chat-only, weak one undecided, one missed."""
    pair = plant(
        PlantedArm(d_model=8, shared=1, chat_only=1, base_only=1, weaker=1, amplified=0, rotated=0, decoupled=0), 0
    )
    correlation = np.array([
        [0.9, 0.1, 0.0, 0.0, 0.4],  # chat-only: latent 0, a piece of it 4
        [0.0, 0.2, 0.6, 0.0, 0.0],  # base-only: not found
        [0.1, 0.8, 0.0, 0.0, 0.0],  # shared
        [0.0, 0.0, 0.0, 0.9, 0.1],  # weaker, ×0.1: undecided
    ])  # fmt: skip
    table = pd.DataFrame({
        "class_name": ["chat-only", "chat-only", "base-only", "chat-only", "other"],
        "dead": [False] * 5, "frequency": 0.1, "cosine": 0.0,
        "norm_difference": [0.95, 0.92, 0.0, 0.95, 0.7],
        "nu_error": [0.0, 1.0, np.nan, 0.1, 0.0], "nu_reconstruction": [0.1, 0.9, np.nan, 0.1, -0.5],
        "reversed": [False, False, False, False, True],
        "nu_error_mirrored": [9.0, 1.0, 0.0, 9.0, 9.0], "nu_reconstruction_mirrored": [9.0, 1.0, 0.1, 9.0, 9.0],
        "rank_sum": [2.0, 8.0, np.nan, 5.0, np.nan],
        "chat_specific": [True, False, False, True, False],
        "chat_specific_interval": [True, False, False, False, False],
    })  # fmt: skip
    return pair, correlation, LatentTable(table, ["tokens"], Criterion())


def test_scores_of_a_case_by_hand():
    pair, correlation, table = by_hand()
    assert calls(table)["base_nu_point"].tolist() == [False, False, True, False, False]
    concepts = score_concepts(pair, correlation, table)
    assert concepts["kind"].tolist() == ["chat-only", "base-only", "shared", "weaker"]
    assert concepts["latent"].tolist() == [0, 2, 1, 3]
    assert concepts["found"].tolist() == [True, False, True, True]
    assert concepts["right_norm_difference"].tolist() == pytest.approx([1, np.nan, 0, np.nan], nan_ok=True)
    assert concepts["right_nu_point"].tolist() == pytest.approx([1, np.nan, 1, np.nan], nan_ok=True)
    latents = score_latents(pair, correlation, table)
    assert latents["kind"].tolist() == ["chat-only", "shared", "base-only", "undecided", "chat-only"]
    result = metrics(concepts, latents)
    # decided latents: 0 and 4 positive, 1 and 2 negative; Δnorm calls 0 and 1
    assert result["recall_norm_difference"] == 1 and result["precision_norm_difference"] == 0.5
    assert result["false_positives_norm_difference"] == 0.5 and result["called_norm_difference"] == 2
    assert result["precision_nu_point"] == 1 and result["false_positives_nu_point"] == 0
    assert result["called_nu_unbounded"] == 2 and result["precision_nu_unbounded"] == 1  # ν^r −0.5 counts there
    assert result["auroc_norm_difference"] == 0.75  # 0.95 beats both, 0.7 one of 0.92 and 0
    assert result["auroc_rank_sum"] == pytest.approx((2 + 0.5) / 4)  # latent 4 is unranked, as latent 2
    assert result["false_base_norm_difference"] == 0 and result["called_base_nu_point"] == 1
    assert result["found"] == 0.75
    assert result["reversed"] == 0.2  # latent 4 of 5


def test_calls_follow_the_tables_own_criterion():
    """A mirrored ν under the lower bound is no base-specific call, as in the other direction; NaN is none anywhere."""
    _, _, table = by_hand()
    table.frame["nu_error_mirrored"] = [0.05, 0.05, -0.2, 0.05, np.nan]
    table.frame["nu_reconstruction_mirrored"] = [0.4, 0.1, 0.1, -0.05, 0.1]
    assert calls(table)["base_nu_point"].tolist() == [True, True, False, True, False]
    assert calls(table)["chat_nu_unbounded"].tolist() == [True, False, False, True, True]
    strict = LatentTable(table.frame, ["tokens"], Criterion(0.3, 0.04, lowest=-0.3))
    assert calls(strict)["base_nu_point"].tolist() == [False, False, True, False, False]
    assert calls(strict)["chat_nu_unbounded"].tolist() == [True, False, False, False, True]


def test_thresholds_move_what_is_undecided():
    """A concept at ×0.1 or ×0.2 in base is decided by no threshold; under higher ones, one at ×0.4 is not either."""
    assert [undecided_up_to(c) for c in (Criterion(), Criterion(0.5, 0.4), Criterion(0.3, 0.4))] == [0.2, 0.4, 0.3]
    pair, correlation, table = by_hand()
    pair.concepts.loc[pair.concepts["kind"] == "weaker", "factor"] = 0.4
    assert score_latents(pair, correlation, table)["kind"][3] == "weaker"
    assert score_concepts(pair, correlation, table)["right_nu_point"][3] == 0
    lax = LatentTable(table.frame, ["tokens"], Criterion(0.5, 0.4))
    assert score_latents(pair, correlation, lax)["kind"][3] == "undecided"
    assert np.isnan(score_concepts(pair, correlation, lax)["right_nu_point"][3])


def test_dead_latents_are_left_out_and_weak_matches_are_none():
    pair, correlation, table = by_hand()
    table.frame["dead"] = [False, True, False, False, False]
    correlation[0, 4] = 0.2
    latents = score_latents(pair, correlation, table)
    assert latents["latent"].tolist() == [0, 2, 3, 4] and latents["kind"].tolist()[-1] == "none"


def test_auroc_and_intervals():
    assert auroc(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, False, True, False])) == 1
    assert auroc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    assert np.isnan(auroc(np.array([1.0]), np.array([True])))
    interval = over_seeds([0.5, 0.6, 0.7, np.nan])  # t(2) = 4.3027, s = 0.1
    assert interval == pytest.approx((0.6, 0.6 - 4.302653 * 0.1 / 3**0.5, 0.6 + 4.302653 * 0.1 / 3**0.5, 3), rel=1e-6)
    assert over_seeds([0.9, 1.0]).high == 1 and np.isnan(over_seeds([0.4]).low) and over_seeds([np.nan]).n == 0
    frame = pd.DataFrame({"kind": list("aabb"), "seed": [0, 0, 0, 1], "x": [1.0, 0.0, np.nan, 1.0]})
    assert rates(frame, ["kind"], "x")[["kind", "mean", "n"]].to_numpy().tolist() == [["a", 0.5, 1], ["b", 1.0, 1]]


def test_intervals_are_calibrated_over_documents_and_not_over_tokens():
    """95 % intervals of ν hold the closed-form truth (benchmarks/calibration.py runs more of the same)."""
    benchmark = runpy.run_path(str(ROOT / "benchmarks/calibration.py"))
    settings = replace(benchmark["SETTINGS"], shared=4, chat_only=4, base_only=0, weaker=6, decoupled=2)
    table = benchmark["coverage"](settings, data_sets=60, n_documents=256, resamples=400)
    held = table.groupby("unit")["holds"].agg(["size", "mean"])
    assert held["size"].min() > 2000
    assert 0.93 < held["mean"]["documents"] < 0.97
    assert held["mean"]["tokens"] < 0.85


def test_one_pair_from_stores_to_figure(tmp_path):
    """Train both kinds on a tiny easy pair: BatchTopK finds the chat-only concepts and ν calls nothing else so."""
    settings = replace(
        SMALL, shared=6, chat_only=3, base_only=0, weaker=5, amplified=0, rotated=0, decoupled=0, noise=0.02
    )
    pair, folder = plant(settings, 0), tmp_path / "main" / "seed0"
    train_store, validation = (
        ActivationStore(write_split(pair, split, n, LAYOUT, folder, 0, key="k"))
        for split, n in (("train", 32768), ("validation", 8192))
    )
    sections = {
        "l1": {"kind": "l1", "dict_size": 24, "mu": 0.1},
        "batchtopk": {"kind": "batchtopk", "dict_size": 24, "k": 1, "threshold_start": 300},
    }
    names = {f"{name}-seed0": dictionary_settings(own) for name, own in sections.items()}
    training = TrainingSettings(
        batch_size=512, steps=500, learning_rate=1e-2, warmup_steps=20, normalization="none", pool_chunks=16
    )
    for name, own in names.items():
        train(own, 0, train_store, training, folder / "crosscoders" / name, folder / ".work" / name, key=name)
    latents = LatentSettings(min_count=16, blocks=16, bootstrap_samples=100, nu_error_below=0.19)
    measured = {}
    for name in names:
        crosscoder = Crosscoder.load(folder / "crosscoders" / name)
        table = build_table(crosscoder, train_store, validation, latents, folder / f"latents/{name}.parquet", key="t")
        measured[name] = (crosscoder, table)
    strength = strengths(pair, "validation", 8192, LAYOUT, 0)
    score_pair(pair, strength, measured, validation, folder / "scores", key="s")
    scores = read_scores([folder / "scores"])
    assert scores.criterion == Criterion(nu_error_below=0.19)
    judged_otherwise = {n: (c, LatentTable(t.frame, t.sources, Criterion())) for n, (c, t) in measured.items()}
    score_pair(pair, strength, judged_otherwise, validation, tmp_path / "main/seed1/scores", key="s")
    with pytest.raises(TunediffError, match=r"judged by 2 criteria \(ν\^r < 0\.5 and ν\^ε < 0\.19"):
        read_scores([folder / "scores", tmp_path / "main/seed1/scores"])
    assert set(scores.crosscoders["crosscoder"]) == {"l1", "batchtopk"} and set(scores.concepts["arm"]) == {"main"}
    best = scores.crosscoders.set_index("crosscoder").loc["batchtopk"]
    assert best["recall_nu_point"] == 1 and best["precision_nu_point"] == 1 and best["fve_chat"] > 0.8
    table = summary(scores)
    live = [t.frame[~t.frame["dead"]] for _, t in measured.values()]
    reversed_shares = table[table["quantity"] == "reversed"].set_index("crosscoder")["mean"]
    assert reversed_shares.tolist() == pytest.approx([frame["reversed"].mean() for frame in live])
    found = table[(table["quantity"] == "found") & (table["kind"] == "chat-only") & table["frequency"].isna()]
    assert found.set_index("crosscoder")["mean"]["batchtopk"] == 1
    style, other = Style(dpi=60), scores._replace(criterion=Criterion(0.37, 0.13, -0.06, 1.7))
    for room in ("figures", "tables"):
        drawing = drawings()[f"{room}/planted"].draw(given(scores=scores), style)
        assert all(path.stat().st_size > 0 for path in save(drawing, tmp_path / room, style))
        drawing = drawings()[f"{room}/planted"].draw(given(scores=other), style)
        shown = [text.get_text() for text in drawing.figure.findobj(lambda artist: hasattr(artist, "get_text"))]
        printed = " ".join(" ".join(shown).split())
        assert other.criterion.math in printed
        assert not any(old in printed for old in ("0.5 and", "< 0.2", "−0.1"))
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "tables_all.csv"), table.replace("", np.nan), check_dtype=False
    )
    numbers = pd.read_csv(tmp_path / "figures.csv")
    row = numbers[(numbers["panel"] == "quality") & (numbers["crosscoder"] == "batchtopk")]
    assert row[(row["quantity"] == "precision") & (row["rule"] == "nu_point")]["mean"].item() == 1


def planted_config(**changes):
    config = yaml.safe_load((ROOT / "config/planted.yaml").read_text())
    config["planted"] |= changes
    return config


def test_defaults_of_the_schema_are_those_of_the_settings():
    config = check(planted_config())
    assert PlantedArm(**config["planted"]["arms"]["main"]) == PlantedArm()
    assert len(plant(PlantedArm(), 0).concepts) == config["crosscoders"]["l1"]["dict_size"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_tokens": 1000}, r"`planted\.train_tokens` \(1000\).*write 65536"),
        ({"arms": {"a": {"sharde": 3}}}, r"unknown key `planted\.arms\.a\.sharde`; did you mean `shared`"),
        ({"arms": {"a": {"document_tokens": 60}}}, r"`planted\.arms\.a\.document_tokens` \(60\) must divide"),
        ({"arms": {"a": {"correlation": 0.9}}}, r"`planted\.arms\.a\.correlation`.*lower one"),
        ({"arms": {}}, r"`planted\.arms`"),
    ],
)
def test_config_mistakes_are_one_line(changes, expected):
    with pytest.raises(TunediffError, match=expected):
        check(planted_config(**changes))


def test_a_planted_config_has_no_models_and_an_ordinary_one_must():
    with pytest.raises(TunediffError, match=r"`models` has no effect beside `planted`"):
        check({**planted_config(), "models": {"base": "demo", "chat": "demo", "layer": 3}})
    config = planted_config()
    del config["planted"]
    with pytest.raises(TunediffError, match=r"`models` is missing"):
        check(config)


def test_keys_of_one_arm_move_with_it_alone():
    def keys(**changes):
        graph = PlantedGraph(check(planted_config(**changes)), ROOT)
        return {path: artifact.key for path, artifact in graph.artifacts.items()}

    arms = planted_config()["planted"]["arms"]
    before = keys()
    after = keys(arms={**arms, "hard": {**arms["hard"], "tail": 0.8}})
    moved = {name for name in before if before[name] != after[name]}
    assert {"hard/seed5/tokens/train", "hard/seed9/scores", "figures/planted", "tables/planted"} <= moved
    assert all(name.startswith(("hard/", "figures/", "tables/")) for name in moved)
    larger = keys(arms={**arms, "half": {"dictionary": 0.75}})
    moved = {name for name in before if before[name] != larger[name]}
    assert "half/seed5/crosscoders/l1-seed5" in moved and "half/seed5/tokens/train" not in moved
