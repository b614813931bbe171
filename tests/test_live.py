"""Prompts of one's own: residual streams, latents and where they fire, against the models of transformers."""

import html
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tunediff
from helpers import SENTENCES, TinyPair
from live_fixtures import D_MODEL, DIFFERENCE, IGNORED, LATENTS, LAYER, NAME, live_results
from tunediff import markup
from tunediff.cli import main
from tunediff.data.masks import Mask
from tunediff.live import LONGEST
from tunediff.pipeline.artifacts import seal
from tunediff.results import Results

REQUEST = SENTENCES[0]
HOSTILE = '<script>alert("x")</script> a\'b \u202e abc \u2028 <!-- & --> \x1b[31m'


@pytest.fixture(scope="module")
def made(tiny_pairs: Callable[[str], TinyPair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the tiny Gemma 2 pair; id 7 is read as 8 by its base."""
    return live_results(tmp_path_factory.mktemp("live") / "results", tiny_pairs("gemma2"), {7: 8})


@pytest.fixture
def results(made: Path) -> Results:
    return tunediff.open_results(made)


def hidden_states(pair: TinyPair, ids: list[int], replaced: dict[int, int]) -> torch.Tensor:
    """Residuals (token, model, d_model) after block `LAYER`, as transformers gives them."""
    both = []
    for path, table in ((pair.base, replaced), (pair.chat, {})):
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        fed = torch.tensor([[table.get(i, i) for i in ids]])
        with torch.no_grad():
            both.append(model(fed, output_hidden_states=True).hidden_states[LAYER + 1][0])
    return torch.stack(both, dim=1)


def test_a_request_is_rendered_and_both_models_read_it(results: Results, tiny_pairs: Callable[[str], TinyPair]) -> None:
    pair = tiny_pairs("gemma2")
    live = results.prompt(REQUEST)
    turns = [{"role": "user", "content": REQUEST}]
    ids = pair.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert live.token_id.tolist() == ids
    assert "".join(live.tokens) == pair.tokenizer.decode(ids)
    torch.testing.assert_close(live.residuals, hidden_states(pair, ids, {7: 8}), rtol=1e-4, atol=1e-5)
    base, chat = live.residuals[3].double()
    assert live.distance[3] == pytest.approx(float((chat - base).norm() / base.norm()), rel=1e-5)


def test_the_base_model_reads_replaced_tokens(results: Results, tiny_pairs: Callable[[str], TinyPair]) -> None:
    pair = tiny_pairs("gemma2")
    live = results.prompt("\x01 and \x01", text=True)  # a byte token: <0x01> has id 7
    ids = live.token_id.tolist()
    assert 7 in ids and live.mask[0] & Mask.BOS and not (live.mask & Mask.TEMPLATE).any()
    torch.testing.assert_close(live.residuals, hidden_states(pair, ids, {7: 8}), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(live.residuals, hidden_states(pair, ids, {}), atol=1e-3)


def test_messages_are_a_conversation(results: Results, tiny_pairs: Callable[[str], TinyPair]) -> None:
    turns = [{"role": "user", "content": "Who pays?"}, {"role": "assistant", "content": REQUEST}]
    whole = tiny_pairs("gemma2").tokenizer.apply_chat_template(turns, return_dict=False)
    live = results.prompt(turns)
    assert live.token_id.tolist() == whole  # ends with the assistant: no header of another answer
    assert (live.mask & np.uint8(Mask.ASSISTANT)).any() and (live.mask & np.uint8(Mask.USER)).any()


def test_latents_are_those_of_the_crosscoder(results: Results) -> None:
    live = results.prompt(REQUEST)
    code = results.crosscoder(NAME).encode(live.residuals).to_dense(len(results.latents(NAME)))
    frame = live.latents(NAME)
    counted = frame.index.get_level_values("counted").to_numpy(copy=True)
    assert counted.tolist() == [False] * IGNORED + [True] * (len(counted) - IGNORED)  # BOS is one of the ignored
    assert frame.index.get_level_values("token").tolist() == live.tokens
    fired = (code[counted] > 0).any(0).nonzero()[:, 0].tolist()
    assert sorted(frame.columns) == fired and 0 < len(fired) < code.shape[1]
    np.testing.assert_allclose(frame.to_numpy()[counted], code[counted][:, list(frame.columns)], rtol=1e-6)
    assert frame[~counted].isna().all(axis=None)
    table = results.latents(NAME).frame.loc[list(frame.columns)]
    n = int(table["chat_specific"].sum())
    assert 0 < n < len(table) and table["chat_specific"].iloc[:n].all()
    assert table["rank_sum"].iloc[:n].is_monotonic_increasing
    assert frame.iloc[:, n:].max().is_monotonic_decreasing


def test_massive_activations_are_not_counted(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "results"))
    residuals = tunediff.open_results(copy).prompt(REQUEST).residuals
    limits = torch.linalg.vector_norm(residuals, dim=2)[IGNORED:].sort(dim=0).values[-2]
    folder = copy / "crosscoders" / NAME
    crosscoder = tunediff.Crosscoder.load(folder)
    crosscoder.config["outlier_norm"] = limits.tolist()
    crosscoder.save(folder)
    seal(folder, "crosscoder", "key", {})
    frame = tunediff.open_results(copy).prompt(REQUEST).latents(NAME)
    outlying = (torch.linalg.vector_norm(residuals, dim=2) > limits).any(1).numpy()
    outlying[:IGNORED] = True
    assert frame.index.get_level_values("counted").tolist() == (~outlying).tolist()
    assert outlying[IGNORED:].any()


def test_firings_are_the_chat_specific_latents_by_their_share(results: Results) -> None:
    live = results.prompt(REQUEST)
    wide, firings = live.latents(NAME), live.firings(NAME, top=2)
    specific = results.latents(NAME).frame["chat_specific"]
    wide = wide[[latent for latent in wide.columns if specific[latent]]].reset_index(drop=True)
    assert len(firings.frame) == (wide > 0).sum(axis=None) and firings.of == specific.sum()
    for row in firings.frame.itertuples():
        assert row.token == live.tokens[row.position]
        assert row.activation == pytest.approx(wide.loc[row.position, row.latent])
        assert row.share == pytest.approx(row.activation / (row.latent + 1))
    best = (wide.max() / (wide.columns + 1)).sort_values(ascending=False)
    assert firings.latents["latent"].tolist() == best.index.tolist()
    assert firings.latents["position"].tolist() == [wide[latent].idxmax() for latent in best.index]
    text = str(firings)
    assert text.startswith(f"{NAME}: {len(best)} of {specific.sum()} chat-specific latents fire on ")
    first, hidden = best.index[0], best.index[2]
    assert f"{first} ({best.iloc[0]:.0%})" in text and f"{first}  {best.iloc[0] * (first + 1):.3g} at " in text
    assert f"  {hidden} (" not in text and len(firings.shown) == 2
    assert text.count("(left out)") == IGNORED


def test_a_dictionary_of_the_difference_shows_its_live_latents(results: Results) -> None:
    firings = results.prompt(REQUEST).firings(DIFFERENCE)
    frame = results.latents(DIFFERENCE).frame
    assert firings.of == (~frame["dead"]).sum() and "live latents fire" in str(firings)
    assert "Δnorm" not in str(firings)


def test_where_none_fires_it_says_so(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "results"))
    folder = copy / "crosscoders" / NAME
    crosscoder = tunediff.Crosscoder.load(folder)
    crosscoder.threshold.fill_(1e6)
    crosscoder.save(folder)
    seal(folder, "crosscoder", "key", {})
    live = tunediff.open_results(copy).prompt(REQUEST)
    assert live.latents(NAME).shape == (len(live.tokens), 0)
    firings = live.firings(NAME)
    told = f"{NAME}: none of {firings.of} chat-specific latents fires on any of {len(live.tokens) - IGNORED} tokens"
    assert str(firings).startswith(told) and told in firings._repr_html_()


def test_models_and_dictionaries_are_loaded_once(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    results.prompt(REQUEST).latents(NAME)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr("tunediff.models.residual.ResidualModel.load", fail)
    monkeypatch.setattr(tunediff.Crosscoder, "load", fail)
    assert len(results.prompt("Who pays?").latents(NAME))


@pytest.mark.parametrize("text", [False, True])
def test_html_escapes_hostile_text(results: Results, text: bool) -> None:
    live = results.prompt(HOSTILE, text=text)
    for page in (live._repr_html_(), live.firings(NAME)._repr_html_()):
        assert "<script" not in page and "<!--" not in page and not set("\u202e\u2028\x1b") & set(page)
        for link in ("http:", "https:", "src=", "url("):
            assert link not in page
    assert not set("\u202e\u2028\x1b") & set(str(live.firings(NAME)))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("  ", "it is empty"),
        ([], "it is empty"),
        ([{"role": "user"}], "give a string, or messages"),
        (["Who pays?"], "give a string, or messages"),
        ([{"role": "assistant", "content": "I do."}], "the chat template refuses it"),
        ("\udcff", "not valid Unicode"),
        ("a " * 2 * LONGEST, "it must have 1 to 16,384 tokens"),
    ],
)
def test_prompts_that_cannot_be_read(results: Results, prompt: object, said: str) -> None:
    with pytest.raises(tunediff.TunediffError, match=f"^prompt: .*{said}"):
        results.prompt(prompt)


def test_several_messages_are_no_plain_text(results: Results) -> None:
    with pytest.raises(tunediff.TunediffError, match=r"a plain text is one string"):
        results.prompt([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], text=True)


def test_a_model_that_is_gone_is_named(made: Path, tmp_path: Path, tiny_pairs: Callable[[str], TinyPair]) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "results"))
    pair = (copy / "models/pair.json").read_text()
    (copy / "models/pair.json").write_text(pair.replace(str(tiny_pairs("gemma2").chat), "/nowhere/chat"))
    seal(copy / "models", "models", "k", {"base": "b", "chat": "c", "base_revision": None, "chat_revision": None,
                                          "d_model": D_MODEL, "n_layers": 4})  # fmt: skip
    with pytest.raises(tunediff.TunediffError, match=r"^/nowhere/chat: cannot read the tokenizer"):
        tunediff.open_results(copy).prompt(REQUEST)


def test_the_page_of_a_latent(results: Results) -> None:
    frame = results.latents(NAME).frame
    card = results.latent(NAME, int(frame.loc[~frame["dead"], "latent"].iloc[5]))
    page = card._repr_html_()
    assert all(markup.escape(line) in page for line in card.head())
    window = card.band("strongest")[0]
    strip = page.partition('<span style="font-family:ui-monospace')[2].partition("</td>")[0]  # of the first window
    spans = re.findall(r'<span style="([^"]*)" title="activation ([^"]*)">([^<]*)</span>', strip)
    assert [html.unescape(text) for *_, text in spans] == [markup.visible(piece) for piece in window.pieces]
    for (style, title, _), activation in zip(spans, window.activation, strict=True):
        alpha = re.search(r"rgba\(.*,(.*)\)", style)
        assert (alpha is not None) == (activation > 0) and title == f"{activation:.3g}"  # no losses are measured
        if alpha:
            assert float(alpha[1]) == pytest.approx(0.1 + 0.6 * activation / card.maximum, abs=0.006)
    assert [i for i, span in enumerate(spans) if "underline" in span[0]] == [window.peak]
    counts = card.histogram.sum(axis=1)
    assert [int(n.replace(",", "")) for n in re.findall(r"%: ([\d,]+)</title>", page)] == counts.tolist()
    assert page.count("<details") == 6 and page.count("<details open") == 1
    assert "strongest (10 of 20 windows)" in page and "high (5 of 10 windows)" in page


def test_the_page_of_a_latent_escapes_its_corpus(results: Results) -> None:
    frame = results.latents(NAME).frame
    card = results.latent(NAME, int(frame.loc[~frame["dead"], "latent"].iloc[5]))
    windows = [each._replace(pieces=[HOSTILE] * len(each.pieces), source=HOSTILE) for each in card.windows]
    tokens = {kind: [each._replace(piece=HOSTILE) for each in own] for kind, own in card.tokens.items()}
    page = replace(card, windows=windows, tokens=tokens)._repr_html_()
    assert "<script" not in page and "<!--" not in page and not set("\u202e\u2028\x1b") & set(page)
    assert html.escape("<script>") in page


def test_a_dead_latent_has_a_page(results: Results) -> None:
    frame = results.latents(NAME).frame
    page = results.latent(NAME, int(frame.loc[frame["dead"], "latent"].iloc[0]))._repr_html_()
    assert "dead: it fires on no counted validation token" in page and "<svg" not in page


def test_steering_is_greedy_generation_with_the_direction_added(
    results: Results, tiny_pairs: Callable[[str], TinyPair]
) -> None:
    pair, frame = tiny_pairs("gemma2"), results.latents(NAME).frame
    latent = int(frame.loc[~frame["dead"], "latent"].iloc[5])
    crosscoder = results.crosscoder(NAME)
    model = AutoModelForCausalLM.from_pretrained(pair.chat).eval()
    turns = [{"role": "user", "content": SENTENCES[1]}]
    prompt = pair.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    added = 2 * (latent + 1) * crosscoder.decoder_weight[latent, 1]
    stops = {pair.tokenizer.convert_tokens_to_ids(token) for token in ("<end_of_turn>", "<eos>")}

    def answer(add: torch.Tensor) -> str:
        ids = list(prompt)
        hook = model.model.layers[LAYER].register_forward_hook(
            lambda module, inputs, out: (out[0] + add, *out[1:]) if isinstance(out, tuple) else out + add
        )
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in stops:
                break
        hook.remove()
        return pair.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()

    steered = results.steer(NAME, latent, SENTENCES[1], 2, max_new_tokens=8)
    assert steered.unsteered == answer(torch.zeros(D_MODEL)) != steered.steered == answer(added)
    assert steered.dose == pytest.approx(float(added.norm()), rel=1e-5)
    residuals = hidden_states(pair, prompt, {7: 8})[IGNORED:, 1]
    assert steered.dose_share == pytest.approx(float(added.norm() / residuals.norm(dim=1).mean()), rel=1e-4)
    assert f"latent {latent}, α 2: {steered.dose:.3g} added" in str(steered)
    page = replace(steered, steered=HOSTILE)._repr_html_()
    assert "<script" not in page and SENTENCES[1] in page


@pytest.mark.parametrize(("latent", "said"), [(LATENTS, "the crosscoder has latents 0 to"), (-1, "latents 0 to")])
def test_steering_by_no_latent(results: Results, latent: int, said: str) -> None:
    with pytest.raises(tunediff.TunediffError, match=said):
        results.steer(NAME, latent, "Who pays?")


def test_the_command(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", NAME, REQUEST, "--results", str(made), "--top", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tunediff.open_results(made).prompt(REQUEST).firings(NAME, 2)}\n"
    assert main(["try", NAME, REQUEST, "--results", str(made), "--text"]) == 0
    assert capsys.readouterr().out == f"{tunediff.open_results(made).prompt(REQUEST, text=True).firings(NAME)}\n"
    for arguments, said in (
        (["nothing", "a"], "no finished dictionary 'nothing'"),
        ([NAME, ""], "prompt: it is empty"),
        ([NAME, "a", "--top", "0"], "--top: is 0; give 1 or more"),
    ):
        assert main(["try", *arguments, "--results", str(made)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("tunediff: ") and said in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        main(["try", NAME, "a", "--chat", "--text"])
    assert caught.value.code == 2
