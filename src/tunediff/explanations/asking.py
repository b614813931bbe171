"""Asks a language model, behind an OpenAI-compatible endpoint or a local one, and pays for no request twice.

Every reply goes into a `Cache`, a JSONL file, before it is used; what is there is never asked again. On SIGTERM and
SIGINT no further request is sent, the replies in flight are awaited and kept, and only then the run ends: the next run
asks only what is missing. After a kill -9 the requests that were in flight, and no others, are asked again.
"""

import fcntl
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from tunediff.errors import TunediffError
from tunediff.pipeline.progress import Progress

LONGEST_WAIT = 60.0  # seconds between two attempts, where the server does not ask for more
POLL = 0.05  # seconds between two looks at whether a wait is to be given up
DISPENSABLE = ("logprobs", "top_logprobs", "seed")  # parameters that are left out where a server rejects them
SHOWN = 200  # characters of what a server says
PASSING = (408, 409, 425, 429)  # statuses below 500 that may pass: the request is sent again
CHARACTERS_PER_TOKEN = 4  # where no tokenizer is at hand
NO_KEY = "no-key-needed"  # sent where there is none: without any the client sends the user's token of the hub


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Request:
    """What is asked of a model; all of it counts in the digest."""

    model: str
    messages: tuple[tuple[str, str], ...]  # role (system, user, assistant) and text of each
    parameters: Mapping[str, Any]  # temperature, top_p, max_tokens, seed, logprobs, top_logprobs: servers differ in
    # what they take where one is left out, so give all of them

    @cached_property
    def digest(self) -> str:
        """SHA-256 of model, messages and parameters; 0 and 0.0 are the same."""
        whole = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in self.parameters.items()}
        return hashlib.sha256(_canonical(asdict(self) | {"parameters": whole}).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What a model answered."""

    text: str | None
    finish: str  # why it ended: stop, length, content_filter, …
    tokens: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] | None  # each generated token, and the most probable
    # ones at its place with their log-probabilities; None where the server gives none
    prompt_tokens: int
    completion_tokens: int
    refused: bool

    @property
    def used(self) -> int:
        """Tokens that were paid for."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return the reply that ``dataclasses.asdict`` wrote as JSON."""
        tokens = found["tokens"]
        if tokens is not None:
            tokens = tuple((token, tuple((other, float(value)) for other, value in top)) for token, top in tokens)
        return cls(**{**found, "tokens": tokens})


class Cache:
    """The replies so far, by digest: a JSONL file to which one process at a time appends.

    An unfinished last line, which a kill leaves, is cut away. `TunediffError`: another line is damaged, or another
    process has the cache open; its lock ends with the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._replies = path, dict[str, Reply]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise TunediffError(f"{path}: another run is using it; wait until that has ended, or stop it") from None
        except OSError as error:
            self._file.close()
            raise TunediffError(f"{path}: cannot be locked or read ({error}); use a file system with locks") from error
        except TunediffError:
            self._file.close()
            raise

    def _read(self) -> None:
        end = 0  # of the whole lines
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    entry = json.loads(line)
                    request = entry["request"] | {"messages": tuple(map(tuple, entry["request"]["messages"]))}
                    if Request(**request).digest != entry["digest"]:
                        raise ValueError("its digest is not that of its request")
                    reply = Reply.from_json(entry["reply"])
                except (ValueError, TypeError, LookupError) as error:
                    if not line.endswith(b"\n"):
                        self._file.truncate(end)
                        break
                    raise TunediffError(
                        f"{self.path}: line {number} is damaged ({' '.join(str(error).split())[:100]}); delete that "
                        "line, and its request is asked again"
                    ) from error
                self._replies.setdefault(entry["digest"], reply)
                if not line.endswith(b"\n"):
                    self._file.write(b"\n")
                    break
                end += len(line)

    @property
    def tokens(self) -> int:
        """Tokens that all of its replies used."""
        return sum(reply.used for reply in self._replies.values())

    @property
    def replies(self) -> Mapping[str, Reply]:
        """All replies, by the digest of their request."""
        return self._replies

    def get(self, digest: str) -> Reply | None:
        """Return the reply to the request of a digest, None where there is none yet."""
        return self._replies.get(digest)

    def add(self, request: Request, reply: Reply) -> None:
        """Append a reply; it is on the disk when this returns."""
        entry = {"digest": request.digest, "request": asdict(request), "reply": asdict(reply)}
        line, size = f"{json.dumps(entry)}\n".encode(), os.fstat(self._file.fileno()).st_size
        try:
            written = os.write(self._file.fileno(), line)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TunediffError(f"{self.path}: cannot be written ({error}); make room and run again") from error
        if written != len(line):
            self._file.truncate(size)
            raise TunediffError(f"{self.path}: no room for a whole reply; make room and run again")
        self._replies[request.digest] = reply

    def close(self) -> None:
        """Close the file, so that another process may use it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Asker(Protocol):
    """A model that can be asked."""

    model: str  # what the requests to it name

    def ask(self, requests: Iterator[Request], stopped: Callable[[], bool]) -> Iterator[tuple[Request, Reply]]:
        """Yield each request with its reply, in the order of the replies; take a request only when it can be sent.

        Once `stopped` returns True, and where a request has failed for good, nothing more is sent; replies in flight
        are still yielded, and then the `TunediffError` is raised.
        """

    def count_tokens(self, request: Request) -> int:
        """Return the tokens of the prompt."""


class _Failure(NamedTuple):
    """Why an attempt gave no reply."""

    status: int  # HTTP status; 0 where no whole answer came, or one that is no chat completion
    told: str
    retry_after: float | None = None  # seconds


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which gives them or a date."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(str(value)).timestamp() - time.time())
        except ValueError:
            return None


def _server_message(response: Any) -> str:
    """Return what the body of an error says."""
    text = ""
    try:
        text = response.text
        body = json.loads(text)
    except (ValueError, RuntimeError):  # RuntimeError: the body broke off
        return text
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    return str(body)


class Endpoint:
    """A server that speaks the protocol of OpenAI's chat completions: llama.cpp, Ollama, vLLM, the commercial ones.

    The key is read from the environment variable `key_variable` when the first request is sent (None: the server needs
    none), and is written nowhere. `url` ends in /v1, or in /chat/completions.
    """

    def __init__(
        self,
        url: str,
        key_variable: str | None,
        model: str,
        parallel: int = 4,  # requests in flight
        timeout: float = 120.0,  # seconds without a byte from the server
        attempts: int = 6,  # at one request
        *,
        backoff: float = 1.0,  # seconds before the second attempt, doubled before each further one
        tokenizer: Any = None,  # counts tokens
    ) -> None:
        scheme, _, rest = url.partition("://")
        self.where = f"{scheme}://{re.split('[?#]', rest)[0].rpartition('@')[2]}"
        if not re.fullmatch(r"https?://([^/?#@]*@)?([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?([/?#]\S*)?", url):
            raise TunediffError(f"url {self.where}: is none; write it as https://host/v1")
        if "@" in rest.partition("/")[0]:  # the configuration is written into artifacts, and the client logs the URL
            raise TunediffError(f"url {self.where}: holds a user or password; give a key by `key_variable` instead")
        if key_variable is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", key_variable):
            raise TunediffError(
                "key_variable: is not the name of an environment variable in capitals; write the name of the variable "
                "that holds the key, never the key itself"
            )
        self.url, self.key_variable, self.model = url, key_variable, model
        self.parallel, self.timeout, self.attempts, self.backoff = parallel, timeout, attempts, backoff
        self._tokenizer = tokenizer
        self._rejected: set[str] = set()  # parameters that the server does not take
        self._resume = 0.0  # monotonic time from which on the server, after a 429, may be asked again
        self._lock = threading.Lock()

    def count_tokens(self, request: Request) -> int:
        """Return the tokens of the prompt: exact with a tokenizer, else a quarter of its characters."""
        if self._tokenizer is not None:
            return len(prompt_ids(self._tokenizer, request))
        return -(-sum(len(text) for _, text in request.messages) // CHARACTERS_PER_TOKEN)

    def _key(self) -> str:
        if self.key_variable is None:
            return NO_KEY
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise TunediffError(f"{self.where}: environment variable {self.key_variable} is not set; export the key")
        if not all("!" <= character <= "~" for character in key):
            raise TunediffError(
                f"environment variable {self.key_variable}: holds more than a key; export the key alone"
            )
        return key

    def ask(self, requests: Iterator[Request], stopped: Callable[[], bool]) -> Iterator[tuple[Request, Reply]]:
        """Send `parallel` requests at a time and yield each with its reply, as they come; see `Asker`."""
        from huggingface_hub import InferenceClient, is_offline_mode

        if is_offline_mode():
            raise TunediffError(f"{self.where}: HF_HUB_OFFLINE is set, the client then connects to no server; unset it")
        key = self._key()
        client = InferenceClient(base_url=self.url, api_key=key, timeout=self.timeout)
        failed: list[TunediffError] = []
        closed = False

        def halted() -> bool:
            return closed or bool(failed) or stopped()

        flying: dict[Future[Reply | TunediffError | None], Request] = {}
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                while True:
                    while len(flying) < self.parallel and not halted() and (request := next(requests, None)):
                        flying[pool.submit(self._answer, client, key, request, halted)] = request
                    if not flying:
                        break
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        request, outcome = flying.pop(future), future.result()
                        if isinstance(outcome, Reply):
                            yield request, outcome
                        elif outcome is not None:
                            failed.append(outcome)
            finally:
                closed = True
        if failed:
            raise failed[0]

    def _answer(
        self, client: Any, key: str, request: Request, halted: Callable[[], bool]
    ) -> Reply | TunediffError | None:
        """Return the reply to one request, why the run must end, or None where it was stopped between attempts."""
        told = f"{request.model} at {self.where}"
        attempt, start = 1, 0.0
        while True:
            while not halted() and time.monotonic() < max(start, self._resume):
                time.sleep(POLL)
            if halted():
                return None
            sent = {name: value for name, value in request.parameters.items() if name not in self._rejected}
            outcome = self._send(client, key, request, sent)
            if isinstance(outcome, Reply):
                return outcome
            status, cause, asked = outcome
            if status == 401:  # its text often repeats a part of the key
                holder = "a key" if self.key_variable is None else f"the key in {self.key_variable}"
                return TunediffError(f"{told}: the server refuses {holder} (401); export a valid one")
            if status in (400, 422) and self._drop(cause, sent):
                continue
            cause = cause[:SHOWN]
            if status == 404:
                return TunediffError(f"{told}: {cause}; check the name of the model, and that the url ends in /v1")
            if 400 <= status < 500 and status not in PASSING:
                return TunediffError(f"{told}: the server rejects the request: {cause}; change what it names")
            if attempt >= self.attempts:
                return TunediffError(
                    f"{told}: {cause} ({attempt} attempts); see that the server is well and run again: all replies so "
                    "far are kept"
                )
            pause = min(self.backoff * 2 ** (attempt - 1), LONGEST_WAIT) if asked is None else asked
            if pause > LONGEST_WAIT:
                print(f"{told}: asks to wait {pause:.0f} s", file=sys.stderr)
            attempt, start = attempt + 1, time.monotonic() + pause
            if status == 429:
                self._resume = max(self._resume, start)

    def _send(self, client: Any, key: str, request: Request, sent: Mapping[str, Any]) -> Reply | _Failure:
        import httpx2

        messages = [{"role": role, "content": text} for role, text in request.messages]
        try:
            output = client.chat_completion(messages, model=request.model, extra_body=sent)
            return self._reply(output, request)
        except (httpx2.HTTPError, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            found: BaseException | None = error
            # The client itself fails on the body of an error that is JSON but no object: the status is further down.
            while found is not None and getattr(found, "response", None) is None:
                found = found.__context__
            response = getattr(found, "response", None)
            if response is not None:
                status = response.status_code
                cause = f"{status} {_server_message(response)}"
            elif isinstance(error, TimeoutError):
                cause, status = f"no answer within {self.timeout:g} s", 0
            elif isinstance(error, httpx2.HTTPError | OSError):
                cause, status = f"connection failed ({str(error) or type(error).__name__})", 0
            else:
                cause, status = f"the reply is no chat completion ({error})", 0
        asked = None if response is None else _retry_after(response.headers.get("retry-after"))
        return _Failure(status, " ".join(cause.replace(key, "***").split()), asked)

    def _reply(self, output: Any, request: Request) -> Reply:
        if not output.choices:
            raise ValueError(str(output.get("error") or "no choices"))
        choice, usage = output.choices[0], output.usage
        text, logprobs = choice.message.content, choice.logprobs and choice.logprobs.content
        if text is not None and not isinstance(text, str):
            raise ValueError("its content is not a text")
        tokens = tuple(
            (each.token, tuple((top.token, float(top.logprob)) for top in each.top_logprobs or [each]))
            for each in logprobs or ()
        )
        return Reply(
            text,
            choice.finish_reason or "",
            tokens or None,
            usage.prompt_tokens if usage else self.count_tokens(request),
            usage.completion_tokens if usage else len(tokens) or len(text or "") // CHARACTERS_PER_TOKEN,
            refused=text is None or bool(choice.message.get("refusal")),
        )

    def _drop(self, cause: str, sent: Mapping[str, Any]) -> bool:
        """Send the parameters that an error names no longer; False where it names none that was sent."""
        named = {name for name in DISPENSABLE if name in sent and re.search(rf"\b{name}\b", cause)}
        if "logprobs" in named:
            named |= {"top_logprobs"} & sent.keys()
        with self._lock:
            if new := sorted(named - self._rejected):
                print(f"{self.where}: rejects {', '.join(new)}, no longer sent ({cause[:SHOWN]})", file=sys.stderr)
            self._rejected |= named
        return bool(named)


def prompt_ids(tokenizer: Any, request: Request) -> list[int]:
    """Return the ids of a request as its chat template writes it; where that knows no system, before the user's text.

    `TunediffError`: the template refuses the messages.
    """
    from tunediff.data.rendering import RenderError, apply_template, limited

    turns = [{"role": role, "content": text} for role, text in request.messages]
    system, rest = "", turns
    if len(turns) > 1 and turns[0]["role"] == "system":
        system, rest = turns[0]["content"], turns[1:]
    folded = [{**rest[0], "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
    error: Exception | None = None
    for form in (turns, folded) if system else (turns,):
        try:
            with limited(tokenizer):
                text = apply_template(tokenizer, form, prompt=True)
        except RenderError as refusal:
            error = refusal
            continue
        if system.strip() in text:  # some templates leave it out instead of refusing it
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    raise TunediffError(f"{request.model}: its chat template refuses the messages ({error}); use another model")


class LocalModel:
    """A causal language model of Transformers with a chat template, loaded when it is first asked.

    Log-probabilities are those of the model before temperature and top_p. Requests of temperature 0 are answered in
    batches; each other one alone, from its own seed, so that no reply depends on what else is asked.
    """

    PARAMETERS = ("temperature", "top_p", "max_tokens", "seed", "logprobs", "top_logprobs")

    def __init__(
        self,
        path: str | Path,  # directory, or id of the hub
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 8,
        *,
        revision: str | None = None,  # of the hub
    ) -> None:
        self.path, self.device, self.dtype = str(path), device, dtype
        self.batch_size, self.revision = batch_size, revision
        self.model = self.path if revision is None else f"{self.path}@{revision}"

    @cached_property
    def _renderer(self) -> Any:
        from tunediff.data.rendering import ChatRenderer
        from tunediff.models.tokenizers import load_tokenizer

        return ChatRenderer(load_tokenizer(self.path, self.revision))

    @cached_property
    def _loaded(self) -> tuple[Any, list[int]]:
        """The model, and the ids that end an answer."""
        from transformers import GenerationConfig

        from tunediff.models.residual import torch_dtype
        from tunediff.models.weights import load_model

        stops = self._renderer.stop_ids
        model: Any = load_model(self.path, torch_dtype(self.dtype), self.revision)
        own = model.generation_config.eos_token_id
        own = own if isinstance(own, list) else [own]
        # Checkpoints come with sampling and penalties of their own; here the request says all.
        model.generation_config = GenerationConfig()
        return model.to(self.device).eval(), [*dict.fromkeys([*stops, *(i for i in own if i is not None)])]

    def count_tokens(self, request: Request) -> int:
        """Return the tokens of the prompt."""
        return len(prompt_ids(self._renderer.tokenizer, request))

    def ask(self, requests: Iterator[Request], stopped: Callable[[], bool]) -> Iterator[tuple[Request, Reply]]:
        """Answer requests in order, those of a batch that share their parameters together; see `Asker`."""
        while batch := list(islice(requests, self.batch_size)):
            for _, alike in groupby(batch, lambda r: r.digest if r.parameters["temperature"] else dict(r.parameters)):
                if stopped():
                    return
                yield from self._answer(list(alike))

    def _answer(self, requests: list[Request]) -> Iterator[tuple[Request, Reply]]:
        import torch
        from transformers import LogitsProcessorList

        from tunediff.models.tokenizers import pieces

        parameters, tokenizer = requests[0].parameters, self._renderer.tokenizer
        if unknown := sorted(parameters.keys() - set(self.PARAMETERS)):
            raise TunediffError(f"{self.model}: parameter '{unknown[0]}' is not known to a local model; leave it out")
        model, stops = self._loaded
        prompts = [prompt_ids(tokenizer, request) for request in requests]
        width = max(map(len, prompts))
        ids = torch.tensor([[stops[0]] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        options: dict[str, Any] = {"do_sample": False}
        if parameters["temperature"]:
            options = {"do_sample": True, "top_k": 0}  # 50 if nothing is said
            options |= {"temperature": float(parameters["temperature"]), "top_p": float(parameters.get("top_p", 1.0))}
        count = max(1, parameters.get("top_logprobs") or 1) if parameters.get("logprobs") else 0
        top: list[tuple[list[list[int]], list[list[float]]]] = []  # per generated position: [request, rank]

        def record(_: Any, logits: Any) -> Any:
            """Keep the most probable tokens: processors of our own see the logits before temperature and top_p."""
            best = logits.float().log_softmax(-1).topk(count)
            top.append((best.indices.tolist(), best.values.tolist()))
            return logits

        if count:
            options["logits_processor"] = LogitsProcessorList([record])
        with torch.no_grad(), torch.random.fork_rng([ids.device] if ids.is_cuda else []):
            torch.manual_seed(parameters.get("seed") or 0)
            new = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=parameters["max_tokens"],
                eos_token_id=stops,
                pad_token_id=stops[0],
                **options,
            )
        for row, (request, prompt, answer) in enumerate(zip(requests, prompts, new[:, width:].tolist(), strict=True)):
            length = next((i for i, token in enumerate(answer) if token in stops), len(answer))
            places = [([answer[i], *top[i][0][row]], top[i][1][row]) for i in range(length)] if count else []
            texts = iter(pieces(tokenizer, [token for place, _ in places for token in place]))
            tokens = tuple((next(texts), tuple((next(texts), value) for value in values)) for _, values in places)
            ended = length < len(answer)
            yield (
                request,
                Reply(
                    tokenizer.decode(answer[:length], skip_special_tokens=True),
                    "stop" if ended else "length",
                    tokens if count else None,
                    len(prompt),
                    length + ended,
                    refused=False,
                ),
            )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield a list to which SIGTERM and SIGINT are added, in place of what else they do; outside the main thread none.

    A list, since a handler may run in the middle of anything, and taking a lock there may wait for ever.
    """
    caught: list[int] = []

    def catch(number: int, _: Any) -> None:
        caught.append(number)
        if len(caught) == 1:
            with suppress(OSError):
                os.write(2, b"stopping: no more is sent, replies in flight are awaited\n")

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def answered(
    requests: Iterable[Request], asker: Asker, cache: Cache, *, max_tokens_total: int | None, name: str
) -> dict[str, Reply]:
    """Return the replies to requests by digest: from the cache, else asked, each once, in order.

    Nothing more is sent once the replies to these requests have used `max_tokens_total` tokens: then some have none.

    Raises
    ------
    TunediffError
        The asker cannot go on, or SIGTERM or SIGINT came; replies until then are in the cache.
    """
    wanted = {request.digest: request for request in requests}
    replies = {digest: reply for digest in wanted if (reply := cache.get(digest)) is not None}
    used, missing = sum(reply.used for reply in replies.values()), [r for d, r in wanted.items() if d not in replies]
    with _signals() as caught, Progress(len(wanted), name, "request", initial=len(replies)) as progress:

        def due() -> Iterator[Request]:
            for request in missing:
                if max_tokens_total is not None and used >= max_tokens_total:
                    return
                yield request

        if missing and (max_tokens_total is None or used < max_tokens_total):
            for request, reply in asker.ask(due(), lambda: bool(caught)):
                cache.add(request, reply)
                replies[request.digest] = reply
                used += reply.used
                progress.note = f"{used:,} tokens"
                progress.update()
    if caught:
        raise TunediffError(f"{name}: stopped; {len(replies)} of {len(wanted)} replies are kept; run again to go on")
    return {digest: replies[digest] for digest in wanted if digest in replies}
