"""The simulated Gemini API: an ASGI app without a framework. Starting it is the business of `simulator`."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from random import Random
from typing import Any

from pollux.simulator import answers
from pollux.simulator.control import control
from pollux.simulator.errors import TIERS, ApiError, bad_request, error, quota_error
from pollux.simulator.exchange import Call, Clock, Exchange, GoneError, Receive, Scope, Send, Sleep
from pollux.simulator.faults import BROKEN, Fault
from pollux.simulator.models import MODELS, describe, describe_openai, makes_images, methods
from pollux.simulator.quota import Enforcer, Limits
from pollux.simulator.request import Request, find_credentials, find_key, read_request
from pollux.simulator.streams import JSON, Stream, break_stream, frame

_TIER_HEADER = [(b"x-gemini-service-tier", b"standard")]
_ALLOW = [(b"allow", b"GET, HEAD, POST, OPTIONS")]


class Simulator:
    """A Gemini that counts per (project, bucket) and fails on demand.

    keys: key value -> project, or (id, project, value) of each. limits: see Enforcer; its models are buckets.
    models: model -> bucket, or names. tiers: one for all, or project -> tier; it names the quotas in 429s.
    latency, chunk_delay: seconds before an answer and between chunks. keep: how many calls are remembered.

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
    ) -> None:
        if isinstance(keys, Mapping):
            keys = [(f"key-{i}", project, value) for i, (value, project) in enumerate(keys.items(), 1)]
        self._keys = {value: (key, project) for key, project, value in keys}
        self.models = dict(models) if isinstance(models, Mapping) else {name: name for name in models}
        self._tiers = tiers
        if unknown := {*([tiers] if isinstance(tiers, str) else tiers.values())} - {*TIERS}:
            raise ValueError(f"no such tier: {', '.join(sorted(unknown))}; expected {', '.join(TIERS)}")
        self.enforcer = Enforcer(kind, limits, day=day, count_refused=count_refused)
        self.clock = clock
        self.latency = latency
        self.chunk_delay = chunk_delay
        self.chunks = chunks
        self._sleep = sleep
        self._rng = Random(seed)
        self._serial = 0
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
        body = await exchange.read(digest=recorded, keep=recorded and self._keep_bodies)
        try:
            if call.method == "OPTIONS":
                await exchange.answer(200, b"", b"", _ALLOW)
                return
            encoding = (call.header("content-encoding") or "").strip().lower()
            request = read_request(call.method, exchange.path, call.query, body, encoding)
            call.verb, call.model, call.stream = request.verb, request.model, request.stream
            try:
                answer, fault = self._decide(call, request)
            except ApiError as trouble:
                kind, data = trouble.encode(array=request.as_array)
                await exchange.answer(trouble.status, kind, data)
                return
            await self._deliver(exchange, answer, fault)
        finally:
            self.statuses[str(call.status) if call.status else "no answer"] += 1

    def _decide(self, call: Call, request: Request) -> tuple[bytes | Stream, Fault | None]:
        """The answer, as bytes or as a stream, and what goes wrong in sending it. Raises ApiError."""
        value = find_key(find_credentials(call.headers, request.query, request.api), self._keys, request)
        call.key, call.project = key, project = self._keys[value]
        if fault := self._fault(call, request, key, project, broken=False):
            case = request.case(key=value, bucket=self._bucket(request.model), tier=self._tier(project))
            case.limit, case.retry_s = fault.limit, fault.retry_s
            raise error(fault.kind, case)
        if request.trouble is not None:
            raise request.trouble
        answer = self._answer(call, request, project)
        fault = self._fault(call, request, key, project, broken=True)
        if not isinstance(answer, list):
            return answers.encode(answer), fault
        if fault is None:
            return frame(answer, api=request.api, form=request.stream), None
        return break_stream(answer, fault, self._rng, api=request.api, form=request.stream), fault

    def _fault(self, call: Call, request: Request, key: str, project: str, *, broken: bool) -> Fault | None:
        for fault in self.faults:
            if (fault.kind in BROKEN) == broken and fault.meets(
                key=key,
                project=project,
                model=request.model,
                verb=request.verb,
                stream=request.stream != "no",
                spends=request.spends,
                rng=self._rng,
            ):
                call.fault = fault.kind
                return fault
        return None

    def _bucket(self, model: str | None) -> str:
        return self.models.get(model or "", model or "")

    def _tier(self, project: str) -> str:
        return self._tiers if isinstance(self._tiers, str) else self._tiers.get(project, "free")

    def _answer(self, call: Call, request: Request, project: str) -> dict[str, Any] | list[dict[str, Any]]:
        verb, model = request.verb, request.model
        if verb == "models.list":
            return self._list(request)
        if verb == "echo":
            return call.shown()
        if verb == "other":
            raise error("no-such-path", request.case())
        if request.api == "openai" and verb in ("chat/completions", "embeddings"):
            if model is None:
                raise bad_request("model is not specified")
            needed = "generateContent" if verb == "chat/completions" else "embedContent"
        else:
            needed = verb
        if model is None or model not in self.models or (verb != "models.get" and needed not in methods(model)):
            raise error("not-found", request.case())
        if verb == "models.get":
            return describe_openai(model) if request.api == "openai" else describe(model)
        if verb in ("generateContent", "streamGenerateContent", "chat/completions"):
            return self._generate(call, request, project, model)
        return self._rest(call, request, project, model)

    def _generate(
        self, call: Call, request: Request, project: str, model: str
    ) -> dict[str, Any] | list[dict[str, Any]]:
        document = request.document
        openai = request.api == "openai"
        prompt = answers.openai_prompt(document) if openai else answers.native_prompt(document)
        image = makes_images(model)
        self._admit(call, request, project, tokens=prompt.tokens, images=int(image))
        self._serial += 1
        name = f"simulated-{self._serial:x}"
        if openai:
            created = int(self.clock())
            if request.stream == "no":
                return answers.openai_answer(model, prompt, name, created)
            options = document.get("stream_options")
            usage = isinstance(options, dict) and bool(options.get("include_usage"))
            return answers.openai_chunks(model, prompt, self.chunks, name, created, usage=usage)
        count = 1 if request.stream == "no" else self.chunks
        chunks = answers.native_chunks(model, prompt, count, name, image=image)
        return chunks[0] if request.stream == "no" else chunks

    def _rest(self, call: Call, request: Request, project: str, model: str) -> dict[str, Any]:
        verb, document = request.verb, request.document
        if verb == "countTokens":
            inner = document.get("generateContentRequest", document.get("generate_content_request"))
            whole = isinstance(inner, dict)
            prompt = answers.native_prompt(inner if whole else document, whole=whole)
            details = [{"modality": "TEXT", "tokenCount": prompt.tokens}]
            return {"totalTokens": prompt.tokens, "promptTokensDetails": details}
        if verb == "predict":
            count = answers.samples(document)
            self._admit(call, request, project, tokens=0, images=count)
            return answers.predictions(count)
        openai = request.api == "openai"
        prompts = answers.openai_inputs(document) if openai else answers.embed_prompts(document, verb)
        tokens = sum(prompt.tokens for prompt in prompts)
        self._admit(call, request, project, tokens=tokens, requests=len(prompts))
        return answers.embeddings(verb, model, document, prompts)

    def _admit(
        self, call: Call, request: Request, project: str, *, tokens: int, requests: int = 1, images: int = 0
    ) -> None:
        bucket = self._bucket(request.model)
        call.tokens = tokens
        refusal = self.enforcer.admit(
            project, bucket, requests=requests, tokens=tokens, images=images, now=self.clock()
        )
        if refusal is not None:
            call.fault = refusal.name
            case = request.case(bucket=bucket, tier=self._tier(project))
            raise quota_error(refusal.broken, refusal.retry_s, case)

    def _list(self, request: Request) -> dict[str, Any]:
        names = list(self.models)
        if request.api == "openai":
            return {"object": "list", "data": [describe_openai(name) for name in names]}
        size, token = request.query.get("pageSize") or "50", request.query.get("pageToken") or "0"
        if not (size.isascii() and size.isdigit() and token.isascii() and token.isdigit()):
            raise bad_request("* ListModelsRequest.page_size or page_token: invalid value\n")
        start = int(token)
        end = start + min(int(size) or 50, 1000)
        page: dict[str, Any] = {"models": [describe(name) for name in names[start:end]]}
        return page | ({"nextPageToken": str(end)} if end < len(names) else {})

    async def _deliver(self, exchange: Exchange, answer: bytes | Stream, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        pause = fault.pause if fault else 0.0
        if kind in ("hang", "reset"):
            if kind == "hang":
                await exchange.pause(pause)
            await exchange.abort()
            return
        if wait := self.latency + (pause if kind == "slow" else 0.0):
            await exchange.pause(wait)
        if isinstance(answer, bytes):
            if kind != "mid-reset":
                await exchange.answer(200, JSON, answer, _TIER_HEADER)
                return
            await exchange.start(200, JSON, [(b"content-length", b"%d" % len(answer)), *_TIER_HEADER])
            await exchange.chunk(answer[: len(answer) // 2])
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
