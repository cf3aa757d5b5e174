"""A request: as it came, as the relay works on it, and what of it goes upstream for a model."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pollux.gemini import tools
from pollux.gemini.body import replace_model
from pollux.gemini.call import INTERACTION, Call, count_path, full_name, path_for
from pollux.gemini.estimate import estimate
from pollux.gemini.guard import allowed_path
from pollux.gemini.upload import Upload
from pollux.pool.reservation import Ask
from pollux.pool.windows import Want
from pollux.relay.client import PassingBody, Receive, Scope
from pollux.relay.journal import Record
from pollux.relay.passing import Reply, Settle
from pollux.relay.placement import ANYWHERE, Placement
from pollux.relay.send import CoveredAnswer, Readdress

PassOn = Callable[["Request", CoveredAnswer, str, Settle], Awaitable[None]]
"""Passes on a good answer of a project, and settles it."""

OPENING = 1000
"""How many characters of each opening text identify a conversation."""


class Incoming(NamedTuple):
    """A request for the Gemini API as it came: its head is read, its body is not."""

    scope: Scope
    receive: Receive
    reply: Reply
    record: Record
    call: Call
    upload: Upload | None
    headers: Mapping[bytes, bytes]
    """By name; of several with one name the first."""
    query: bytes


@dataclass(slots=True)
class Request:
    """A request that was let in."""

    call: Call
    method: str
    headers: Sequence[tuple[str, str]]
    """The client's headers that go upstream; each attempt adds a credential."""
    body: bytes
    readable: bytes
    """The body, inflated if it came compressed."""
    parsed: Mapping[str, Any] | None
    record: Record
    reply: Reply
    deadline: float
    """Until when it may wait for a slot."""
    patient: bool = True
    """The client set no limit of its own: a large request may wait longer."""
    stream: str = "no"
    fallback: bool = True
    mode: str = "both"
    prefer_key: str | None = None
    sticky: int | None = None
    """Identifies the conversation."""
    has_history: bool = False
    """Whether it has earlier turns of the model: then it prefers the project that served them."""
    streamed: PassingBody | None = None
    """The body, if it is not held: it can be sent only once."""
    readdress: Readdress | None = None
    begins_upload: bool = False
    own_base: Callable[[], str] = str
    """This gateway's address as the client knows it."""
    placement: Placement = ANYWHERE
    pass_on: PassOn | None = None
    """Set if the answer must be read before it passes."""

    @property
    def can_be_sent(self) -> bool:
        return self.streamed is None or not self.streamed.asked

    @property
    def harmless(self) -> bool:
        """Whether it may be sent twice: it only asks, or begins an upload that may be abandoned."""
        return self.method in ("GET", "HEAD") or self.call.kind == "count" or self.begins_upload

    def replace_body(self, readable: bytes) -> None:
        self.body = self.readable = readable
        self.parsed = json.loads(readable)
        self.headers = [(name, value) for name, value in self.headers if name != "content-encoding"]

    @property
    def stream_form(self) -> str:
        return "openai-sse" if self.call.api == "openai" else self.stream

    def ask(self, generation: int, kind: str | None = None) -> Ask:
        """What it needs of a quota, estimated. A model for images makes at least one."""
        found = estimate(self.parsed, size=len(self.readable), verb=self.call.verb, generation=generation)
        want = Want(found.requests, found.tokens, max(found.images, kind == "image"))
        sticky = self.sticky if self.has_history else None
        parsed = self.parsed
        asked = tools.used_by(parsed) if parsed and ("tools" in parsed or "extra_body" in parsed) else tools.NONE
        return Ask(want, self.deadline, self.patient, sticky, self.prefer_key, self.placement.only, tools=asked)

    def outgoing(self, model: str | None) -> tuple[str, Sequence[tuple[str, str]], bytes]:
        """Target, headers and body of an attempt: the client's, with the model and names that are needed there."""
        call, body, headers = self.call, self.body, self.headers
        path = call.path
        if model is not None and model != call.model:
            if call.kind == "get-model" or (call.api == "native" and call.verb != INTERACTION):
                path = path_for(call, model)
                if path != call.path:  # the client's own path was checked when it came
                    path = allowed_path(path)
            elif self.body:
                body = replace_model(self.readable, model)
                headers = [(name, value) for name, value in headers if name != "content-encoding"]
        if self.placement.prepares:
            body = self.placement.rewritten(body)
        return (f"{path}?{call.query}" if call.query else path), headers, body

    def size_question(self, model: str) -> tuple[str, bytes] | None:
        """Target and body of the countTokens call for this request; None if it cannot be counted."""
        if self.call.kind != "generate" or self.call.verb == INTERACTION or self.parsed is None:
            return None
        inner = dict(self.parsed) if self.call.api == "native" else _as_contents(self.parsed)
        if not inner:
            return None
        body = {"generateContentRequest": {**inner, "model": full_name(model)}}
        return allowed_path(count_path(self.call, model)), json.dumps(body).encode()


def _as_contents(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """The text of an OpenAI-shaped chat, for counting only."""
    messages = parsed.get("messages")
    texts = [part for message in messages for part in _texts(message)] if isinstance(messages, list) else []
    return {"contents": [{"role": "user", "parts": [{"text": text} for text in texts]}]} if texts else {}


def _texts(message: Any) -> list[str]:
    """The texts of a native content or an OpenAI message."""
    if not isinstance(message, dict):
        return []
    parts = message.get("parts", message.get("content"))
    if isinstance(parts, str):
        return [parts]
    texts = []
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            texts.append(text)
    return texts


def has_history(parsed: Mapping[str, Any] | None) -> bool:
    """Whether the body has earlier turns of the model: then it belongs to the project that served them."""
    for turn in _turns(parsed):
        role = turn.get("role") if isinstance(turn, dict) else None
        if role in ("model", "assistant"):
            return True
    return False


def conversation(client: str, parsed: Mapping[str, Any] | None) -> int | None:
    """Identifies a conversation by its client, its instruction and its first message."""
    turns = _turns(parsed)
    if not parsed or not turns:
        return None
    first = [parsed.get("systemInstruction") or parsed.get("system_instruction"), turns[0]]
    if isinstance(turns[0], dict) and turns[0].get("role") in ("system", "developer"):
        first += turns[1:2]
    opening = [client]
    for turn in first:
        for text in _texts(turn)[:2] if turn is not None else ():
            opening.append(text[:OPENING])
    return hash(tuple(opening)) if len(opening) > 1 else None


def _turns(parsed: Mapping[str, Any] | None) -> list[Any]:
    turns = (parsed.get("contents") or parsed.get("messages")) if parsed else None
    return turns if isinstance(turns, list) else []
