"""The simulated Gemini API: an ASGI app without a framework. It is started in `serving`."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import asdict
from random import Random
from typing import Any

from gemini_simulator import answers
from gemini_simulator.control import control
from gemini_simulator.errors import TIERS, ApiError, error
from gemini_simulator.exchange import Call, Clock, Exchange, GoneError, Receive, Scope, Send, Sleep
from gemini_simulator.faults import BROKEN, Fault
from gemini_simulator.generation import Generation
from gemini_simulator.models import MODELS
from gemini_simulator.quota import Enforcer, Limits
from gemini_simulator.request import (
    STARTS,
    Media,
    Request,
    find_credentials,
    find_key,
    is_upload,
    read_request,
    read_upload,
)
from gemini_simulator.service import Owning, Service
from gemini_simulator.streams import JSON, Reply, Stream, break_stream, frame
from gemini_simulator.uploads import Session, status_of

_TIER_HEADER = [(b"x-gemini-service-tier", b"standard")]
_ALLOW = [(b"allow", b"GET, HEAD, POST, OPTIONS")]


class Simulator:
    """A Gemini that counts per (project, bucket) and fails on demand.

    keys: key value -> project, or (id, project, value) of each. limits: see Enforcer; its models are buckets.
    models: model -> bucket, or names. tiers: one for all, or project -> tier; it names the quotas in 429s.
    latency, chunk_delay: seconds before an answer and between chunks. keep: how many calls are remembered.
    owning: how long files and operations take, and what their URIs begin with.

    `faults` may be appended to at any time; `calls` has what was seen; `enforcer` has the counts.
    """

    def __init__(
        self,
        keys: Mapping[str, str] | Iterable[tuple[str, str, str]],
        limits: Callable[[str, str], Limits] | Mapping[str, Any],
        kind: str = "sliding",
        clock: Clock = time.time,
        models: Mapping[str, str] | Iterable[str] = MODELS,
        latency: float = 0.0,
        chunk_delay: float = 0.0,
        chunks: int = 4,
        sleep: Sleep = asyncio.sleep,
        seed: int = 0,
        *,
        tiers: Mapping[str, str] | str = "free",
        day: str = "pacific",
        count_refused: bool = False,
        keep: int = 10_000,
        keep_bodies: bool = True,
        owning: Owning | None = None,
    ) -> None:
        if isinstance(keys, Mapping):
            keys = [(f"key-{i}", project, value) for i, (value, project) in enumerate(keys.items(), 1)]
        self.keys = {value: (key, project) for key, project, value in keys}
        self.models = dict(models) if isinstance(models, Mapping) else {name: name for name in models}
        if unknown := {*([tiers] if isinstance(tiers, str) else tiers.values())} - {*TIERS}:
            raise ValueError(f"no such tier: {', '.join(sorted(unknown))}; expected {', '.join(TIERS)}")
        self.enforcer = Enforcer(kind, limits, day=day, count_refused=count_refused)
        self.clock = clock
        self.latency = latency
        self.chunk_delay = chunk_delay
        self.service = Service(clock, self.models, seed, owning)
        self.generation = Generation(self.models, self.enforcer, self.service, clock, chunks, tiers)
        self._sleep = sleep
        self._rng = Random(seed)
        self._keep_bodies = keep_bodies
        self.faults: list[Fault] = []
        self.calls: deque[Call] = deque(maxlen=keep)
        self.statuses: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        exchange = Exchange(scope, receive, send, self.clock, self._sleep)
        try:
            if exchange.path.startswith("/simulator/"):
                await self._control(exchange)
            else:
                await self._exchange(exchange)
        except GoneError:
            pass
        finally:
            exchange.close()

    async def _control(self, exchange: Exchange) -> None:
        body = await exchange.read(digest=False, keep=False)
        status, answer = control(self, exchange.call.method, exchange.path, body)
        await exchange.answer(status, JSON, answers.encode(answer))

    async def _exchange(self, exchange: Exchange) -> None:
        call = exchange.call
        recorded = self.calls.maxlen != 0
        self.calls.append(call)
        upload = is_upload(call.method, exchange.path)
        body = b"" if upload else await exchange.read(digest=recorded, keep=recorded and self._keep_bodies)
        try:
            if call.method == "OPTIONS":
                await exchange.answer(200, b"", b"", _ALLOW)
                return
            try:
                answer, fault = await self._receive_upload(exchange) if upload else self._decide(exchange, body)
            except ApiError as trouble:
                kind, data = trouble.encode(array=exchange.as_array)
                await exchange.answer(trouble.status, kind, data, trouble.headers)
                return
            await self._deliver(exchange, answer, fault)
        finally:
            self.statuses[str(call.status) if call.status else "no answer"] += 1

    async def _receive_upload(self, exchange: Exchange) -> tuple[Reply, Fault | None]:
        """Read an upload as it comes. Gives the answer, and the fault that hits it while it is sent. Raises ApiError,
        as a rule after the whole body has come."""
        call = exchange.call
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in call.headers}
        request = read_upload(call.method, exchange.path, call.query, headers)
        exchange.note(request)
        session = None
        pieces = exchange.pieces()
        try:
            session = self.service.uploads.find(request)
            value = self._upload_key(exchange, request, session)
            if request.verb == "other":
                raise error("no-such-path", request.case())
            self._refuse(call, request, value)
            self._place(exchange, request)
            if session is None and request.name != "files":
                self.service.resources.get(request.name, request.project)
            fault = self._fault(call, request, broken=True)
            if fault is not None and fault.kind == "mid-reset":
                return await self._take_upload(exchange, request, session, headers, _cut(exchange, pieces)), fault
            return await self._take_upload(exchange, request, session, headers, pieces), fault
        except ApiError as trouble:
            if session is not None and call.fault == "upload-terminated":
                session.state = "cancelled"
            if not trouble.early:
                async for _ in pieces:
                    pass
            trouble.headers = status_of(trouble, session)
            raise

    def _upload_key(self, exchange: Exchange, request: Request, session: Session | None) -> str:
        """The key's value. A chunk needs no key, since its address is a secret; one that is sent must be valid."""
        call = exchange.call
        if session is not None:
            call.key, call.project = session.key, session.upload.project
            if not find_credentials(call.headers, {}, request.api):
                return ""
        value = self._find_key(call, request)
        if session is None:
            call.key, call.project = self.keys[value]
        return value

    async def _take_upload(
        self,
        exchange: Exchange,
        request: Request,
        session: Session | None,
        headers: dict[str, str],
        pieces: AsyncIterator[bytes],
    ) -> Reply:
        uploads = self.service.uploads
        if session is None and request.verb == "upload.whole":
            return await uploads.whole(request, headers, pieces)
        if session is not None and request.verb == "upload.chunk":
            return await uploads.take(session, headers, pieces)
        body = b"".join([piece async for piece in pieces])
        if session is None:
            return uploads.open(request, headers, body, exchange.call.key or "")
        return uploads.query(session) if request.verb == "upload.query" else uploads.cancel(session)

    def _decide(self, exchange: Exchange, body: bytes) -> tuple[Reply | Stream, Fault | None]:
        """The answer, whole or as a stream, and the fault that hits it while it is sent. Raises ApiError."""
        call = exchange.call
        encoding = (call.header("content-encoding") or "").strip().lower()
        request = read_request(call.method, exchange.path, call.query, body, encoding)
        exchange.note(request)
        value = self._find_key(call, request)
        call.key, call.project = self.keys[value]
        self._refuse(call, request, value)
        if request.trouble is not None:
            raise request.trouble
        answer = self._answer(exchange, request)
        fault = self._fault(call, request, broken=True)
        if isinstance(answer, Media):
            return Reply(answer.data, kind=answer.kind.encode("latin-1", "replace")), fault
        if not isinstance(answer, list):
            return Reply(answers.encode(answer), _TIER_HEADER), fault
        if fault is None:
            return frame(answer, api=request.api, form=request.stream), None
        return break_stream(answer, fault, self._rng, api=request.api, form=request.stream), fault

    def _find_key(self, call: Call, request: Request) -> str:
        """The value of the one key that was sent. Raises ApiError."""
        return find_key(find_credentials(call.headers, request.query, request.api), self.keys, request)

    def _refuse(self, call: Call, request: Request, value: str) -> None:
        """Raises ApiError if a fault asks for an error. `value`: of the key."""
        if fault := self._fault(call, request, broken=False):
            bucket, tier = self.generation.bucket(request.model), self.generation.tier(call.project or "")
            case = request.case(key=value, bucket=bucket, tier=tier)
            case.limit, case.retry_s = fault.limit, fault.retry_s
            trouble = error(fault.kind, case)
            trouble.early = not fault.after
            raise trouble

    def _fault(self, call: Call, request: Request, *, broken: bool) -> Fault | None:
        for fault in self.faults:
            if (fault.kind in BROKEN) == broken and fault.meets(
                key=call.key or "",
                project=call.project or "",
                model=request.model,
                verb=request.verb,
                stream=request.stream != "no",
                spends=request.spends,
                tools=request.tools if fault.tool else (),
                rng=self._rng,
            ):
                call.fault = fault.kind
                return fault
        return None

    def _answer(self, exchange: Exchange, request: Request) -> Any:
        call = exchange.call
        if request.verb == "echo":
            return call.shown()
        if request.verb == "other":
            raise error("no-such-path", request.case())
        project = call.project or ""
        if not (request.name or request.names_owned or request.verb in STARTS):
            return self.generation.answer(call, request, project)
        self._place(exchange, request)
        if request.verb == "interactions.create":
            return self.generation.interact(call, request)
        return self.service.answer(request) if request.name else self.generation.answer(call, request, project)

    def _place(self, exchange: Exchange, request: Request) -> None:
        """Set the project that the request is about, and what addresses in its answer begin with."""
        request.project = exchange.call.project or ""
        request.root = self.service.root(exchange.scheme, exchange.call.header("host") or "localhost")

    async def _deliver(self, exchange: Exchange, answer: Reply | Stream, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        pause = fault.pause if fault else 0.0
        if kind in ("hang", "reset"):
            if kind == "hang":
                await exchange.pause(pause)
            await exchange.abort()
            return
        if wait := self.latency + (pause if kind == "slow" else 0.0):
            await exchange.pause(wait)
        if isinstance(answer, Reply):
            if kind != "mid-reset":
                await exchange.answer(answer.status, answer.kind, answer.body, answer.headers)
                return
            length = (b"content-length", b"%d" % len(answer.body))
            await exchange.start(answer.status, answer.kind, [length, *answer.headers])
            await exchange.chunk(answer.body[: len(answer.body) // 2])
            await exchange.abort()
            return
        await exchange.start(200, answer.kind, _TIER_HEADER)
        exchange.watch()
        gap = pause if kind == "drip" else self.chunk_delay
        for number, piece in enumerate(answer.pieces):
            if number and gap:
                await exchange.pause(gap)
            elif number:
                await asyncio.sleep(0)  # its own write, and a client that left is seen
            await exchange.chunk(piece)
        if answer.broken:
            await exchange.abort()
        else:
            await exchange.finish(answer.tail)

    def counts(self) -> dict[str, Any]:
        enforcer = self.enforcer
        quotas = [
            {
                "project": project,
                "model": model,
                "admitted": enforcer.admitted[project, model],
                "refused": enforcer.refused[project, model],
                "served": enforcer.served[project, model]._asdict() if (project, model) in enforcer.served else None,
                "peak_in_60s": enforcer.peak_in_60s(project, model)._asdict(),
            }
            for project, model in enforcer.names()
        ]
        faults = [asdict(fault) for fault in self.faults]
        return {"quotas": quotas, "refusals": enforcer.reasons, "statuses": self.statuses, "faults": faults}

    def owned(self) -> list[dict[str, Any]]:
        """Everything that projects own, with its owner."""
        return self.service.resources.shown()


async def _cut(exchange: Exchange, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The first half of the body; then the connection is closed."""
    most = int(exchange.call.header("content-length") or "0") // 2
    seen = 0
    async for piece in pieces:
        if seen + len(piece) > most:
            yield piece[: most - seen]
            break
        seen += len(piece)
        yield piece
    await exchange.abort()
    raise GoneError
