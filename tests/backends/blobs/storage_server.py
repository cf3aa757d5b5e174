"""A small Cloud Storage with one bucket: resumable uploads, ranges, generations and preconditions as documented, and
trouble on demand. It shares no code with what is tested."""

import base64
import hashlib
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "pollux"
UNIT = 256 * 1024


@dataclass
class Object:
    data: bytes
    generation: str
    custom_time: str | None

    def described(self, name: str) -> dict[str, object]:
        md5 = base64.b64encode(hashlib.md5(self.data, usedforsecurity=False).digest()).decode()
        size = str(len(self.data))
        made: dict[str, object] = {"name": name, "size": size, "generation": self.generation, "md5Hash": md5}
        return made if self.custom_time is None else {**made, "customTime": self.custom_time}


@dataclass
class Session:
    name: str
    custom_time: str | None
    data: bytearray = field(default_factory=bytearray)
    done: str = ""
    """The generation it made."""


@dataclass
class Trouble:
    """For the next call of that method whose target holds `where`."""

    method: str
    what: str
    """A status, 4030 for too many calls; or drop (before anything was done), lose (the answer), short (take 256 KiB),
    none (take nothing), corrupt, break (half of the answer), hang, odd (a page of some proxy, with 200), or nothing."""
    where: str = ""


class Storage:
    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.sessions: dict[str, Session] = {}
        self.trouble: list[Trouble] = []
        self.seen: list[str] = []
        self.authorizations: list[str | None] = []
        self.token: str | None = None
        self.page = 1000
        self.before_delete: Callable[[], None] = lambda: None
        self.address = ""
        self.elsewhere = ""
        """What session addresses begin with, if not with our own."""
        self.over = threading.Event()
        self._numbers = itertools.count(1000)

    def number(self) -> str:
        return str(next(self._numbers))

    def put(self, name: str, data: bytes, custom_time: str | None = None) -> Object:
        self.objects[name] = made = Object(data, self.number(), custom_time)
        return made

    def meets(self, method: str, target: str) -> str:
        for trouble in self.trouble:
            if trouble.method == method and trouble.where in target:
                self.trouble.remove(trouble)
                return trouble.what
        return ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # by default 5: what comes beside waits a second


@contextmanager
def storage() -> Iterator[Storage]:
    state = Storage()

    class Handler(_Handler):
        storage = state

    server = _Server(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(0.01))
    thread.start()
    try:
        yield state
    finally:
        state.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    storage: Storage
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    what = ""

    def log_message(self, *_: object) -> None:
        pass

    def _handled(self) -> None:
        state, parts = self.storage, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        state.seen.append(f"{self.command} {self.path}")
        state.authorizations.append(self.headers.get("authorization"))
        self.what = state.meets(self.command, self.path)
        if self.what == "drop":
            self._gone()
        elif self.what == "hang":
            state.over.wait()
            self._gone()
        elif self.what == "odd":
            self._answer(200, b"<html>Welcome</html>")
        elif self.what.isdigit():
            reason = "rateLimitExceeded" if self.what == "4030" else "trouble"
            self._refused(int(self.what[:3]), reason, "as a test wants it")
        elif state.token is not None and self.headers.get("authorization") != f"Bearer {state.token}":
            self._refused(401, "authError", "Invalid Credentials")
        else:
            self._routed(parts.path, query, body)

    do_GET = do_POST = do_PUT = do_DELETE = _handled  # noqa: N815

    def _routed(self, path: str, query: dict[str, str], body: bytes) -> None:
        found = re.fullmatch(r"(/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", path)
        assert found, path
        if "upload_id" in query:
            self._session(query["upload_id"], body)
        elif found[2] != BUCKET:
            self._refused(404, "notFound", "The specified bucket does not exist.")
        elif found[1]:
            described = json.loads(body)
            key = self.storage.number()
            self.storage.sessions[key] = Session(query["name"], described.get("customTime"))
            base = self.storage.elsewhere or self.storage.address
            self._answer(200, b"", location=f"{base}{self.path}&upload_id={key}")
        elif found[3] is None:
            self._list(query)
        else:
            self._object(unquote(found[3]), query)

    # --- uploads -----------------------------------------------------------------------------------------------------

    def _session(self, key: str, body: bytes) -> None:
        session = self.storage.sessions.get(key)
        if session is None:
            self._refused(404, "notFound", "No such session")
        elif self.command == "DELETE":
            del self.storage.sessions[key]
            self._answer(499, b"")
        elif session.done:
            self._made(session)
        else:
            self._piece(session, body)

    def _piece(self, session: Session, body: bytes) -> None:
        span = re.fullmatch(r"bytes (?:\*|([0-9]+)-([0-9]+))/(\*|[0-9]+)", self.headers["content-range"])
        assert span, self.headers["content-range"]
        has = len(session.data)
        if span[1] is not None:
            begin, end = int(span[1]), int(span[2]) + 1
            assert end - begin == len(body)
            if begin != has:
                self._refused(400, "invalid", "it does not go on where the last piece ended")
                return
            new = body
            if span[3] == "*":
                new = new[: len(new) // UNIT * UNIT]
            if self.what in ("short", "none"):
                new = new[: UNIT if self.what == "short" else 0]
            if self.what == "corrupt":
                new = bytes([new[0] ^ 1]) + new[1:]
            session.data += new
        if span[3] != "*" and len(session.data) == int(span[3]):
            made = self.storage.put(session.name, bytes(session.data), session.custom_time)
            session.done = made.generation
            self._made(session)
        elif session.data:
            self._answer(308, b"", range=f"bytes=0-{len(session.data) - 1}")
        else:
            self._answer(308, b"")

    def _made(self, session: Session) -> None:
        data = Object(bytes(session.data), session.done, session.custom_time)
        self._answer(200, json.dumps(data.described(session.name)).encode())

    # --- objects -----------------------------------------------------------------------------------------------------

    def _list(self, query: dict[str, str]) -> None:
        names = sorted(name for name in self.storage.objects if name.startswith(query.get("prefix", "")))
        names = [name for name in names if name > query.get("pageToken", "")]
        end = min(self.storage.page, int(query.get("maxResults", 1000)))
        answer: dict[str, object] = {
            "items": [self.storage.objects[name].described(name) for name in names[:end]],
            **({"nextPageToken": names[end - 1]} if end < len(names) else {}),
        }
        if not answer["items"]:
            del answer["items"]
        self._answer(200, json.dumps(answer).encode())

    def _object(self, name: str, query: dict[str, str]) -> None:
        if self.command == "DELETE":
            self.storage.before_delete()
        found = self.storage.objects.get(name)
        if found is None or query.get("generation", found.generation) != found.generation:
            self._refused(404, "notFound", f"No such object: {BUCKET}/{name}")
        elif query.get("ifGenerationMatch", found.generation) != found.generation:
            self._refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        elif self.command == "DELETE":
            del self.storage.objects[name]
            self._answer(204, b"")
        elif query.get("alt") == "media":
            self._media(found)
        else:
            self._answer(200, json.dumps(found.described(name)).encode())

    def _media(self, found: Object) -> None:
        named = {"x-goog-generation": found.generation}
        asked = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("range", ""))
        if asked is None:
            self._answer(200, found.data, **named)
        elif int(asked[1]) >= len(found.data):
            self._refused(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
        else:
            begin, size = int(asked[1]), len(found.data)
            self._answer(206, found.data[begin:], **named, **{"content-range": f"bytes {begin}-{size - 1}/{size}"})

    # --- answers -----------------------------------------------------------------------------------------------------

    def _refused(self, status: int, reason: str, message: str) -> None:
        errors = [{"domain": "global", "reason": reason, "message": message}]
        self._answer(status, json.dumps({"error": {"code": status, "message": message, "errors": errors}}).encode())

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        if self.what == "lose":
            self._gone()
            return
        self.send_response(status, "")
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.what == "break":
            self.wfile.write(body[: len(body) // 2])
            self._gone()
            return
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _gone(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
