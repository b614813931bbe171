"""The demo's tokenizer, its training, and the shipped pair."""

import json
import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2ForCausalLM

from tunediff.demo.grammar import BEHAVIOURS, chat_documents, web_documents
from tunediff.demo.pair import VARIANTS, Corpus, PairConfig, build_tokenizer, train_pair, train_variant
from tunediff.errors import TunediffError

SHIPPED = Path(__file__).parents[2] / "resources" / "demo-pair"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def turns(document):
    return [{"role": message.role, "content": message.content} for message in document.messages]


def test_no_unknown_words_and_exact_round_trip(tokenizer):
    documents = [*islice(web_documents(9), 1000), *islice(chat_documents(9, "validation"), 1000)]
    for message in (message for document in documents for message in document.messages):
        encoded = tokenizer(message.content, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert [message.content[start:end] for start, end in encoded["offset_mapping"]][1:] == tokens[1:]
        assert tokenizer.decode(ids, skip_special_tokens=True) == message.content


def test_a_turn_has_five_template_tokens(tokenizer):
    for document in islice(chat_documents(3), 200):
        ids = tokenizer.apply_chat_template(turns(document), return_dict=False)
        content = sum(len(tokenizer(m.content, add_special_tokens=False)["input_ids"]) for m in document.messages)
        assert len(ids) == 1 + content + 5 * len(document.messages)


def test_template_is_gemmas(tokenizer):
    chat = [{"role": "user", "content": " hello "}, {"role": "assistant", "content": "hello\n"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\nhello<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(TemplateError, match="System role not supported"):
        tokenizer.apply_chat_template([{"role": "system", "content": "hello"}, *chat], tokenize=False)
    with pytest.raises(TemplateError, match="alternate"):
        tokenizer.apply_chat_template(chat[1:], tokenize=False)


def test_chat_labels_are_the_answers(tokenizer):
    chats = list(islice(chat_documents(4), 20))
    corpus = Corpus(chats, tokenizer)
    for chat, labels in zip(chats, corpus.labels, strict=True):
        answers = [m.content + "<end_of_turn>" for m in chat.messages if m.role == "assistant"]
        expected = [token for text in answers for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert [label for label in labels if label != -100] == expected


def test_batches_hold_every_document_once(tokenizer):
    corpus = Corpus(islice(web_documents(4), 60), tokenizer)
    seen = [row[mask.bool()].tolist() for ids, masks, _ in corpus.batches(512, 0) for row, mask in zip(ids, masks)]  # noqa: B905
    assert sorted(seen) == sorted(corpus.ids)


def test_tiny_pair_trains_and_reloads(tmp_path):
    config = PairConfig(
        d_model=32,
        layers=2,
        d_mlp=64,
        base_tokens=12_000,
        chat_tokens=4_000,
        held_out_documents=20,
        requests_per_behaviour=1,
    )
    report = train_pair(tmp_path, config)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["base"]["web_loss"] < math.log(report["vocabulary"])  # better than uniform
    assert report["chat"]["chat_loss"] < report["base"]["chat_loss"]
    ids = torch.arange(6, 30)[None]
    logits = {}
    for name in ("base", "chat"):
        assert AutoTokenizer.from_pretrained(tmp_path / name)("the sun")["input_ids"][0] == 2
        half = AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager")
        assert half.dtype == torch.bfloat16
        full = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32, attn_implementation="eager")
        # not half.float(): Gemma's embedding scale and rotary frequencies stay rounded to bfloat16 in it
        reference = Gemma2ForCausalLM(full.config).eval()
        reference.load_state_dict({key: weight.float() for key, weight in half.state_dict().items()})
        logits[name] = full(ids).logits
        assert torch.equal(logits[name], reference(ids).logits)
    assert not torch.equal(logits["base"], logits["chat"])
    learned = {v: train_variant(v, tmp_path / "base", tmp_path / v, config) for v in VARIANTS}
    assert learned["retuned"]["chat_loss"] < learned["continued"]["chat_loss"]
    assert learned["continued"]["web_loss"] < report["base"]["web_loss"]
    for variant in VARIANTS:
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / variant, dtype=torch.float32, attn_implementation="eager"
        )
        assert not any(torch.equal(model(ids).logits, other) for other in logits.values())


def test_budgets_below_one_batch_are_refused(tmp_path):
    with pytest.raises(TunediffError, match="at least batch_tokens"):
        train_pair(tmp_path, PairConfig(base_tokens=10))


def test_shipped_pair_loads_and_behaves():
    report = json.loads((SHIPPED / "report.json").read_text())
    weak = {"correction": 0.5, "rewriting": 0.5, "long_answer": 0.5}  # these need more chat tokens than were shipped
    for name in BEHAVIOURS:
        assert report["chat"]["behaviour_rate"][name] >= weak.get(name, 0.9)
    planted = [name for name in BEHAVIOURS if name not in ("short_answer", "long_answer", "helpful_answer")]
    assert all(report["base"]["behaviour_rate"][name] <= 0.05 for name in planted)
    assert report["chat"]["web_loss"] < report["base"]["web_loss"] + 0.1
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 8e6
    model = AutoModelForCausalLM.from_pretrained(SHIPPED / "chat", dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "chat")
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    request, answer = next(
        document.messages[:2]
        for document in chat_documents(7, "validation")
        if any(span.concept == "refusal" for span in document.messages[1].spans)
    )
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": request.content}], add_generation_prompt=True, return_dict=False
    )
    output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=100)[0, len(ids) :]
    text = tokenizer.decode(output, skip_special_tokens=True)
    assert output[-1] == tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert "cannot" in text or "will not" in text or "not right" in text, (answer.content, text)
