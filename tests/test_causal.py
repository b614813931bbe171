import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis_fixtures import SOURCES, random_crosscoder, tiny_model, token_store
from tunediff.artifacts import check
from tunediff.causal import (
    HALVES,
    CausalSettings,
    build_kl,
    build_summary,
    effective_size,
    kl_divergence,
    kl_table,
    latent_sets,
    summarise,
)
from tunediff.errors import TunediffError
from tunediff.latents import LatentTable
from tunediff.models import replace_tokens
from tunediff.tokens import Mask, first_response_positions, response_positions

LAYER, F = 1, 20
SETTINGS = CausalSettings(reference="l1", random_sets=2, batch_size=3, include_bias=True)
REPLACEMENTS = {5: 6, 7: 8}


def latent_frame(chat_only=9):
    g = np.random.default_rng(3)
    columns = {}
    for name, dtype in LatentTable.schema(SOURCES).items():
        values = np.full(F, "shared") if dtype == "string" else np.zeros(F)
        columns[name] = pd.Series(values, dtype="str" if dtype == "string" else dtype)
    frame = pd.DataFrame(columns)
    frame["latent"] = np.arange(F, dtype=np.int32)
    frame["norm_difference"] = g.permutation(np.linspace(0, 1, F)).astype(np.float32)
    frame["rank_sum"] = np.where(np.arange(F) % 4 == 0, np.nan, g.permutation(F)).astype(np.float32)
    frame["class_name"] = ["chat-only"] * chat_only + ["shared"] * (F - chat_only - 1) + ["dead"]
    frame["dead"] = np.arange(F) == F - 1
    return frame


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    conversations = token_store(folder / "conversations.zarr", [3, 14, 3, 22, 3, 18, 3, 30], seed=2)
    models = (tiny_model(0, LAYER), tiny_model(1, LAYER))
    crosscoders = {name: random_crosscoder(16, F, seed, 0.5) for seed, name in enumerate(("l1-seed0", "topk-seed0"))}
    tables = {name: LatentTable(latent_frame(n), SOURCES) for name, n in zip(crosscoders, (9, 2), strict=True)}
    sets = {name: latent_sets(tables[name], *effective_size(name, tables, SETTINGS), SETTINGS) for name in tables}
    return models, crosscoders, tables, conversations, sets


def reference(stage):
    """Every intervention written out densely, on plain forward hooks, one conversation at a time."""
    models, crosscoders, _, conversations, sets = stage
    rows = {}
    for i in range(conversations.n_documents):
        span = conversations.document(i)
        ids, mask = torch.from_numpy(conversations.token_id[span].astype(np.int64))[None], conversations.mask[span]
        fed = (replace_tokens(ids, REPLACEMENTS), ids)
        base, chat = (
            model.model(input_ids=x, output_hidden_states=True).hidden_states[LAYER + 1][0]
            for model, x in zip(models, fed, strict=True)
        )
        target = models[1].model(input_ids=ids).logits[0].double().log_softmax(-1)
        counted = torch.from_numpy(mask & Mask.BOS == 0)[:, None]
        template = torch.from_numpy(mask & Mask.TEMPLATE != 0)[:, None]
        edits = {("", "none"): base, ("", "chat"): chat, ("", "template"): torch.where(template & counted, chat, base)}
        for name, crosscoder in crosscoders.items():
            f = crosscoder.encode(torch.stack([base, chat], dim=1)).to_dense(F)
            d_base, d_chat = crosscoder.decoder_weight.unbind(1)
            bias = crosscoder.decoder_bias[1] - crosscoder.decoder_bias[0]
            edits[name, "all"] = torch.where(counted, base + f @ (d_chat - d_base) + bias, base)
            edits[name, "error"] = torch.where(counted, chat + f @ (d_base - d_chat), chat)
            for intervention, latents in sets[name].members.items():
                chosen = torch.zeros(F)
                chosen[latents] = 1
                edits[name, intervention] = torch.where(counted, base + (f * chosen) @ (d_chat - d_base), base)
                if intervention in HALVES:
                    additive = torch.where(counted, base + (f * chosen) @ d_chat, base)
                    edits[name, f"{intervention}_additive"] = additive
        predicting, first = response_positions(mask), first_response_positions(mask)
        for key, patch in edits.items():

            def hook(module, inputs, output, patch=patch):
                return (patch[None], *output[1:]) if isinstance(output, tuple) else patch[None]

            handle = models[1].model.model.layers[LAYER].register_forward_hook(hook)
            log_q = models[1].model(input_ids=ids).logits[0].double().log_softmax(-1)
            handle.remove()
            kl = (target.exp() * (target - log_q)).sum(-1).numpy()
            rows[(*key, i)] = kl[predicting].sum(), predicting.sum(), kl[first].sum(), first.sum()
    return rows


def test_every_intervention_against_forward_hooks(stage):
    models, crosscoders, _, conversations, sets = stage
    frame = kl_table(models, crosscoders, sets, conversations, SETTINGS, "cpu", REPLACEMENTS)
    expected = reference(stage)
    assert len(frame) == len(expected) == 8 * (3 + 2 * (2 + 8 + 2))
    for row in frame.itertuples():
        kl_all, n_all, kl_first, n_first = expected[row.crosscoder, row.intervention, row.conversation]
        assert (row.n_all, row.n_first) == (n_all, n_first)
        assert row.kl_sum_all == pytest.approx(kl_all, rel=1e-4, abs=1e-5), row
        assert row.kl_sum_first == pytest.approx(kl_first, rel=1e-4, abs=1e-5), row
    means = frame.groupby("intervention")["kl_sum_all"].sum() / frame.groupby("intervention")["n_all"].sum()
    assert means["chat"] < 1e-5
    assert means["none"] > 0.05  # the edits above are visible
    assert frame.groupby(["crosscoder", "intervention"], sort=False).ngroup().is_monotonic_increasing


def test_batches_of_any_size_give_the_same_sums(stage):
    models, crosscoders, _, conversations, sets = stage
    one, all_ = (
        kl_table(models, crosscoders, sets, conversations, CausalSettings(random_sets=2, batch_size=n)) for n in (1, 8)
    )
    np.testing.assert_allclose(one["kl_sum_all"], all_["kl_sum_all"], rtol=1e-4, atol=1e-5)


def test_kl_divergence_in_chunks_against_scipy(monkeypatch):
    p, q = torch.randn(2, 17, 30, generator=torch.Generator().manual_seed(0)) * 3
    expected = stats.entropy(p.double().softmax(-1).numpy(), q.double().softmax(-1).numpy(), axis=-1)
    monkeypatch.setattr("tunediff.causal.LOGITS_AT_ONCE", 100)
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-5)


def test_sets_follow_their_rules(stage):
    _, _, tables, _, sets = stage
    frame = tables["l1-seed0"].frame
    chosen = sets["topk-seed0"]  # nine latents as well: the reference's number
    live = frame[~frame["dead"]].sort_values("norm_difference", ascending=False)
    assert chosen.effective.tolist() == live["latent"].tolist()[:9]
    assert chosen.members["norm_difference_best"].tolist() == chosen.effective[:4].tolist()
    assert chosen.members["norm_difference_worst"].tolist() == chosen.effective[-4:].tolist()
    ranked = live.iloc[:9].sort_values("rank_sum", na_position="last", kind="stable")["latent"].tolist()
    assert chosen.members["latent_scaling_best"].tolist() == ranked[:4]
    assert chosen.members["latent_scaling_worst"].tolist() == ranked[-4:]
    for i in range(2):
        drawn = chosen.members[f"random_{i}"]
        assert len(set(drawn)) == 4 and not set(drawn) & {*chosen.effective, F - 1}
    assert chosen.members["random_0"].tolist() != chosen.members["random_1"].tolist()
    assert "9 live latents" in chosen.rule and "l1-seed0 (9)" in chosen.rule


def test_size_of_the_effective_set(stage):
    _, _, tables, _, _ = stage
    assert effective_size("topk-seed0", tables, CausalSettings(reference="topk-seed0"))[0] == 2
    assert effective_size("topk-seed0", tables, CausalSettings(set_size=5))[0] == 5
    with pytest.raises(TunediffError, match="no crosscoder 'l2-seed0' among l1-seed0, topk-seed0"):
        effective_size("topk-seed0", tables, CausalSettings(reference="l2"))


def test_built_table_sets_and_summary(stage, tmp_path):
    models, crosscoders, tables, conversations, sets = stage
    out = tmp_path / "kl.parquet"
    frame = build_kl(models, crosscoders, tables, conversations, SETTINGS, out, key="k")
    pd.testing.assert_frame_equal(pd.read_parquet(out), frame)
    assert check(out, "kl", "k").facts["n_conversations"] == 8
    described = json.loads((tmp_path / "sets.json").read_text())
    assert described["l1-seed0"]["latents"] == sets["l1-seed0"].effective.tolist()
    assert described["l1-seed0"]["size"] == 9
    summary = build_summary(frame, tmp_path / "summary.parquet", 100, 0, key="s")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "summary.parquet"), summary)
    check(tmp_path / "summary.parquet", "kl-summary", "s")


def synthetic_kl(n=50, seed=0):
    g = np.random.default_rng(seed)
    n_all, n_first = g.integers(5, 60, n), g.integers(0, 10, n)
    none = g.gamma(2, 0.3, n)
    parts = []
    for crosscoder, intervention, factor in (("", "none", 1), ("c", "x_best", 0.5), ("c", "x_worst", 0.8)):
        mean = none * factor * g.normal(1, 0.1, n)
        columns = {"conversation": np.arange(n), "crosscoder": crosscoder, "intervention": intervention}
        columns |= {"kl_sum_all": mean * n_all, "n_all": n_all, "kl_sum_first": 2 * mean * n_first, "n_first": n_first}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def test_summary_agrees_with_scipys_paired_bootstrap():
    kl = synthetic_kl()
    summary = summarise(kl.sample(frac=1, random_state=0), 8000, seed=0).set_index(["intervention", "positions"])
    none, best, worst = (kl[kl["intervention"] == name].reset_index() for name in ("none", "x_best", "x_worst"))
    row = summary.loc["x_best", "all"]
    n = none["n_all"].to_numpy(float)
    a, b, w = (part["kl_sum_all"].to_numpy() for part in (best, none, worst))
    assert row["mean"] == pytest.approx(a.sum() / n.sum())
    assert row["delta_none"] == pytest.approx((a.sum() - b.sum()) / n.sum())
    assert row["reduction"] == pytest.approx(1 - a.sum() / b.sum())
    assert row["delta_worst"] == pytest.approx((a.sum() - w.sum()) / n.sum())
    assert (row["n_conversations"], row["n_tokens"]) == (50, n.sum())
    ratio = lambda x, y, axis: x.sum(axis=axis) / y.sum(axis=axis)  # noqa: E731
    for prefix, top, bottom in (("", a, n), ("delta_", a - b, n), ("reduction_", b - a, b), ("delta_worst_", a - w, n)):
        interval = stats.bootstrap(
            (top, bottom), ratio, paired=True, vectorized=True, n_resamples=8000, method="percentile", rng=1
        ).confidence_interval
        width = interval.high - interval.low
        assert row[f"{prefix}low"] == pytest.approx(interval.low, abs=0.06 * width)
        assert row[f"{prefix}high"] == pytest.approx(interval.high, abs=0.06 * width)
    assert np.isnan(summary.loc["x_worst", "all"]["delta_worst"])
    # pairing: the interval of the difference is narrower than that of either mean
    assert row["delta_worst_high"] - row["delta_worst_low"] < 0.9 * (row["high"] - row["low"])
    first = summary.loc["x_best", "first"]
    assert first["mean"] == pytest.approx(best["kl_sum_first"].sum() / best["n_first"].sum())


def test_summary_refuses_a_table_that_lacks_rows():
    kl = synthetic_kl()
    with pytest.raises(TunediffError, match="some conversations lack an intervention"):
        summarise(kl.iloc[:-1], 10, 0)
    with pytest.raises(TunediffError, match="no intervention 'none'"):
        summarise(kl[kl["intervention"] != "none"], 10, 0)
