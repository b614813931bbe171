"""The report holds what the tables and examples say, is bounded in size, and says in words what a run has not."""

import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import figure_tables
import report_fixtures
from report_fixtures import EXPLAINED, HOSTILE, LEXICAL, SAID, SENTENCE, SHOWN, built, decode, run_with_examples
from tunediff.explained import PARTS
from tunediff.explanations.tables import Explanations
from tunediff.interventions.steering_table import verdicts
from tunediff.report.html import latents as of_latents
from tunediff.report.html.build import build_report, raised
from tunediff.report.html.corpus import SHARD, Corpus
from tunediff.report.html.explanations import LONGEST, WRONG, shortened
from tunediff.report.html.latents import BANDS, DETAILS, FLAGS, Detail
from tunediff.report.html.shards import Shards, column, decoded, encoded, read_shard, rounded
from tunediff.report.html.text import Pieces, labels, shown

NAME = figure_tables.LABELS[0]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def examples(report: Path):
    return run_with_examples(report.parent / "again").examples[NAME]


def value(report: Path, key: str):
    name, found = read_shard(report / "data" / f"{key}.js")
    assert name == key
    return found


# -- shards ------------------------------------------------------------------------------------------------------------


def test_a_shard_holds_no_character_of_a_corpus_as_itself(report: Path) -> None:
    for path in (report / "data").rglob("*.js"):
        assert re.fullmatch(r'tunediff\.data\("[\w/-]+","[A-Za-z0-9+/=]*"\)', path.read_text())
    text = (report / "index.html").read_text()
    assert all(each not in text for each in HOSTILE[:4])


def test_values_come_back() -> None:
    written = {"a": [1, None, 0.25], "</script>": ["\u2028", "é"]}
    assert decoded(encoded(written)) == written
    with pytest.raises(ValueError):
        encoded([float("nan")])


@pytest.mark.parametrize(
    ("number", "short"), [(1234.56, 1230), (0.0012345, 0.00123), (-9.996, -10), (0, 0), (5e-9, 5e-9)]
)
def test_numbers_are_rounded_to_three_digits(number: float, short: float) -> None:
    assert rounded([number]).tolist() == [pytest.approx(short, rel=1e-12)]
    assert len(json.dumps(rounded([number]).tolist()[0])) <= 8
    assert column(np.array([number, np.nan])) == [pytest.approx(short, rel=1e-12), None]


# -- texts -------------------------------------------------------------------------------------------------------------


def test_what_would_not_be_seen_is_shown() -> None:
    assert tuple(map(shown, HOSTILE)) == SHOWN
    assert shown("a\nb\u202e", lines=True) == "a\nb\\u202e"


def test_a_latent_is_named_by_what_tells_most() -> None:
    rows = [  # share · log(lift): .5 · log 2 = .35, .3 · log 20 = .90, .01 is too rare, .2 · log 1 = 0, next is no peak
        ("peak", 1, 0.5, 2.0), ("peak", 2, 0.3, 20.0), ("peak", 3, 0.01, 1000.0), ("peak", 4, 0.2, 1.0),
        ("next", 5, 0.9, 50.0), ("peak", 6, 0.1, 3.0),
    ]  # fmt: skip
    tokens = pd.DataFrame(rows, columns=["kind", "token_id", "share", "lift"]).assign(latent=1)
    pieces = Pieces(lambda ids: [{1: " the", 2: " Sure", 6: "sure"}.get(i, "?") for i in ids])
    assert labels(tokens, pieces, 3) == ["", "Sure · the", ""]


def test_ten_lines_say_what_changed(report: Path) -> None:
    lines = (report / "headline.txt").read_text().splitlines()
    assert len(lines) == 10 and lines[0].startswith("What tuning changed, ")
    first = value(report, f"first/{NAME}")
    for place, (line, row) in enumerate(zip(lines[2:5], first, strict=False), 1):
        assert line.startswith(f"  {place}. {row['latent']} fires on {row['label']}")
        assert line.count("⟦") == line.count("⟧") == len(row["snippets"]) == 2
        assert f"(ν^r {row['nu_r']}, ν^ε {row['nu_e']}, " in line
    assert all("\u202e" not in line and "\x1b" not in line and len(line) < 320 for line in lines[2:])
    assert re.fullmatch(r"Read on: .*report/index\.html \(in a browser\)", lines[-1])


# -- tables and examples -----------------------------------------------------------------------------------------------


def test_the_table_has_every_latent(report: Path) -> None:
    frame = report_fixtures.tables(64)[NAME].frame
    found = value(report, f"table/{NAME}")
    columns = found["columns"]
    assert [found["classes"][i] for i in columns["class"]] == frame["class_name"].tolist()
    for bit, flag in enumerate(FLAGS):
        assert [bool(flags >> bit & 1) for flags in columns["flags"]] == frame[flag].tolist()
    np.testing.assert_allclose(
        np.array(columns["nu_r_low"], dtype=float), frame["nu_reconstruction_low"], rtol=0.005, atol=1e-6
    )
    first = frame[~frame["dead"]].sort_values("rank_sum", kind="stable").dropna(subset="rank_sum")["latent"]
    assert [columns["rank"][latent] for latent in first] == list(range(1, len(first) + 1))
    assert all(columns["rank"][latent] == 0 for latent in frame.index.difference(first))


def windows_of(report: Path, latent: int) -> list[dict]:
    """Return a latent's windows as the page reads them: activations put back, texts from the shards of tokens."""
    shard = value(report, f"latents/{NAME}/{latent // of_latents.BLOCK}")
    table, read = shard["windows"], cache(lambda number: value(report, f"tokens/{number}"))
    before = sum(table["count"][: latent - shard["first"]])
    fired, found = sum(table["active"][:before]), []
    text = dict(zip(*value(report, "pieces").values(), strict=True))
    for i in range(before, before + table["count"][latent - shard["first"]]):
        activation, at = [0.0] * table["length"][i], 0
        for _ in range(table["active"][i]):
            at = at + table["step"][fired] if any(activation) else table["step"][fired]
            activation[at] = table["activation"][fired]
            fired += 1
        places = range(table["start"][i], table["start"][i] + table["length"][i])
        ids = [read(place // SHARD)[place % SHARD] for place in places]
        kept = {key: table[key][i] for key in ("start", "peak", "value", "document")}
        found.append(kept | {"band": BANDS[table["band"][i]], "activation": activation, "text": [text[j] for j in ids]})
    return found


def test_windows_are_those_of_the_examples(report: Path, examples) -> None:
    run = run_with_examples(report.parent / "once more")
    for latent in run.latents[NAME].first(3)["latent"]:
        rows = examples.of("windows", int(latent))
        found = windows_of(report, int(latent))
        assert len(found) == len(rows) == 80
        for window, row in zip(found, rows.itertuples(), strict=True):
            assert (window["band"], window["start"], window["document"]) == (row.band, row.start, row.document)
            assert window["start"] + window["peak"] == row.peak
            np.testing.assert_allclose(window["activation"], row.activation, rtol=0.0051)
            ids = run.tokens.token_id[row.start : row.start + len(row.activation)].tolist()
            assert window["text"] == [SHOWN[i] if i < len(SHOWN) else f" word{i}" for i in ids]


def test_histograms_neighbours_logits_and_tokens_are_there(report: Path, examples) -> None:
    latent = int(run_with_examples(report.parent / "a third").latents[NAME].first(1)["latent"].iloc[0])
    shard = value(report, f"latents/{NAME}/0")
    for table, ours, theirs in (
        ("histogram", "tokens", "count"),
        ("neighbours", "latent", "neighbour"),
        ("logits", "token", "token_id"),
        ("tokens", "token", "token_id"),
    ):
        before = sum(shard[table]["count"][:latent])
        own = shard[table][ours][before : before + shard[table]["count"][latent]]
        assert own == examples.of(table, latent)[theirs].tolist()


def test_losses_are_of_windows_of_chat_specific_latents(tmp_path: Path) -> None:
    corpus = Corpus(SimpleNamespace(token_id=np.arange(100), n_tokens=100))
    corpus.cover(np.array([10, 50]), np.array([5, 4]), np.array([True, False]))
    losses = pd.DataFrame({"position": np.arange(100)}).assign(kl=0.5, loss_base=1.25, loss_chat=np.nan)
    written = corpus.write(Shards(tmp_path), Pieces(lambda ids: [str(i) for i in ids]), losses)
    assert written == (100, [0])
    _, found = read_shard(tmp_path / "losses/0.js")
    assert found == {"at": [10, 11, 12, 13, 14], "kl": [0.5] * 5, "base": [1.25] * 5, "chat": [None] * 5}


# -- explanations ------------------------------------------------------------------------------------------------------


def explained_of(report: Path) -> dict:
    """Return what the table says of each explained latent."""
    found = value(report, f"table/{NAME}")["explained"]
    rows = zip(*(found[key] for key in ("text", "why", "score", "low", "high")), strict=True)
    return dict(zip(found["latent"], rows, strict=True))


def test_an_explanation_stands_with_its_score_or_says_why_there_is_none(tmp_path: Path) -> None:
    run = run_with_examples(tmp_path)
    build_report(run, tmp_path / "report", decode)
    first, second, *_, last = run.latents[NAME].first(EXPLAINED)["latent"].tolist()
    scores = run.explanation_scores.set_index(["group", "latent", "explainer"])
    found, listed = explained_of(tmp_path / "report"), value(tmp_path / "report", f"first/{NAME}")
    assert len(found) == EXPLAINED and [each["explained"] is None for each in listed] == [False] * 6 + [True] * 14
    for place, latent, explainer, text in ((0, first, "llm", shown(SENTENCE)), (1, second, "lexical", shown(SAID))):
        own = scores.loc[("ranked", latent, explainer)]
        score = [own[f"balanced_accuracy{end}"] for end in ("", "_low", "_high")]
        assert found[latent][:2] == (text, "")
        np.testing.assert_allclose(found[latent][2:], score, atol=5e-5)
        assert listed[place]["explained"]["score"] == list(found[latent][2:])
        assert text.startswith(listed[place]["explained"]["text"].removesuffix(" …").removesuffix(" or …"))
    why = "2 windows to explain from, 5 needed"
    assert found[last] == ("", why, None, None, None) and listed[5]["explained"] == {"why": why}
    assert "explained" not in value(tmp_path / "report", f"table/{figure_tables.LABELS[1]}")


def test_what_explanations_score_is_told_beside_controls_and_the_yardstick(report: Path, tmp_path: Path) -> None:
    run = run_with_examples(tmp_path)
    first, second = run.latents[NAME].first(2)["latent"].tolist()
    place = sorted(explained_of(report)).index
    shard = value(report, f"explanations/{NAME}/0")
    rows = shard["rows"][place(first)]
    told = [(row["who"], row["by"], row["control"], row["best"]) for row in rows]
    assert told == [
        ("language model", "by a language model", False, True),
        ("lexical", "by its rule", False, False),
        ("lexical of another", "by its rule", True, False),
        ("generic", "by its rule", True, False),
    ]
    assert [row["of"] for row in rows] == [None, None, second, None]
    assert rows[0]["windows"][2] == 1 and rows[1]["text"] == shown(LEXICAL)
    own = run.explanation_scores.query("group == 'ranked' and latent == @first and explainer == 'lexical'").iloc[0]
    np.testing.assert_allclose(rows[1]["accuracy"], own[[f"accuracy_{part}" for part in PARTS]].tolist(), rtol=0.005)
    assert rows[1]["auroc"] == pytest.approx(own["auroc"], abs=1e-4)
    random = run.explanation_scores.query("group == 'random'")["balanced_accuracy"].mean()
    assert rows[0]["random"] is None and rows[1]["random"] == pytest.approx(random, abs=1e-4)
    refused = shard["rows"][place(second)][0]
    assert (refused["why"], refused["score"], refused["best"]) == ("refused", [None] * 3, False)
    about = value(report, "meta")["dictionaries"]
    assert f"the rules of 5 random directions score {random:.2f} in the mean" in about[NAME]["explained"]["yardstick"]
    assert about[figure_tables.LABELS[1]]["explained"] is None


@pytest.mark.parametrize("rank", [0, 1])
def test_the_strongest_mistakes_of_the_shown_explanation_are_shown(report: Path, tmp_path: Path, rank: int) -> None:
    run = run_with_examples(tmp_path)
    latent = int(run.latents[NAME].first(2)["latent"].iloc[rank])
    judge, explainer = (("llm", "llm"), ("rule", "lexical"))[rank]
    judged = run.judgements[NAME].query(f"group == 'ranked' and latent == {latent}")
    judged = judged.query(f"judge == '{judge}' and explainer == '{explainer}'")
    scored = run.explanations[NAME].scored_on["ranked", latent].set_index("number")
    wrong: dict[bool, list] = {True: [], False: []}
    for number, p in judged.groupby("number")["p"].mean().dropna().items():
        window = scored.loc[number]
        fires = window["band"] in ("high", "middle", "low")
        if p != 0.5 and (p > 0.5) != fires:
            wrong[fires].append((abs(p - fires), max(window["activation"]), -number, window["start"], p))
    strongest = {fires: sorted(rows, reverse=True)[:WRONG] for fires, rows in wrong.items()}
    assert all(len(rows) == WRONG for rows in strongest.values())

    shard = value(report, f"explanations/{NAME}/0")
    place = sorted(explained_of(report)).index(latent)
    assert shard["mistakes"][place] == [len(wrong[True]), len(wrong[False])]
    windows, before = shard["windows"], sum(shard["windows"]["count"][:place])
    own = slice(before, before + windows["count"][place])
    expected = strongest[True] + strongest[False]
    assert windows["start"][own] == [row[3] for row in expected]
    np.testing.assert_allclose(windows["p"][own], [row[4] for row in expected], atol=1e-3)
    assert [windows["source"][i] for i in range(own.start, own.stop)] == [i % 2 for i in windows["document"][own]]
    text = [value(report, f"tokens/{start // SHARD}")[start % SHARD] for start in windows["start"][own]]
    assert text == run.tokens.token_id[windows["start"][own]].tolist()


@pytest.mark.parametrize("lacking", [("explanation_scores",), ("judgements",), ("explanations", "judgements")])
def test_runs_without_explanations_have_a_report(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    build_report(run_with_examples(tmp_path, **dict.fromkeys(lacking)), tmp_path / "report", decode)
    about = value(tmp_path / "report", "meta")["dictionaries"][NAME]["explained"]
    if lacking == ("explanation_scores",):
        assert about is None and not (tmp_path / "report/data/explanations").exists()
    else:
        assert about and list(value(tmp_path / "report", f"explanations/{NAME}/0")) == ["rows"]


def test_a_dictionary_of_which_nothing_was_explained_has_no_explanations(tmp_path: Path) -> None:
    run = run_with_examples(tmp_path)
    rows = {"explanations": run.explanations[NAME], "judgements": run.judgements[NAME]}
    none = Explanations(Path("unused"), {}, rows["explanations"].windows[:0], rows["explanations"].rows[:0])
    run.explanations[figure_tables.LABELS[1]], run.judgements[figure_tables.LABELS[1]] = none, rows["judgements"][:0]
    build_report(run, tmp_path / "report", decode)
    assert value(tmp_path / "report", "meta")["dictionaries"][figure_tables.LABELS[1]]["explained"] is None


def test_texts_are_shortened_between_clauses() -> None:
    clauses = [f'" word{i}" after " the"' for i in range(9)]
    whole = " or ".join(clauses)
    assert shortened(" or ".join(clauses[:3])) == " or ".join(clauses[:3])
    assert shortened(whole) == " or ".join(clauses[:3]) + " or …" and len(shortened(whole)) <= LONGEST
    assert shortened("it fires on words " * 9).startswith("it fires on words it fires")
    assert len(shortened("x" * 200)) == LONGEST + 2


# -- size --------------------------------------------------------------------------------------------------------------


def test_fewer_windows_where_they_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_latents, "FIRST_RANKED", 2)
    run = run_with_examples(tmp_path)
    whole = build_report(run, tmp_path / "whole", decode)
    small = build_report(run, tmp_path / "small", decode, window_bytes=1)
    assert whole["detail"] == DETAILS[0]._asdict() and small["detail"] == DETAILS[-1]._asdict()
    assert small["data_bytes"] < whole["data_bytes"]
    table = run.latents[NAME]
    called = set(table.frame.index[table.frame["chat_specific"]]) | set(table.first(2)["latent"])
    counted = value(tmp_path / "small", f"latents/{NAME}/0")["windows"]["count"]
    live = np.flatnonzero(~table.frame["dead"])
    assert {counted[i] for i in called} == {80} and {counted[i] for i in set(live) - called} == {6}
    assert not value(tmp_path / "small", "meta")["whole"]


def test_a_detail_keeps_the_first_places_of_each_band() -> None:
    rows = [(band, place) for band in BANDS for place in range(4)]
    kept = Detail(3, 2, 1).keeps(pd.DataFrame(rows, columns=["band", "place"]))
    assert [sum(kept[4 * i : 4 * i + 4]) for i in range(6)] == [3, 2, 2, 2, 1, 1]


# -- words -------------------------------------------------------------------------------------------------------------


def test_counts_stand_beside_their_controls_and_nulls(report: Path) -> None:
    text = (report / "index.html").read_text()
    table = report_fixtures.tables(64)[NAME].frame
    assert f"<strong>{table['chat_specific'].sum()}</strong> of {(~table['dead']).sum()} live latents" in text
    assert "null pair “same” (must be 0)" in text and "null pair “reseeded” (upper bound)" in text
    assert "ν<sup>r</sup> &lt; 0.5 and ν<sup>ε</sup> &lt; 0.2, both within [−0.1, 2]" in text
    assert "with 14.5 % of the edit energy" in text and "<h1>What tuning changed: base → chat</h1>" in text


def test_what_a_run_has_not_is_said(tmp_path: Path) -> None:
    run = run_with_examples(tmp_path, examples=None, twins=None, seeds=None, concepts=None)
    vars(run)["nulls"] = None
    build_report(run, tmp_path / "report", decode)
    text = (tmp_path / "report/index.html").read_text()
    assert "No null pair has run" in text and "snakemake nulls" in text
    assert "No figure or table was made yet." in text
    assert "Not recorded" in text
    meta = value(tmp_path / "report", "meta")
    assert not any(about["examples"] or about["twins"] or about["seeds"] for about in meta["dictionaries"].values())


def test_names_of_a_config_are_escaped() -> None:
    assert str(raised("<b>ν^r</b> ν^act")) == "&lt;b&gt;ν<sup>r</sup>&lt;/b&gt; ν<sup>act</sup>"


def test_seeds_and_twins_stand_beside_their_latents(tmp_path: Path) -> None:
    rows = [("l1", 0, 5, 1, 7, 0.95, True), ("l1", 0, 6, 1, -1, np.nan, False), ("l1", 1, 7, 0, 5, 0.95, True)]
    columns = ["crosscoder", "seed", "latent", "other_seed", "match", "cosine", "stable"]
    run = run_with_examples(tmp_path, seeds=pd.DataFrame(rows, columns=columns))
    twins = pd.DataFrame(
        {"chat_only_latent": [3, 3, 4], "base_only_latent": [8, 9, 10], "cosine": [0.95, 0.97, 0.2]}
    ).assign(divergence=0.25)
    twins.attrs["twin_cosine"] = 0.9
    vars(run)["twins"] = {NAME: twins}
    build_report(run, tmp_path / "report", decode)
    table = value(tmp_path / "report", f"table/{NAME}")["columns"]
    assert table["twin"][3] == 9 and table["twin"][8] == 3 and table["twin"][4] == -1
    assert table["seed_cosine"][5:7] == [0.95, None] and table["stable"][5:7] == [1, 0]
    beside = value(tmp_path / "report", f"beside/{NAME}")
    assert beside["seeds"] == [[5, 6], [1, 1], [7, -1], [0.95, None]]
    assert beside["twins"] == [[3, 3], [8, 9], [0.95, 0.97], [0.25, 0.25]]


def test_steering_stands_with_its_latent(tmp_path: Path) -> None:
    rows = [
        {"crosscoder": NAME, "latent": 11, "arm": "steered", "draw": 0, "alpha": 1.0, "positions": "all"}
        | {"request": i, "prompt": f"<b>{i}</b>", "unsteered": "one\ntwo", "steered": "\u202ehidden"}
        for i in range(2)
    ]
    run = run_with_examples(tmp_path, steering_texts=pd.DataFrame(rows))
    build_report(run, tmp_path / "report", decode)
    found = value(tmp_path / "report", f"steering/{NAME}")
    (answers,) = found["11"]["answers"]
    assert answers["prompt"] == ["<b>0</b>", "<b>1</b>"] and answers["unsteered"] == ["one\ntwo"] * 2
    assert answers["steered"] == ["\\u202ehidden"] * 2 and answers["arm"].startswith("steered: the latent's chat")
    told = verdicts(run.steering[run.steering["crosscoder"].isin([NAME, ""])])
    own = told[told["latent"] == 11]
    assert [row["moves"] for row in found["11"]["measures"]] == own["moves"].tolist()
    assert value(tmp_path / "report", "meta")["dictionaries"][NAME]["steered"] == [11]


def test_a_dictionary_of_the_difference_is_shown_without_what_it_has_not(tmp_path: Path) -> None:
    run = run_with_examples(tmp_path)
    frame = run.latents[NAME].frame
    missing = [name for name in frame if str(name).startswith(("nu_r", "nu_e", "norm_"))]
    frame[missing] = np.float32(np.nan)
    frame["nu_activation"] = np.linspace(-1, 1, len(frame)).astype(np.float32)
    frame["class_name"] = np.where(frame["dead"], "dead", "difference")
    frame[["chat_specific", "chat_specific_validation", "chat_specific_interval", "reversed"]] = False
    build_report(run, tmp_path / "report", decode)
    text = (tmp_path / "report/index.html").read_text()
    assert "A dictionary of the difference alone" in text
    assert not value(tmp_path / "report", "meta")["dictionaries"][NAME]["norms"]
    first = value(tmp_path / "report", f"first/{NAME}")
    assert all(each["delta"] is None and each["nu_r"] == "not measured" and each["nu_a"] is not None for each in first)
    assert set(value(tmp_path / "report", f"table/{NAME}")["columns"]["nu_e"]) == {None}
