"""A server that speaks the chat completions protocol, does as it is told, and counts what it is sent."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

Messages = list[dict[str, str]]


class Fault(NamedTuple):
    """What the server does to one request in place of an answer."""

    status: int = 200
    body: str | None = None  # None: the error that such a status comes with; {authorization} is the header received
    headers: tuple[tuple[str, str], ...] = ()
    hang: float = 0.0  # seconds before it does it
    truncate: bool = False  # half of the body, then the connection is closed


RATE_LIMIT = Fault(429, headers=(("Retry-After", "0"),))
BROKEN = Fault(500)
TRUNCATED = Fault(truncate=True)
MALFORMED = Fault(body='{"choices": [{"mess')
REFUSAL = Fault(
    body='{"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": null, '
    '"refusal": "I will not."}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}'
)


def echo(messages: Messages) -> str:
    """Answer with the last message, reversed."""
    return messages[-1]["content"][::-1]


class Server(ThreadingHTTPServer):
    """The server, at `url` while it is entered.

    `faults` befall the first requests, one each (None: none); then `answer` is given after `delay` seconds. A request
    with one of the parameters `rejects` gets a 400 that names it, one of another model than `model` a 404.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        answer: Callable[[Messages], str] = echo,
        faults: Iterable[Fault | None] = (),
        delay: Callable[[], float] = lambda: 0.0,
        logprobs: bool = True,
        usage: bool = True,
        rejects: tuple[str, ...] = (),
        model: str = "judge",
        key: str | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.faults, self.delay, self.logprobs, self.usage = answer, iter(faults), delay, logprobs, usage
        self.rejects, self.model, self.key = rejects, model, key
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.lock = threading.Lock()
        self.received = Counter[str]()  # requests by the digest of their body
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []  # of arrival, monotonic
        self.flying = self.most_flying = 0

    def asked(self) -> Counter[str]:
        """Return how often each last message was received."""
        with self.lock:
            return Counter(body["messages"][-1]["content"] for body in self.bodies)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a client that was killed is gone."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def _completion(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    text = server.answer(body["messages"])
    pieces = re.findall(r"\s*\S+", text)
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
    }
    if server.logprobs and body.get("logprobs"):
        others = [{"token": f"other{i}", "logprob": -2.0 - i} for i in range(body.get("top_logprobs", 0) - 1)]
        choice["logprobs"] = {
            "content": [
                {
                    "token": piece,
                    "logprob": -0.25,
                    "top_logprobs": [{"token": piece, "logprob": -0.25}, *others] if "top_logprobs" in body else [],
                }
                for piece in pieces
            ]
        }
    read = sum(len(message["content"].split()) for message in body["messages"])
    usage = {"prompt_tokens": read, "completion_tokens": len(pieces), "total_tokens": read + len(pieces)}
    return {"id": "1", "model": body["model"], "choices": [choice], "usage": usage if server.usage else None}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        with server.lock:
            server.received[hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()] += 1
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
            fault, pause = next(server.faults, None), server.delay()
        try:
            time.sleep(pause)
            self._respond(body, fault)
        finally:
            with server.lock:
                server.flying -= 1

    def _respond(self, body: dict[str, Any], fault: Fault | None) -> None:
        server, rejected = self.server, [name for name in self.server.rejects if name in body]
        if fault is not None:
            time.sleep(fault.hang)
            text = fault.body
            if text is None and fault.status == 200:
                text = json.dumps(_completion(server, body))
            elif text is None:
                text = json.dumps({"error": {"message": f"planned, of {{authorization}}, status {fault.status}"}})
            text = text.replace("{authorization}", self.headers.get("Authorization", ""))
            self._write(fault.status, text, fault.headers, fault.truncate)
        elif self.path.partition("?")[0] != "/v1/chat/completions":
            self._error(404, "Not Found")
        elif server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
            self._error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        elif body["model"] != server.model:
            self._error(404, f"The model `{body['model']}` does not exist")
        elif rejected:
            self._error(400, f"Unsupported parameter: '{rejected[0]}' is not supported with this model.")
        else:
            self._write(200, json.dumps(_completion(server, body)))

    def _error(self, status: int, message: str) -> None:
        self._write(status, json.dumps({"error": {"message": message, "type": "invalid_request_error"}}))

    def _write(self, status: int, text: str, headers: tuple[tuple[str, str], ...] = (), truncate: bool = False) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if truncate else content)
        self.close_connection = truncate
