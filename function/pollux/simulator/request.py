"""What a call to the simulator asks for: its route, its credential, its body. Nothing is answered here."""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from pollux.simulator.errors import ApiError, Case, bad_request, error

_VERSION = re.compile(r"v\d+((alpha|beta)\d*)?")
_SPENDS = frozenset(
    {
        "generateContent",
        "streamGenerateContent",
        "embedContent",
        "batchEmbedContents",
        "predict",
        "chat/completions",
        "embeddings",
    }
)
_METHODS = {"models.list": ("GET", "HEAD"), "models.get": ("GET", "HEAD")}


@dataclass(slots=True)
class Request:
    """`verb`: what follows the colon or /openai/; else models.list, models.get, echo or other."""

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

    @property
    def spends(self) -> bool:
        return self.verb in _SPENDS

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
    request = _route(path)
    if query:
        request.query = dict(parse_qsl(query, keep_blank_values=True))
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


def _route(path: str) -> Request:
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
    if rest.startswith(("models/", "tunedModels/")):
        name, _, verb = rest.removeprefix("models/").partition(":")
        if api == "native":
            return Request(api, version, verb or "models.get", path, name)
        if not verb:  # here clients write both models/NAME and, as the list has it, models/models/NAME
            return Request(api, version, "models.get", path, name.removeprefix("models/"))
    return Request(api, version, "other", path)


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
    if request.api == "native" and kind == "bearer":
        raise error("unauthenticated", request.case())
    if value not in known:
        raise error("invalid-key")
    return value
