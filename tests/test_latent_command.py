"""`tunediff latent`, `Results.latent` and `inspect` on examples: what they show, and of what they make errors."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import figure_tables
from analysis_fixtures import random_crosscoder
from example_tables import small_examples
from helpers import TOKENIZERS, TinyPair
from results_fixtures import sealed_frame
from tunediff import cli
from tunediff.cli import main
from tunediff.data.documents import Document, Message
from tunediff.data.rendering import ChatRenderer
from tunediff.data.sampling import write_store
from tunediff.errors import TunediffError
from tunediff.explained import Explained, Explanation
from tunediff.explanations.explain import rule_text
from tunediff.explanations.lexical import Clause, Rule
from tunediff.latents import examples as formats
from tunediff.latents.card import visible
from tunediff.models.pair import prepare_pair
from tunediff.models.tokenizers import pieces
from tunediff.pipeline.artifacts import seal, write_json
from tunediff.results import Results, open_results

NAME, LATENTS, ABSENT = "batchtopk-seed0", (0, 1, 2, 5, 7), 3
HOSTILE = "The\x1b[31m \u202edog\u2066 <script>\u2028</script>\x07"


@pytest.fixture(scope="module")
def results(tiny_pairs, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results with all that a card reads; losses are measured on the first document only."""
    root, pair = tmp_path_factory.mktemp("cards"), tiny_pairs("gemma2")
    prepare_pair({"base": str(pair.base), "chat": str(pair.chat)}, Path("unused"), root / "models", key="k")
    write_json(root / "hooks.json", {"kind": "hooks", "layer": 1, "dtype": "float32"})
    turns = (Message("user", HOSTILE), Message("assistant", "I am sorry,\nbut I cannot help with that request."))
    encodings = ChatRenderer(pair.tokenizer).chats([Document("a", turns)] * 4, 100)
    attributes = {"sources": ["web", "chat"], "concepts": [], "split": "validation", "seed": 0, "tokenizer": "x"}
    write_store(root / "tokens/validation.zarr", encodings, [0, 1, 0, 1], attributes, {}, "k", 0.0)
    lengths = [len(each.token_id) for each in encodings]
    store = root / f"crosscoders/{NAME}"
    random_crosscoder().save(store)
    seal(store, "crosscoder", "key", {})
    (root / "latents").mkdir()
    table = figure_tables.latent_table(size=20)
    for name, value in (("max_activation", 8.0), ("dead", False), ("reversed", False), ("chat_specific", False)):
        table.frame[name] = np.full(20, value, dtype=table.frame[name].dtype)
    specific = {"chat_specific": True, "chat_specific_validation": True, "chat_specific_interval": False}
    for name, value in specific.items():
        table.frame.loc[7, name] = value
    table.frame.loc[7, ["nu_reconstruction", "nu_reconstruction_low", "nu_reconstruction_high"]] = 0.125, 0.0625, 0.25
    table.frame.loc[5, "nu_error"] = np.nan
    table.frame.loc[ABSENT, "dead"] = table.frame.loc[2, "reversed"] = True
    table.write(root / f"latents/{NAME}.parquet")
    seal(root / f"latents/{NAME}.parquet", "latents", "key", {})
    small_examples(root / f"examples/{NAME}", LATENTS, lengths, vocab=len(pair.tokenizer), context=60)
    rows = pd.DataFrame({name: np.arange(lengths[0]) / 4 for name in formats.LOSSES}).astype(formats.LOSSES)
    sealed_frame(root / "losses/losses.parquet", "losses", rows.assign(position=np.arange(lengths[0])))
    sealed_frame(root / "explanation_scores/scores.parquet", "explanation_scores", explanation_scores())
    return open_results(root)


def explanation_scores() -> pd.DataFrame:
    """Explanations of latents 7 and 5, of another dictionary, and of five random directions whose mean is 0.62."""
    row, of = figure_tables.explanation_row, {"text": f"about {HOSTILE}"}
    rows = [row(NAME, i, score=0.6 + i / 100, group="random") for i in range(5)]
    rows += [row(NAME, 7, "lexical"), row(NAME, 7, "generic"), row(NAME, 7, "lexical of another", of=5)]
    rows += [row(NAME, 7, "llm", "llm", 0.8125, **of), row(NAME, 7, "label", text="greeting", score=0.9)]
    rows += [row(NAME, 5, status="2 windows to explain from, 5 needed"), row("other-seed0", 1)]
    return figure_tables.as_scores(rows)


def test_a_card_holds_what_the_tables_hold(results: Results) -> None:
    card, examples, tokens = results.latent(NAME, 7), results.examples(NAME), results.tokens("validation")
    windows = examples.of("windows", 7)
    assert len(card.windows) == len(windows) and card.maximum == 8
    for window, row in zip(card.windows, windows.itertuples(), strict=True):
        where = slice(row.start, row.start + len(row.activation))
        assert window.pieces == pieces(results.tokenizer, tokens.token_id[where])
        assert (window.band, window.document, window.source) == (row.band, row.document, row.source)
        assert window.start + window.peak == row.peak and window.activation[window.peak] == window.value == row.value
        np.testing.assert_array_equal(window.mask, tokens.mask[where])
        first = np.arange(where.start, where.stop) < tokens.document(0).stop
        np.testing.assert_array_equal(window.kl, np.where(first, np.arange(where.start, where.stop) / 4, np.nan))
        np.testing.assert_array_equal(window.loss_chat, window.loss_base)
    assert [len(card.band(name)) for name in ("strongest", "inactive")] == [4, 4]
    counted = examples.of("tokens", 7)
    for kind in ("peak", "next"):
        own = counted[counted["kind"] == kind]
        assert [each.token_id for each in card.tokens[kind]] == own["token_id"].tolist()
        assert [each.firings for each in card.tokens[kind]] == own["count"].tolist()
        assert [each.piece for each in card.tokens[kind]] == pieces(results.tokenizer, own["token_id"])
    for direction in ("chat", "base", "difference"):
        for end in ("highest", "lowest"):
            own = examples.of("logits", 7).query("direction == @direction and end == @end")
            assert [each.value for each in card.logits[direction][end]] == own["value"].tolist()
    near = examples.of("neighbours", 7).query("kind == 'cosine'")
    assert [each.latent for each in card.neighbours["cosine"]] == near["neighbour"].tolist()
    assert card.histogram.shape == (20, 2)
    assert int(card.histogram.to_numpy().sum()) == examples.of("histogram", 7)["count"].sum()
    assert results.latent(NAME, 7).windows is not card.windows and results.cards(NAME) is results.cards(NAME)
    assert repr(card).startswith(f"<LatentCard {NAME}/7: chat-specific, confirmed")


def test_the_head_says_how_sure_it_is(results: Results) -> None:
    head = "\n".join(results.latent(NAME, 7).head())
    assert f"{NAME}/7: chat-specific, confirmed on validation tokens, not with intervals (ν^r < 0.5" in head
    assert "ν^r 0.12 [0.06, 0.25]" in head and "fires on" in head and "nearest by decoder" in head
    assert "ν^ε not measured" in "\n".join(results.latent(NAME, 5).head())
    assert "reversed: base has the direction" in results.latent(NAME, 2).head()[0]
    assert "not chat-specific" in results.latent(NAME, 1).head()[0]
    dead = results.latent(NAME, ABSENT)
    assert dead.head() == [f"{NAME}/{ABSENT}: dead: it fires on no counted validation token"] and dead.windows == []
    card = results.latent(NAME, 7)
    card.row["swap_ratio"] = 3.25
    assert "swap ratio 3.25" in "\n".join(card.head())
    card.row["norm_difference"], card.row["nu_activation"] = np.nan, 0.5
    assert "of a dictionary of the difference; ν^act 0.50" in "\n".join(card.head())


def test_explanations_are_told_with_their_scores(results: Results, capsys) -> None:
    assert main(["latent", f"{NAME}/7", "--results", str(results.path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("explained")]
    assert lines == [
        f"explained (language model, by a language model): about {visible(HOSTILE)}: "
        "balanced accuracy 0.81 [0.73, 0.89], AUROC 0.82",
        'explained (lexical, by its rule): "?" in an answer: balanced accuracy 0.70 [0.62, 0.78], AUROC 0.71; '
        "random directions 0.62",
        "explained (label, by its rule): greeting: balanced accuracy 0.90 [0.82, 0.98], AUROC 0.91",
    ]
    (line,) = (line for line in results.latent(NAME, 5).head() if line.startswith("explained"))
    assert line.endswith('"?" in an answer: not scored (2 windows to explain from, 5 needed)')
    assert not results.latent(NAME, 1).explanations and "explained" not in str(results.latent(NAME, 1))
    assert "&lt;script&gt;" in results.latent(NAME, 7)._repr_html_()


def test_the_words_of_an_explanation_are_its_clauses() -> None:
    rule = Rule((Clause("role", 3, 1, 0.5), Clause("token", 4, 0, 0.5)), 0.6, 0.07)
    text = rule_text(rule, lambda token: {3: " (or", 4: " ("}[token])
    told = explanation(text).words
    assert told == '" (or" in an answer or " ("' and text.startswith(f"{told} (60 %")
    assert explanation("no token sets its texts apart").words == "no token sets its texts apart"
    assert explanation("all (but of others)", "llm").words == "all (but of others)"


def explanation(text: str, explainer: str = "lexical") -> Explanation:
    """Return an explanation by its text."""
    row = figure_tables.explanation_row(NAME, 0, explainer, text=text)
    return Explained(figure_tables.as_scores([row]), NAME).of[0][0]


def test_the_command_prints_windows_without_control_characters(results: Results, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tunediff"])
    given = ["latent", f"{NAME}/7", "--results", str(results.path), "--band", "strongest", "--band", "inactive_hard"]
    assert main([*given, "--windows", "3"]) == 0
    text = capsys.readouterr().out
    assert "strongest (3 of 4 windows)" in text and "inactive_hard (3 of 4 windows)" in text
    assert text.count("⟦") == text.count("⟧") == 6
    assert all(visible(line) == line for line in text.splitlines()) and "\x1b" not in text
    every = results.latent(NAME, 7).text(formats.BANDS, 100)
    assert "\\x1b" in every and "<0xE2><0x80><0xAE>" in every and "↵" in every and "\\x07" in every
    assert main(given[:4]) == 0
    assert "strongest (4 of 4 windows)" in capsys.readouterr().out


def test_colours_on_a_terminal_only(results: Results, capsys, monkeypatch) -> None:
    given = ["latent", f"{NAME}/7", "--results", str(results.path)]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "\x1b[1;4;30;48;5;209m" in text and "⟦" not in text  # the peak of the strongest, at the maximum
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(given) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("latent", "told"),
    [
        ("7", "not NAME/NUMBER"),
        (f"{NAME}/x", "not NAME/NUMBER"),
        (f"{NAME}/20", "no such latent; give a number from 0 to 19"),
        ("other/7", f"no finished dictionary 'other', there are: {NAME}"),
    ],
)
def test_what_is_not_there_is_one_line(results: Results, latent: str, told: str, capsys) -> None:
    assert main(["latent", latent, "--results", str(results.path)]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_cards_without_losses_or_examples(results: Results, tmp_path: Path) -> None:
    for name in ("models", "models.json", "hooks.json", "tokens", "crosscoders", "latents"):
        (tmp_path / name).symlink_to(results.path / name)
    some = open_results(tmp_path)
    with pytest.raises(TunediffError, match=rf"examples/{NAME}: not made yet; run `snakemake"):
        some.latent(NAME, 7)
    (tmp_path / "examples").symlink_to(results.path / "examples")
    assert all(np.isnan(window.kl).all() for window in some.latent(NAME, 7).windows)


def test_inspect_counts_rows_and_names_damage(results: Results, tmp_path: Path, capsys) -> None:
    assert main(["inspect", str(results.path / f"examples/{NAME}.json")]) == 0
    text = capsys.readouterr().out
    assert "rows: windows 120  tokens 100" in text and "latents: windows 5  tokens 5" in text
    assert "strongest: 20" in text and "all checksums" in text
    assert main(["inspect", str(results.path / "losses/losses.parquet")]) == 0
    assert "loss_chat" in capsys.readouterr().out
    small_examples(tmp_path / "a", [0], [20, 30])
    (tmp_path / "a/tokens.parquet").write_bytes(b"torn")
    assert main(["inspect", str(tmp_path / "a")]) == 1
    assert "tokens.parquet" in capsys.readouterr().err
    seal(tmp_path / "a", "examples", "key", {})
    assert main(["inspect", str(tmp_path / "a")]) == 1
    assert "tokens.parquet: not a readable Parquet file" in capsys.readouterr().err


def test_the_command_knows_the_bands() -> None:
    assert cli.BANDS == formats.BANDS


def test_pieces_are_the_text_between_their_neighbours(tiny_pair: TinyPair) -> None:
    """All pieces of plain text make the text; a torn character is shown as its bytes; special tokens are shown."""
    tokenizer = tiny_pair.tokenizer
    text = "Please tell me\n\nhow the dog is,  and why."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == text
    assert pieces(tokenizer, [tokenizer.eos_token_id]) == [tokenizer.eos_token]
    shown = pieces(tokenizer, [*ids, 10**6, *ids])
    assert shown[len(ids)] == "<id 1000000>" and shown[: len(ids)] == shown[len(ids) + 1 :]
    euro = pieces(tokenizer, tokenizer("£", add_special_tokens=False)["input_ids"])
    assert "".join(euro).strip() in ("£", "<0xC2><0xA3>")
    assert pieces(tokenizer, []) == []


def test_pieces_of_loose_bytes() -> None:
    gemma, llama = TOKENIZERS["gemma2"](), TOKENIZERS["llama3"]()
    assert pieces(gemma, gemma.convert_tokens_to_ids(["<0xE2>", "<0x41>", "<0x0A>"])) == ["<0xE2>", "A", "\n"]
    assert pieces(llama, llama.convert_tokens_to_ids(["â", "Ġ", "Ċ"])) == ["<0xE2>", " ", "\n"]


def test_visible_escapes_what_moves_a_terminal() -> None:
    assert visible("a\tb\x1b\u202e\n\ud800é🙂\U000e0001") == "a\\x09b\\x1b\\u202e↵\\ud800é🙂\\U000e0001"
