"""Explanations and their scores on a dictionary of which all is known: what leaks, what flatters, what is counted."""

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from explanation_fixtures import CONTEXT, EXAMPLES, SETTINGS, TOKENS, Known, known
from tunediff.errors import TunediffError
from tunediff.explanations import calls, lexical, scores
from tunediff.explanations.asking import Reply, Request
from tunediff.explanations.contexts import BANDS, EXPLAIN, PER_BAND, SCORE, fires
from tunediff.explanations.controls import directions
from tunediff.explanations.explain import matched
from tunediff.explanations.prompts import (
    explain_request,
    judge_request,
    marked,
    read_explanation,
    read_judgement,
)
from tunediff.explanations.scores import OVERALL, PER_LATENT, build_scores
from tunediff.explanations.tables import Explanations, read_judgements

Answer = Callable[[Request], str | None]


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """A dictionary whose latents fire on one token each."""
    return known(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def made(dictionary: Known) -> Explanations:
    """Its explanations, with those of a language model that names the marked tokens, judged by none yet."""
    return dictionary.explain("made", "oracle", asking(oracle))


def reply(text: str | None, tokens: Any = None) -> Reply:
    return Reply(text, "stop", tokens, 100, 10, refused=text is None)


def asking(answer: Answer, seen: list[Request] | None = None) -> Callable[[Sequence[Request]], Mapping[str, Reply]]:
    """Return what answers all requests by a function."""

    def answered(requests: Sequence[Request]) -> dict[str, Reply]:
        if seen is not None:
            seen.extend(requests)
        return {request.digest: reply(answer(request)) for request in requests}

    return answered


def shown(request: Request) -> tuple[str, list[str]]:
    """Return the explanation and the texts that a judge is shown."""
    head, _, body = request.messages[1][1].partition("\n\nTexts:\n")
    return head.removeprefix("Description: "), [line.partition(". ")[2] for line in body.split("\n")]


def oracle(request: Request) -> str:
    """Explain by the tokens that are marked; judge 1 exactly where a window holds a quoted token."""
    text = request.messages[1][1]
    if not text.startswith("Description"):
        inside = re.findall(r" ?w\d+", " ".join(re.findall("«([^»]*)»", text)))
        (common, _), *_ = Counter(token.strip() for token in inside).most_common(1)
        return json.dumps({"explanation": f'fires on " {common}"'})
    explanation, windows = shown(request)
    quoted = re.findall('"( [^"]*)"', explanation)
    return json.dumps([int(any(f"{token} " in f"{window} " for token in quoted)) for window in windows])


def scored(dictionary: Known, explanations: Explanations, judgements: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Return the scores per latent."""
    tables = {"d": dictionary.table}
    return build_scores({"d": explanations}, {"d": judgements}, tables, out / "scores.parquet", key="k")[0]


def of(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Return the rows with these values."""
    return frame[np.logical_and.reduce([frame[name] == value for name, value in wanted.items()])]


# -- windows and rules ---------------------------------------------------------------------------------------------


def test_what_explains_and_what_scores_share_no_document(made: Explanations) -> None:
    for _, own in made.windows.groupby(["group", "latent"]):
        explain, score = (own[own["use"] == use] for use in (EXPLAIN, SCORE))
        assert not set(explain["document"]) & set(score["document"])
        assert len(explain) and sorted(score["number"]) == list(range(len(score)))
        assert (score[score["band"].isin(BANDS)].groupby("band").size() <= PER_BAND).all()
        assert not fires(score[score["band"] == "inactive"]).any()
    assert (of(made.windows, group="listed", use=EXPLAIN)["band"] == "low").sum() > 20  # not of the strongest alone


def test_windows_of_silence_never_fire(dictionary: Known, made: Explanations) -> None:
    latents = made.windows[made.windows["group"] == "listed"]
    for row in latents.itertuples():
        dense = dictionary.dense[row.start : row.start + len(row.activation), row.latent]
        np.testing.assert_allclose(dense, row.activation, atol=1e-5)
        assert dense.any() == (row.band not in ("inactive", "inactive_hard"))


def test_a_rule_is_the_token_that_a_latent_fires_on(dictionary: Known, made: Explanations, tmp_path: Path) -> None:
    rules = of(made.rows, group="listed", explainer="lexical").set_index("latent")["rule"].map(json.loads)
    for latent, token in enumerate(TOKENS[:-1]):
        ((kind, own, _, weight),) = rules[latent]["clauses"]
        assert (kind, own) == ("token", token) and 0.5 < weight < 0.8
    assert set(of(made.rows, explainer="label")["text"]) == {"ten"}
    frame = scored(dictionary, made, dictionary.judge(made), tmp_path)
    own = of(frame, group="listed", explainer="lexical", judge="rule", status="scored")
    assert len(own) == len(TOKENS) - 1
    assert (own["balanced_accuracy"] == 1).all() and (own["auroc"] == 1).all()
    other = of(frame, explainer="lexical of another", judge="rule", status="scored")["balanced_accuracy"]
    assert len(other) >= 3 and abs(other.mean() - 0.5) < 0.12  # chance
    assert (of(frame, explainer="generic", status="scored")["balanced_accuracy"] == 0.5).all()
    random = of(frame, group="random", explainer="lexical", status="scored")["balanced_accuracy"]
    assert random.max() < 0.95


def test_latents_that_cannot_be_scored_have_rows_that_say_why(
    dictionary: Known, made: Explanations, tmp_path: Path
) -> None:
    frame = scored(dictionary, made, dictionary.judge(made, "oracle", asking(oracle)), tmp_path)
    rare = of(frame, group="listed", latent=TOKENS.index(39))
    assert {("lexical", "rule"), ("llm", "llm")} <= set(zip(rare["explainer"], rare["judge"], strict=True))
    assert (rare["status"] == "1 windows to explain from, 5 needed").all()
    assert rare["balanced_accuracy"].isna().all()


def test_clauses_are_found_with_their_neighbours_and_roles_inside_a_window_only() -> None:
    window = np.array([0, 0, 0, 1, 1])
    token, mask = np.array([5, 6, 7, 5, 7]), np.array([0, 4, 8, 2, 2], dtype=np.uint8)
    spans = lexical.Spans(window, token, mask, np.zeros(5, dtype=np.uint64), 2)
    found = lambda *clause: lexical.applied([lexical.Clause(*clause, 0.4)], spans).tolist()  # noqa: E731
    assert found("token", 5, 0) == [0.7, 0.7]
    assert found("after", 6, 5) == [0.7, 0] and found("after", 5, 7) == [0, 0]  # 7 | 5 are of two windows
    assert found("before", 5, 7) == [0, 0.7] and found("before", 7, 5) == [0, 0]
    assert found("role", 7, 2) == [0.7, 0] and found("role", 7, 0) == [0, 0.7]
    assert lexical.Clause("before", 5, 7, 1.0).text(lambda i: f"<{i}>") == '"<5>" before "<7>"'
    assert lexical.Clause("role", 5, 1, 1.0).text(str) == '"5" in an answer'


def test_random_directions_fire_as_often_as_asked() -> None:
    import torch

    x = torch.randn(4000, 2, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 1, 1, 1, 50.0]) + 3
    frequency = np.array([0.5, 0.1, 0.01])
    for equal in (True, False):
        made = directions(x, frequency, equal, 1)
        rate = (made.encode(x).to_dense(3) > 0).float().mean(0).numpy()
        np.testing.assert_allclose(rate, frequency, atol=0.001)
    weight = directions(x, frequency, True, 1).encoder_weight * x.std(0)
    assert weight[..., 5].abs().mean() < 3  # the large dimension does not decide


def test_another_latent_is_that_of_the_nearest_frequency() -> None:
    assert matched([3, 5, 9], {3: 0.1, 5: 0.11, 9: 0.5}) == {3: 5, 5: 3, 9: 5}
    assert matched([3], {3: 0.1}) == {}


# -- a language model ----------------------------------------------------------------------------------------------


def test_an_oracle_scores_one_on_its_own_explanations_and_chance_on_others(
    dictionary: Known, made: Explanations, tmp_path: Path
) -> None:
    asked: list[Request] = []
    frame = scored(dictionary, made, dictionary.judge(made, "oracle", asking(oracle, asked)), tmp_path)
    own = of(frame, group="listed", explainer="llm", judge="llm", status="scored")
    assert len(own) == len(TOKENS) - 1 and (own["balanced_accuracy"] == 1).all() and (own["order_effect"] == 0).all()
    other = of(frame, explainer="llm of another", judge="llm", status="scored")["balanced_accuracy"]
    assert len(other) >= 3 and abs(other.mean() - 0.5) < 0.12
    lexical_too = of(frame, group="listed", explainer="lexical", judge="llm", status="scored")["balanced_accuracy"]
    assert (lexical_too == 1).all()
    generic = of(frame, explainer="generic", judge="llm", status="scored")["balanced_accuracy"]
    assert (generic == 0.5).all()
    # every window in both orders, five at a time, the second order rotated by two
    first, second = (shown(request)[1] for request in asked[:2])
    assert len(first) == 5 and second == first[2:] + first[:2]
    assert all(request.parameters["temperature"] == 0 and "top_p" in request.parameters for request in asked)


def test_the_effect_of_the_order_is_measured(dictionary: Known, made: Explanations, tmp_path: Path) -> None:
    def first_alone(request: Request) -> str:
        return json.dumps([1] + [0] * (len(shown(request)[1]) - 1))

    judged = dictionary.judge(made, "biased", asking(first_alone))
    own = of(judged, group="listed", latent=1, explainer="llm", judge="llm")
    assert (own["p"] == (own["slot"] == 0)).all()
    wide = own.pivot(index="number", columns="rotation", values="p")
    row = of(scored(dictionary, made, judged, tmp_path), group="listed", latent=1, explainer="llm", judge="llm")
    assert row["order_effect"].item() == pytest.approx((wide[0] - wide[1]).abs().mean()) and wide[0].sum() > 0


def test_replies_that_cannot_be_read_are_counted_and_not_guessed(
    dictionary: Known, made: Explanations, tmp_path: Path
) -> None:
    bad = ["Sure! [1,0,1,0,0]", "[1,0]", "[1,0,2,0,0]", "[true,false,true,false,true]", '{"a": 1}', "", None]
    turn = iter(range(10**6))

    def half(request: Request) -> str | None:
        number = next(turn)
        return oracle(request) if number % 2 else bad[number // 2 % len(bad)]

    judged = dictionary.judge(made, "half", asking(half))
    own = of(judged, judge="llm")
    assert set(own["status"]) == {"ok", "unreadable reply", "refused"}
    assert own["p"].isna().equals(own["status"] != "ok")
    path = made.path.parent / "judgements/d.json"
    counts = json.loads(path.read_text())["facts"]["judged_by_model"]
    assert counts == own["status"].value_counts().to_dict()
    frame = scored(dictionary, made, judged, tmp_path)
    row = of(frame, group="listed", latent=1, explainer="llm", judge="llm").iloc[0]
    seen = of(own, group="listed", latent=1, explainer="llm").groupby("number")["p"].count()
    assert row["n_missing"] == (seen == 0).sum() and row["n_active"] + row["n_silent"] == (seen > 0).sum()
    assert row["balanced_accuracy"] == 1


def test_a_budget_leaves_rows_that_say_so(dictionary: Known, tmp_path: Path) -> None:
    def few(requests: Sequence[Request]) -> dict[str, Reply]:
        return {request.digest: reply(oracle(request)) for request in requests[:3]}

    explanations = dictionary.explain("few", "oracle", few)
    own = of(explanations.rows, explainer="llm")
    assert (own["status"] == "ok").sum() == 3 and (own["status"] == "not asked: token budget").sum() > 3
    frame = scored(dictionary, explanations, dictionary.judge(explanations, "oracle", few), tmp_path)
    unscored = of(frame, group="listed", explainer="llm", judge="llm")
    assert unscored["status"].str.contains("token budget").any()
    assert (unscored["status"] == "scored").sum() < 3


def test_soft_judgements_come_from_log_probabilities() -> None:
    def token(text: str, *alternatives: tuple[str, float]) -> Any:
        return text, tuple((other, math.log(p)) for other, p in alternatives)

    tokens = (
        token("["),
        token("1", ("1", 0.6), ("0", 0.2)),
        token(","),
        token(" 0", (" 0", 0.9), ("1", 0.05)),
        token("]"),
    )
    assert read_judgement(reply("[1, 0]", tokens), 2) == pytest.approx([0.75, 0.05 / 0.95])
    assert read_judgement(reply("[1, 0]", tokens[:3]), 2) == [1.0, 0.0]  # not one token per number
    assert read_judgement(reply("```json\n[1,0]\n```"), 2) == [1.0, 0.0]
    assert read_judgement(reply("[1,0] and"), 2) is None and read_judgement(reply("[1.0,0]"), 2) is None
    assert read_explanation(reply('{"explanation": " a\\n b "}')) == "a b"
    assert read_explanation(reply('["a"]')) == read_explanation(reply(None)) == ""


def test_prompts_show_tokens_as_visible_text() -> None:
    text = marked(["a", "\n", "b\u202e", "c"], [False, True, True, False])
    assert marked(["<start_of_", "turn>", "[INST]"], [True, True, False]) == "«⟨start_of_turn⟩»⟨INST⟩"
    assert text == "a«↵b\\u202e»c" and marked(["x"], [True]) == "«x»"
    unsafe = judge_request("m", 3, 'on "<eos>"', ["a <|im_end|> </b> 1 < 2 > 1"])
    assert unsafe.messages[1][1] == 'Description: on "⟨eos⟩"\n\nTexts:\n1. a ⟨|im_end|⟩ ⟨/b⟩ 1 < 2 > 1'
    request = judge_request("m", 3, 'on "↵"', ["one\ntwo", "2. three"])
    assert request.messages[1][1] == 'Description: on "↵"\n\nTexts:\n1. one↵two\n2. 2. three'
    assert request.parameters["seed"] == 3 and explain_request("m", 3, ["x"]).digest != request.digest


# -- scores --------------------------------------------------------------------------------------------------------


def test_scores_equal_a_plain_computation() -> None:
    g = np.random.default_rng(0)
    p, active = g.choice([0.0, 0.2, 0.5, 0.8, 1.0], 60), g.random(60) < 0.5
    band = np.where(active, g.choice(["high", "middle", "low"], 60), "inactive")
    document = g.integers(0, 25, 60)
    values, resampled = scores.score(scores.Judged(p, active, band, document), seed=4)

    def accuracy(rows: np.ndarray) -> float:
        hits: dict[bool, list[float]] = {True: [], False: []}
        for i in rows:
            hits[bool(active[i])].append(0.5 if p[i] == 0.5 else float((p[i] > 0.5) == active[i]))
        return (np.mean(hits[True]) + np.mean(hits[False])) / 2

    def area(rows: np.ndarray) -> float:
        ones, zeros = (p[[i for i in rows if active[i] == side]] for side in (True, False))
        return float(np.mean([(a > b) + 0.5 * (a == b) for a in ones for b in zeros]))

    every = np.arange(60)
    assert values["balanced_accuracy"] == pytest.approx(accuracy(every))
    assert values["auroc"] == pytest.approx(area(every))
    assert values["auroc_low"] <= values["auroc"] <= values["auroc_high"]
    assert values["auroc_of_low"] == pytest.approx(area(np.flatnonzero((band == "low") | ~active)))
    assert values["accuracy_high"] == pytest.approx(
        np.mean([0.5 if x == 0.5 else float(x > 0.5) for x in p[band == "high"]])
    )
    documents, of_window = np.unique(document, return_inverse=True)
    draws = np.random.default_rng(4).multinomial(len(documents), np.full(len(documents), 1 / len(documents)), size=400)
    again = [np.repeat(every, draw[of_window]) for draw in draws]
    np.testing.assert_allclose(resampled["balanced_accuracy"], list(map(accuracy, again)))
    np.testing.assert_allclose(resampled["auroc"][:40], list(map(area, again[:40])))
    low, high = np.quantile(list(map(accuracy, again)), [0.025, 0.975])
    assert (values["balanced_accuracy_low"], values["balanced_accuracy_high"]) == pytest.approx((low, high))


def rows_of(groups: Mapping[str, Sequence[float]], frequency: Sequence[float]) -> tuple[pd.DataFrame, dict[int, Any]]:
    rows, resampled = [], {}
    for name, values in groups.items():
        for i, value in enumerate(values):
            said = {"dictionary": name, "group": "ranked", "latent": i, "explainer": "lexical", "judge": "rule"}
            said |= {"status": "scored", "rank_sum": float(i), "frequency": frequency[i], "balanced_accuracy": value}
            said |= {"auroc": value, "accuracy_high": value, "of": i, "text": ""}
            resampled[len(rows)] = {"balanced_accuracy": np.full(400, value), "auroc": np.full(400, value)}
            rows.append(said)
    counts = {name: 0 for name in ("n_active", "n_silent", "n_missing")}
    return pd.DataFrame(rows, columns=list(PER_LATENT)).fillna(counts).astype(PER_LATENT), resampled


def test_means_are_over_latents_by_fifths_and_between_dictionaries_within_frequencies() -> None:
    frequency = [0.01] * 5 + [0.1] * 5
    a, b = [0.6, 0.7, 0.8, 0.9, 1.0] * 2, [0.5] * 5 + [0.8] * 5
    means = scores.overall(*rows_of({"a": a, "b": b}, frequency), seed=0)
    assert list(means) == list(OVERALL)
    own = of(means, dictionary="a", measure="balanced_accuracy").set_index("group")
    assert own.loc["ranked", "value"] == pytest.approx(0.8) and own.loc["ranked", "latents"] == 10
    assert own.loc["ranked 1", "value"] == pytest.approx(0.65) and own.loc["ranked 5", "latents"] == 2
    assert own.loc["ranked", "low"] < 0.8 < own.loc["ranked", "high"]
    difference = of(means, dictionary="a − b").iloc[0]
    assert difference["value"] == pytest.approx(0.15) and difference["latents"] == 10
    assert difference["low"] < 0.15 < difference["high"]


# -- what is on disk, and what it costs ----------------------------------------------------------------------------


def test_tables_are_checked(dictionary: Known, made: Explanations, tmp_path: Path) -> None:
    dictionary.judge(made)
    judged = made.path.parent / "judgements/d.parquet"
    assert len(read_judgements(judged, key="k")) > 100
    with pytest.raises(TunediffError, match="made by other inputs"):
        Explanations.open(made.path, key="other")
    copy = tmp_path / "d"
    copy.mkdir()
    for name in ("windows", "explanations"):
        (copy / f"{name}.parquet").write_bytes((made.path / f"{name}.parquet").read_bytes())
    copy.with_suffix(".json").write_text(made.path.with_suffix(".json").read_text())
    assert len(Explanations.open(copy).rows) == len(made.rows)
    damaged = bytearray((copy / "windows.parquet").read_bytes())
    damaged[50] ^= 1
    (copy / "windows.parquet").write_bytes(damaged)
    with pytest.raises(TunediffError, match=r"windows\.parquet"):
        Explanations.open(copy)
    with pytest.raises(TunediffError, match=r"explanations\.only\.d: no latent 99"):
        dictionary.explain("bad", settings=replace(SETTINGS, only={"d": [99]}))


class Counting:
    """Counts a prompt by its characters."""

    model = "oracle"

    def count_tokens(self, request: Request) -> int:
        return sum(len(text) for _, text in request.messages) // 4


def test_the_dry_run_is_within_5_per_cent_of_what_is_used(dictionary: Known) -> None:
    asker: Any = Counting()
    used = {"explanations": [0, 0, 0], "judgements": [0, 0, 0]}

    def answering(stage: str) -> Any:
        def answered(requests: Sequence[Request]) -> dict[str, Reply]:
            found = {}
            for request in {request.digest: request for request in requests}.values():
                text = oracle(request)
                if stage == "explanations":
                    text = json.dumps(
                        {
                            "explanation": json.loads(text)["explanation"]
                            + ", most often at the end of a list of names that somebody asks for"
                        }
                    )
                size = 42 if stage == "explanations" else 11
                found[request.digest] = Reply(text, "stop", None, asker.count_tokens(request), size, refused=False)
                used[stage] = [a + b for a, b in zip(used[stage], (1, asker.count_tokens(request), size), strict=True)]
            return found

        return answered

    before = dictionary.explain("dry")
    windows = before.windows[before.windows["use"] == EXPLAIN].groupby(["group", "latent"], sort=False)
    requests = [calls.request_for(part, dictionary.reader, "oracle", 5) for _, part in windows]
    planned = [calls.cost("explanations", "d", requests, asker, {})]
    expected = calls.with_expected(before, before.facts["controls"])
    judged = [call.request for call in calls.calls(expected, dictionary.reader, "oracle", 5)]
    planned.append(calls.cost("judgements", "d", judged, asker, {}))

    after = dictionary.explain("wet", "oracle", answering("explanations"))
    dictionary.judge(after, "oracle", answering("judgements"))
    for cost in planned:
        count, read, written = used[cost.stage]
        assert cost.requests == count or abs(cost.requests / count - 1) < 0.05
        assert abs(cost.prompt_tokens / read - 1) < 0.05 and abs(cost.completion_tokens / written - 1) < 0.05
    text = calls.as_text(planned, {"price_input": 1.0, "price_output": 2.0})
    whole = sum(cost.prompt_tokens + 2 * cost.completion_tokens for cost in planned) / 1e6
    assert f"price {whole:.2f}" in text and len(text.splitlines()) == 5

    kept = {
        request.digest: Reply("x", "stop", None, 2 * asker.count_tokens(request), 7, False) for request in requests[:6]
    }
    rest = calls.cost("explanations", "d", requests, asker, kept)
    assert rest.kept == 6 and rest.completion_tokens == 7 * (rest.requests - 6)
    counted = sum(map(asker.count_tokens, requests[6:]))
    assert rest.prompt_tokens == pytest.approx(2 * counted, abs=1)


class Finished:
    """Results with the explanations of one dictionary."""

    def __init__(self, known: Known, explanations: Explanations, path: Path) -> None:
        self.known, self.explanations, self.path, self.dictionaries = known, explanations, path, ["d"]
        self.tokenizer = copy.copy(known.tokenizer)
        self.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"

    def tokens(self, split: str) -> Any:
        return self.known.tokens[split]

    def read(self, role: str, name: str) -> Explanations:
        assert (role, name) == ("explanations", "d")
        return self.explanations


def test_the_dry_run_of_a_config_asks_nothing(
    dictionary: Known, made: Explanations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "Results", lambda path: Finished(dictionary, made, path))
    own = {name: getattr(SETTINGS, name) for name in ("latents", "shared", "only", "controls", "max_tokens_total")}
    model = {"from": "endpoint", "url": "http://localhost:1/v1", "model": "oracle", "key_variable": "NOT_THERE"}

    def planned(**changed: Any) -> list[calls.Cost]:
        explanations = {**own, "model": model, **changed}
        config = {"results": str(tmp_path), "explanations": explanations, "seed": 5, "models": {"device": "cpu"}}
        return calls.planned({**config, "examples": {"context": CONTEXT}})

    with pytest.raises(TunediffError, match="nothing there; first run"):
        planned()
    (tmp_path / "explanations/d").mkdir(parents=True)
    explain, judge = planned()
    assert (explain.stage, judge.stage) == ("explanations", "judgements") and explain.kept == judge.kept == 0
    windows = made.windows[made.windows["use"] == EXPLAIN]
    assert explain.requests == len(windows.groupby(["group", "latent"])) and judge.prompt_tokens > 1000
    assert judge.requests == len({call.request.digest for call in calls.calls(made, dictionary.reader, "oracle", 5)})
    with pytest.raises(TunediffError, match="model: is null"):
        planned(model=None)
    with pytest.raises(TunediffError, match=r"controls: is 9, .* made with 4"):
        planned(controls=9)
    with pytest.raises(TunediffError, match=r"only\.d: other latents"):
        planned(only={"d": [1]})


def test_a_window_is_cut_at_its_document(made: Explanations) -> None:
    sizes = made.windows["activation"].map(len)
    assert sizes.max() == 2 * CONTEXT + 1 and sizes.min() < sizes.max() and EXAMPLES.context == CONTEXT
