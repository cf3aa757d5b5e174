"""How chunks become bytes: Google's SSE and array, OpenAI's SSE, and the ways in which a stream goes wrong. PURE."""

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from gemini_simulator.answers import encode, without_finish
from gemini_simulator.errors import error
from gemini_simulator.faults import Fault

JSON = b"application/json; charset=UTF-8"
SSE = b"text/event-stream"


class Reply(NamedTuple):
    """An answer in one piece."""

    body: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()
    status: int = 200
    kind: bytes = JSON


class Stream(NamedTuple):
    kind: bytes
    pieces: list[bytes]
    tail: bytes
    broken: bool = False
    """Whether the connection ends after the pieces, without a tail."""


def frame(chunks: Sequence[dict[str, Any]], *, api: str, form: str) -> Stream:
    texts = [encode(chunk) for chunk in chunks]
    if form == "array":
        return Stream(JSON, [(b",\n" if i else b"[") + text + b"\n" for i, text in enumerate(texts)], b"]")
    if api == "interactions":
        heads = [b"event: " + str(chunk.get("event_type", "error")).encode() + b"\ndata: " for chunk in chunks]
        events = [head + text + b"\n\n" for head, text in zip(heads, texts, strict=True)]
        return Stream(SSE, events, b"event: done\ndata: [DONE]\n\n")
    if api == "openai":
        return Stream(SSE, [b"data: " + text + b"\n\n" for text in texts], b"data: [DONE]\n\n")
    return Stream(SSE, [b"data: " + text + b"\r\n\r\n" for text in texts], b"")


def break_stream(chunks: list[dict[str, Any]], fault: Fault, rng: Random, *, api: str, form: str) -> Stream:
    """The same stream with this fault."""
    if fault.kind == "truncate" and api == "interactions":
        return frame(chunks[:-1], api=api, form=form)._replace(tail=b"")
    if fault.kind == "truncate":
        chunks = [without_finish(chunk) for chunk in chunks if chunk.get("choices") != []]
        return frame(chunks, api=api, form=form)._replace(tail=b"")
    stream = frame(chunks, api=api, form=form)
    if fault.kind == "mid-reset":
        return stream._replace(pieces=stream.pieces[: fault.after], broken=True)
    if fault.kind == "mid-error":
        pieces = stream.pieces[: fault.after]
        # Google does not frame it as an event: a bare object of several lines, on the OpenAI path in a list.
        text = error(fault.error).encode(array=api == "openai")[1]
        if api == "interactions":
            body = error(fault.error).body
            event = {"event_type": "error"} | (body if isinstance(body, dict) else {"error": {"message": body}})
            return stream._replace(pieces=pieces + frame([event], api=api, form=form).pieces, tail=b"")
        if form == "array":
            return stream._replace(pieces=[*pieces, (b",\n" if pieces else b"[") + text], tail=b"]")
        return stream._replace(pieces=[*pieces, text], tail=b"")
    if fault.kind == "first-event-error":
        body = error(fault.error).body
        return frame([body if isinstance(body, dict) else {"error": body}], api=api, form=form)._replace(
            tail=b"]" if form == "array" else b""
        )
    if fault.kind == "split-chunks":
        return stream._replace(pieces=_cut(b"".join(stream.pieces) + stream.tail, rng), tail=b"")
    return stream


def _cut(data: bytes, rng: Random) -> list[bytes]:
    """At random places: inside "data:", inside a line end, inside a character."""
    places = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, rng.randint(8, 24))))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
