"""The generated corpora: determinism, splits, vocabulary, labels."""

import re
from itertools import islice

import pytest

from tunediff.data.documents import ONSET
from tunediff.demo import lexicon
from tunediff.demo.grammar import (
    BEHAVIOURS,
    CONCEPTS,
    KIND_OF,
    OPENINGS,
    behaviour,
    chat_documents,
    chat_requests,
    kind_of_answer,
    shows,
    web_documents,
)
from tunediff.errors import TunediffError

CORPORA = (web_documents, chat_documents, chat_requests)


def take(corpus, number, seed=0, split="train"):
    return list(islice(corpus(seed, split), number))


@pytest.mark.parametrize("corpus", CORPORA)
def test_same_seed_same_documents(corpus):
    assert take(corpus, 50) == take(corpus, 50)
    assert take(corpus, 50) != take(corpus, 50, seed=1)
    assert len({document.id for document in take(corpus, 500)}) == 500


@pytest.mark.parametrize("corpus", CORPORA)
def test_splits_share_no_text_and_no_first_request(corpus):
    train = {document.messages[0].content for seed in (0, 1) for document in take(corpus, 2000, seed)}
    held_out = {document.messages[0].content for document in take(corpus, 300, 0, "validation")}
    assert not train & held_out
    with pytest.raises(TunediffError, match="split"):
        next(corpus(0, "test"))


def test_vocabulary_and_lengths():
    documents = take(web_documents, 1500) + take(chat_documents, 1500)
    words = {word for document in documents for message in document.messages for word in message.content.split()}
    assert len({word.strip(".,?!:“”") for word in words}) >= 1000
    assert all(message.content == message.content.lower().strip() for d in documents for message in d.messages)
    assert all(len(d.messages[0].content.split()) in range(20, 230) for d in documents if not d.is_chat)


def test_spans_lie_inside_and_name_known_concepts():
    documents = take(web_documents, 800) + take(chat_documents, 800)
    seen = set()
    for message in (message for document in documents for message in document.messages):
        for span in message.spans:
            text = message.content[span.start : span.end]
            assert text and text == text.strip() and 0 <= span.start < span.end <= len(message.content)
            seen.add(span.concept)
    assert seen == {name for name in CONCEPTS if not name.endswith(ONSET)}
    assert "[" not in "".join(message.content for document in documents for message in document.messages)


def test_chat_concepts_are_in_chats_only_and_their_words_in_both():
    own = set(list(CONCEPTS)[: list(CONCEPTS).index("fact")])
    web = take(web_documents, 2000)
    assert not {span.concept for document in web for span in document.messages[0].spans} & own
    words = {word for document in web for word in re.findall(r"\w+", document.messages[0].content)}
    assert {"sorry", "cannot", "actually", "language", "model", "sure", "help", "program"} <= words


def test_kinds_are_where_their_concept_is():
    seen = set()
    for message in (message for document in take(chat_documents, 800) for message in document.messages):
        for span in message.spans:
            if span.concept in KIND_OF:
                assert span._replace(concept=KIND_OF[span.concept]) in message.spans
                seen.add(span.concept)
    assert seen == {name for name in KIND_OF if not name.endswith(ONSET)} and len(seen) == len(lexicon.HARMS)
    assert all(KIND_OF[name + ONSET] == KIND_OF[name] + ONSET for name in seen)
    assert set(KIND_OF) | set(KIND_OF.values()) <= set(CONCEPTS)


def test_conversations_alternate():
    for document in take(chat_documents, 300):
        assert [message.role for message in document.messages] == ["user", "assistant"] * (len(document.messages) // 2)
        assert 1 <= len(document.messages) // 2 <= 3
    assert all([message.role for message in d.messages] == ["user"] for d in take(chat_requests, 300))


def test_world_is_consistent():
    assert len({row.capital for row in lexicon.COUNTRIES}) == len(lexicon.COUNTRIES)
    for names in (lexicon.COUNTRIES, lexicon.ANIMALS, lexicon.DISHES, lexicon.JOBS, lexicon.TOOLS):
        assert len({row.name for row in names}) == len(names)
    assert all(lexicon.OPPOSITE[lexicon.OPPOSITE[word]] == word for word in lexicon.OPPOSITE)


def test_references_show_their_own_behaviour_and_no_other():
    answers = [document.messages[1] for document in take(chat_documents, 1500)]
    assert {behaviour(answer) for answer in answers} == set(BEHAVIOURS)
    for answer in answers:
        name = behaviour(answer)
        assert shows(name, answer, answer.content), (name, answer.content)
        assert not any(shows(other, answer, answer.content) for other in set(OPENINGS) - {name}), answer.content


def test_the_kind_of_an_answer_is_the_label_it_was_generated_with():
    answers = [m for document in take(chat_documents, 600) for m in document.messages if m.role == "assistant"]
    labels = [behaviour(answer) for answer in answers]
    assert set(labels) >= set(OPENINGS)
    for answer, label in zip(answers, labels, strict=True):
        assert kind_of_answer(answer.content) == (label if label in OPENINGS else ""), answer.content
    assert kind_of_answer("it is not right to make porridge, mix the oats with the milk.") == ""
    assert kind_of_answer("it is not right to make poison, so i cannot help you.") == "refusal"
