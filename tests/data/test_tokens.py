"""Masks, labels, budgets and splits, against the tokenizers' own ids and transformers' own assistant mask."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import FAMILIES, TOKENIZERS
from tunediff.data.documents import Document, Message, Span
from tunediff.data.masks import Mask, first_response_positions, response_positions
from tunediff.data.rendering import ChatRenderer, Encoding, RenderError
from tunediff.data.sampling import encode_budgets, tokenize_split, write_store
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import manifest_path, read_manifest

TOKENIZER = {family: make() for family, make in TOKENIZERS.items()}
LONG = 10_000


def chat(*contents: str, identifier: str = "c") -> Document:
    roles = ("user", "assistant") * len(contents)
    return Document(identifier, tuple(Message(role, text) for role, text in zip(roles, contents, strict=False)))


def turns(document: Document) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in document.messages]


def render_chat(tokenizer, document: Document, max_length: int, concepts: tuple[str, ...] = ()) -> Encoding:
    result = ChatRenderer(tokenizer, concepts).chats([document], max_length)[0]
    if isinstance(result, RenderError):
        raise result
    return result


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


CONTENTS = st.lists(
    st.text(alphabet=st.sampled_from(list("ab .,!?\n01éü🙂日\t{}<>%")), min_size=0, max_size=30), min_size=1, max_size=5
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(contents=CONTENTS)
def test_masks_of_any_conversation(family: str, contents: list[str]) -> None:
    tokenizer, document = TOKENIZER[family], chat(*contents)
    encoding = render_chat(tokenizer, document, LONG)
    text = tokenizer.apply_chat_template(turns(document), tokenize=False, date_string="26 Jul 2024")
    assert encoding.token_id.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    kinds = [bool(encoding.mask[i] & Mask.TEMPLATE) for i in range(len(encoding.mask))]
    roles = encoding.mask & (Mask.ASSISTANT | Mask.USER)
    assert not np.any((roles & Mask.ASSISTANT != 0) & (roles & Mask.USER != 0))
    assert not np.any(np.array(kinds) & (roles & Mask.USER != 0))
    # Runs of content tokens decode to the contents; a token that template and content share counts as content.
    for role, bit in (("user", Mask.USER), ("assistant", Mask.ASSISTANT)):
        content = encoding.token_id[(encoding.mask & bit != 0) & (encoding.mask & Mask.TEMPLATE == 0)]
        wanted = "".join(m.content.strip() for m in document.messages if m.role == role)
        squeezed = "".join(decoded(tokenizer, content).split())
        assert squeezed == "".join(wanted.split())
    closed = [i for i in np.flatnonzero(encoding.mask & Mask.ASSISTANT) if encoding.mask[i] & Mask.TEMPLATE]
    assert len(closed) == sum(m.role == "assistant" for m in document.messages)
    assert all(tokenizer.convert_ids_to_tokens(int(encoding.token_id[i])) in ENDS for i in closed)
    assert (encoding.mask[0] == Mask.BOS) == (tokenizer.bos_token is not None)


ENDS = ("<end_of_turn>", "<|eot_id|>", "<|im_end|>")


@settings(max_examples=40, deadline=None)
@given(contents=CONTENTS)
def test_assistant_mask_equals_that_of_transformers(contents: list[str]) -> None:
    tokenizer, document = TOKENIZER["qwen2"], chat(*contents)
    reference = tokenizer.apply_chat_template(
        turns(document), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    encoding = render_chat(tokenizer, document, LONG)
    assert encoding.token_id.tolist() == reference["input_ids"]
    assert ((encoding.mask & Mask.ASSISTANT) != 0).astype(int).tolist() == reference["assistant_masks"]


def test_gemma_masks_token_by_token() -> None:
    tokenizer = TOKENIZER["gemma2"]
    encoding = render_chat(tokenizer, chat("The lazy dog.", "I am sorry"), LONG)
    header = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    ids = encoding.token_id.tolist()
    starts, ends = ([i for i, t in enumerate(ids) if t == wanted] for wanted in header)
    assert len(starts) == len(ends) == 2
    expected = np.full(len(ids), Mask.TEMPLATE, dtype=np.uint8)
    expected[0] = Mask.BOS
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for start, end, bit in zip(starts, ends, (Mask.USER, Mask.ASSISTANT), strict=True):
        role = tokenizer({Mask.USER: "user", Mask.ASSISTANT: "model"}[bit], add_special_tokens=False)["input_ids"]
        expected[start + 1 + len(role) + len(newline) : end] = bit
    expected[ends[1]] |= np.uint8(Mask.ASSISTANT)
    assert encoding.mask.tolist() == expected.tolist()
    predicting = response_positions(encoding.mask)
    first = starts[1] + 1 + len(role) + len(newline)
    assert np.flatnonzero(predicting).tolist() == list(range(first - 1, ends[1]))


def test_first_response_positions_are_nine_per_turn() -> None:
    t, a, u = Mask.TEMPLATE, Mask.ASSISTANT, Mask.USER
    turn = [t, t, u, u, t, t, t, t, *[a] * 15, t | a, t]
    mask = np.array([Mask.BOS, *turn, *turn], dtype=np.uint8)
    assert response_positions(mask).sum() == 2 * 16
    first = np.flatnonzero(first_response_positions(mask))
    assert first.tolist() == [*range(9, 18), *range(9 + len(turn), 18 + len(turn))]
    short = np.array([t, a, a, t | a, t], dtype=np.uint8)
    assert np.flatnonzero(first_response_positions(short)).tolist() == [1, 2]
    assert not response_positions(np.array([t, u], dtype=np.uint8)).any()


def test_concept_labels_follow_stripped_contents() -> None:
    content = "  the fox is sorry now  "
    start = content.index("is sorry")
    document = Document(
        "d",
        (
            Message("user", "hello"),
            Message("assistant", content, (Span(start, start + 8, "apology"), Span(2, 5, "article"))),
        ),
    )
    for family in FAMILIES:
        tokenizer = TOKENIZER[family]
        encoding = render_chat(tokenizer, document, LONG, ("article", "apology"))
        labelled = decoded(tokenizer, encoding.token_id[encoding.label & np.uint64(2) != 0])
        assert labelled.split() == ["is", "sorry"]
        assert decoded(tokenizer, encoding.token_id[encoding.label & np.uint64(1) != 0]).split() == ["the"]
    with pytest.raises(TunediffError, match="concept 'apology'"):
        render_chat(TOKENIZER["gemma2"], document, LONG, ())


def test_labels_of_plain_text() -> None:
    document = Document("d", (Message("text", "one lazy dog", (Span(4, 8, "lazy"),)),))
    encoding = ChatRenderer(TOKENIZER["llama3"], ["lazy"]).texts([document], LONG)[0]
    assert decoded(TOKENIZER["llama3"], encoding.token_id[encoding.label == 1]).strip() == "lazy"
    assert encoding.mask.tolist() == [Mask.BOS] + [0] * (len(encoding.mask) - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_are_cut_as_if_tokenised_whole(family: str) -> None:
    tokenizer = TOKENIZER[family]
    texts = ["word " * 3000, " " * 500 + "end of it all" * 40, "é🙂日" * 400, "short"]
    documents = [Document(str(i), (Message("text", text),)) for i, text in enumerate(texts)]
    for document, encoding in zip(documents, ChatRenderer(tokenizer).texts(documents, 50), strict=True):
        assert encoding.token_id.tolist() == tokenizer(document.messages[0].content)["input_ids"][:50]


def test_templates_that_refuse_or_change_contents() -> None:
    gemma = TOKENIZER["gemma2"]
    with pytest.raises(RenderError, match="System role"):
        render_chat(gemma, Document("d", (Message("system", "s"), Message("user", "u"))), LONG)
    with pytest.raises(RenderError, match="alternate"):
        render_chat(gemma, Document("d", (Message("user", "a"), Message("user", "b"))), LONG)
    shouting = TOKENIZERS["gemma2"]()
    shouting.chat_template = shouting.chat_template.replace("| trim", "| upper")
    with pytest.raises(RenderError, match="changes the content of a user message"):
        render_chat(shouting, chat("quiet words"), LONG)
    system = render_chat(TOKENIZER["qwen2"], Document("d", (Message("system", "sy"), Message("user", "u"))), LONG)
    assert np.count_nonzero(system.mask == 0) > 0  # a system content is nobody's turn, and not the template


def test_renderer_needs_a_template_and_few_concepts() -> None:
    bare = TOKENIZERS["gemma2"]()
    bare.chat_template = None
    with pytest.raises(TunediffError, match="no chat template"):
        ChatRenderer(bare)
    with pytest.raises(TunediffError, match="64 bits"):
        ChatRenderer(TOKENIZER["gemma2"], [str(i) for i in range(65)])


def texts(n: int, words: int):
    return (Document(f"w{i}", (Message("text", f"{i} the fox " * words),)) for i in range(n))


@settings(max_examples=15, deadline=None)
@given(web=st.integers(1, 500), talk=st.integers(1, 500), length=st.integers(5, 90))
def test_budgets_are_exact_and_sources_are_mixed(web: int, talk: int, length: int) -> None:
    renderer = ChatRenderer(TOKENIZER["gemma2"], ignore_first_tokens=3)
    streams = {"web": texts(100, 4), "chat": (chat("hello", f"number {i}") for i in range(100))}
    encodings, source, facts = encode_budgets(streams, {"web": web, "chat": talk}, renderer, length)
    totals = [sum(len(e.token_id) for e, s in zip(encodings, source, strict=True) if s == i) for i in range(2)]
    assert totals == [web, talk] == [facts["web"]["tokens"], facts["chat"]["tokens"]]
    assert max(len(e.token_id) for e in encodings) <= length
    done = np.zeros(2)
    for encoding, s in zip(encodings, source, strict=True):
        done[s] += len(encoding.token_id)
        if (done < [web, talk]).all():  # while both run, no source is ahead by more than a document
            assert abs(done[0] / web - done[1] / talk) <= length / min(web, talk) + 1e-9
    assert all((e.mask & Mask.IGNORED != 0).tolist() == [i < 3 for i in range(len(e.mask))] for e in encodings)


def test_copies_are_left_out_and_counted() -> None:
    renderer = ChatRenderer(TOKENIZER["gemma2"])
    words = ["one", "two", "One ", "three", "ｔｗｏ", "four", "five"]  # the second "two" in full-width letters
    different = ["one", "two", "three", "four", "five"]
    stream, wanted = ([Document(str(i), (Message("text", w),)) for i, w in enumerate(ws)] for ws in (words, different))
    alone = renderer.texts(wanted, 64)
    budget = sum(len(encoding.token_id) for encoding in alone)
    encodings, _, facts = encode_budgets({"web": iter(stream)}, {"web": budget}, renderer, 64)
    assert [e.token_id.tolist() for e in encodings] == [e.token_id.tolist() for e in alone]
    assert facts["web"]["skipped_copy"] == 2


def test_too_small_a_source_says_how_many_tokens_there_are() -> None:
    renderer = ChatRenderer(TOKENIZER["gemma2"])
    system = [Document("s", (Message("system", "x"), Message("user", text))) for text in ("y", "z")]
    streams = {"web": texts(1, 1), "chat": iter(system)}
    n = len(next(iter(renderer.texts(list(texts(1, 1)), LONG))).token_id)
    with pytest.raises(TunediffError, match=f"source 'web' has only {n} tokens, its budget is 5000"):
        encode_budgets({"web": texts(1, 1)}, {"web": 5000}, renderer, LONG)
    with pytest.raises(TunediffError, match=r"source 'chat' has only 0 tokens.*2 skipped_system; last: System role"):
        encode_budgets(streams, {"web": 3, "chat": 10}, renderer, LONG)
    with pytest.raises(TunediffError, match="mixed"):
        mixed = iter([chat("a"), Document("t", (Message("text", "b"),))])
        encode_budgets({"x": mixed}, {"x": 10}, renderer, LONG)


def local_sources(folder: Path) -> dict:
    import json

    (folder / "web.jsonl").write_text("\n".join(json.dumps({"text": f"{i} lazy dogs " * 5}) for i in range(400)))
    rows = [{"messages": turns(chat(f"hello {i}", f"answer {i}"))} for i in range(400)]
    rows.insert(0, {"messages": [{"role": "system", "content": "s"}, *turns(chat("a", "b"))]})
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "web": {"from": "local", "path": str(folder / "web.jsonl"), "column": "text", "validation_share": 0.3},
        "chat": {"from": "local", "path": str(folder / "chat.jsonl"), "column": "messages", "validation_share": 0.3},
    }


def test_token_store_round_trip_splits_and_determinism(tmp_path: Path) -> None:
    sources, tokenizer = local_sources(tmp_path), TOKENIZER["gemma2"]
    stores = {
        split: tokenize_split(
            sources, {"web": 700, "chat": 500}, split, tokenizer, 64, 0, 7, tmp_path / f"{split}.zarr", key="k"
        )
        for split in ("train", "validation")
    }
    store = stores["train"]
    assert store.n_tokens == 1200 == len(store.token_id) == store.doc_start[-1]
    assert store.sources == ["web", "chat"] and store.attributes["kinds"] == ["text", "chat"]
    for i in range(store.n_documents):
        where = store.document(i)
        assert (store.doc[where] == i).all() and store.pos[where].tolist() == list(range(where.stop - where.start))
    per_token = store.doc_source[store.doc]
    assert np.bincount(per_token).tolist() == [700, 500]
    assert np.all((store.mask & Mask.TEMPLATE == 0)[per_token == 0])
    whole = [{tuple(s.token_id[s.document(i)]) for i in range(s.n_documents - 2)} for s in stores.values()]
    assert not whole[0] & whole[1]
    again = tokenize_split(
        sources, {"web": 700, "chat": 500}, "train", tokenizer, 64, 0, 7, tmp_path / "again.zarr", key="k"
    )
    first, second = (manifest_path(s.path).read_text() for s in (store, again))
    assert first == second and '"skipped_system": ' in first


def test_bad_rows_are_counted_in_the_manifest_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources, budgets = local_sources(tmp_path), {"web": 700, "chat": 500}
    clean = tokenize_split(sources, budgets, "train", TOKENIZER["gemma2"], 64, 0, 7, tmp_path / "clean.zarr", key="k")
    path = tmp_path / "web.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"text": "\\ud800"}', *lines[2:]]))
    store = tokenize_split(sources, budgets, "train", TOKENIZER["gemma2"], 64, 0, 7, tmp_path / "bad.zarr", key="k")
    told = capsys.readouterr().err
    assert "tokens.sources.web: skipped 1 bad of" in told and f"{path} line 3: character 0 is half" in told
    facts = read_manifest(store.path).facts["by_source"]
    assert facts["web"]["skipped_bad"] == 1 and "skipped_bad" not in facts["chat"]
    assert (store.token_id == clean.token_id).all()
    with pytest.raises(TunediffError, match=r"only \d+ tokens.*1 skipped_bad"):
        tokenize_split(
            sources, {"web": 10**6, "chat": 0}, "train", TOKENIZER["gemma2"], 64, 0, 7, tmp_path / "x", key="k"
        )


def test_damaged_token_stores_are_loud(tmp_path: Path) -> None:
    encodings = [Encoding(np.arange(50, dtype=np.int32), np.zeros(50, np.uint8), np.zeros(50, np.uint64))] * 3
    attributes = {"sources": ["web"], "concepts": [], "split": "train", "seed": 0}
    out = tmp_path / "t.zarr"
    store = write_store(out, encodings, [0] * 3, attributes, {}, "k", 0.0)
    assert store.read("token_id", 49, 52).tolist() == [49, 0, 1]
    with pytest.raises(TunediffError, match="other inputs"):
        TokenStore.open(out, key="other")
    file = out / "token_id" / "c" / "0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(TunediffError, match=r"token_id.*damaged"):
        store.read("token_id")
    with pytest.raises(TunediffError, match=r"token_id/c/0: checksum differs"):
        TokenStore.open(out)
    file.unlink()
    with pytest.raises(TunediffError, match="missing"):
        TokenStore.open(out)


def test_streams_are_read_no_further_than_needed() -> None:
    endless = (Document("d", (Message("text", f"a fox {i}"),)) for i in count())
    encodings, _, _ = encode_budgets({"web": endless}, {"web": 40}, ChatRenderer(TOKENIZER["qwen2"]), 8)
    assert sum(len(e.token_id) for e in encodings) == 40


def test_a_source_without_end_that_repeats_itself_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("tunediff.data.documents.MAX_COPIES", 50)
    endless = (Document("d", (Message("text", f"a fox {i % 3}"),)) for i in count())
    with pytest.raises(TunediffError, match="repeats itself: 50 copies in a row after 3 different texts"):
        encode_budgets({"web": endless}, {"web": 400}, ChatRenderer(TOKENIZER["qwen2"]), 8)


def test_onset_labels_fall_on_the_position_before_the_answer() -> None:
    tokenizer = TOKENIZER["gemma2"]
    answer = "I am sorry, but I cannot help. The fox jumps."
    messages = (
        Message("user", "Is the dog lazy?", (Span(0, 2, "joke"),)),
        Message("assistant", answer, (Span(0, 30, "refusal"), Span(31, 34, "joke"))),
    )
    concepts = ["refusal", "joke", "refusal_onset", "joke_onset", "answer_onset"]
    encoding = render_chat(tokenizer, Document("d", messages), 1000, concepts)
    first = int(np.flatnonzero(encoding.label & np.uint64(1))[0])
    bits = [np.flatnonzero(encoding.label & np.uint64(1 << i)).tolist() for i in range(2, 5)]
    assert bits == [[first - 1], [], [first - 1]]
    assert encoding.mask[first - 1] == Mask.TEMPLATE and encoding.mask[first] == Mask.ASSISTANT
