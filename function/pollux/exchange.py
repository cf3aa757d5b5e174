"""One request as the relay works on it: what came, what goes upstream for a given key and model, and its record."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pollux import tools, wire
from pollux.estimate import estimate
from pollux.inbound import PassingBody
from pollux.journal import Attempt, Record
from pollux.outbound import Reply
from pollux.pool import Ask
from pollux.send import Readdress
from pollux.windows import Want
from pollux.wire import Call

if TYPE_CHECKING:
    from pollux.pooled.using import Named

OPENING = 1000
"""Characters of a conversation's opening by which it is known again."""


@dataclass(slots=True)
class Exchange:
    call: Call
    method: str
    headers: Sequence[tuple[str, str]]
    """What travels upstream of the client's headers; the credential is added for each attempt."""
    body: bytes
    readable: bytes
    """The body as it reads: inflated, if it came compressed."""
    parsed: Mapping[str, Any] | None
    record: Record
    reply: Reply
    deadline: float
    patient: bool = True
    stream: str = "no"
    fallback: bool = True
    mode: str = "both"
    prefer_key: str | None = None
    home: str | None = None
    """The project that is preferred for what this client makes."""
    sticky: int | None = None
    """The conversation, by its opening."""
    goes_on: bool = False
    """Whether it has earlier turns of the model: then it goes where those came from."""
    passing: PassingBody | None = None
    """The body in the place of `body`, if it is not held: it can be sent only once."""
    readdress: Readdress | None = None
    begins_upload: bool = False
    own_base: Callable[[], str] = str
    """This gateway's address as the client knows it."""
    only: str | None = None
    """The one project that can serve it: it owns what the request names."""
    names: tuple[str, ...] = ()
    """The resources that the request names."""
    files: "Named | None" = None
    """The pooled files among them that its body names: any project can have a copy."""
    renames: dict[str, str] = field(default_factory=dict)
    """Names and URIs in the body, and those of the copies at the project of this attempt."""
    aliases: dict[bytes, bytes] = field(default_factory=dict)
    """Ids of copies, and those by which the client knows the files."""

    @property
    def can_be_sent(self) -> bool:
        """A body that passes through can be sent only once."""
        return self.passing is None or not self.passing.asked

    @property
    def harmless(self) -> bool:
        """Sent twice it has no more effect than once: it only asks, or begins what nobody has to go on with."""
        return self.method in ("GET", "HEAD") or self.call.kind == "count" or self.begins_upload

    def exchange(self, readable: bytes) -> None:
        """Another body in the place of the client's: its own but for some addresses."""
        self.body = self.readable = readable
        self.parsed = json.loads(readable)
        self.headers = [(name, value) for name, value in self.headers if name != "content-encoding"]

    def shown(self, body: bytes) -> bytes:
        """What Google says, with the names that the client knows."""
        for copy, file in self.aliases.items():
            body = body.replace(copy, file)
        return body

    def noted(self, attempt: Attempt) -> None:
        self.record.note(attempt)

    @property
    def stream_form(self) -> str:
        return "openai-sse" if self.call.api == "openai" else self.stream

    def ask(self, generation: int, kind: str | None = None) -> Ask:
        """What it takes of a quota, by estimate. A model that makes images makes one at least."""
        found = estimate(self.parsed, size=len(self.readable), verb=self.call.verb, generation=generation)
        want = Want(found.requests, found.tokens, max(found.images, kind == "image"))
        sticky = self.sticky if self.goes_on else None
        asked = tools.asked(self.parsed)
        return Ask(want, self.deadline, self.patient, sticky, self.prefer_key, self.only, tools=asked)

    def outgoing(self, model: str | None) -> tuple[str, Sequence[tuple[str, str]], bytes]:
        """Target, headers and body of an attempt: the client's own, but perhaps for the model."""
        call, body, headers = self.call, self.body, self.headers
        path = call.path
        if model is not None and model != call.model:
            if call.kind == "get-model" or (call.api == "native" and call.verb != wire.INTERACTION):
                path = wire.path_for(call, model)
                if path != call.path:  # the client's own was checked when it came
                    path = wire.gated(path)
            elif self.body:
                body = wire.replace_model(self.readable, model)
                headers = [(name, value) for name, value in headers if name != "content-encoding"]
        if self.renames:
            body, _ = wire.renamed(body, self.renames)
        return (f"{path}?{call.query}" if call.query else path), headers, body

    def size_question(self, model: str) -> tuple[str, bytes] | None:
        """The countTokens call that tells this request's size; None where none fits."""
        if self.call.kind != "generate" or self.call.verb == wire.INTERACTION or self.parsed is None:
            return None
        inner = dict(self.parsed) if self.call.api == "native" else _as_contents(self.parsed)
        if not inner:
            return None
        body = {"generateContentRequest": {**inner, "model": wire.full_name(model)}}
        return wire.gated(wire.count_path(self.call, model)), json.dumps(body).encode()


def _as_contents(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """The text of an OpenAI-shaped chat, for counting only."""
    messages = parsed.get("messages")
    texts = [part for message in messages for part in _texts(message)] if isinstance(messages, list) else []
    return {"contents": [{"role": "user", "parts": [{"text": text} for text in texts]}]} if texts else {}


def _texts(message: Any) -> list[str]:
    """The texts of a native content or an OpenAI message."""
    if not isinstance(message, Mapping):
        return []
    parts = message.get("parts", message.get("content"))
    if isinstance(parts, str):
        return [parts]
    if not isinstance(parts, list):
        return []
    return [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]


def goes_on(parsed: Mapping[str, Any] | None) -> bool:
    """Whether the body carries earlier turns of the model. What is asked for the first time belongs to no project."""
    turns = (parsed or {}).get("contents") or (parsed or {}).get("messages")
    return isinstance(turns, list) and any(
        isinstance(turn, Mapping) and turn.get("role") in ("model", "assistant") for turn in turns
    )


def conversation(client: str, parsed: Mapping[str, Any] | None) -> int | None:
    """By what this process knows a conversation again: its client, its instruction and its first message."""
    if parsed is None:
        return None
    turns = parsed.get("contents") or parsed.get("messages")
    if not isinstance(turns, list) or not turns:
        return None
    system = parsed.get("systemInstruction") or parsed.get("system_instruction")
    instructed = isinstance(turns[0], Mapping) and turns[0].get("role") in ("system", "developer")
    opening = [text[:OPENING] for turn in (system, *turns[: 1 + instructed]) for text in _texts(turn)[:2]]
    return hash((client, *opening)) if opening else None
