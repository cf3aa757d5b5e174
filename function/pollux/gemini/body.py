"""Reads bodies of requests and plain answers, replaces the model in a request, and adds aliases to model lists."""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pollux.gemini.call import INTERACTION, Call, Stream, model_name
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import may_name

READ_KINDS = frozenset({"generate", "embed", "predict", "count"})
"""Calls whose bodies are read for the model or the size. Other bodies are read only if they may name a resource."""
VALUES_MOST = 500_000
"""The most brackets and commas in a body that is parsed: a few kilobytes can inflate to millions of tiny values."""
MOST_CODINGS = 4

_INTERACTIONS = re.compile(r"/v\d\w*/interactions/?")
_TOTAL = re.compile(rb'"totalTokens"\s*:\s*(\d{1,15})')
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

Read = tuple[bytes, Mapping[str, Any] | None]
"""(the inflated body, its JSON object or None)"""


def read(call: Call, body: bytes, headers: Mapping[bytes, bytes], most: int) -> Read:
    """Inflate and parse a body. A body that cannot be read is passed on unchanged, so that Google judges it."""
    encoding = headers.get(b"content-encoding", b"").decode("latin-1")
    must = call.kind in READ_KINDS
    if not must and not (call.kind == "other" and body and (encoding or may_name(body, call))):
        return body, None
    try:
        readable = inflate(body, encoding, most)
    except GatewayError as error:
        if not must or (error.status == 415 and call.api == "native"):
            return body, None
        raise
    if _values(readable) > VALUES_MOST:
        if must and call.api == "openai":
            raise _too_many()
        return readable, None
    try:
        parsed = json.loads(readable) if readable else None
    except (ValueError, RecursionError):
        parsed = None
    return readable, parsed if isinstance(parsed, dict) else None


def read_strictly(call: Call, body: bytes, headers: Mapping[bytes, bytes], most: int) -> Read:
    """Read a body that may name a pooled file. If we read it in another way than Google, it could name any file."""
    readable = inflate(body, headers.get(b"content-encoding", b"").decode("latin-1"), most)
    if _values(readable) > VALUES_MOST:
        raise _too_many()
    if call.api == "openai" and headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        return readable, None  # a picture or a sound: none of its fields names a file
    try:
        parsed = json.loads(readable, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise GatewayError(
            "BAD_REQUEST",
            "the body is not a JSON object, or an object in it has a name twice; with POLLUX_FILES=pooled it must be "
            "one, since it may name a file",
        )
    return readable, parsed


def _values(readable: bytes) -> int:
    return sum(map(readable.count, (b"[", b"{", b",")))


def _too_many() -> GatewayError:
    return GatewayError("BODY_TOO_LARGE", f"the body has more than {VALUES_MOST} values: too many to read")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Decompress a body, for reading only. It never holds more than the limit.

    GatewayError: 413 above the limit, 400 if the data are broken, 415 for an unknown coding.
    """
    if not encoding:
        return body
    codings = [name for part in encoding.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    for coding in reversed(codings):
        windows = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}.get(coding)  # deflate: zlib, often raw
        if windows is None or len(codings) > MOST_CODINGS:
            shown = re.sub(r"[^\w, .-]", "?", encoding)[:40]
            raise GatewayError(
                "UNREADABLE_ENCODING", f"content-encoding {shown} cannot be read here; send gzip, deflate or none"
            )
        body = _inflated(body, windows, limit)
    return body


def _inflated(body: bytes, windows: tuple[int, ...], limit: int) -> bytes:
    for bits in windows:
        try:
            return _members(body, bits, limit)
        except (zlib.error, EOFError):
            continue
    raise GatewayError("BAD_REQUEST", "the body is not valid in its content-encoding")


def _members(body: bytes, bits: int, limit: int) -> bytes:
    """Inflate one deflate stream, or all members of a gzip file."""
    pieces: list[bytes] = []
    size = 0
    while True:
        inflater = zlib.decompressobj(bits)
        piece = inflater.decompress(body, limit - size + 1)
        size += len(piece)
        if size > limit:
            raise GatewayError("BODY_TOO_LARGE", f"the body inflates to more than {limit} bytes (POLLUX_MAX_BODY)")
        if not inflater.eof:
            raise EOFError
        pieces.append(piece)
        body = inflater.unused_data.lstrip(b"\0")
        if not body:
            return b"".join(pieces)
        if bits != 31:
            raise EOFError


# --- the model that a body names -------------------------------------------------------------------------------------


def makes_interaction(method: str, call: Call) -> bool:
    """Whether the call makes an interaction. The body says if that takes quota as generateContent does, or none."""
    native = call.api == "native" and call.kind == "other"
    return native and method == "POST" and _INTERACTIONS.fullmatch(call.path) is not None


def with_body(call: Call, parsed: Mapping[str, Any]) -> Call:
    """Returns the call with the model and the stream mode of its body.

    An OpenAI-shaped body has both. The body of an interaction may name a model, and then it takes that model's quota;
    one with an agent takes none. Other native calls are returned unchanged.

    GatewayError: the model's name is not valid.
    """
    model = parsed.get("model")
    name = model.removeprefix("models/") if isinstance(model, str) else ""
    if name and makes_interaction("POST", call):
        return replace(call, kind="generate", verb=INTERACTION, model=model_name(name))
    if call.api != "openai" or call.kind in ("guarded", "other"):
        return call
    stream: Stream = "sse" if call.kind == "generate" and parsed.get("stream") is True else "no"
    return replace(call, model=model_name(name) if name else call.model, stream=stream)


def replace_model(body: bytes, model: str) -> bytes:
    """Replace the model in an OpenAI-shaped body and keep its prefix `models/`. All other bytes stay the same."""
    for start, end in reversed(_model_values(body)):
        prefix = "models/" if body.startswith(b'"models/', start) and not model.startswith("models/") else ""
        body = b"".join((body[:start], json.dumps(prefix + model).encode(), body[end:]))
    return body


# The first or the last member, without escapes: if nothing else can be the model, the rest need not be read.
_FIRST = re.compile(rb'\s*\{\s*"model"\s*:\s*("[^"\\]*")')
_LAST = re.compile(rb'"model"\s*:\s*("[^"\\]*")\s*\}\s*')


def _model_values(body: bytes) -> list[tuple[int, int]]:
    """Returns (start, end) of each value of `model` at the top level, with the quotes; [] if it is no JSON object."""
    at = body.find(b'"model"')
    if at >= 0 and at == body.rfind(b'"model"') and b"\\u006" not in body:
        found = _FIRST.match(body) or _LAST.fullmatch(body, at)
        if found is not None:
            return [found.span(1)]
    try:
        return _values_of(body.decode("utf-8"), "model")
    except (ValueError, IndexError, RecursionError):
        return []


def _values_of(text: str, name: str) -> list[tuple[int, int]]:
    """Skip from member to member with json's own C scanner, which passes megabytes of messages in one step."""
    value = _DECODER.raw_decode
    spans: list[tuple[int, int]] = []
    at = _after_space(text, 1 if text.startswith("\ufeff") else 0)
    if text[at] != "{":
        return []
    at = _after_space(text, at + 1)
    while text[at] == '"':
        key, at = value(text, at)
        at = _after_space(text, at)
        if text[at] != ":":
            return []
        start = _after_space(text, at + 1)
        _, at = value(text, start)
        if key == name:
            spans.append((start, at))
        at = _after_space(text, at)
        if text[at] != ",":
            break
        at = _after_space(text, at + 1)
    if text[at] != "}":
        return []
    if text.isascii():
        return spans
    return [(len(text[:start].encode()), len(text[:end].encode())) for start, end in spans]


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern matches an empty string too
    return found.end()


# --- plain answers ---------------------------------------------------------------------------------------------------


def json_of(data: bytes) -> Any:
    """Returns the parsed JSON, or None if it is invalid."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def total_tokens(body: bytes) -> int | None:
    """Returns the count in an answer to countTokens."""
    found = _TOTAL.search(body)
    return int(found[1]) if found else None


def with_aliases(body: bytes, call: Call, aliases: Mapping[str, str]) -> bytes:
    """Add the aliases to a list of models. Each is a copy of its model, on the page that has the model."""
    try:
        listing = json.loads(body)
    except (ValueError, RecursionError):
        return body
    name, field = ("id", "data") if call.api == "openai" else ("name", "models")
    entries = listing.get(field) if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        return body
    known = {str(entry.get(name)).removeprefix("models/"): entry for entry in entries if isinstance(entry, dict)}
    added = []
    for alias, model in aliases.items():
        if model in known and alias not in known:
            prefix = "models/" if str(known[model][name]).startswith("models/") else ""
            entry = {**known[model], name: prefix + alias}
            if call.api == "native" and "displayName" in entry:
                entry["displayName"] = f"{alias} ({entry['displayName']})"
            added.append(entry)
    if not added:
        return body
    entries += added
    return json.dumps(listing, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")
