"""PURE. The inside of requests and plain answers: inflated for reading, the model exchanged, model lists, usage."""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pollux.gemini.call import INTERACTION, Call, Stream, model_name
from pollux.gemini.errors import GatewayError

MOST_CODINGS = 4
_INTERACTIONS = re.compile(r"/v\d\w*/interactions/?")
_TOTAL = re.compile(rb'"totalTokens"\s*:\s*(\d{1,15})')
# A value up to two objects deep: usage holds lists of {modality, tokenCount}. None of its strings has a brace.
_OBJECT = rb"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})"
_USAGE = {name: re.compile(name + _OBJECT) for name in (b'"usageMetadata"', b'"usage"')}
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """The body as it reads, for reading only. Never holds more than the limit, whatever it would grow to.

    GatewayError: 413 above the limit, 400 if broken, 415 for a coding that is not known here.
    """
    if not encoding:
        return body
    codings = [name for part in encoding.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    for coding in reversed(codings):
        windows = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}.get(coding)  # deflate: zlib, by habit raw
        if windows is None or len(codings) > MOST_CODINGS:
            shown = re.sub(r"[^\w, .-]", "?", encoding)[:40]
            raise GatewayError(
                "UNREADABLE_ENCODING", f"content-encoding {shown} cannot be read here; send gzip, deflate or none"
            )
        body = _inflated(body, windows, limit)
    return body


def read_once(body: bytes) -> dict[str, Any] | None:
    """A JSON object in which no name stands twice, so that whoever reads it reads the same; None for anything else."""
    try:
        parsed = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _inflated(body: bytes, windows: tuple[int, ...], limit: int) -> bytes:
    for bits in windows:
        try:
            return _members(body, bits, limit)
        except (zlib.error, EOFError):
            continue
    raise GatewayError("BAD_REQUEST", "the body is not what its content-encoding says")


def _members(body: bytes, bits: int, limit: int) -> bytes:
    """One deflated stream, or the several of a gzip file."""
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


# --- the model that an OpenAI-shaped body names ----------------------------------------------------------------------


def openai_stream(parsed: Mapping[str, Any]) -> bool:
    return parsed.get("stream") is True


def makes_interaction(method: str, call: Call) -> bool:
    """Whether it takes quota as generateContent does, or none, depends on its body."""
    at_home = call.api == "native" and call.kind == "other"
    return at_home and method == "POST" and _INTERACTIONS.fullmatch(call.path) is not None


def with_body(call: Call, parsed: Mapping[str, Any]) -> Call:
    """An OpenAI-shaped call names its model and whether it streams in its body, and so does an interaction, which takes
    quota if it names one (an agent takes that of no model); any other native call stays as it is.

    GatewayError: no model can be called what it names.
    """
    model = parsed.get("model")
    name = model.removeprefix("models/") if isinstance(model, str) else ""
    if name and makes_interaction("POST", call):
        return replace(call, kind="generate", verb=INTERACTION, model=model_name(name))
    if call.api != "openai" or call.kind in ("guarded", "other"):
        return call
    stream: Stream = "sse" if call.kind == "generate" and openai_stream(parsed) else "no"
    return replace(call, model=model_name(name) if name else call.model, stream=stream)


def replace_model(body: bytes, model: str) -> bytes:
    """Another model in an OpenAI-shaped body, with `models/` in front if it was there; every other byte stays."""
    for start, end in reversed(_model_values(body)):
        prefix = "models/" if body.startswith(b'"models/', start) and not model.startswith("models/") else ""
        body = b"".join((body[:start], json.dumps(prefix + model).encode(), body[end:]))
    return body


# A name without escapes as the very first or very last member, and nothing else that could be one: no need to read on.
_FIRST = re.compile(rb'\s*\{\s*"model"\s*:\s*("[^"\\]*")')
_LAST = re.compile(rb'"model"\s*:\s*("[^"\\]*")\s*\}\s*')


def _model_values(body: bytes) -> list[tuple[int, int]]:
    """The spans of the values of the top level's `model`, quotes included; [] if it is no JSON object."""
    place = body.find(b'"model"')
    if place >= 0 and place == body.rfind(b'"model"') and b"\\u006" not in body:
        found = _FIRST.match(body) or _LAST.fullmatch(body, place)
        if found is not None:
            return [found.span(1)]
    try:
        return _members_named(body.decode("utf-8"), "model")
    except (ValueError, IndexError, RecursionError):
        return []


def _members_named(text: str, name: str) -> list[tuple[int, int]]:
    """By json's own C scanner, member by member: megabytes of messages are one step."""
    space, value = _SPACE.match, _DECODER.raw_decode
    spans: list[tuple[int, int]] = []
    at = _end(space(text, 1 if text.startswith("\ufeff") else 0))
    if text[at] != "{":
        return []
    at = _end(space(text, at + 1))
    while text[at] == '"':
        key, at = value(text, at)
        at = _end(space(text, at))
        if text[at] != ":":
            return []
        start = _end(space(text, at + 1))
        _, at = value(text, start)
        if key == name:
            spans.append((start, at))
        at = _end(space(text, at))
        if text[at] != ",":
            break
        at = _end(space(text, at + 1))
    if text[at] != "}":
        return []
    if text.isascii():
        return spans
    return [(len(text[:start].encode()), len(text[:end].encode())) for start, end in spans]


def _end(found: re.Match[str] | None) -> int:
    assert found is not None  # any run of white space matches, an empty one too
    return found.end()


# --- plain answers ---------------------------------------------------------------------------------------------------


def usage_marker(api: str) -> bytes:
    return b'"usage"' if api.startswith("openai") else b'"usageMetadata"'


def usage_at(text: bytes, marker: bytes, place: int) -> bytes | None:
    """The usage object whose name stands there, if all of it is there."""
    found = _USAGE[marker].match(text, place)
    return found[1] if found is not None else None


def prompt_tokens_of(usage: Mapping[str, Any] | None) -> int | None:
    """Input tokens, by Google's name or OpenAI's."""
    for name in ("promptTokenCount", "prompt_tokens") if usage else ():
        value = (usage or {}).get(name)
        if isinstance(value, int):
            return value
    return None


def as_usage(text: bytes) -> dict[str, Any] | None:
    try:
        usage = json.loads(text)
    except ValueError:
        return None
    return usage if isinstance(usage, dict) else None


def total_tokens(body: bytes) -> int | None:
    """What countTokens answered."""
    found = _TOTAL.search(body)
    return int(found[1]) if found else None


def with_aliases(body: bytes, call: Call, aliases: Mapping[str, str]) -> bytes:
    """A list of models in which the aliases stand too: each on the page of its model, as a copy of it."""
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
