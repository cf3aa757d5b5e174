"""Reads the bodies of requests: which of them are read at all, and what stands in them. Nothing is decided here."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pollux.gemini.body import inflate, read_once
from pollux.gemini.call import Call
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import may_name
from pollux.relay.client import header

READ_KINDS = frozenset({"generate", "embed", "predict", "count"})
"""Calls whose bodies are read, for the model or for their size. Of the others only those that may name a resource."""
VALUES_MOST = 500_000
"""Brackets and commas of a body that is read here: a few kilobytes can inflate to millions of tiny values."""

RawHeaders = Sequence[tuple[bytes, bytes]]
Read = tuple[bytes, Mapping[str, Any] | None]
"""As it reads, and what it says if that is an object."""


def is_read(call: Call, headers: RawHeaders, body: bytes) -> bool:
    """A compressed body does not show what is in it."""
    if call.kind in READ_KINDS:
        return True
    compressed = header(headers, b"content-encoding") is not None
    return call.kind == "other" and bool(body) and (compressed or may_name(body, call))


def as_it_is(call: Call, headers: RawHeaders, body: bytes, most: int) -> Read:
    """What cannot be read is forwarded as it is: to judge it is Google's business."""
    try:
        readable = inflate(body, header(headers, b"content-encoding"), most)
    except GatewayError as error:
        if call.kind not in READ_KINDS or (error.status == 415 and call.api == "native"):
            return body, None
        raise
    if _values(readable) > VALUES_MOST:
        if call.api == "openai" and call.kind in READ_KINDS:
            raise _too_many()
        return readable, None
    try:
        parsed = json.loads(readable) if readable else None
    except (ValueError, RecursionError):
        parsed = None
    return readable, parsed if isinstance(parsed, dict) else None


def wholly(call: Call, headers: RawHeaders, body: bytes, most: int) -> Read:
    """A body that may name a pooled file: what is not read here just as Google reads it could name anybody's."""
    readable = inflate(body, header(headers, b"content-encoding"), most)
    if _values(readable) > VALUES_MOST:
        raise _too_many()
    if call.api == "openai" and (header(headers, b"content-type") or "").lower().startswith("multipart/"):
        return readable, None  # a picture or a sound: no field of it names a file
    parsed = read_once(readable)
    if parsed is None:
        raise GatewayError(
            "BAD_REQUEST",
            "the body is no JSON object, or a name stands twice in one of its objects; with POLLUX_FILES=pooled it "
            "must be one, since it may name a file",
        )
    return readable, parsed


def _values(readable: bytes) -> int:
    return sum(map(readable.count, (b"[", b"{", b",")))


def _too_many() -> GatewayError:
    return GatewayError("BODY_TOO_LARGE", f"the body has more than {VALUES_MOST} values: too many to read")
