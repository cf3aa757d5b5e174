"""PURE. The inside of a request: inflated for reading, its model exchanged and nothing else; lists of models."""

import json
import re
import zlib
from collections.abc import Mapping

from pollux.wire import Call
from pollux.wire_error import WireError

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]', re.S)
_TOTAL = re.compile(rb'"totalTokens"\s*:\s*(\d{1,15})')


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """The body as it reads. Never grows beyond the limit, whatever it inflates to."""
    codings = [name.strip().lower() for name in (encoding or "").split(",")]
    for coding in reversed([name for name in codings if name not in ("", "identity")]):
        match coding:
            case "gzip" | "x-gzip":
                body = _inflated(body, (31,), limit)
            case "deflate":  # zlib by the standard, raw by habit
                body = _inflated(body, (15, -15), limit)
            case _:
                raise WireError(
                    415, "UNREADABLE_ENCODING", f"a body with content-encoding {coding[:30]} cannot be read here"
                )
    return body


def _inflated(body: bytes, windows: tuple[int, ...], limit: int) -> bytes:
    for bits in windows:
        inflater = zlib.decompressobj(bits)
        try:
            text = inflater.decompress(body, limit + 1)
            if len(text) > limit:
                raise WireError(
                    413, "BODY_TOO_LARGE", f"the body inflates to more than {limit} bytes (POLLUX_MAX_BODY)"
                )
            if inflater.eof:
                return text
        except zlib.error:
            continue
    raise WireError(400, "BAD_REQUEST", "the body is not what its content-encoding says")


def model_spans(body: bytes) -> list[tuple[int, int]]:
    """Where the values of the top level's `model` stand in a JSON object, without their quotes."""
    spans: list[tuple[int, int]] = []
    depth = 0
    key: bytes | None = None
    expects_key = False
    for token in _TOKEN.finditer(body):
        text = token[0]
        if text in (b"{", b"["):
            depth += 1
            expects_key, key = text == b"{", None
        elif text in (b"}", b"]"):
            depth -= 1
            expects_key = False
        elif depth != 1:
            continue
        elif text == b",":
            expects_key, key = True, None
        elif text == b":":
            expects_key = False
        elif expects_key:
            key, expects_key = text, False
        elif key is not None:
            if key == b'"model"' or json.loads(key) == "model":
                spans.append((token.start() + 1, token.end() - 1))
            key = None
    return spans


def replace_model(body: bytes, model: str) -> bytes:
    """Another model in an OpenAI-shaped body; every other byte stays as it is."""
    for start, end in reversed(model_spans(body)):
        prefix = b"models/" if body.startswith(b"models/", start) else b""
        body = body[:start] + prefix + json.dumps(model).encode()[1:-1] + body[end:]
    return body


def total_tokens(body: bytes) -> int | None:
    """What countTokens answered."""
    found = _TOTAL.search(body)
    return int(found[1]) if found else None


def with_aliases(body: bytes, call: Call, aliases: Mapping[str, str]) -> bytes:
    """A list of models with our own names at the end of its last page."""
    try:
        found = json.loads(body)
    except ValueError:
        return body
    if not isinstance(found, dict):
        return body
    if call.api == "openai" and isinstance(found.get("data"), list):
        found["data"] += [{"id": f"models/{alias}", "object": "model", "owned_by": "pollux"} for alias in aliases]
    elif call.api == "native" and isinstance(found.get("models"), list) and not found.get("nextPageToken"):
        known = {entry.get("name"): entry for entry in found["models"] if isinstance(entry, dict)}
        for alias, model in aliases.items():
            same = known.get(f"models/{model}", {"supportedGenerationMethods": ["generateContent", "countTokens"]})
            text = f"Pollux: {alias} stands for {model}"
            found["models"].append({**same, "name": f"models/{alias}", "displayName": alias, "description": text})
    else:
        return body
    return json.dumps(found, ensure_ascii=False).encode()
