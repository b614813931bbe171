"""Steering against plain hooks, loops without a cache, and arithmetic written out."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from analysis_fixtures import SOURCES, VOCAB, activation_store, random_crosscoder, tiny_model, token_store
from causal_fixtures import F, latent_table
from figure_tables import LABELS, steering_table
from tunediff.config.settings import LatentSettings, SteeringSettings
from tunediff.data.masks import Mask
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.interventions import steering
from tunediff.interventions.steering import (
    Bench,
    Chosen,
    Sums,
    alike_in_frequency,
    answer,
    arms,
    build_steering,
    own_kinds,
    preferred,
    ranked,
    repeated_grams,
    steer,
    steering_vector,
)
from tunediff.interventions.steering_table import COLUMNS, CONTROLS, TEXTS, checked, read_steering, read_texts, verdicts
from tunediff.latents.measure import build_table
from tunediff.pipeline.artifacts import check

LAYER, D = 1, 16
STOP = [1]
SETTINGS = SteeringSettings(
    latents=2, alphas=(0.5, 2), positions=("all", "prompt"), prompts=4, max_new_tokens=6, random_directions=2,
    generation_batch_size=5, batch_size=3, bootstrap_samples=100,
)  # fmt: skip
REPLACEMENTS = {5: 6, 7: 8}


@pytest.fixture(scope="module")
def models():
    return tiny_model(0, LAYER), tiny_model(1, LAYER)


@pytest.fixture(scope="module")
def table():
    found = latent_table()
    g = np.random.default_rng(5)
    found.frame["max_activation"] = g.uniform(0.5, 2, F).astype(np.float32)
    found.frame["frequency"] = g.uniform(0.01, 0.5, F).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def crosscoder():
    return random_crosscoder(D, F, 0, 0.5)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    path = tmp_path_factory.mktemp("steering") / "conversations.zarr"
    store = token_store(path, [14] * 20, seed=2)
    chats = np.arange(14) >= 7  # every document is a chat: the user asks in the first half
    store.mask = np.where(chats, Mask.ASSISTANT, np.where(np.arange(14) > 1, Mask.USER, 0)).astype(np.uint8)
    store.mask[0] = Mask.BOS
    store.mask = np.tile(store.mask, 20)
    return store


def left_padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def stream_above(model, run):
    """Return what block LAYER + 1 reads in every forward pass of `run`, one after the other."""
    seen = []
    block = model.model.model.layers[LAYER + 1]
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    result = run()
    handle.remove()
    return result, torch.cat(seen, dim=1)


PROMPTS = [[2, 9, 8, 7], [2, 30, 31, 32, 33, 34, 35]]


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_the_residual_stream_gets_the_dose_where_it_is_asked_and_nowhere_else(models, positions) -> None:
    model = models[1]
    ids, mask = left_padded(PROMPTS)
    add = torch.stack([torch.linspace(-1, 1, D), torch.linspace(2, 0, D)])

    def run():
        return model.generate(ids, mask, 6, STOP, add, positions)

    new, steered = stream_above(model, run)
    assert steered.shape[1] == ids.shape[1] + 5  # with the cache every position runs once
    for row, prompt in enumerate(PROMPTS):
        padded = ids.shape[1] - len(prompt)
        whole = torch.tensor([prompt + new[row].tolist()])[:, :-1]
        expected = model.residual(whole)[0]  # the lower half knows nothing of what is added above it
        dose = steered[row, padded:] - expected
        length = len(prompt) if positions == "prompt" else len(whole[0])
        torch.testing.assert_close(dose[:length], add[row].expand(length, -1), rtol=0, atol=2e-5)
        assert dose[length:].abs().max() < 2e-5 if positions == "prompt" else length == len(dose)
    _, plain = stream_above(model, lambda: model.generate(ids, mask, 1, STOP))
    assert torch.equal(steered[0, :3], plain[0, :3])  # padding


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_generation_with_the_cache_equals_a_loop_without(models, positions) -> None:
    model = models[1]
    add = torch.stack([torch.linspace(-3, 3, D), -torch.linspace(-3, 3, D)])
    ids, mask = left_padded(PROMPTS)
    new = model.generate(ids, mask, 6, [VOCAB + 1], add, positions)  # nothing stops
    changed = False
    for row, prompt in enumerate(PROMPTS):
        whole = list(prompt)
        for _ in range(6):
            edited = len(prompt) if positions == "prompt" else len(whole)

            def hook(module, inputs, output, edited=edited, row=row):
                stream = (output[0] if isinstance(output, tuple) else output).clone()
                stream[:, :edited] += add[row]
                return (stream, *output[1:]) if isinstance(output, tuple) else stream

            handle = model.model.model.layers[LAYER].register_forward_hook(hook)
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([whole]), use_cache=False).logits
            handle.remove()
            whole.append(int(logits[0, -1].argmax()))
        assert new[row].tolist() == whole[len(prompt) :]
        changed |= whole != [*prompt, *model.generate(torch.tensor([prompt]), torch.ones(1, len(prompt)), 6, [99])[0]]
    assert changed


def test_a_zero_dose_is_the_unedited_answer(models, crosscoder, table) -> None:
    model = models[1]
    prompts = [np.array(prompt) for prompt in PROMPTS]
    plain = answer(model, prompts, STOP, 6, 5)
    assert answer(model, prompts, STOP, 6, 5, torch.zeros(2, D)) == plain
    assert steer(model, crosscoder, table, 3, prompts, 0, STOP, max_new_tokens=6) == plain
    strong = steer(model, crosscoder, table, 3, prompts, 50, STOP, max_new_tokens=6)
    added = 50 * table.frame["max_activation"][3] * crosscoder.decoder_weight[3, 1]
    assert strong == answer(model, prompts, STOP, 6, 1, added.repeat(2, 1)) != plain
    with pytest.raises(TunediffError, match="latent 19: fires on no validation token"):
        steer(model, crosscoder, table, F - 1, prompts, 1, STOP)
    with pytest.raises(TunediffError, match="latents 0 to 19"):
        steer(model, crosscoder, table, F, prompts, 1, STOP)


def test_the_dose_is_in_units_of_the_residual_stream(tmp_path) -> None:
    """max_j and d_j of a dictionary trained on normalised activations, against its training object by hand."""
    g = torch.Generator().manual_seed(1)
    encoder, decoder = (torch.randn(F, 2, 6, generator=g) for _ in range(2))
    bias, decoder_bias, scale = torch.randn(F, generator=g), torch.randn(2, 6, generator=g), torch.tensor([0.2, 0.05])
    mean = torch.randn(2, 6, generator=g)
    trained = SimpleNamespace(
        encoder=lambda: encoder, decoder=lambda: decoder, encoder_bias=bias, decoder_bias=decoder_bias,
        inference_threshold=lambda: torch.full((F,), 0.3),
    )  # fmt: skip
    made = Crosscoder.from_training(trained, mean, scale)
    tokens = token_store(tmp_path / "tokens.zarr", [16] * 4)
    raw = 20 * np.random.default_rng(2).standard_normal((64, 2, 6)).astype(np.float32)
    store = activation_store(tmp_path / "part.zarr", tokens, raw)
    settings = LatentSettings(min_count=2, blocks=8, bootstrap_samples=100)
    table = build_table(made, store, store, settings, tmp_path / "l1-seed0.parquet", key="k")
    x = scale[:, None] * (torch.from_numpy(raw) - mean)
    f = torch.einsum("nmd,fmd->nf", x, encoder) + bias
    f = torch.where(f > 0.3, f, 0)[torch.from_numpy(tokens.mask & Mask.BOS == 0)]
    for latent in range(F):
        # what this latent writes into the chat model's reconstruction where it fires most
        most = f[:, latent].max() * decoder[latent, 1] / scale[1]
        torch.testing.assert_close(steering_vector(made, table, latent), most, rtol=1e-4, atol=1e-4)
    assert table.sources == tuple(SOURCES)


def test_controls_have_the_norm_of_the_dose(crosscoder, table) -> None:
    found = arms(crosscoder, table, 3, SETTINGS)
    added = table.frame["max_activation"][3] * crosscoder.decoder_weight[3, 1]
    for arm in found:
        torch.testing.assert_close(arm.added.norm(), added.norm())
    named = {(arm.name, arm.draw): arm for arm in found}
    assert {name for name, _ in named} == {"steered", "base_model", *CONTROLS}
    assert torch.equal(named["steered", 0].added, added) and torch.equal(named["sign_flip", 0].added, -added)
    assert [arm.model for arm in found].count("base") == 1
    base, other = named["base_row", 0], named["shared", 0]
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(base.added, crosscoder.decoder_weight[3, 0], 0), torch.tensor(1.0))
    torch.testing.assert_close(cosine(other.added, crosscoder.decoder_weight[other.direction, 1], 0), torch.tensor(1.0))
    draws = [named["random", draw].added for draw in range(2)]
    assert abs(cosine(*draws, 0)) < 0.9
    assert torch.equal(draws[0], {(a.name, a.draw): a for a in arms(crosscoder, table, 3, SETTINGS)}["random", 0].added)
    frame = table.frame
    shared = frame[(frame["class_name"] == "shared") & (frame["latent"] != 3)]
    ratio = np.abs(np.log(shared["frequency"] / frame["frequency"][3]))
    assert other.direction == alike_in_frequency(table, 3) == shared["latent"].to_numpy()[ratio.to_numpy().argmin()]

    difference = random_crosscoder(D, F, 0, 0.5, streams=1)
    names = [arm.name for arm in arms(difference, table, 3, SETTINGS)]
    assert "base_row" not in names
    torch.testing.assert_close(
        steering_vector(difference, table, 3), table.frame["max_activation"][3] * difference.decoder_weight[3, 0]
    )


class Words:
    """Answers that hold the word w9 are of the kind nine."""

    def answer_kinds(self):
        return ("nine", "never")

    def kind_of_answer(self, text):
        return "nine" if "w9" in text.split() else ""


@pytest.fixture(scope="module")
def made(models, crosscoder, table, conversations, tmp_path_factory):
    out = tmp_path_factory.mktemp("steering") / "steering.parquet"
    tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(f"w{int(i)}" for i in ids))
    renderer = SimpleNamespace(stop_ids=STOP, tokenizer=tokenizer)
    own, tables = {"l1-seed0": crosscoder}, {"l1-seed0": table}
    frame = build_steering(
        models, own, tables, conversations, renderer, Words(), SETTINGS, out, key="k", replacements=REPLACEMENTS
    )
    return frame, out, check(out, "steering", "k").facts


def test_the_stage_writes_a_whole_table(made, table) -> None:
    frame, out, facts = made
    pd.testing.assert_frame_equal(read_steering(out), frame)
    assert len(facts["requests"]) == 4 and set(facts["kinds"]) == {f"l1-seed0/{i}" for i in table.first(2)["latent"]}
    steered = frame[~frame["arm"].str.startswith("ablation") & (frame["latent"] >= 0)]
    runs = steered.groupby(["latent", "arm", "draw", "alpha", "positions"])["measure"].agg(list)
    assert len(runs) == 2 * 7 * 2 * 2  # latents, arms with two random ones, α, positions
    assert runs.map(sorted).map(tuple).unique().tolist() == [("kl", "logit_shift", "nll", "rate", "rate", "repetition")]
    doses = steered.groupby(["latent", "alpha"])["dose"].agg(["min", "max"])
    np.testing.assert_allclose(doses["min"], doses["max"], rtol=1e-5)
    nothing = frame[(frame["arm"] == "unsteered") & (frame["model"] == "chat") & (frame["measure"] == "kl")]
    assert abs(nothing["value"].iloc[0]) < 1e-6
    assert (frame["low"] <= frame["value"] + 1e-12).all() and (frame["value"] <= frame["high"] + 1e-12).all()
    texts = read_texts(out.with_suffix(".texts.parquet"))
    assert len(texts) == len(runs) * 4 and texts["prompt"].str.startswith("w").all()


def logits_of(model, ids, added, where):
    """Logits with `added` at the first `where` positions, by a plain hook."""

    def hook(module, inputs, output):
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        stream[:, :where] += added
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handle = model.model.model.layers[LAYER].register_forward_hook(hook)
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    handle.remove()
    return logits


def replaced(ids):
    return [REPLACEMENTS.get(i, i) for i in ids]


@pytest.mark.parametrize("arm", ["steered", "sign_flip", "base_model"])
@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_measures_are_those_of_plain_hooks(made, models, crosscoder, table, conversations, arm, positions) -> None:
    frame, _, facts = made
    latent, alpha = int(table.first(1)["latent"].iloc[0]), 2.0
    base, chat = models
    added = alpha * steering_vector(crosscoder, table, latent) * (-1 if arm == "sign_flip" else 1)
    answering = base if arm == "base_model" else chat
    fed = replaced if arm == "base_model" else list
    kl, shift, loss, repeated, n, tokens, grams, nine = 0.0, 0.0, 0.0, 0, 0, 0, 0, 0
    norm = chat.model.model.norm
    scale = 1 + norm.weight if hasattr(norm, "weight") else 1
    top = (chat.model.lm_head.weight @ (scale * crosscoder.decoder_weight[latent, 1])).topk(15).indices
    for document in facts["requests"]:
        prompt = conversations.token_id[conversations.document(document)][:7].astype(np.int64)
        plain = answer(chat, [prompt], STOP, 6, 1)[0]
        whole = [*prompt.tolist(), *plain]
        at = slice(6, len(whole) - 1)
        where = 7 if positions == "prompt" else len(whole)
        p = logits_of(chat, whole, 0, 0)[at].log_softmax(-1)
        before = logits_of(answering, fed(whole), 0, 0)[at]
        after = logits_of(answering, fed(whole), added, where)[at]
        kl += float((p.exp() * (p - after.log_softmax(-1))).sum())
        moved = after - before
        shift += float((moved[:, top].mean(1) - moved.mean(1)).sum())
        n += len(p)
        said = answer(answering, [np.array(fed(prompt.tolist()))], STOP, 6, 1, added[None], positions)[0]
        own = logits_of(chat, [*prompt.tolist(), *said], 0, 0)[6:-1].log_softmax(-1)
        loss -= float(own[torch.arange(len(said)), torch.tensor(said)].sum())
        tokens += len(said)
        found = [tuple(said[i : i + 3]) for i in range(len(said) - 2)]
        repeated, grams = repeated + len(found) - len(set(found)), grams + len(found)
        nine += 9 in said
    rows = frame[(frame["latent"] == latent) & (frame["arm"] == arm) & (frame["alpha"] == alpha)]
    rows = rows[rows["positions"] == positions].set_index(["measure", "kind"])["value"]
    assert rows["kl", ""] == pytest.approx(kl / n, rel=1e-3) and kl > 0
    assert rows["logit_shift", ""] == pytest.approx(shift / n, rel=1e-3, abs=1e-4)
    assert rows["nll", ""] == pytest.approx(loss / tokens, rel=1e-4)
    assert rows["repetition", ""] == pytest.approx(repeated / grams)
    assert rows["rate", "nine"] == nine / 4 and rows["rate", "never"] == 0


def test_ablation_is_that_of_a_plain_hook(made, models, crosscoder, table, conversations) -> None:
    frame, _, facts = made
    base, chat = models
    latent = int(table.first(1)["latent"].iloc[0])
    others = [i for i in range(20) if i not in facts["requests"]]
    sums, counts, fired, norms = {"firing": 0.0, "elsewhere": 0.0}, {"firing": 0, "elsewhere": 0}, 0, []
    values = {}
    for document in others:
        ids = conversations.token_id[conversations.document(document)].tolist()
        with torch.no_grad():
            h = [
                model.model(input_ids=torch.tensor([read]), output_hidden_states=True).hidden_states[LAYER + 1][0]
                for model, read in ((base, replaced(ids)), (chat, ids))
            ]
        pair = torch.stack(h, 1)
        norms.append(pair[1:].norm(dim=2))
        f = crosscoder.encode(pair).to_dense(F)[:, latent]
        f[0] = 0  # BOS
        p = logits_of(chat, ids, 0, 0).log_softmax(-1)
        q = logits_of(chat, ids, -f[:, None] * crosscoder.decoder_weight[latent, 1], 14).log_softmax(-1)
        values[document] = f, (p.exp() * (p - q)).sum(-1)
    firing = [document for document in others if values[document][0].any()]
    rows = frame[(frame["latent"] == latent) & (frame["arm"] == "ablation")].set_index("positions")
    fired = int(rows["n"].iloc[0])
    assert fired == min(4, len(firing)) > 0
    shuffled = np.random.default_rng(SETTINGS.seed).permutation(20)[4:]
    for document in [i for i in shuffled if i in firing][:4]:
        f, kl = values[document]
        for name, at in (("firing", f > 0), ("elsewhere", (f == 0) & (torch.arange(14) > 0))):
            sums[name] += float(kl[at].sum())
            counts[name] += int(at.sum())
    for name in sums:
        assert rows.loc[name, "value"] == pytest.approx(sums[name] / counts[name], rel=1e-3)
    assert sums["firing"] / counts["firing"] > sums["elsewhere"] / counts["elsewhere"]
    mean = torch.cat(norms).mean(0)
    assert [facts["mean_norm"][name] for name in ("base", "chat")] == pytest.approx(mean.tolist(), rel=1e-4)
    share = frame[(frame["arm"] == "steered")].iloc[0]
    assert share["dose_share"] == pytest.approx(share["dose"] / float(mean[1]), rel=1e-4)


def test_repeated_grams_and_intervals() -> None:
    assert repeated_grams([1, 2, 3, 1, 2, 3, 1]) == (2, 5)  # 123 and 231 twice, 312 once
    assert repeated_grams([1, 2]) == (0, 0)
    one = Sums(np.array([1.0, 4.0]), np.array([1.0, 3.0])).interval(200, 0)
    assert one["value"] == 5 / 4 and 1 <= one["low"] <= one["high"] <= 4 / 3
    found = steering.rate(["a"] * 9 + [""], "a")
    z, p = norm.ppf(0.975), 0.9
    middle, half = p + z**2 / 20, z * math.sqrt(p * (1 - p) / 10 + z**2 / 400)
    ends = [(middle + sign * half) / (1 + z**2 / 10) for sign in (-1, 1)]
    assert (found["low"], found["high"]) == pytest.approx(ends) and found["value"] == 0.9


def test_a_latent_is_of_the_kind_of_answer_it_fires_in() -> None:
    kinds = ["joke"] * 6 + ["refusal"] * 6 + ["rare"] * 2 + [""] * 10
    said = np.array(kinds)
    joke, nothing, rare = (Chosen("l1", i, i + 1) for i in range(3))
    values = {
        joke: np.where(said == "joke", 2.0, 0.0) + np.where(said == "refusal", 0.5, 0),
        nothing: np.ones(len(kinds)),
        rare: np.where(said == "rare", 1.0, 0.0),
    }
    own = own_kinds(values, kinds)
    assert own[joke] == ("joke", 1.0)
    assert own[nothing][0] == own[rare][0] == ""  # no AUROC, and too few answers of a kind


def test_latents_with_a_kind_of_their_own_are_steered_first(table) -> None:
    order = table.first(20)["latent"].tolist()
    table.frame["chat_specific"] = table.frame["latent"].isin(order[:6])
    assert [each.latent for each in ranked({"l1": table}, 2, False)] == order[:2]
    found = ranked({"l1": table, "topk": table}, 2, True)
    assert [each.latent for each in found] == order[:6] * 2 and [each.place for each in found] == [1, 2, 3, 4, 5, 6] * 2
    own = {each: ("joke" if each.crosscoder == "l1" and each.place in (3, 5) else "", 1.0) for each in found}
    assert [(e.crosscoder, e.place) for e in preferred(found, own, 3)] == [
        *(("l1", place) for place in (1, 3, 5)),
        *(("topk", place) for place in (1, 2, 3)),
    ]
    table.frame["chat_specific"] = False


def test_prompts_of_the_base_model_have_its_replacements(models) -> None:
    bench = Bench({"base": models[0], "chat": models[1]}, [np.array([2, 5, 7])], STOP, REPLACEMENTS, SETTINGS, "cpu")
    assert bench.fed("base", torch.tensor([2, 5, 7])).tolist() == [2, 6, 8]
    assert bench.fed("chat", torch.tensor([2, 5, 7])).tolist() == [2, 5, 7]


def rates(**changes):
    """A table of one latent whose own rates are given per arm, and the ends 0.1 around them."""
    values = {"unsteered": 0.1, "steered": 0.9, "sign_flip": 0.0, "base_row": 0.3, "shared": 0.1, "random": 0.2}
    frame = steering_table()
    frame = frame[(frame["crosscoder"].isin(["", LABELS[0]])) & frame["latent"].isin([-1, 11]) & (frame["draw"] == 0)]
    frame = frame[frame["measure"].isin(["kl", "rate"]) & (frame["kind"] != "refusal") & (frame["model"] == "chat")]
    frame = frame[(frame["arm"] == "unsteered") | ((frame["alpha"] == 0.25) & (frame["positions"] == "all"))]
    value = frame["arm"].map(values | changes)
    return frame.assign(value=value, low=value - 0.1, high=value + 0.1)


def test_a_rate_moves_where_its_interval_is_beyond_every_control() -> None:
    (row,) = verdicts(rates()).to_dict("records")
    assert (row["moves"], row["kind"], row["rate"], row["unsteered"]) == ("raises", "joke", 0.9, 0.1)
    assert (row["control_low"], row["control_high"]) == pytest.approx((-0.1, 0.4))
    assert (row["kl"], row["kl_random"]) == (0.9, 0.2)
    assert verdicts(rates(base_row=0.75))["moves"].tolist() == [""]
    assert verdicts(rates(unsteered=0.8))["moves"].tolist() == [""]
    many = dict.fromkeys(("unsteered", "sign_flip", "base_row", "shared", "random"), 0.5)
    assert verdicts(rates(steered=0.2, **many))["moves"].tolist() == ["lowers"]
    without = rates()
    without["own"] = False
    assert verdicts(without)[["kind", "moves"]].to_numpy().tolist() == [["", ""]]


def test_other_columns_are_refused() -> None:
    frame = rates()
    with pytest.raises(TunediffError, match="x: column 'dose' missing; delete it"):
        checked(frame.drop(columns="dose"), COLUMNS, "x")
    with pytest.raises(TunediffError, match="column 'more' is not of a table of steering"):
        checked(frame.assign(more=1), COLUMNS, "x")
    with pytest.raises(TunediffError, match="column 'place' is int64 instead of int32"):
        checked(frame.assign(place=frame["place"].astype("int64")), COLUMNS, "x")
    assert not set(TEXTS) - set(COLUMNS) - {"request", "prompt", "unsteered", "steered"}
