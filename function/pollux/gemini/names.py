"""Finds the resources of a project that a call names in its path and its body, and those that its answer names.

A resource's name is `files/ID`, `cachedContents/ID` or `models/M/operations/ID`, for example. A path below it
(documents, operations, permissions) belongs to the resource that its first two segments name.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from pollux.gemini.call import INTERACTION, Call

GOOGLE = "https://generativelanguage.googleapis.com"
"""Google's URIs begin with this, even if the upstream has another address."""

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
"""Collections whose bodies refer to each other by ids without a collection."""
MAKING = frozenset({"batchGenerateContent", "asyncBatchEmbedContent", "predictLongRunning", INTERACTION})
"""Verbs of a model that make a resource, such as a batch, whose result is fetched later."""
COMBINED = frozenset({"cachedContents", "corpora", "fileSearchStores", "files", "ragStores"})
"""Collections whose resources may be used together in one request, or may contain each other."""
MARKS = (b"files", b"cachedContents", b"fileSearchStores", b"corpora", b"tunedModels", b"file_id", b"fileName")
"""Every body that names a resource contains one of these, except on the paths of CHAINED."""

LONGEST_URI = 8192
"""Longer strings are not URIs. A body may contain one of several megabytes."""
LONGEST = 450
"""Names are used as names of documents in the store."""

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
    """Returns the resource at the start of a path without a version, or None if projects own nothing there."""
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
    """Returns the first segment of the path after the version."""
    return re.split("[/:]", resource_path(call), maxsplit=1)[0]


def resource_path(call: Call) -> str:
    """Returns the path after the version, decoded."""
    return _FRONT.sub("", unquote(call.path), count=1)


def path_names(call: Call) -> tuple[str, ...]:
    """Returns the resource that the path names, or () if it names none."""
    if call.model is not None and "/" not in call.model:  # nearly every request
        return ()
    path = resource_path(call)
    if call.api == "openai":  # an id may carry its collection: batches/batches/ID
        first, _, rest = path.partition("/")
        name = resource(rest) or resource(f"{first}/{rest}")
    else:
        name = resource(path)
    return () if name is None else (name,)


def names_exactly(call: Call, name: str) -> bool:
    """Whether the path names exactly this resource and nothing below it."""
    path = resource_path(call)
    return path == name or (call.api == "openai" and path.endswith("/" + name.partition("/")[2]))


def is_resource_call(call: Call) -> bool:
    """Whether the answer may name resources. A download does not: its answer is the content of a file."""
    found = call.verb in MAKING
    if not found and call.kind in ("other", "guarded"):
        found = collection(call) in COLLECTIONS or "/operations/" in call.path
    return found and _DOWNLOAD.search(f"{call.path}?{call.query}") is None


def may_combine(call: Call) -> bool:
    """Whether a later request may use what this call makes together with other resources."""
    return call.kind == "other" and collection(call) in COMBINED


def named_by(reference: str, bases: Iterable[str] = (GOOGLE,)) -> str | None:
    """Returns the resource of a name or a URI. Only URIs below one of `bases` count."""
    if "://" not in reference:
        return resource(reference)
    for base in bases:
        if reference.startswith(base + "/"):
            path = _FRONT.sub("", reference[len(base) :], count=1)
            return resource(unquote(path.partition("?")[0]))
    return None


def may_name(body: bytes, call: Call) -> bool:
    """Whether a body may name a resource. It looks at the bytes only, so that most bodies need not be parsed."""
    return any(mark in body for mark in MARKS) or (bool(body) and call.api == "native" and collection(call) in CHAINED)


def body_references(parsed: Mapping[str, Any], call: Call) -> Set[str]:
    """Returns, unchanged, the strings of all fields where a body may name resources. Some may name none."""
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
    """Returns a field's values in camelCase and in snake_case: Google accepts either, so a body may have both."""
    return [thing.get(name), thing.get(_SNAKE[name])]


def _dicts(thing: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return [one for value in _both(thing, name) for one in dicts(value)]


def dicts(value: Any) -> list[dict[str, Any]]:
    """Returns the object, or the objects of the list."""
    if isinstance(value, list):
        return [one for one in value if isinstance(one, dict)]
    return [value] if isinstance(value, dict) else []


Found = list[Any]
"""References as they are in the body. Values that are not strings are removed at the end."""


def _request(request: Mapping[str, Any], found: Found, depth: int = 6) -> None:
    """Read a GenerateContentRequest, or another object with contents, tools or requests. For nearly every request this
    looks only at a few names and once into each part.
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


def _tools(value: Any, found: Found, depth: int) -> None:
    """Native tools have a field `fileSearch`; tools of interactions contain the store names directly."""
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
    """Read inner requests: a batch's input, the texts of an embedding, the request whose tokens are counted."""
    for inner in dicts(value) if depth else ():
        _request(inner, found, depth - 1)


_FIELDS: dict[str, Callable[[Any, Found, int], None]] = {
    "contents": _contents,
    "content": _contents,
    "systemInstruction": _contents,
    "cachedContent": lambda value, found, _: found.append(in_collection("cachedContents", value)),
    "fileName": lambda value, found, _: found.append(value),
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
    """Read an interaction, or a trigger that makes one later."""
    found += [in_collection("interactions", one) for one in _both(parsed, "previousInteractionId")]
    found += [in_collection("environments", one) for one in _both(parsed, "environmentId")]
    for name in ("environment", "base_environment", "from_environment"):
        named = parsed.get(name)
        found += [in_collection("environments", id_) for one in dicts(named) for id_ in _both(one, "environmentId")]
        if named != "remote":
            found.append(in_collection("environments", named))
    found += [in_collection("agents", parsed.get(name)) for name in ("agent", "base_agent")]
    found += [in_collection("cachedContents", one) for one in _both(parsed, "cachedContent")]
    _tools(parsed.get("tools"), found, 0)
    for step in dicts(parsed.get("input")):
        for item in (step, *dicts(step.get("content")), *dicts(step.get("result"))):
            if str(item.get("type")).lower() in _KINDS_WITH_URI:
                found.append(item.get("uri"))
    for inner in dicts(parsed.get("interaction")) if depth else ():
        _chained(inner, found, 0)


def in_collection(kind: str, value: Any) -> str | None:
    """The name for an id without its collection; a name stays as it is."""
    if not isinstance(value, str) or not value:
        return None
    return value if value.startswith(kind + "/") else f"{kind}/{value}"


def _openai(parsed: Mapping[str, Any], found: Found) -> None:
    found += [in_collection("files", one) for one in _both(parsed, "inputFileId")]
    for holder in (parsed, *dicts(parsed.get("extra_body"))):
        for google in (holder, *dicts(holder.get("google"))):
            found += [in_collection("cachedContents", one) for one in _both(google, "cachedContent")]
            _tools(google.get("tools"), found, 0)
    for message in dicts(parsed.get("messages")):
        for part in dicts(message.get("content")):
            found += [image.get("url") for image in dicts(part.get("image_url"))]
            found += [in_collection("files", file.get("file_id")) for file in dicts(part.get("file"))]


# --- answers ---------------------------------------------------------------------------------------------------------

# Only fields that Google fills in: the client fills OpenAI's `metadata`, and could name other clients' resources there.
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
    """The resources that an answer names, each with its expiry if the answer has one. Lists name many."""
    found: dict[str, float | None] = {}
    bare = call.api == "openai" or resource_path(call).count("/") < 2
    kind = collection(call) if bare else ""  # of ids without a collection
    holders = _OF_OPENAI if call.api == "openai" else _OF_CHAINED if collection(call) in CHAINED else _HOLDERS
    _add_names(document, kind, tuple(bases), found, holders, 6)
    return found


def _add_names(
    document: Any, kind: str, bases: Sequence[str], found: dict[str, float | None], holders: Set[str], depth: int
) -> None:
    for thing in dicts(document):
        end = next((at for field in _ENDS if (at := _time(thing.get(field))) is not None), None)
        values = [thing.get(field) for field in _NAMING]
        values += [
            in_collection("interactions", thing.get("interaction_id")),
            in_collection("environments", thing.get("environment_id")),
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
                _add_names(inner, own_kind, bases, found, holders, depth - 1)


def _time(value: Any) -> float | None:
    """Returns seconds since 1970, from Google's RFC 3339 time or OpenAI's seconds."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if 0 < value < _LAST else None
    try:
        when = datetime.fromisoformat(value)
        return when.timestamp() if when.tzinfo is not None and when.year > 1970 else None
    except (TypeError, ValueError, OverflowError):
        return None
