"""Small servers that answer like a gateway, except where a test says otherwise."""

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pollux.gemini.errors import error_body

TOKEN, ADMIN, IDENTITY = "pretended-token-of-a-client", "pretended-token-of-the-admin", "pretended.id.token"
STATUS: dict[str, Any] = {
    "version": "9.9",
    "keys": [{"id": "a", "project": "p", "state": "healthy", "why": None}],
    "projects": [{"project": "p", "state": "healthy", "why": None}],
    "store": {"state": "ok", "url": "memory://", "why": None},
    "pool": {"problems": [], "suspicion": None},
}
EVENTS = 4

Answer = Callable[["Handler"], None]


def event(number: int, last: int = EVENTS) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": f"{number} "}]}}
    if number == last:
        candidate["finishReason"] = "STOP"
    return b"data: " + json.dumps({"candidates": [candidate]}).encode() + b"\r\n\r\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Pretender"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.serve()

    def serve(self) -> None:
        self.close_connection = True
        path = self.path.partition("?")[0]
        self.server.seen.append((path, {name.lower(): value for name, value in self.headers.items()}))
        name = "stream" if ":stream" in path else "generate" if ":generate" in path else path
        with contextlib.suppress(ConnectionError):
            self.server.instead.get(name, self.as_pollux)(self)

    def as_pollux(self, _: "Handler") -> None:
        path, sent = self.server.seen[-1]
        if path == "/health":
            self.say(200, {"status": "ok"})
        elif path == "/admin/status":
            right = sent.get("authorization") == f"Bearer {ADMIN}"
            self.say(*((200, STATUS) if right else (401, {"error": {"code": 401, "message": "needed"}})))
        elif TOKEN not in (sent.get("x-goog-api-key"), sent.get("authorization", "").removeprefix("Bearer ")):
            self.say(401, error_body("native", "NO_TOKEN", "needs a token"))
        elif ":stream" in path:
            self.begin(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
            for number in range(1, EVENTS + 1):
                self.chunk(event(number))
                time.sleep(self.server.pause)
            self.chunk(b"")
        elif path.endswith("/chat/completions"):
            self.say(200, {"choices": [{"message": {"content": "hi"}}]})
        else:
            self.say(200, {"candidates": [{"content": {"parts": [{"text": "hi"}]}}]})

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        named = {"x-pollux-request-id": "0" * 16, "x-pollux-model": "m", "x-pollux-key": "k", "x-pollux-wait-ms": "0"}
        for name, value in ({} if status == 401 else named | dict(headers)).items():
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def say(self, status: int, body: Any, kind: str = "application/json", **headers: str) -> None:
        """Not as Pollux: without its headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if status == 200 and kind == "application/json":
            self.send_header("x-pollux-model", "m")
            self.send_header("x-pollux-key", "k")
        for name, value in {"content-type": kind, "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Pretender(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.instead: dict[str, Answer] = {}
        """generate, stream, or a path -> what is done in the place of what Pollux does."""
        self.pause = 0.0
        """Seconds between the events of a stream."""
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.ended = threading.Event()
        """What hangs waits for it."""

    def handle_error(self, *_: object) -> None:
        """A client that does not trust a certificate leaves; no test wants its traceback."""


@contextlib.contextmanager
def pretending(tls: ssl.SSLContext | None = None) -> Iterator[tuple[Pretender, str]]:
    server = Pretender()
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
