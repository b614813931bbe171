"""The KL experiment against edits written out densely on plain forward hooks."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis_fixtures import random_crosscoder, tiny_model, token_store
from causal_fixtures import F, latent_table
from figure_tables import given
from tunediff.config.settings import CausalSettings
from tunediff.data.masks import Mask, first_response_positions, response_positions
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.interventions.kl import Lower, Reference, build_kl, edit_energies, kl_divergence, kl_table
from tunediff.interventions.registry import CROSSCODER, INTERVENTIONS, KEY, Capabilities, Difference, Edit, Intervention
from tunediff.interventions.sets import effective_size, latent_sets
from tunediff.interventions.summary import build_summary
from tunediff.models.residual import replace_tokens
from tunediff.pipeline.artifacts import check
from tunediff.report.figures import fig4, fig4b
from tunediff.report.style import Style

LAYER = 1
SETTINGS = CausalSettings(random_sets=2, random_orders=2, curve_energies=(0.1, 0.4), batch_size=3, include_bias=True)
REPLACEMENTS = {5: 6, 7: 8}
ADDITIVE = (  # run as f_j d_j^chat too
    *("norm_difference_best", "norm_difference_worst", "latent_scaling_best", "latent_scaling_worst"),
)


@pytest.fixture(scope="module")
def lower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    conversations = token_store(folder / "conversations.zarr", [3, 14, 3, 22, 3, 18, 3, 30], seed=2)
    return Lower(tiny_model(0, LAYER), tiny_model(1, LAYER), conversations, 3, "cpu", REPLACEMENTS)


@pytest.fixture(scope="module")
def residuals(lower):
    """Token ids, masks and the residuals of both models, one conversation at a time, by transformers' own hook."""
    result = []
    for i in range(lower.conversations.n_documents):
        span = lower.conversations.document(i)
        ids = torch.from_numpy(lower.conversations.token_id[span].astype(np.int64))[None]
        base, chat = (
            model.model(input_ids=x, output_hidden_states=True).hidden_states[LAYER + 1][0]
            for model, x in ((lower.base, replace_tokens(ids, REPLACEMENTS)), (lower.chat, ids))
        )
        result.append((ids, lower.conversations.mask[span], base, chat))
    return result


@pytest.fixture(scope="module")
def crosscoders(residuals):
    """Two crosscoders; to the second a quarter of the tokens are massive."""
    found = {name: random_crosscoder(16, F, seed, 0.5) for seed, name in enumerate(("l1-seed0", "topk-seed0"))}
    norms = torch.cat([torch.stack([base, chat], 1) for _, _, base, chat in residuals]).norm(dim=2)
    found["topk-seed0"].config["outlier_norm"] = norms.quantile(0.75, dim=0).tolist()
    return found


@pytest.fixture(scope="module")
def tables(crosscoders):
    return {name: latent_table(n) for name, n in zip(crosscoders, (9, 2), strict=True)}


@pytest.fixture(scope="module")
def sets(lower, crosscoders, tables):
    energies = edit_energies(lower, crosscoders)
    return {
        name: latent_sets(tables[name], energies[name], *effective_size(name, tables, SETTINGS), SETTINGS, CROSSCODER)
        for name in tables
    }


@pytest.fixture(scope="module")
def frame(lower, crosscoders, sets):
    return kl_table(lower, crosscoders, sets, SETTINGS)


def reference(lower, residuals, crosscoders, sets):
    """KL sums, token counts and energies per intervention and conversation."""
    rows = {}
    for i, (ids, mask, base, chat) in enumerate(residuals):
        target = lower.chat.model(input_ids=ids).logits[0].double().log_softmax(-1)
        counted = torch.from_numpy(mask & Mask.BOS == 0)[:, None]
        template = torch.from_numpy(mask & Mask.TEMPLATE != 0)[:, None]
        edits = {("", name, "", 0, 0): (base, to) for name, to in (("none", base), ("chat", chat))}
        edits["", "template", "", 0, 0] = base, torch.where(template & counted, chat, base)
        for name, crosscoder in crosscoders.items():
            pair = torch.stack([base, chat], dim=1)
            f = crosscoder.encode(pair).to_dense(F)
            limit = torch.tensor(crosscoder.config.get("outlier_norm", [np.inf, np.inf]))
            edited = counted & (pair.norm(dim=2) <= limit).all(1, keepdim=True)
            d_base, d_chat = crosscoder.decoder_weight.unbind(1)
            bias = crosscoder.decoder_bias[1] - crosscoder.decoder_bias[0]
            added = {
                ("all", "", 0, 0): f @ (d_chat - d_base),
                ("all_with_bias", "", 0, 0): f @ (d_chat - d_base) + bias,
                ("error", "", 0, 0): f @ (d_base - d_chat),
            }
            for chosen in sets[name].members:
                kept = torch.zeros(F)
                kept[chosen.latents] = 1
                where = chosen.ranking, chosen.draw, chosen.point
                added[chosen.intervention, *where] = (f * kept) @ (d_chat - d_base)
                if chosen.intervention in ADDITIVE:
                    added[f"{chosen.intervention}_additive", *where] = (f * kept) @ d_chat
            for key, edit in added.items():
                start = chat if key[0] == "error" else base
                edits[name, *key] = start, start + edited * edit
        predicting, first = response_positions(mask), first_response_positions(mask)
        for key, (start, patch) in edits.items():

            def hook(module, inputs, output, patch=patch):
                return (patch[None], *output[1:]) if isinstance(output, tuple) else patch[None]

            handle = lower.chat.model.model.layers[LAYER].register_forward_hook(hook)
            log_q = lower.chat.model(input_ids=ids).logits[0].double().log_softmax(-1)
            handle.remove()
            kl = (target.exp() * (target - log_q)).sum(-1).numpy()
            energy = (patch - start).double().square().sum(-1).numpy()
            rows[(*key, i)] = [
                f(values[at]) for at in (predicting, first) for f, values in ((np.sum, kl), (len, kl), (np.sum, energy))
            ]
    return rows


def test_every_intervention_against_forward_hooks(lower, residuals, crosscoders, sets, frame):
    expected = reference(lower, residuals, crosscoders, sets)
    n_sets = {name: len(own.members) for name, own in sets.items()}
    assert len(frame) == len(expected) == 8 * (3 + sum(3 + n + 4 for n in n_sets.values()))
    for row in frame.itertuples():
        wanted = expected[row.crosscoder, row.intervention, row.ranking, row.draw, row.point, row.conversation]
        assert (row.n_all, row.n_first) == (wanted[1], wanted[4])
        measured = row.kl_sum_all, row.energy_all, row.kl_sum_first, row.energy_first
        assert measured == pytest.approx((wanted[0], wanted[2], wanted[3], wanted[5]), rel=1e-4, abs=1e-5), row
    means = frame.groupby("intervention")["kl_sum_all"].sum() / frame.groupby("intervention")["n_all"].sum()
    assert means["chat"] < 1e-6  # the chat model itself
    assert means["none"] > 0.05  # the edits above are visible
    assert frame.groupby(KEY, sort=False).ngroup().is_monotonic_increasing


def test_energies_that_sets_are_drawn_by_are_those_measured(sets, frame):
    measured = frame.groupby(KEY)["energy_all"].sum()
    for name, own in sets.items():
        assert measured[name, "all", "", 0, 0] == pytest.approx(own.energy, rel=1e-4)
        assert measured[name, "error", "", 0, 0] == pytest.approx(own.energy, rel=1e-4)
        for chosen in own.members:
            key = name, chosen.intervention, chosen.ranking, chosen.draw, chosen.point
            assert measured[key] == pytest.approx(chosen.energy, rel=1e-4)
    sizes = frame.drop_duplicates(KEY).set_index(KEY)["n_latents"]
    assert sizes["l1-seed0", "all", "", 0, 0] == F and sizes["", "chat", "", 0, 0] == 0
    assert sizes["l1-seed0", "energy_best", "energy", 0, 0] == 4


def test_batches_of_any_size_give_the_same_sums(lower, crosscoders, sets, frame):
    one = Lower(lower.base, lower.chat, lower.conversations, 1, "cpu", REPLACEMENTS)
    other = kl_table(one, crosscoders, sets, SETTINGS)
    for column in ("kl_sum_all", "kl_sum_first", "energy_all", "energy_first"):
        np.testing.assert_allclose(other[column], frame[column], rtol=1e-4, atol=1e-5)


def test_lower_halves_and_the_reference_are_computed_once_per_batch(lower, crosscoders, sets, frame, monkeypatch):
    own, calls = replace(lower), []
    for model, name in ((own.base, "base"), (own.chat, "chat")):
        read = model.residual
        monkeypatch.setattr(model, "residual", lambda *a, read=read, name=name: calls.append(name) or read(*a))
    of = Reference.of
    monkeypatch.setattr(Reference, "of", lambda logits: calls.append("reference") or of(logits))
    edit_energies(own, crosscoders)
    pd.testing.assert_frame_equal(kl_table(own, crosscoders, sets, SETTINGS), frame)
    batches = -(-lower.conversations.n_documents // lower.batch_size)
    answered = sum(bool(batch.where(response_positions).any()) for batch, _, _ in lower)
    assert {name: calls.count(name) for name in calls} == {"base": batches, "chat": batches, "reference": answered}


def test_kl_divergence_in_chunks_against_scipy(monkeypatch):
    p, q = torch.randn(2, 17, 30, generator=torch.Generator().manual_seed(0)) * 3
    expected = stats.entropy(p.double().softmax(-1).numpy(), q.double().softmax(-1).numpy(), axis=-1)
    monkeypatch.setattr("tunediff.interventions.kl.LOGITS_AT_ONCE", 100)
    np.testing.assert_allclose(kl_divergence(Reference.of(p), q), expected, rtol=1e-5)
    assert (kl_divergence(Reference.of(p), p) == 0).all()


def test_values_that_are_not_finite_name_their_conversation(lower, crosscoders, sets, monkeypatch):
    longest = 7  # conversation of 30 tokens
    lower = replace(lower)  # which keeps no residuals yet
    for model, word in ((lower.base, "base"), (lower.chat, "chat")):
        read = model.residual

        def broken(ids, mask, read=read):
            residual = read(ids, mask).clone()
            if ids.shape[1] == 30:
                residual[-1, 20] = torch.nan
            return residual

        with monkeypatch.context() as patch:
            patch.setattr(model, "residual", broken)
            with pytest.raises(TunediffError, match=f"{word} model's residual of conversation {longest} is not finite"):
                kl_table(lower, crosscoders, sets, SETTINGS)
    continued = lower.chat.logits_from

    def overflowing(residual, ids, mask, positions):
        logits = continued(residual, ids, mask, positions).clone()
        if ids.shape[1] == 30:
            logits[-1, -1, 3] = torch.inf
        return logits

    monkeypatch.setattr(lower.chat, "logits_from", overflowing)
    with pytest.raises(TunediffError, match=rf"KL divergence \(none\) of conversation {longest} is not finite"):
        kl_table(lower, crosscoders, sets, SETTINGS)


def test_built_table_sets_and_summary(lower, crosscoders, tables, sets, frame, tmp_path):
    out = tmp_path / "kl.parquet"
    models = lower.base, lower.chat
    built = build_kl(
        models, crosscoders, tables, lower.conversations, SETTINGS, out, key="k", replacements=REPLACEMENTS
    )
    pd.testing.assert_frame_equal(built, frame)
    pd.testing.assert_frame_equal(pd.read_parquet(out), built)
    facts = check(out, "kl", "k").facts
    assert facts["n_conversations"] == 8 and facts["n_interventions"] == len(frame) / 8
    assert facts["rules"]["l1-seed0"] == sets["l1-seed0"].rule
    described = json.loads((tmp_path / "kl.sets.json").read_text())
    assert described == {name: own.describe() for name, own in sets.items()}
    summary = build_summary(built, tmp_path / "summary.parquet", 100, 0, key="s")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "summary.parquet"), summary)
    check(tmp_path / "summary.parquet", "kl-summary", "s")
    areas = summary[summary["intervention"] == "area_over_random"]
    assert len(areas) == 2 * 3 * 2 and areas["reduction"].notna().all()  # crosscoders, rankings, positions


def test_a_new_intervention_is_one_entry(lower, crosscoders, tables, frame, tmp_path, monkeypatch):
    """The latent of highest energy, taken away from the chat model's activations."""
    made_up = Intervention(
        "loudest_removed",
        "Loudest latent removed",
        lambda case: Edit(case.chat, case.at, case.after - case.decode(case.editor.difference)),
        needs="latents",
        choose=lambda choice, of: choice.add(of, choice.orders["energy"][:1], "highest energy"),
        partner="error",
        difference=Difference("loudest_minus_error", "loudest −\nerror", "loudest latent against all"),
        bar="Loudest\nremoved",
    )
    monkeypatch.setitem(INTERVENTIONS, made_up.name, made_up)
    conversations = lower.conversations
    built = build_kl(
        (lower.base, lower.chat), crosscoders, tables, conversations, SETTINGS, tmp_path / "kl.parquet", key="k",
        replacements=REPLACEMENTS,
    )  # fmt: skip
    own = built["intervention"] == made_up.name
    pd.testing.assert_frame_equal(built[~own].reset_index(drop=True), frame)
    energies = edit_energies(lower, crosscoders)
    for name in crosscoders:
        rows = built[own & (built["crosscoder"] == name)]
        assert len(rows) == 8 and (rows["n_latents"] == 1).all()
        assert rows["energy_all"].sum() == pytest.approx(energies[name].single[:-1].max(), rel=1e-4)
    summary = build_summary(built, tmp_path / "summary.parquet", 50, 0, key="s")
    plain = summary[(summary["positions"] == "all") & (summary["ranking"] == "")]
    means = plain.set_index(["crosscoder", "intervention"])["mean"]
    for name in crosscoders:
        difference = means[name, made_up.name] - means[name, "error"]
        assert means[name, "loudest_minus_error"] == pytest.approx(difference) and difference != 0
    sets = json.loads((tmp_path / "kl.sets.json").read_text())
    read = given(kl=summary, sets=sets)
    bars, compared = fig4.draw(read, Style(dpi=60)), fig4b.draw(read, Style(dpi=60))
    assert bars.numbers.loc[bars.numbers["intervention"] == made_up.name, "drawn"].tolist() == [True] * 4
    for axes in bars.figure.axes:
        assert [text.get_text() for text in axes.get_xticklabels()].count("Loudest\nremoved") == 2
    assert (compared.numbers["intervention"] == "loudest_minus_error").sum() == 4
    assert "loudest −\nerror" in [text.get_text() for text in compared.figure.axes[1].get_yticklabels()]


def test_a_dictionary_of_the_difference_runs_what_it_supports(lower, residuals, crosscoders):
    whole = crosscoders["l1-seed0"]
    streams = {name: tensor[:, :1] for name, tensor in whole.state_dict().items() if tensor.ndim == 3}
    own = Crosscoder(
        streams["encoder_weight"],
        whole.encoder_bias,
        streams["decoder_weight"],
        whole.decoder_bias[:1],
        whole.threshold,
    )
    assert own.reconstructs == "difference" and not own.has_norm_taxonomy
    table = latent_table(0, ())
    table.frame[["norm_difference", "rank_sum"]] = np.nan
    table.frame["nu_activation"] = np.random.default_rng(0).permutation(F).astype(np.float32)
    of = Capabilities("difference", has_norm_taxonomy=False)
    energy = edit_energies(lower, {"d": own})["d"]
    sets = {"d": latent_sets(table, energy, 8, "a test", SETTINGS, of)}
    built = kl_table(lower, {"d": own}, sets, SETTINGS)
    rankings = ("nu_activation", "energy")
    names = {"all", "all_with_bias", "error", "matched_random", "prefix"}
    names |= {f"{ranking}_{half}" for ranking in rankings for half in ("best", "worst")}
    names |= {chosen.intervention for chosen in sets["d"].members if chosen.intervention.endswith("_matched")}
    assert set(built.loc[built["crosscoder"] == "d", "intervention"]) == names
    best = next(chosen for chosen in sets["d"].members if chosen.intervention == "nu_activation_best")
    expected = dict.fromkeys(("all", "error", "all_with_bias", "nu_activation_best"), 0.0)
    for _, mask, base, chat in residuals:
        at = torch.from_numpy(response_positions(mask) & (mask & Mask.BOS == 0))
        f = own.encode(torch.stack([base, chat], dim=1)).to_dense(F)[at]
        changes = {"all": f @ own.difference_directions}
        changes |= {"error": changes["all"], "all_with_bias": changes["all"] + own.difference_bias}
        changes["nu_activation_best"] = f[:, best.latents] @ own.difference_directions[best.latents]
        for name, change in changes.items():
            expected[name] += float(change.square().sum())
    measured = built.groupby("intervention")["energy_all"].sum()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, rel=1e-4), name
