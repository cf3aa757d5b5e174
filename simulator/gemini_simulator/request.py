"""Reads a call to the simulator: its route, its credential, its body."""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from gemini_simulator.errors import ApiError, Case, bad_request, error

_VERSION = re.compile(r"v\d+((alpha|beta)\d*)?")
_SPENDS = frozenset(
    {
        "generateContent",
        "streamGenerateContent",
        "embedContent",
        "batchEmbedContents",
        "predict",
        "predictLongRunning",
        "interactions.create",
        "chat/completions",
        "embeddings",
    }
)
_METHODS = {"models.list": ("GET", "HEAD"), "models.get": ("GET", "HEAD")}
_METHOD_NAMES = {"GET": ("get", "list"), "HEAD": ("get", "list"), "DELETE": ("delete", ""), "PATCH": ("patch", "")}
COLLECTIONS = frozenset(
    {
        "files",
        "generatedFiles",
        "cachedContents",
        "batches",
        "operations",
        "tunedModels",
        "fileSearchStores",
        "corpora",
        "interactions",
        "environments",
        "agents",
        "triggers",
    }
)
"""What a project owns."""
_UNDERSCORE = re.compile(r"_([a-z])")
_INNER = frozenset({"documents", "operations", "permissions", "executions", "media"})
_WORDS = frozenset({"cancel", "content"})
"""Verbs that follow a slash, where others follow a colon."""
_MARKS = (b"ileData", b"ile_data", b"achedContent", b"ached_content", b"ileSearch", b"ile_search")
"""Every body that names something owned has one of these, so other bodies need no search."""
STARTS = frozenset({"batchGenerateContent", "asyncBatchEmbedContent", "predictLongRunning"})
"""Verbs of models that make something owned."""


class Media(NamedTuple):
    """An answer that is no JSON."""

    kind: str
    data: bytes


@dataclass(slots=True)
class Request:
    """`verb`: what follows the colon or /openai/; else models.list, models.get, echo or other.

    Of what projects own it is files.get, batches.cancel, documents.list and so on; uploads are upload.….
    """

    api: str
    version: str
    verb: str
    path: str
    model: str | None = None
    stream: str = "no"
    query: Mapping[str, str] = field(default_factory=dict)
    document: Any = None
    trouble: ApiError | None = None
    """Why the body could not be read. It is told only after the key was found good."""
    name: str = ""
    """The thing or the collection that the path names: files/abc, files, fileSearchStores/s/documents/d."""
    names_owned: bool = False
    """Whether the body may name something owned."""
    project: str = ""
    root: str = ""
    """Scheme and host as the caller spelt them, or what the simulator was told to say instead."""

    @property
    def base(self) -> str:
        """What URIs begin with."""
        return f"{self.root}/{self.version}"

    @property
    def spends(self) -> bool:
        return self.verb in _SPENDS

    @property
    def tools(self) -> set[str]:
        """Names of the tools that it asks for, as the native API spells them; functions have none here."""
        listed = self.document.get("tools") if isinstance(self.document, dict) else None
        tools = [tool for tool in listed if isinstance(tool, dict)] if isinstance(listed, list) else []
        names = [name for tool in tools for name in ([tool["type"]] if "type" in tool else tool)]
        return {_UNDERSCORE.sub(lambda found: found[1].upper(), str(name)) for name in names}

    @property
    def as_array(self) -> bool:
        """Whether errors come as a list of one: on the OpenAI paths, and for streams without alt=sse."""
        return self.api == "openai" or self.stream == "array"

    def case(self, *, key: str = "", bucket: str = "", tier: str = "free") -> Case:
        model = self.model or ""
        return Case(
            version=self.version,
            model=model,
            bucket=bucket or model,
            verb=self.verb,
            path=self.path,
            key=key,
            tier=tier,
        )


def read_request(method: str, path: str, query: str, body: bytes, encoding: str) -> Request:
    """Never fails: what cannot be read is kept as `trouble`, and paths that do not exist are `other`."""
    request = _route(method, path)
    if query:
        request.query = dict(parse_qsl(query, keep_blank_values=True))
    if request.name:
        if body and request.verb != "other":
            _read_body(request, body, encoding)
        elif request.document is None:
            request.document = {}
        asked = request.query.get("stream") == "true"
        if request.verb.startswith("interactions.") and isinstance(request.document, dict):
            model = request.document.get("model", request.document.get("agent"))
            request.model = model.removeprefix("models/") if isinstance(model, str) else None
            request.stream = "sse" if asked or request.document.get("stream") is True else "no"
        return request
    if method not in _METHODS.get(request.verb, ("POST",)) and request.verb != "echo":
        request.verb, request.model = "other", None
    if method == "POST" and request.verb not in ("other", "echo"):
        _read_body(request, body, encoding)
    if request.verb == "streamGenerateContent":
        request.stream = "sse" if "sse" in (request.query.get("alt"), request.query.get("$alt")) else "array"
    elif request.api == "openai" and isinstance(request.document, dict):
        model = request.document.get("model")
        request.model = model.removeprefix("models/") if isinstance(model, str) else None
        request.stream = "sse" if request.verb == "chat/completions" and request.document.get("stream") else "no"
    return request


def _route(method: str, path: str) -> Request:
    version, _, rest = path.lstrip("/").partition("/")
    if not _VERSION.fullmatch(version):
        return Request("native", version, "other", path)
    api = "native"
    if rest.startswith("openai/"):
        api, rest = "openai", rest.removeprefix("openai/")
        if rest in ("chat/completions", "embeddings"):
            return Request(api, version, rest, path)
    if rest == "simulator:echo":
        return Request(api, version, "echo", path)
    if rest == "models":
        return Request(api, version, "models.list", path)
    if rest.startswith(("models/", "tunedModels/")) and "/operations" not in rest and (":" in rest or rest[0] == "m"):
        name, _, verb = rest.removeprefix("models/").partition(":")
        if api == "native":
            return Request(api, version, verb or "models.get", path, name)
        if not verb:  # here clients write both models/NAME and, as the list has it, models/models/NAME
            return Request(api, version, "models.get", path, name.removeprefix("models/"))
    return _owned(method, api, version, path, rest)


def is_upload(method: str, path: str) -> bool:
    """Whether the body is to be taken as it comes."""
    return path.startswith("/upload/") or (method == "POST" and path.endswith("/openai/files"))


def read_upload(method: str, path: str, query: str, headers: Mapping[str, str]) -> Request:
    """The same for an upload: `name` is what it goes to, files or a store. Its body is read elsewhere, as it comes."""
    version, _, rest = path.removeprefix("/upload").lstrip("/").partition("/")
    target, _, action = rest.removeprefix("openai/").partition(":")
    api = "openai" if rest.startswith("openai/") else "native"
    store = target.startswith("fileSearchStores/") and action == "uploadToFileSearchStore"
    request = Request(api, version, "other", path, name=target)
    request.query = dict(parse_qsl(query, keep_blank_values=True))
    if not _VERSION.fullmatch(version) or not (store or (target == "files" and not action)):
        return request
    command = headers.get("x-goog-upload-command", "")
    if "upload_id" in request.query:
        request.verb = f"upload.{command}" if command in ("query", "cancel") else "upload.chunk"
    elif method == "POST":
        request.verb = "upload.start" if command == "start" else "upload.whole"
    return request


def _owned(method: str, api: str, version: str, path: str, rest: str) -> Request:
    """The route of what projects own: as many pairs of collection and id as there are, then perhaps an action."""
    name, _, action = rest.partition(":")
    segments = name.split("/")
    if api == "openai" and len(segments) > 2 and segments[0] == segments[1]:
        del segments[0]  # the ids of files and batches begin with files/ and batches/ there, too
    if len(segments) == 3 and segments[2] in _WORDS and not action:
        action = segments.pop()
    known = segments[0] in COLLECTIONS or (segments[0] == "models" and segments[2:3] == ["operations"])
    one = segments[-1] not in COLLECTIONS and segments[-1] not in _INNER
    collection = segments[-2] if one and len(segments) > 1 else segments[-1]
    if not known or "" in segments or (collection not in COLLECTIONS and collection not in _INNER):
        return Request(api, version, "other", path)
    if not action:
        single, several = _METHOD_NAMES.get(method, ("", "create"))
        action = single if one else several
    elif method != ("GET" if action in ("download", "content") else "POST"):
        action = ""
    verb = f"{collection}.{action}" if action else "other"
    if segments[0] == "interactions" and api == "native":
        api = "interactions"
    return Request(api, version, verb, path, name="/".join(segments))


def _read_body(request: Request, body: bytes, encoding: str) -> None:
    try:
        if encoding in ("gzip", "x-gzip"):
            body = gzip.decompress(body)
        elif encoding == "deflate":
            body = zlib.decompress(body)
        document = json.loads(body)
    except (OSError, EOFError, zlib.error):
        request.trouble = bad_request("Request payload could not be decompressed.")
        return
    except (ValueError, RecursionError) as problem:
        where = body[:40].decode("utf-8", "replace")
        said = problem.msg if isinstance(problem, json.JSONDecodeError) else "Invalid payload"
        request.trouble = bad_request(f"Invalid JSON payload received. {said}.\n{where}\n^")
        return
    if not isinstance(document, dict):
        request.trouble = bad_request('Invalid JSON payload received. Unknown name "": Root element must be a message.')
        return
    request.document = document
    if b"ile" in body or b"ached" in body:
        request.names_owned = any(mark in body for mark in _MARKS)


def find_credentials(
    headers: Iterable[tuple[bytes, bytes]], query: Mapping[str, str], api: str
) -> list[tuple[str, str]]:
    """Everything that Google takes for a credential: (header, bearer, query or openai; its value)."""
    found = []
    for name, value in headers:
        if name == b"x-goog-api-key":
            found.append(("header", value.decode("latin-1")))
        elif name == b"authorization":
            found.append(("bearer", value.decode("latin-1").partition(" ")[2].strip()))
        elif name in (b"openai-organization", b"openai-project") and api == "openai":
            found.append(("openai", value.decode("latin-1")))
    found += [("query", query[name]) for name in ("key", "access_token") if name in query]
    return found


def find_key(found: list[tuple[str, str]], known: Iterable[str], request: Request) -> str:
    """The one key that was sent, as Google looks for it. Raises ApiError."""
    if len(found) > 1:
        raise error("multiple-credentials")
    if not found:
        raise error("no-key")
    ((kind, value),) = found
    if request.api == "openai" and kind != "bearer":
        raise error("missing-authorization")
    if request.api != "openai" and kind == "bearer":
        raise error("unauthenticated", request.case())
    if value not in known:
        raise error("invalid-key")
    return value
