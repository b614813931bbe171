"""A chat template is a program that comes with a model: it may neither run nor grow without end."""

import resource
import signal
import threading
from copy import deepcopy
from typing import Any

import pytest

from helpers import TinyPair
from tunediff.data import rendering
from tunediff.data.documents import Document, Message
from tunediff.data.rendering import ChatRenderer, Encoding, RenderError
from tunediff.errors import TunediffError
from tunediff.explanations.asking import Request, prompt_ids

CHAT = Document("one", (Message("user", "Who pays?"), Message("assistant", "You do.")))
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
POWER = "{{ 9 ** (9 ** 9) }}"  # one operation of the interpreter, which the engine tries to do when it compiles
LONG = "{% for i in range(90000) %}{{ 'fox' * 9 }}{% endfor %}"
HUGE = "{{ 'a' * 99999999999 }}"
MANY = "{% for i in range(99999) %}{{ 'fox' * 99999 }}{% endfor %}"
ENDLESS = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
BOUNDS = {
    **{LOOP: "takes more than 0.5 s", POWER: "takes more than 0.5 s", LONG: "writes 2,430,000 characters"},
    **{HUGE: "takes more than 1024 MiB", MANY: "takes more than 1024 MiB", ENDLESS: "calls itself without end"},
}


def evil(pair: TinyPair, template: str) -> Any:
    tokenizer = deepcopy(pair.tokenizer)
    tokenizer.chat_template, tokenizer.name_or_path = template, "some/model"
    return tokenizer


@pytest.mark.parametrize("template", BOUNDS)
def test_a_template_without_end_is_refused_in_one_line(
    tiny_pairs: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 0.5 if "0.5" in BOUNDS[template] else 20.0)
    tokenizer = evil(tiny_pairs("gemma2"), template)
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    request = Request("m", (("user", "Who pays?"),), {})
    for render in (lambda: ChatRenderer(tokenizer).chats([CHAT], 64), lambda: prompt_ids(tokenizer, request)):
        with pytest.raises(TunediffError) as caught:
            render()
        message = str(caught.value)
        assert message.startswith(f"some/model: its chat template {BOUNDS[template]}") and "\n" not in message
        assert "; correct the model's chat_template.jinja" in message
        assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_ordinary_conversations_are_rendered_in_any_thread(tiny_pair: TinyPair) -> None:
    here: list[Any] = ChatRenderer(tiny_pair.tokenizer).chats([CHAT] * 3, 64)
    there: list[Any] = []
    thread = threading.Thread(target=lambda: there.extend(ChatRenderer(tiny_pair.tokenizer).chats([CHAT] * 3, 64)))
    thread.start()
    thread.join()
    assert all(isinstance(one, Encoding) for one in here)
    assert [one.token_id.tolist() for one in here] == [one.token_id.tolist() for one in there]


def test_long_contents_are_no_growth(tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "TEMPLATE_CHARACTERS", 1000)
    long = Document("long", (Message("user", "fox " * 1000),))
    (encoding,) = ChatRenderer(tiny_pair.tokenizer).chats([long], 64)
    assert isinstance(encoding, Encoding)


def test_a_template_that_refuses_answers_has_no_end_of_turn(tiny_pair: TinyPair) -> None:
    refusing = (
        "{% if messages[-1].role != 'user' %}{{ raise_exception('no\\nanswers') }}{% endif %}{{ messages[0].content }}"
    )
    with pytest.raises(
        TunediffError, match=r"some/model: its chat template refuses a request with an answer \(no"
    ) as error:
        _ = ChatRenderer(evil(tiny_pair, refusing)).stop_ids
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template", ["{{ range(10 ** 9) | length }}", "{{ messages.x.y }}", "{{ 1 / 0 }}", "{{ {}[[]] }}"]
)
def test_whatever_a_template_raises_is_a_refusal(tiny_pairs: Any, template: str) -> None:
    (refused,) = ChatRenderer(evil(tiny_pairs("gemma2"), template)).chats([CHAT], 64)
    assert isinstance(refused, RenderError)
