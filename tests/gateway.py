"""A gateway in this process: the real App over memory, with an upstream that a test writes, in virtual time."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bench.virtual import run as run_virtually
from gemini_simulator import Simulator
from gemini_simulator.errors import Case, error
from gemini_simulator.exchange import BrokenConnectionError
from pollux.backends.keys.contract import Key, Keyring, Secret
from pollux.backends.keys.tokens import Tokens
from pollux.backends.store.contract import Store
from pollux.backends.store.memory import MemoryStore
from pollux.backends.upstream import Answer, Streamed, Upstream, UpstreamError
from pollux.relay.client import Message, Scope
from pollux.relay.passing import BrokenAnswerError
from pollux.server.app import App
from pollux.server.wiring import make_app
from pollux.settings import Settings

T = TypeVar("T")
BEGAN = 1_790_000_000.0  # a morning in California: no midnight is near
TOKEN, ADMIN = "test-token-of-a-client", "test-token-of-the-admin"
FLASH, NEXT = "gemini-3.8-flash", "gemini-3.6-flash"  # the second is what the first falls back to
GENERATE = f"/v1beta/models/{FLASH}:generateContent"
STREAM = f"/v1beta/models/{FLASH}:streamGenerateContent?alt=sse"
COUNT = f"/v1beta/models/{FLASH}:countTokens"
CHAT = "/v1beta/openai/chat/completions"
HELLO: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
HOST = "gateway.test"
DEADLOCK = 2 * 86400.0


def now() -> float:
    return BEGAN + asyncio.get_running_loop().time()


def play(scene: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a scene in virtual time. A deadlock fails at once."""

    async def bounded() -> T:
        async with asyncio.timeout(DEADLOCK):
            return await scene()

    return run_virtually(bounded())


# --- keys ------------------------------------------------------------------------------------------------------------


def value_of(key_id: str) -> str:
    return f"AQ.test-value-of-{key_id}"


class Keys:
    """A keyring of fixed keys, with values that no real key has. `fresh`: what a key is when it is read again."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.all = tuple(keys)
        self.fresh: dict[str, str] = {}
        self.reread_ids: list[str] = []
        self._values = {key.id: value_of(key.id) for key in keys}

    async def keys(self) -> tuple[Key, ...]:
        return self.all

    async def value(self, key_id: str) -> Secret:
        return Secret(self._values[key_id])

    async def reread(self, key_id: str) -> bool:
        self.reread_ids.append(key_id)
        fresh = self.fresh.pop(key_id, None)
        if fresh is not None:
            self._values[key_id] = fresh
        return fresh is not None


def projects(count: int, **limits: int) -> Keys:
    """That many projects p1, p2, … with a key each (k1, k2, …), and the same limits for every model."""
    return Keys([Key(f"k{i}", f"p{i}", limits={"*": limits} if limits else {}) for i in range(1, count + 1)])


# --- upstream --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sent:
    """What went upstream."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    at: float

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known == name), None)

    @property
    def credential(self) -> str:
        found = [value.removeprefix("Bearer ") for name, value in self.headers if name in CREDENTIALS]
        assert len(found) == 1, "exactly one credential travels"
        return found[0]

    @property
    def key(self) -> str:
        return self.credential.removeprefix(value_of(""))

    @property
    def model(self) -> str:
        return self.target.partition("/models/")[2].partition(":")[0]

    @property
    def verb(self) -> str:
        return self.target.partition("?")[0].rpartition(":")[2]


CREDENTIALS = ("x-goog-api-key", "authorization")


@dataclass(slots=True)
class Says:
    """An answer of the fake upstream. `pieces`: bytes as they come, seconds that pass, or the trouble that ends it."""

    pieces: Sequence[bytes | float | UpstreamError]
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ((b"Content-Type", b"application/json"),)
    length: int | None = None
    after: float = 0.0


def whole(body: Any, status: int = 200, *, after: float = 0.0) -> Says:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = ((b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(data)))
    return Says([data] if data else [], status, headers, length=len(data), after=after)


def refuses(name: str, *, key: str = "", model: str = FLASH, **more: Any) -> Says:
    """An error of Google's by the simulator's name for it."""
    trouble = error(name, Case(key=key, bucket=model, model=model, **more))
    return whole(trouble.encode()[1], trouble.status)


def answer(tokens: int = 2, text: str = "Hi") -> dict[str, Any]:
    return {
        "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": tokens, "totalTokenCount": tokens + 1},
    }


def event(body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\r\n\r\n"


def streams(*pieces: bytes | float | UpstreamError) -> Says:
    return Says(pieces, headers=((b"Content-Type", b"text/event-stream"),))


def part(text: str) -> dict[str, Any]:
    """A chunk that is not the last one."""
    return {"candidates": [{"content": {"parts": [{"text": text}]}}], "usageMetadata": {"promptTokenCount": 2}}


class FakeAnswer:
    def __init__(self, says: Says, *, head: bool) -> None:
        self.status, self.headers, self.length = says.status, says.headers, says.length
        self.closed = False
        self._pieces = iter([] if head else says.pieces)

    async def chunk(self) -> bytes:
        for piece in self._pieces:
            if isinstance(piece, UpstreamError):
                raise piece
            if isinstance(piece, bytes):
                return piece
            await asyncio.sleep(piece)
        return b""

    async def read(self) -> bytes:
        pieces = []
        while data := await self.chunk():
            pieces.append(data)
        return b"".join(pieces)

    def close(self) -> None:
        self.closed = True


Answers = Callable[[Sent], Says | UpstreamError]


class FakeUpstream:
    """Answers as it is told: by a function, or one after the other."""

    def __init__(self, answers: Answers | Sequence[Says | UpstreamError]) -> None:
        self._answers = answers if callable(answers) else _in_turn(answers)
        self.sent: list[Sent] = []
        self.answers: list[FakeAnswer] = []

    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> Answer:
        sent = Sent(method, target, list(headers), await _whole(body), now())
        self.sent.append(sent)
        says = self._answers(sent)
        if isinstance(says, UpstreamError):
            raise says
        if says.after:
            await asyncio.sleep(says.after)
        self.answers.append(FakeAnswer(says, head=method == "HEAD"))
        return self.answers[-1]

    async def close(self) -> None: ...

    @property
    def keys(self) -> list[str]:
        return [sent.key for sent in self.sent]

    @property
    def models(self) -> list[str]:
        return [sent.model for sent in self.sent]


async def _whole(body: bytes | Streamed) -> bytes:
    return body if isinstance(body, bytes) else b"".join([piece async for piece in body])


def _in_turn(answers: Sequence[Says | UpstreamError]) -> Answers:
    rest = iter(answers)
    return lambda _: next(rest)


class SimulatedAnswer:
    def __init__(self, messages: "asyncio.Queue[Message | None]", task: "asyncio.Task[None]", start: Message) -> None:
        self.status: int = start["status"]
        self.headers: list[tuple[bytes, bytes]] = start["headers"]
        lengths = [int(value) for name, value in self.headers if name == b"content-length"]
        self.length = lengths[0] if lengths else None
        self._messages, self._task, self._ended = messages, task, False

    async def chunk(self) -> bytes:
        while not self._ended:
            message = await self._messages.get()
            if message is None:
                raise UpstreamError("reset", "the connection broke")
            self._ended = not message.get("more_body", False)
            if message["body"]:
                return bytes(message["body"])
        return b""

    async def read(self) -> bytes:
        pieces = []
        while data := await self.chunk():
            pieces.append(data)
        return b"".join(pieces)

    def close(self) -> None:
        self._task.cancel()


class Simulated:
    """The simulator as an upstream, without a network."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> Answer:
        body = await _whole(body)
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        path, _, query = target.partition("?")
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": raw}
        asked = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked.is_set():
                await asyncio.Event().wait()
            asked.set()
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, Any]) -> None:
            messages.put_nowait(message)

        async def serve() -> None:
            try:
                await self.simulator(scope, receive, send)
            except BrokenConnectionError:
                messages.put_nowait(None)

        task = asyncio.create_task(serve())
        start = await messages.get()
        if start is None:
            raise UpstreamError("reset", "the connection broke")
        return SimulatedAnswer(messages, task, start)

    async def close(self) -> None: ...


def simulated(keys: Keys, limits: Mapping[str, Any], **more: Any) -> Simulated:
    known = [(key.id, key.project, value_of(key.id)) for key in keys.all]
    return Simulated(Simulator(known, limits, clock=now, **more))


# --- gateway and client ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway(
    upstream: Upstream, keys: Keyring | None = None, *, store: Store | None = None, **settings: Any
) -> AsyncIterator[App]:
    app = make_app(
        Settings(**settings),
        Tokens([f"tester={TOKEN}"], ADMIN, query_token=True),
        store=store or MemoryStore(now),
        keyring=keys or projects(4),
        upstream=upstream,
    )
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


@dataclass
class Got:
    """What a client got. `broken`: its connection was cut in the middle of the answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    complete: bool = False
    broken: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """By which of our own errors it was refused."""
        return str(self.json["error"]["details"][0]["reason"])

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


async def call(
    app: App | Callable[..., Coroutine[Any, Any, None]],
    method: str = "POST",
    path: str = GENERATE,
    headers: Mapping[str, str] | None = None,
    body: Any = HELLO,
    *,
    token: str | None = TOKEN,
    leaves: float | None = None,
    pieces: Sequence[bytes] = (),
    gone_after: Sequence[bytes] = (),
) -> Got:
    """One request to a gateway or an ASGI app. `leaves`: so many seconds after the start the client goes away.
    `pieces`: its body in parts, of unannounced length. `gone_after`: those that it sends before it goes away.
    """
    got = Got()
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if method == "POST" else b""
    pieces = gone_after or pieces
    unread = list(pieces) or [data]
    raw_path, _, query = path.partition("?")
    given = {"host": HOST} | dict(headers or {})
    if token is not None and "authorization" not in given:
        given.setdefault("x-goog-api-key", token)
    if pieces:
        given.setdefault("transfer-encoding", "chunked")
    elif data:
        given.setdefault("content-length", str(len(data)))
    loop = asyncio.get_running_loop()
    end = None if leaves is None else loop.time() + leaves

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(0), "more_body": bool(unread or gone_after)}
        if gone_after:
            return {"type": "http.disconnect"}
        if end is None:
            await asyncio.Event().wait()
        await asyncio.sleep((end or 0.0) - loop.time())
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not got.status, "an answer starts once"
            got.status = message["status"]
            got.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
            return
        assert got.status, "an answer starts before its body"
        assert not got.complete, "nothing comes after the end"
        if message["body"] and method != "HEAD":  # servers leave it out, too
            got.chunks.append(message["body"])
            got.times.append(now())
        got.complete = not message.get("more_body", False)

    scope: Scope = {
        "type": "http",
        "method": method,
        "path": raw_path,
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    try:
        await (app.routes if isinstance(app, App) else app)(scope, receive, send)
    except BrokenAnswerError:
        got.broken = True
    return got
