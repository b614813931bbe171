"""Asking a language model: what is sent, what is kept, what is paid for twice (nothing), and how it ends."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from server import BROKEN, MALFORMED, RATE_LIMIT, REFUSAL, TRUNCATED, Fault, Server, echo

from helpers import TinyPair
from tunediff.errors import TunediffError
from tunediff.explanations.asking import Asker, Cache, Endpoint, LocalModel, Reply, Request, answered

PARAMETERS = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 20, "seed": 0, "logprobs": True, "top_logprobs": 3}
KEY = "sk-Recognisable/0123456789+abcdefghijklmnop"


def request(text: str, model: str = "judge", **parameters: Any) -> Request:
    return Request(model, (("system", "Answer."), ("user", text)), PARAMETERS | parameters)


def some(n: int) -> list[Request]:
    return [request(f"number {i}") for i in range(n)]


def endpoint(server: Server, **options: Any) -> Endpoint:
    return Endpoint(server.url, None, "judge", **{"backoff": 0.01, "timeout": 20.0} | options)


def ask(asker: Asker, requests: list[Request], path: Path, limit: int | None = None) -> dict[str, Reply]:
    with Cache(path) as cache:
        return answered(requests, asker, cache, max_tokens_total=limit, name="test")


def kept(path: Path) -> list[str]:
    """Return the last message of each whole line of a cache."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["request"]["messages"][-1][1] for line in lines]


def failure(asker: Asker, requests: list[Request], path: Path) -> str:
    """Return the one line that asking ends with."""
    with pytest.raises(TunediffError) as caught:
        ask(asker, requests, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Requests, replies, cache


def test_the_digest_is_that_of_all_that_is_asked() -> None:
    plain = Request("m", (("user", "é\u2028"),), {"top_p": 0.5, "temperature": 0.0})
    written = r'{"messages":[["user","\u00e9\u2028"]],"model":"m","parameters":{"temperature":0,"top_p":0.5}}'
    assert plain.digest == hashlib.sha256(written.encode()).hexdigest()
    assert plain.digest == replace(plain, parameters={"temperature": 0, "top_p": 0.5}).digest
    others = [
        replace(plain, model="n"),
        replace(plain, messages=(("system", "é\u2028"),)),
        replace(plain, messages=(("user", "e\u2028"),)),
        replace(plain, parameters={"temperature": 0.1, "top_p": 0.5}),
        replace(plain, parameters={"temperature": 0.0}),
    ]
    assert len({each.digest for each in [plain, *others]}) == 6


REPLIES = [
    Reply(
        "one\nline\u2028 é 🙂 \ud83d", "stop", (("a", (("a", -0.1), ("\n", -2.5))), ("b", (("b", -0.0),))), 7, 5, False
    ),
    Reply(None, "content_filter", None, 3, 0, True),
    Reply("", "length", None, 1, 2, False),
]


def test_a_cache_gives_back_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "replies" / "cache.jsonl"
    with Cache(path) as cache:
        for wanted, reply in zip(some(3), REPLIES, strict=True):
            assert cache.get(wanted.digest) is None
            cache.add(wanted, reply)
            assert cache.get(wanted.digest) == reply
            assert path.read_bytes().endswith(b"}\n")
    with Cache(path) as cache:
        assert [cache.get(each.digest) for each in some(3)] == REPLIES
        assert cache.tokens == 12 + 3 + 3
    entries = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert [set(entry) for entry in entries] == [{"digest", "request", "reply"}] * 3
    assert entries[1]["request"] == json.loads(json.dumps(asdict(some(3)[1])))


def test_an_unfinished_last_line_is_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    with Cache(path) as cache:
        for wanted, reply in zip(some(3), REPLIES, strict=True):
            cache.add(wanted, reply)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = [*range(ends[1] + 1, ends[2], 17), ends[2] - 1, ends[1], 3, 0]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        left = [i for i in range(3) if ends[i] - 1 <= cut]  # a line without its end alone is whole
        with Cache(path) as cache:
            assert [i for i in range(3) if cache.get(some(3)[i].digest)] == left
            for i in range(len(left), 3):
                cache.add(some(3)[i], REPLIES[i])
        assert path.read_bytes() == whole
    path.write_bytes(whole + bytes(4096))  # as a file system may leave it after the power failed
    Cache(path).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["", "{}", "null", '{"digest": "', "other", "reply"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cache.jsonl"
    with Cache(path) as cache:
        for wanted, reply in zip(some(3), REPLIES, strict=True):
            cache.add(wanted, reply)
    lines = path.read_text().splitlines()
    if damage == "other":
        damage = lines[1].replace("number 1", "number 9")
    elif damage == "reply":
        damage = lines[1].replace('"finish"', '"finnish"')
    before = f"{lines[0]}\n{damage}\n{lines[2]}\n"
    path.write_text(before)
    for _ in range(2):  # the lock is given back
        with pytest.raises(TunediffError, match=r"cache\.jsonl: line 2 is damaged .*delete that line"):
            Cache(path)
    assert path.read_text() == before


def test_one_process_at_a_time_uses_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    with Cache(path), pytest.raises(TunediffError, match=r"cache\.jsonl: another run is using it; wait"):
        Cache(path)
    with Cache(path):
        code = f"from pathlib import Path; from tunediff.explanations.asking import Cache; Cache(Path({str(path)!r}))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "TunediffError: " + str(path) + ": another run" in run.stderr
    Cache(path).close()


def test_a_reply_that_does_not_fit_on_the_disk_leaves_a_whole_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.jsonl"
    write = os.write
    with Cache(path) as cache:
        cache.add(some(2)[0], REPLIES[0])
        whole = path.read_bytes()
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:20]))
        with pytest.raises(TunediffError, match="no room for a whole reply"):
            cache.add(some(2)[1], REPLIES[1])
    assert path.read_bytes() == whole


# Endpoint


def test_all_is_asked_once_several_at_a_time(tmp_path: Path) -> None:
    requests = some(24)
    with Server(delay=lambda: 0.03) as server:
        replies = ask(endpoint(server), [*requests, *requests[:5]], tmp_path / "cache.jsonl")
        assert server.most_flying == 4
        assert server.asked() == Counter({f"number {i}": 1 for i in range(24)})
        assert [body["messages"][-1]["content"] for body in server.bodies[:4]] != []
        first = {body["messages"][-1]["content"] for body in server.bodies[:8]}
        assert first <= {f"number {i}" for i in range(12)}  # in order, but for those in flight
        assert ask(endpoint(server), requests, tmp_path / "cache.jsonl") == replies
        assert len(server.bodies) == 24
    assert list(replies) == [each.digest for each in requests]
    assert [reply.text for reply in replies.values()] == [f"number {i}"[::-1] for i in range(24)]


def test_what_is_sent_and_what_comes_back(tmp_path: Path) -> None:
    with Server(lambda messages: "yes it is") as server:
        sent = request("a", stop=["x"])
        [reply] = ask(endpoint(server), [sent], tmp_path / "cache.jsonl").values()
        bare = request("a", logprobs=False)
        [silent] = ask(endpoint(server), [bare], tmp_path / "cache.jsonl").values()
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "a"}]
    wanted = {"model": "judge", "messages": messages, **sent.parameters, "stream": False}
    assert server.bodies[0] == wanted
    top = [(("other0", -2.0), ("other1", -3.0)) for _ in range(3)]
    words = ("yes", " it", " is")
    tokens = tuple((word, ((word, -0.25), *others)) for word, others in zip(words, top, strict=True))
    assert reply == Reply("yes it is", "stop", tokens, 2, 3, False)
    assert silent == replace(reply, tokens=None)


def test_tokens_are_estimated_where_the_server_says_none(tmp_path: Path) -> None:
    with Server(lambda messages: "x" * 40, usage=False, logprobs=False) as server:
        asker = endpoint(server)
        [reply] = ask(asker, [request("y" * 93)], tmp_path / "cache.jsonl").values()
    assert (reply.prompt_tokens, reply.completion_tokens) == (25, 10)
    assert asker.count_tokens(request("y" * 94)) == 26


def test_the_url_may_be_whole(tmp_path: Path) -> None:
    with Server() as server:
        asker = Endpoint(f"{server.url}/chat/completions?version=1", None, "judge")
        assert len(ask(asker, some(1), tmp_path / "cache.jsonl")) == 1


PASSING = {
    "rate limit": RATE_LIMIT,
    "rate limit without a time": Fault(429),
    "broken": BROKEN,
    "not an object": Fault(503, body='["overloaded"]'),
    "not JSON": Fault(502, body="<html>bad gateway</html>"),
    "truncated error": Fault(500, truncate=True),
    "hang": Fault(hang=2.5),
    "truncated": TRUNCATED,
    "malformed": MALFORMED,
    "not text": Fault(body="\udcff".encode("utf-8", "surrogateescape").decode("latin1")),
    "no choices": Fault(body='{"choices": []}'),
    "an error as reply": Fault(body='{"error": {"message": "upstream is away", "code": 502}}'),
    "choices of no kind": Fault(body='{"choices": {"a": 1}}'),
    "no message": Fault(body='{"choices": [{"index": 0}]}'),
    "content of no kind": Fault(body='{"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}'),
}


@pytest.mark.parametrize("fault", PASSING)
def test_passing_faults_are_asked_again(tmp_path: Path, fault: str) -> None:
    requests = some(2)
    with Server(faults=[PASSING[fault]]) as server:
        asker = endpoint(server, timeout=1.0 if fault == "hang" else 20.0, parallel=1)
        replies = ask(asker, requests, tmp_path / "cache.jsonl")
        assert server.asked() == Counter({"number 0": 2, "number 1": 1})
    assert [replies[each.digest].text for each in requests] == ["0 rebmun", "1 rebmun"]
    assert kept(tmp_path / "cache.jsonl") == ["number 0", "number 1"]


def test_waits_grow_and_heed_the_server(tmp_path: Path) -> None:
    def waits(faults: list[Fault], backoff: float) -> list[float]:
        (tmp_path / "cache.jsonl").unlink(missing_ok=True)
        with Server(faults=faults) as server:
            ask(endpoint(server, backoff=backoff), some(1), tmp_path / "cache.jsonl")
            return [b - a for a, b in zip(server.times, server.times[1:], strict=False)]

    grown = waits([BROKEN, RATE_LIMIT._replace(headers=()), TRUNCATED], 0.1)
    assert [grown[0] >= 0.1, grown[1] >= 0.2, grown[2] >= 0.4] == [True] * 3 and sum(grown) < 5.0
    [asked] = waits([Fault(429, headers=(("Retry-After", "1"),))], 0.0)
    assert asked >= 1.0
    date = formatdate(time.time() + 2.0, usegmt=True)  # whole seconds
    [asked] = waits([Fault(503, headers=(("Retry-After", date),))], 0.0)
    assert asked > 0.8
    [asked] = waits([Fault(429, headers=(("Retry-After", "soon"),))], 0.1)
    assert asked >= 0.1


def test_a_rate_limit_holds_back_the_others_too(tmp_path: Path) -> None:
    with Server(faults=[Fault(429, headers=(("Retry-After", "0.5"),))], delay=lambda: 0.02) as server:
        ask(endpoint(server, parallel=2), some(12), tmp_path / "cache.jsonl")
    early = [each for each in server.times if each - server.times[0] < 0.5]
    assert len(early) <= 3 and len(server.times) == 13


def test_what_does_not_pass_ends_the_run_and_loses_no_reply(tmp_path: Path) -> None:
    def mixed() -> Iterator[Fault | None]:
        yield from [None, None]
        yield from [Fault(503, body='{"error": {"message": "over\\nloaded"}}')] * 3
        yield from [None] * 100

    with Server(faults=mixed()) as server:
        told = failure(endpoint(server, parallel=1, attempts=3), some(9), tmp_path / "cache.jsonl")
        assert server.asked() == Counter({"number 0": 1, "number 1": 1, "number 2": 3})
        assert told == (
            f"judge at {server.url}: 503 over loaded (3 attempts); see that the server is well and run again: all "
            "replies so far are kept"
        )
        assert kept(tmp_path / "cache.jsonl") == ["number 0", "number 1"]
        ask(endpoint(server), some(9), tmp_path / "cache.jsonl")
        assert server.asked() == Counter({f"number {i}": 1 + 2 * (i == 2) + (i == 2) for i in range(9)})
    with Server() as gone:
        pass
    told = failure(endpoint(gone, attempts=2), [request("more")], tmp_path / "cache.jsonl")
    assert f"judge at {gone.url}: connection failed (" in told and "(2 attempts)" in told


def test_a_server_that_says_nothing_is_named(tmp_path: Path) -> None:
    with Server(faults=[Fault(hang=0.6)] * 2) as server:
        told = failure(endpoint(server, timeout=0.2, attempts=2), some(1), tmp_path / "cache.jsonl")
    assert f"judge at {server.url}: no answer within 0.2 s (2 attempts)" in told


FINAL = {
    "401": (Fault(401), r"the server refuses a key \(401\)"),
    "401 of no kind": (Fault(401, body='"Unauthorized"'), r"the server refuses a key \(401\)"),
    "402": (Fault(402, body='{"detail": "no credit"}'), "rejects the request: 402 no credit"),
    "403": (Fault(403, body='{"message": "not in your country"}'), "403 not in your country"),
    "404": (Fault(404, body="<h1>nothing here</h1>"), "404 <h1>nothing here</h1>; check the name of the model"),
    "400": (Fault(400, body='{"error": "context of 99 tokens"}'), "rejects the request: 400 context of 99 tokens"),
    "413": (Fault(413), "rejects the request: 413"),
}


@pytest.mark.parametrize("fault", FINAL)
def test_what_cannot_pass_ends_at_once(tmp_path: Path, fault: str) -> None:
    planned, wanted = FINAL[fault]
    faults = [None, planned, *[None] * 50]
    with Server(faults=faults, delay=lambda: 0.1) as server:
        told = failure(endpoint(server), some(30), tmp_path / "cache.jsonl")
    assert re.search(wanted, told)
    asked, replies = server.asked(), kept(tmp_path / "cache.jsonl")
    assert max(asked.values()) == 1 and sum(asked.values()) <= 8
    assert len(replies) == sum(asked.values()) - 1  # those in flight are kept


def test_an_unknown_model_and_a_wrong_path_are_named(tmp_path: Path) -> None:
    with Server() as server:
        told = failure(endpoint(server), [request("a", model="mistaken")], tmp_path / "cache.jsonl")
        assert told.startswith(f"mistaken at {server.url}: 404 The model `mistaken` does not exist; check the name")
        wrong = Endpoint(server.url.replace("/v1", "/v2/chat/completions"), None, "judge")
        assert "404 Not Found; check the name of the model, and that the url" in failure(
            wrong, some(1), tmp_path / "cache.jsonl"
        )


def test_refusals_are_replies(tmp_path: Path) -> None:
    empty = Fault(body='{"choices": [{"finish_reason": "content_filter", "message": {"content": null}}]}')
    partly = Fault(
        body='{"choices": [{"finish_reason": "stop", "message": {"content": "No.", "refusal": "I must not"}}]}'
    )
    with Server(faults=[REFUSAL, empty, partly]) as server:
        replies = [*ask(endpoint(server, parallel=1), some(4), tmp_path / "cache.jsonl").values()]
        assert ask(endpoint(server), some(4), tmp_path / "cache.jsonl") and len(server.bodies) == 4
    assert replies[0] == Reply(None, "stop", None, 3, 4, True)
    assert [(each.text, each.finish, each.refused) for each in replies[1:]] == [
        (None, "content_filter", True),
        ("No.", "stop", True),
        ("3 rebmun", "stop", False),
    ]


@pytest.mark.parametrize(
    ("rejects", "left"),
    [(("logprobs",), {"seed"}), (("top_logprobs",), {"seed", "logprobs"}), (("seed", "top_logprobs"), {"logprobs"})],
)
def test_parameters_that_a_server_rejects_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rejects: tuple[str, ...], left: set[str]
) -> None:
    requests = some(12)
    with Server(rejects=rejects, delay=lambda: 0.02) as server:
        replies = ask(endpoint(server, attempts=1), requests, tmp_path / "cache.jsonl")
        assert ask(endpoint(server), requests, tmp_path / "cache.jsonl") == replies
    assert list(replies) == [each.digest for each in requests]
    always = {"model", "messages", "temperature", "top_p", "max_tokens", "stream"}
    assert all(body.keys() - always == left for body in server.bodies[-8:])
    assert max(server.asked().values()) <= 1 + len(rejects)
    tokens = [reply.tokens for reply in replies.values()]
    assert tokens[0] == ((("0", (("0", -0.25),)), (" rebmun", ((" rebmun", -0.25),))) if "logprobs" in left else None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(rejects)
    assert f"{server.url}: rejects {'logprobs, top_logprobs' if rejects[0] == 'logprobs' else rejects[0]}, " in lines[0]


def test_a_parameter_that_cannot_be_left_out_ends_the_run(tmp_path: Path) -> None:
    with Server(rejects=("top_p",)) as server:
        told = failure(endpoint(server), some(1), tmp_path / "cache.jsonl")
    assert "rejects the request: 400 Unsupported parameter: 'top_p'" in told and len(server.bodies) == 1


def test_a_budget_of_tokens_stops_and_keeps(tmp_path: Path) -> None:
    requests, path = some(20), tmp_path / "cache.jsonl"  # 5 tokens each: 3 words read, 2 written
    with Server() as server:
        other = ask(endpoint(server), [request("of another question")], path)
        replies = ask(endpoint(server, parallel=1), requests, path, limit=25)
        assert list(replies) == [each.digest for each in requests[:5]]
        assert ask(endpoint(server), requests, path, limit=21) == replies
        assert len(server.bodies) == 6
        more = ask(endpoint(server, parallel=3), requests, path, limit=26)
        assert replies.items() <= more.items() and 6 <= len(more) <= 8
        assert len(ask(endpoint(server), requests, path)) == 20 and len(other) == 1
    assert max(server.asked().values()) == 1


@pytest.mark.parametrize(
    ("url", "key_variable", "told"),
    [
        ("localhost:8000/v1", None, "is none; write it as"),
        ("ftp://host/v1", None, "is none; write it as"),
        ("http://host:port/v1", None, "is none; write it as"),
        ("https://user:hunter2@host/v1?secret=hunter2", None, "url https://host/v1: holds a user or password"),
        ("https://user:hunter2@/v1", None, "is none"),
        ("https://host/v1", "sk-hunter2", "never the key itself"),
        ("https://host/v1", "hf_hunter2", "never the key itself"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(url: str, key_variable: str | None, told: str) -> None:
    with pytest.raises(TunediffError, match=told) as caught:
        Endpoint(url, key_variable, "judge")
    assert "hunter2" not in str(caught.value)


def test_offline_mode_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with Server() as server:
        assert "HF_HUB_OFFLINE is set" in failure(endpoint(server), some(1), tmp_path / "cache.jsonl")
        assert not server.bodies


# The key


@pytest.mark.parametrize(
    "fault",
    [
        Fault(401, body='{"error": {"message": "no such key: {authorization}"}}'),
        Fault(403, body="{authorization}"),
        Fault(400, body='{"error": "logprobs {authorization}"}'),
        Fault(500, body="{authorization} {authorization}"),
        Fault(500, body='{"error": {"message": "' + "x" * 170 + ' {authorization}"}}'),
        Fault(500, body='{"detail": [{"headers": "{authorization}"}]}'),
        Fault(500, body='["{authorization}"]', headers=(("X-Error-Message", "again"),)),
        Fault(body='{"error": "{authorization}"}'),
    ],
)
def test_the_key_is_found_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    caplog.set_level("DEBUG")
    faults = [None, *[fault] * 8, *[None] * 50]
    with Server(faults=faults, key=KEY) as server:
        asker = Endpoint(server.url, "JUDGE_KEY", "judge", parallel=1, attempts=3, backoff=0.01)
        with pytest.raises(TunediffError) as caught:
            ask(asker, some(3), tmp_path / "cache.jsonl")
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(asker) + str(vars(asker))
        left = {name: value for name, value in vars(caught.value).items()}
    found = [*capfd.readouterr(), caplog.text, shown, repr(left), (tmp_path / "cache.jsonl").read_text()]
    assert caught.value.__context__ is None
    assert kept(tmp_path / "cache.jsonl") == ["number 0"]
    pieces = [KEY[i : i + 10] for i in range(len(KEY) - 9)]
    assert not [piece for piece in pieces for text in found if piece in text]


def test_a_key_that_cannot_be_is_refused_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(key=KEY) as server:
        asker = Endpoint(server.url, "JUDGE_KEY", "judge")
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        assert "environment variable JUDGE_KEY is not set" in failure(asker, some(1), tmp_path / "cache.jsonl")
        for wrong in (f"{KEY}\r\nx", f"export {KEY}", f"{KEY}é"):
            monkeypatch.setenv("JUDGE_KEY", wrong)
            told = failure(asker, some(1), tmp_path / "cache.jsonl")
            assert "JUDGE_KEY: holds more than a key" in told and KEY not in told
        assert not server.bodies
        monkeypatch.setenv("JUDGE_KEY", KEY)
        assert len(ask(asker, some(1), tmp_path / "cache.jsonl")) == 1


def test_without_a_key_the_token_of_the_hub_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    seen = Fault(body='{"choices": [{"message": {"content": "{authorization}"}}]}')
    with Server(faults=[seen]) as server:
        [reply] = ask(endpoint(server), some(1), tmp_path / "cache.jsonl").values()
    assert reply.text == "Bearer no-key-needed"


# Stops

CODE = """
    import json, os, sys
    from dataclasses import asdict
    from pathlib import Path
    from tunediff.errors import TunediffError
    from tunediff.explanations.asking import Cache, Endpoint, Request, answered

    def run(url, path, n):
        requests = [Request("judge", (("user", f"number {i}"),), {"seed": i, "logprobs": True}) for i in range(n)]
        try:
            with Cache(Path(path)) as cache:
                asker = Endpoint(url, None, "judge", parallel=4)
                replies = answered(requests, asker, cache, max_tokens_total=None, name="test")
        except TunediffError as error:
            sys.exit(str(error))
        print(json.dumps({digest: asdict(reply) for digest, reply in replies.items()}), flush=True)
        loaded = {"torch", "transformers"} | ({"huggingface_hub", "httpx2"} if n == 0 else set())
        sys.exit(f"loaded {loaded & sys.modules.keys()}" if loaded & sys.modules.keys() else 0)

    if len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    import huggingface_hub.inference._client, httpx2  # loaded once for all runs below
    for line in sys.stdin:
        child = os.fork()
        if not child:
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(json.loads(line)[1] + f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            run(*json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Starts processes that ask the first `n` requests of a server; each is forked from one that has loaded all."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", textwrap.dedent(CODE)]
        self.parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, server: Server, path: Path, n: int) -> int:
        """Return the id of a process that has been started."""
        assert self.parent.stdin and self.parent.stdout
        self.parent.stdin.write(json.dumps([server.url, str(path), n]) + "\n")
        self.parent.stdin.flush()
        return int(self.parent.stdout.readline())

    def end(self, path: Path) -> tuple[int, str, str]:
        """Return the exit status, the replies and the errors that a process ended with."""
        assert self.parent.stdout
        status = int(self.parent.stdout.readline())
        return status, Path(f"{path}.out").read_text(), Path(f"{path}.err").read_text()

    def finish(self, server: Server, path: Path, n: int) -> str:
        """Run to the end and return the replies."""
        self.start(server, path, n)
        status, replies, told = self.end(path)
        assert (status, told) == (0, "")
        return replies

    def stop(
        self, server: Server, path: Path, n: int, generator: random.Random, number: signal.Signals
    ) -> tuple[int, str]:
        """Stop a run at a random moment after the server has received some requests; return how it ended."""
        enough = len(server.bodies) + generator.randint(1, 6)
        process = self.start(server, path, n)
        deadline = time.monotonic() + 60
        while len(server.bodies) < enough and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(generator.uniform(0.0, 0.03))
        os.kill(process, number)
        status, _, told = self.end(path)
        while server.flying:  # what the server makes of requests that nobody waits for
            time.sleep(0.002)
        return status, told


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    made.parent.communicate()


def slow(seed: int) -> Callable[[], float]:
    generator = random.Random(seed)
    return lambda: generator.uniform(0.0, 0.04)


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The replies of a run that nothing stops."""
    with Server() as server:
        printed = runs.finish(server, tmp_path_factory.mktemp("undisturbed") / "cache.jsonl", 180)
        assert len(json.loads(printed)) == 180 and server.most_flying <= 4
        return printed


def test_a_run_that_is_stopped_pays_for_nothing_twice(tmp_path: Path, runs: Runs, undisturbed: str) -> None:
    path, generator = tmp_path / "cache.jsonl", random.Random(0)
    with Server(delay=slow(1)) as server:
        for turn in range(20):
            number = signal.SIGINT if turn % 4 == 3 else signal.SIGTERM
            status, told = runs.stop(server, path, 180, generator, number)
            assert status == 1 and told.splitlines() == [
                "stopping: no more is sent, replies in flight are awaited",
                f"test: stopped; {len(kept(path))} of 180 replies are kept; run again to go on",
            ]
            assert sorted(server.asked()) == sorted(kept(path))  # all that was received is kept
        assert len(kept(path)) < 180
        assert runs.finish(server, path, 180) == undisturbed
        assert server.asked() == Counter({f"number {i}": 1 for i in range(180)})
        assert set(server.received.values()) == {1}


def test_after_a_kill_only_what_was_in_flight_is_asked_again(tmp_path: Path, runs: Runs, undisturbed: str) -> None:
    path, generator = tmp_path / "cache.jsonl", random.Random(1)
    with Server(delay=slow(2)) as server:
        done: dict[str, int] = {}  # how often those were received whose reply is kept
        for kill in range(1, 6):
            status, told = runs.stop(server, path, 180, generator, signal.SIGKILL)
            assert status == -signal.SIGKILL and not told
            asked = server.asked()
            assert {text: asked[text] for text in done} == done
            done = {text: asked[text] for text in kept(path)}
            assert sum(asked.values()) - len(done) <= 4 * kill
        assert runs.finish(server, path, 180) == undisturbed
        asked = server.asked()
        assert {text: asked[text] for text in done} == done
        assert 0 < sum(asked.values()) - 180 <= 4 * 5
    assert sorted(kept(path)) == sorted(f"number {i}" for i in range(180))


def test_a_stop_ends_the_wait_between_attempts(tmp_path: Path, runs: Runs) -> None:
    path = tmp_path / "cache.jsonl"
    with Server(faults=[Fault(429, headers=(("Retry-After", "600"),))], delay=lambda: 0.02) as server:
        process = runs.start(server, path, 40)
        while not server.bodies or server.flying:
            time.sleep(0.01)
        time.sleep(0.2)
        asked = len(server.bodies)
        os.kill(process, signal.SIGTERM)
        _, _, told = runs.end(path)
        assert f"judge at {server.url}: asks to wait 600 s" in told
        assert f"test: stopped; {len(kept(path))} of 40 replies are kept" in told
        assert asked == len(server.bodies) == len(kept(path)) + 1


def test_a_stop_keeps_what_an_asker_still_yields(tmp_path: Path) -> None:
    class Slow:
        model = "slow"

        def ask(self, requests: Iterator[Request], stopped: Callable[[], bool]) -> Iterator[tuple[Request, Reply]]:
            yield next(requests), REPLIES[0]
            last = next(requests)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
            assert stopped()
            yield last, REPLIES[1]

        def count_tokens(self, request: Request) -> int:
            return 0

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    told = failure(Slow(), some(5), tmp_path / "cache.jsonl")
    assert told == "test: stopped; 2 of 5 replies are kept; run again to go on"
    assert kept(tmp_path / "cache.jsonl") == ["number 0", "number 1"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_with_nothing_to_ask_nothing_is_loaded(tmp_path: Path) -> None:
    with Server() as server:
        command = [sys.executable, "-c", textwrap.dedent(CODE), server.url, str(tmp_path / "cache.jsonl"), "0"]
        assert subprocess.run(command, check=True, capture_output=True).stdout == b"{}\n"
        ask(endpoint(server), some(3), tmp_path / "other.jsonl")
    gone = Endpoint(server.url, "NO_SUCH_VARIABLE", "judge")
    assert len(ask(gone, some(3), tmp_path / "other.jsonl")) == 3
    assert len(ask(LocalModel("no/such/model"), some(3), tmp_path / "other.jsonl")) == 3


# A local model


@pytest.fixture(params=["gemma2", "llama3"])
def local(request: pytest.FixtureRequest, tiny_pairs: Callable[[str], TinyPair]) -> TinyPair:
    return tiny_pairs(request.param)


def spoken(n: int) -> list[Request]:
    texts = ["Please tell me", "I am sorry, but the weather is today quiet.\n\nOr this one. " * 3, "12", "日本 tea 🙂"]
    return [request(f"{texts[i % 4]} {i}", max_tokens=8 + i // 5 % 2) for i in range(n)]


def test_batches_change_no_reply(tmp_path: Path, local: TinyPair) -> None:
    requests = spoken(16)
    one = ask(LocalModel(local.chat, batch_size=1), requests, tmp_path / "one.jsonl")
    eight = ask(LocalModel(local.chat, batch_size=8), requests, tmp_path / "eight.jsonl")
    assert kept(tmp_path / "eight.jsonl") != [] and list(one) == list(eight)
    for alone, together in zip(one.values(), eight.values(), strict=True):
        assert replace(alone, tokens=None) == replace(together, tokens=None)
        assert alone.tokens and len(alone.tokens) >= 8
        for (text, top), (other, beside) in zip(alone.tokens, together.tokens or (), strict=True):
            assert text == other
            assert [value for _, value in top] == pytest.approx([value for _, value in beside], abs=1e-4)


def test_a_local_reply_is_that_of_the_plain_model(tmp_path: Path, local: TinyPair) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(local.chat, dtype=torch.float32).eval(), local.tokenizer
    asker, asked = LocalModel(local.chat), spoken(6)[5]
    system, user = (text for _, text in asked.messages)
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    if local.family == "gemma2":  # its template knows no system
        turns = [{"role": "user", "content": f"{system}\n\n{user}"}]
    told = tokenizer.apply_chat_template(turns, add_generation_prompt=True, date_string="26 Jul 2024")
    prompt = list(told["input_ids"])
    [reply] = ask(asker, [asked], tmp_path / "cache.jsonl").values()
    assert asker.count_tokens(asked) == reply.prompt_tokens == len(prompt)
    ids: list[int] = []
    assert reply.tokens is not None
    for token, top in reply.tokens:
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + ids])).logits[0, -1].float()
        best = logits.log_softmax(-1).topk(3)
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert token == top[0][0]
        ids.append(int(best.indices[0]))
    assert reply.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert (reply.finish, reply.completion_tokens, reply.refused) == ("length", 9, False)


def test_an_answer_ends_at_its_end_of_turn(tmp_path: Path, local: TinyPair) -> None:
    import torch

    asker = LocalModel(local.chat)
    model, stops = asker._loaded
    end = {"gemma2": "<end_of_turn>", "llama3": "<|eot_id|>"}[local.family]
    assert local.tokenizer.convert_tokens_to_ids(end) in stops
    whole, seen = model.forward, []

    def forward(*arguments: Any, **options: Any) -> Any:
        output = whole(*arguments, **options)
        seen.append(0)
        if len(seen) == 4:
            output.logits[:, -1, local.tokenizer.convert_tokens_to_ids(end)] = torch.inf
            output.logits[:, -1] = output.logits[:, -1].nan_to_num(posinf=1e4)
        return output

    model.forward = forward
    [reply] = ask(asker, [request("a")], tmp_path / "cache.jsonl").values()
    assert (reply.finish, reply.completion_tokens, len(reply.tokens or ())) == ("stop", 4, 3)
    assert end not in str(reply.text) + str(reply.tokens)


def test_sampling_depends_on_the_seed_alone(tmp_path: Path, tiny_pairs: Callable[[str], TinyPair]) -> None:
    import torch

    path = tiny_pairs("llama3").chat
    warm = [request("Please", temperature=1.0, seed=i, top_logprobs=5) for i in range(6)]
    state = torch.random.get_rng_state()
    first = ask(LocalModel(path), warm, tmp_path / "a.jsonl")
    assert torch.equal(state, torch.random.get_rng_state())
    second = ask(LocalModel(path, batch_size=3), warm[::-1], tmp_path / "b.jsonl")
    assert first == second and len({reply.text for reply in first.values()}) > 3
    # Log-probabilities are the model's own, whatever the temperature: the first token's are the same.
    hot = [request("Please", temperature=2.0, top_p=0.3, seed=3, top_logprobs=5)]
    [other] = ask(LocalModel(path), hot, tmp_path / "c.jsonl").values()
    usual = next(iter(first.values()))
    assert usual.tokens and other.tokens and usual.tokens[0][1] == other.tokens[0][1]
    # Of the 400 tokens of a random model the 50 likeliest are not all: transformers' own top_k is not applied.
    asker, likely = LocalModel(path), set()
    for seed in range(15):
        wide = request("a", temperature=5.0, seed=seed, top_logprobs=50, max_tokens=1)
        [reply] = ask(asker, [wide], tmp_path / "d.jsonl").values()
        for token, top in reply.tokens or ():
            likely.add(token in [text for text, _ in top])
    assert likely == {True, False}


def test_a_local_model_stops_between_batches(tiny_pairs: Callable[[str], TinyPair]) -> None:
    left, seen = iter(spoken(16)), []
    for asked, _ in LocalModel(tiny_pairs("llama3").chat, batch_size=4).ask(left, lambda: len(seen) >= 2):
        seen.append(asked)
    assert seen == spoken(4) and list(left) == spoken(16)[8:]


def test_a_local_model_says_what_it_lacks(tmp_path: Path, tiny_pairs: Callable[[str], TinyPair]) -> None:
    pair = tiny_pairs("llama3")
    told = failure(LocalModel(pair.chat), [request("a", stop=["x"])], tmp_path / "cache.jsonl")
    assert told == f"{pair.chat}: parameter 'stop' is not known to a local model; leave it out"
    assert "cannot read the tokenizer" in failure(LocalModel(tmp_path / "none"), some(1), tmp_path / "cache.jsonl")
    bare = tmp_path / "bare"
    template, pair.tokenizer.chat_template = pair.tokenizer.chat_template, None
    try:
        pair.tokenizer.save_pretrained(bare)
    finally:
        pair.tokenizer.chat_template = template
    told = failure(LocalModel(bare), some(1), tmp_path / "cache.jsonl")
    assert "has no chat template; add chat_template.jinja" in told
    gemma = LocalModel(tiny_pairs("gemma2").chat)
    odd = Request("g", (("assistant", "a"), ("user", "b")), PARAMETERS)
    assert "its chat template refuses the messages (Conversation roles must" in failure(gemma, [odd], tmp_path / "c")


def test_an_endpoint_counts_with_a_tokenizer(tiny_pairs: Callable[[str], TinyPair]) -> None:
    pair = tiny_pairs("gemma2")
    counted = Endpoint("http://host/v1", None, "judge", tokenizer=pair.tokenizer).count_tokens(request("Please"))
    assert counted == LocalModel(pair.chat).count_tokens(request("Please"))
    assert echo([{"content": "ab"}]) == "ba"
