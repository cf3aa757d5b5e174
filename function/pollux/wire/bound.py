"""PURE. Which resources of a project a call names: in its path, in its body, in its answer.

A name is what the project owns: `files/ID`, `cachedContents/ID`, `models/M/operations/ID`. What lies under one
(documents, operations, permissions) is bound by its first two segments. URIs are exchanged in `addresses`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from pollux.wire.target import Call

GOOGLE = "https://generativelanguage.googleapis.com"
"""What URIs begin with, wherever the upstream really is."""

COLLECTIONS = frozenset(
    {
        "agents",
        "batches",
        "cachedContents",
        "corpora",
        "credentials",
        "environments",
        "fileSearchStores",
        "files",
        "generatedFiles",
        "interactions",
        "operations",
        "ragStores",
        "triggers",
        "tunedModels",
        "videos",
        "voices",
    }
)
CHAINED = frozenset({"agents", "environments", "interactions", "triggers"})
"""Their bodies name one another by bare ids."""
MARKS = (b"files", b"cachedContents", b"fileSearchStores", b"corpora", b"tunedModels", b"file_id", b"fileName")
"""One of these stands in every body that names a resource and goes to none of CHAINED."""

LONGEST = 450
"""A name is one of a document in the store."""

_ID = re.compile(r"[A-Za-z0-9_][\w.~=+@-]{0,399}", re.ASCII)
_FRONT = re.compile(r"/*(?:(?:upload|download|resumable|openai|v\d\w*)/+)*", re.ASCII)
_SNAKE = {
    name: re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name)
    for name in (
        "cachedContent", "environmentId", "fileData", "fileName", "fileSearch", "fileSearchStoreNames", "fileUri",
        "functionResponse", "generateContentRequest", "inputConfig", "inputFileId", "previousInteractionId",
        "semanticRetriever", "systemInstruction",
    )
}  # fmt: skip
_KINDS_WITH_URI = frozenset({"image", "audio", "video", "document", "file"})


def resource(text: str) -> str | None:
    """The name that a path below the version begins with; None for what no project owns."""
    first, _, rest = text.partition("/")
    segments = rest.split("/")
    if first == "models":
        if len(segments) < 3 or segments[1] != "operations":
            return None
        one, other = segments[0], segments[2].partition(":")[0]
        name = f"models/{one}/operations/{other}"
        return name if _ID.fullmatch(one) and _ID.fullmatch(other) and len(name) <= LONGEST else None
    one = segments[0].partition(":")[0]
    return f"{first}/{one}" if first in COLLECTIONS and _ID.fullmatch(one) else None


def collection(call: Call) -> str:
    """What the path is about: its first segment below the version."""
    return re.split("[/:]", _below(call), maxsplit=1)[0]


def _below(call: Call) -> str:
    path = unquote(call.path)
    found = _FRONT.match(path)
    return path[found.end() :] if found else path


def path_names(call: Call) -> tuple[str, ...]:
    """The resource that the path names, if it names one."""
    if call.model is not None and "/" not in call.model:  # nearly every request
        return ()
    below = _below(call)
    if call.api == "openai":  # an id may carry its collection: batches/batches/ID
        first, _, rest = below.partition("/")
        name = resource(rest) or resource(f"{first}/{rest}")
    else:
        name = resource(below)
    return () if name is None else (name,)


def named_by(reference: str, bases: Iterable[str] = (GOOGLE,)) -> str | None:
    """The resource behind a name or a URI. A URI is one only below Google's address or one of ours."""
    if "://" not in reference:
        return resource(reference)
    for base in bases:
        if reference.startswith(base + "/"):
            found = _FRONT.match(reference, len(base))
            return resource(unquote(reference[found.end() :].partition("?")[0])) if found else None
    return None


def may_name(body: bytes, call: Call) -> bool:
    """A look at the bytes, so that a body that names nothing need not be read."""
    return any(mark in body for mark in MARKS) or (bool(body) and call.api == "native" and collection(call) in CHAINED)


def body_names(parsed: Mapping[str, Any], call: Call, bases: Iterable[str] = (GOOGLE,)) -> set[str]:
    """The resources that a body names, camelCase and snake_case: never by a text or by arguments of a function."""
    bases = tuple(bases)
    names = (named_by(reference, bases) for reference in references(parsed, call))
    return {name for name in names if name is not None}


def references(parsed: Mapping[str, Any], call: Call) -> set[str]:
    """Names and URIs as they stand there, wherever one may stand; not all of them are of a project's resources."""
    if call.api == "openai":
        found = _openai(parsed)
    elif call.kind == "other" and collection(call) in CHAINED:
        found = _chained(parsed)
    else:
        found = _request(parsed)
    return {reference for reference in found if isinstance(reference, str)}


# --- bodies ----------------------------------------------------------------------------------------------------------


def _get(thing: Mapping[str, Any], name: str) -> Any:
    value = thing.get(name)
    return thing.get(_SNAKE[name]) if value is None else value


def _dicts(value: Any) -> list[dict[str, Any]]:
    """What of it can hold fields: one object, or those of a list."""
    if isinstance(value, list):
        return [one for one in value if isinstance(one, dict)]
    return [value] if isinstance(value, dict) else []


def _strings(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _request(request: Mapping[str, Any], depth: int = 6) -> Iterator[Any]:
    """A GenerateContentRequest, or whatever else has contents, tools or requests of its own."""
    for name in ("contents", "content"):
        for content in _dicts(request.get(name)):
            yield from _parts(content)
    for content in _dicts(_get(request, "systemInstruction")):
        yield from _parts(content)
    yield _get(request, "cachedContent")
    yield _get(request, "fileName")
    for tool in _dicts(request.get("tools")):
        yield from _tool(tool)
    for retriever in _dicts(_get(request, "semanticRetriever")):
        yield retriever.get("source")
    for instance in _dicts(request.get("instances")):
        for part in instance.values():
            yield from (medium.get("uri") for medium in _dicts(part))
    if depth and not request.keys().isdisjoint(_INNER):
        yield from _inner(request, depth - 1)


_INNER = frozenset(
    {
        "batch",
        "inputConfig",
        "input_config",
        "requests",
        "request",
        "generateContentRequest",
        "generate_content_request",
    }
)


def _inner(request: Mapping[str, Any], depth: int) -> Iterator[Any]:
    """Requests in a request: a batch's input, the texts of an embedding, what is to be counted."""
    for name in _INNER:
        for inner in _dicts(request.get(name)):
            yield from _request(inner, depth)


def _parts(content: Mapping[str, Any], depth: int = 1) -> Iterator[Any]:
    for part in _dicts(content.get("parts")):
        if (file := _get(part, "fileData")) is not None:
            yield from (_get(data, "fileUri") for data in _dicts(file))
        if depth and (response := _get(part, "functionResponse")) is not None:
            for answered in _dicts(response):
                yield from _parts(answered, 0)


def _tool(tool: Mapping[str, Any]) -> Iterator[Any]:
    """Native ones have a field `fileSearch`, those of interactions the names themselves."""
    for search in (tool, *_dicts(_get(tool, "fileSearch"))):
        yield from _strings(_get(search, "fileSearchStoreNames"))


def _chained(parsed: Mapping[str, Any], depth: int = 1) -> Iterator[Any]:
    """An interaction, or what makes one later."""
    yield _with("interactions", _get(parsed, "previousInteractionId"))
    yield _with("environments", _get(parsed, "environmentId"))
    for name in ("environment", "base_environment", "from_environment"):
        place = parsed.get(name)
        yield from (_with("environments", _get(one, "environmentId")) for one in _dicts(place))
        if place != "remote":
            yield _with("environments", place)
    for name in ("agent", "base_agent"):
        yield _with("agents", parsed.get(name))
    yield _get(parsed, "cachedContent")
    for tool in _dicts(parsed.get("tools")):
        yield from _tool(tool)
    for step in _dicts(parsed.get("input")):
        for item in (step, *_dicts(step.get("content")), *_dicts(step.get("result"))):
            if item.get("type") in _KINDS_WITH_URI:
                yield item.get("uri")
    if depth:
        for inner in _dicts(parsed.get("interaction")):
            yield from _chained(inner, 0)


def _with(kind: str, value: Any) -> str | None:
    """A bare id as a name; a name stays one."""
    if not isinstance(value, str) or not value:
        return None
    return value if value.startswith(kind + "/") else f"{kind}/{value}"


def _openai(parsed: Mapping[str, Any]) -> Iterator[Any]:
    yield _with("files", _get(parsed, "inputFileId"))
    for holder in (parsed, *_dicts(parsed.get("extra_body"))):
        for google in (holder, *_dicts(holder.get("google"))):
            yield _get(google, "cachedContent")
            for tool in _dicts(google.get("tools")):
                yield from _tool(tool)
    for message in _dicts(parsed.get("messages")):
        for part in _dicts(message.get("content")):
            yield from (image.get("url") for image in _dicts(part.get("image_url")))
            yield from (_with("files", file.get("file_id")) for file in _dicts(part.get("file")))


# --- answers ---------------------------------------------------------------------------------------------------------

_HOLDERS = frozenset(
    {
        "batch", "data", "documents", "environment", "file", "generateVideoResponse", "generatedSamples",
        "generatedVideos", "interaction", "metadata", "output", "response", "triggerExecutions", "video",
    }
)  # fmt: skip
_NAMING = ("name", "uri", "responsesFile", "responses_file", "input_file_id", "output_file_id", "error_file_id")
_ENDS = ("expirationTime", "expireTime", "expire_time", "expiration_time", "expires_at")


def answer_names(document: Any, call: Call, bases: Iterable[str] = (GOOGLE,)) -> dict[str, float | None]:
    """What the answer of a resource call names, and when it expires where that is said. Lists name many."""
    found: dict[str, float | None] = {}
    below = _below(call)
    kind = collection(call) if call.api == "openai" or below.count("/") < 2 else ""  # whose ids are bare
    _answered(document, kind, tuple(bases), found, 6)
    return found


def _answered(document: Any, kind: str, bases: Sequence[str], found: dict[str, float | None], depth: int) -> None:
    for thing in _dicts(document):
        end = next((at for field in _ENDS if (at := _time(thing.get(field))) is not None), None)
        values = [thing.get(field) for field in _NAMING]
        values += [
            _with("interactions", thing.get("interaction_id")),
            _with("environments", thing.get("environment_id")),
        ]
        if isinstance(own := thing.get("id"), str) and kind in COLLECTIONS:
            values.append(own if resource(own) else f"{kind}/{own}")
        for value in values:
            name = named_by(value, bases) if isinstance(value, str) else None
            if name is not None:
                found[name] = found.get(name) or end
        for field, inner in thing.items() if depth else ():
            if field in _HOLDERS or (field in COLLECTIONS and isinstance(inner, list)):
                below = field + "s" if field + "s" in COLLECTIONS else field if field in COLLECTIONS else kind
                _answered(inner, below, bases, found, depth - 1)


def _time(value: Any) -> float | None:
    """Google's RFC 3339 or OpenAI's seconds, as seconds since 1970."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return float(value)
    try:
        when = datetime.fromisoformat(value)
        return when.timestamp() if when.tzinfo is not None else None
    except (TypeError, ValueError, OverflowError):
        return None
