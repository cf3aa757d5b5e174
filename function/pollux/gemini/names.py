"""PURE. Which resources of a project a call names, in its path and its body, and which its answer names.

A name is that of a resource: `files/ID`, `cachedContents/ID`, `models/M/operations/ID`. What lies below one (documents,
operations, permissions) belongs to the resource that its first two segments name.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from pollux.gemini.call import INTERACTION, Call

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
MAKING = frozenset({"batchGenerateContent", "asyncBatchEmbedContent", "predictLongRunning", INTERACTION})
"""Verbs of a model that make something to be asked for later."""
TOGETHER = frozenset({"cachedContents", "corpora", "fileSearchStores", "files", "ragStores"})
"""What one request may name several of, or one of which may go into another."""
MARKS = (b"files", b"cachedContents", b"fileSearchStores", b"corpora", b"tunedModels", b"file_id", b"fileName")
"""One of these stands in every body that names a resource and goes to none of CHAINED."""

LONGEST_URI = 8192
"""What is longer is none; a body may hold megabytes of one."""
LONGEST = 450
"""A name is one of a document in the store."""

_ID = re.compile(r"[A-Za-z0-9_][\w.~=+@-]{0,399}", re.ASCII)
_FRONT = re.compile(r"/*(?:(?:upload|download|resumable|openai|v\d\w*)/+)*", re.ASCII)
_DOWNLOAD = re.compile(r":download[?]|/content[?]|/environments/[^/]+/files/|[?&]alt=media(?:[&;]|$)")
_SNAKE = {
    name: re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name)
    for name in (
        "cachedContent", "environmentId", "fileData", "fileName", "fileSearch", "fileSearchStoreNames", "fileUri",
        "functionResponse", "generateContentRequest", "inputConfig", "inputFileId", "previousInteractionId",
        "semanticRetriever", "systemInstruction",
    )
}  # fmt: skip
_NONE: frozenset[str] = frozenset()
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
    return re.split("[/:]", below(call), maxsplit=1)[0]


def below(call: Call) -> str:
    """The path below the version, decoded."""
    path = unquote(call.path)
    found = _FRONT.match(path)
    return path[found.end() :] if found else path


def path_names(call: Call) -> tuple[str, ...]:
    """The resource that the path names, if it names one."""
    if call.model is not None and "/" not in call.model:  # nearly every request
        return ()
    path = below(call)
    if call.api == "openai":  # an id may carry its collection: batches/batches/ID
        first, _, rest = path.partition("/")
        name = resource(rest) or resource(f"{first}/{rest}")
    else:
        name = resource(path)
    return () if name is None else (name,)


def names_exactly(call: Call, name: str) -> bool:
    """The path is about that resource, and about nothing below it."""
    path = below(call)
    return path == name or (call.api == "openai" and path.endswith("/" + name.partition("/")[2]))


def is_resource_call(call: Call) -> bool:
    """Its answer may name what a project owns. A download's says what a file holds, and passes as it is."""
    found = call.verb in MAKING
    if not found and call.kind in ("other", "guarded"):
        found = collection(call) in COLLECTIONS or "/operations/" in call.path
    return found and _DOWNLOAD.search(f"{call.path}?{call.query}") is None


def makes_what_goes_together(call: Call) -> bool:
    return call.kind == "other" and collection(call) in TOGETHER


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


def references(parsed: Mapping[str, Any], call: Call) -> Set[str]:
    """Names and URIs as they stand there, wherever one may stand; not all of them are of a project's resources."""
    found: Found = []
    if call.api == "openai":
        _openai(parsed, found)
    elif call.verb == INTERACTION or (call.kind == "other" and collection(call) in CHAINED):
        _chained(parsed, found)
    else:
        _request(parsed, found)
    return {text for text in found if isinstance(text, str) and len(text) <= LONGEST_URI} if found else _NONE


# --- bodies ----------------------------------------------------------------------------------------------------------


def _both(thing: Mapping[str, Any], name: str) -> list[Any]:
    """What stands there in camelCase and in snake_case: Google takes either, and so both."""
    return [thing.get(name), thing.get(_SNAKE[name])]


def _dicts(thing: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return [one for value in _both(thing, name) for one in dicts(value)]


def dicts(value: Any) -> list[dict[str, Any]]:
    """What of it can hold fields: one object, or those of a list."""
    if isinstance(value, list):
        return [one for one in value if isinstance(one, dict)]
    return [value] if isinstance(value, dict) else []


Found = list[Any]
"""References as they stand there; what is no string is sorted out at the end."""


def _request(request: Mapping[str, Any], found: Found, depth: int = 6) -> None:
    """A GenerateContentRequest, or whatever else has contents, tools or requests of its own. Of nearly every request
    this looks at a handful of names, and once into each part.
    """
    for name, value in request.items():
        if (read := _FIELDS.get(name)) is not None:
            read(value, found, depth)


def _contents(value: Any, found: Found, depth: int) -> None:
    for content in value if isinstance(value, list) else (value,):
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else (parts,):
            if isinstance(part, dict) and not _NAMING_PARTS.isdisjoint(part):
                _part(part, found)


_NAMING_PARTS = frozenset({"fileData", "file_data", "functionResponse", "function_response"})


def _part(part: Mapping[str, Any], found: Found) -> None:
    for data in _dicts(part, "fileData"):
        found += _both(data, "fileUri")
    for answered in _dicts(part, "functionResponse"):
        for inner in dicts(answered.get("parts")):
            for data in _dicts(inner, "fileData"):
                found += _both(data, "fileUri")


def _cache(value: Any, found: Found, depth: int) -> None:
    found.append(with_kind("cachedContents", value))


def _itself(value: Any, found: Found, depth: int) -> None:
    found.append(value)


def _tools(value: Any, found: Found, depth: int) -> None:
    """Native ones have a field `fileSearch`, those of interactions the names themselves."""
    for tool in dicts(value):
        for search in (tool, *_dicts(tool, "fileSearch")):
            for names in _both(search, "fileSearchStoreNames"):
                found += names if isinstance(names, list) else []


def _retriever(value: Any, found: Found, depth: int) -> None:
    found += [retriever.get("source") for retriever in dicts(value)]


def _instances(value: Any, found: Found, depth: int) -> None:
    for instance in dicts(value):
        for part in instance.values():
            found += [medium.get("uri") for medium in dicts(part)]


def _inner(value: Any, found: Found, depth: int) -> None:
    """Requests in a request: a batch's input, the texts of an embedding, what is to be counted."""
    for inner in dicts(value) if depth else ():
        _request(inner, found, depth - 1)


_FIELDS: dict[str, Callable[[Any, Found, int], None]] = {
    "contents": _contents,
    "content": _contents,
    "systemInstruction": _contents,
    "cachedContent": _cache,
    "fileName": _itself,
    "tools": _tools,
    "semanticRetriever": _retriever,
    "instances": _instances,
    "batch": _inner,
    "inputConfig": _inner,
    "requests": _inner,
    "request": _inner,
    "generateContentRequest": _inner,
}
_FIELDS |= {_SNAKE[name]: read for name, read in _FIELDS.items() if name in _SNAKE}


def _chained(parsed: Mapping[str, Any], found: Found, depth: int = 1) -> None:
    """An interaction, or what makes one later."""
    found += [with_kind("interactions", one) for one in _both(parsed, "previousInteractionId")]
    found += [with_kind("environments", one) for one in _both(parsed, "environmentId")]
    for name in ("environment", "base_environment", "from_environment"):
        place = parsed.get(name)
        found += [with_kind("environments", id_) for one in dicts(place) for id_ in _both(one, "environmentId")]
        if place != "remote":
            found.append(with_kind("environments", place))
    for name in ("agent", "base_agent"):
        found.append(with_kind("agents", parsed.get(name)))
    found += [with_kind("cachedContents", one) for one in _both(parsed, "cachedContent")]
    _tools(parsed.get("tools"), found, 0)
    for step in dicts(parsed.get("input")):
        for item in (step, *dicts(step.get("content")), *dicts(step.get("result"))):
            if str(item.get("type")).lower() in _KINDS_WITH_URI:
                found.append(item.get("uri"))
    for inner in dicts(parsed.get("interaction")) if depth else ():
        _chained(inner, found, 0)


def with_kind(kind: str, value: Any) -> str | None:
    """A bare id as a name; a name stays one."""
    if not isinstance(value, str) or not value:
        return None
    return value if value.startswith(kind + "/") else f"{kind}/{value}"


def _openai(parsed: Mapping[str, Any], found: Found) -> None:
    found += [with_kind("files", one) for one in _both(parsed, "inputFileId")]
    for holder in (parsed, *dicts(parsed.get("extra_body"))):
        for google in (holder, *dicts(holder.get("google"))):
            found += [with_kind("cachedContents", one) for one in _both(google, "cachedContent")]
            _tools(google.get("tools"), found, 0)
    for message in dicts(parsed.get("messages")):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                found += [image.get("url") for image in dicts(part.get("image_url"))]
                found += [with_kind("files", file.get("file_id")) for file in dicts(part.get("file"))]


# --- answers ---------------------------------------------------------------------------------------------------------

# Only what Google itself fills in: OpenAI's `metadata` is the client's own, and could name what is not its.
_OF_OPENAI = frozenset({"data"})
_OF_CHAINED = frozenset({"environment", "interaction", "triggerExecutions"})
_HOLDERS = frozenset(
    {
        "batch", "documents", "file", "generateVideoResponse", "generatedSamples", "generatedVideos", "metadata",
        "output", "response", "video",
    }
)  # fmt: skip
_NAMING = ("name", "uri", "responsesFile", "responses_file", "input_file_id", "output_file_id", "error_file_id")
_ENDS = ("expirationTime", "expireTime", "expire_time", "expiration_time", "expires_at")

_LAST = 253402300800
"""The end of the year 9999."""


def answer_names(document: Any, call: Call, bases: Iterable[str] = (GOOGLE,)) -> dict[str, float | None]:
    """What the answer of a resource call names, and when it expires where that is said. Lists name many."""
    found: dict[str, float | None] = {}
    bare = call.api == "openai" or below(call).count("/") < 2
    kind = collection(call) if bare else ""  # whose ids have no collection in front
    holders = _OF_OPENAI if call.api == "openai" else _OF_CHAINED if collection(call) in CHAINED else _HOLDERS
    _answered(document, kind, tuple(bases), found, holders, 6)
    return found


def _answered(
    document: Any, kind: str, bases: Sequence[str], found: dict[str, float | None], holders: Set[str], depth: int
) -> None:
    for thing in dicts(document):
        end = next((at for field in _ENDS if (at := _time(thing.get(field))) is not None), None)
        values = [thing.get(field) for field in _NAMING]
        values += [
            with_kind("interactions", thing.get("interaction_id")),
            with_kind("environments", thing.get("environment_id")),
        ]
        if isinstance(own := thing.get("id"), str) and kind in COLLECTIONS:
            values.append(own if resource(own) else f"{kind}/{own}")
        for value in values:
            name = named_by(value, bases) if isinstance(value, str) else None
            if name is not None:
                found[name] = found.get(name) or end
        for field, inner in thing.items() if depth else ():
            if field in holders or (field in COLLECTIONS and isinstance(inner, list)):
                own_kind = field + "s" if field + "s" in COLLECTIONS else field if field in COLLECTIONS else kind
                _answered(inner, own_kind, bases, found, holders, depth - 1)


def _time(value: Any) -> float | None:
    """Google's RFC 3339 or OpenAI's seconds, as seconds since 1970."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if 0 < value < _LAST else None
    try:
        when = datetime.fromisoformat(value)
        return when.timestamp() if when.tzinfo is not None and when.year > 1970 else None
    except (TypeError, ValueError, OverflowError):
        return None
