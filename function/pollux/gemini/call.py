"""Reads the call from a request line: API, model, verb, form of the stream. It reads no body."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote, unquote_plus

from pollux.gemini.errors import GatewayError
from pollux.gemini.guard import guard_of, safe_path, strip_query

Kind = Literal["generate", "count", "embed", "predict", "list-models", "get-model", "guarded", "other"]
Stream = Literal["no", "sse", "array"]

COUNTED = frozenset({"generate", "embed", "predict"})
INTERACTION = "interactions"
"""The verb of a call that makes an interaction with a model; the body names the model."""
DEFAULT_VERSION = "v1beta"

# Long jobs (batchGenerateContent, asyncBatchEmbedContent) have their own quota of enqueued tokens: they are "other".
KINDS: Mapping[str, Kind] = {
    "generateContent": "generate",
    "streamGenerateContent": "generate",
    "generateAnswer": "generate",
    "generateMessage": "generate",
    "generateText": "generate",
    "countTokens": "count",
    "countMessageTokens": "count",
    "countTextTokens": "count",
    "embedContent": "embed",
    "batchEmbedContents": "embed",
    "embedText": "embed",
    "batchEmbedText": "embed",
    "predict": "predict",
    "predictLongRunning": "predict",
}
OPENAI_KINDS: Mapping[str, Kind] = {
    "chat/completions": "generate",
    "embeddings": "embed",
    "images/generations": "predict",
}
OPENAI_OWNED = frozenset({"batches", "files"})
"""Resources of projects under OpenAI's names."""

_PLAIN = re.compile(r"/v\d\w{0,15}/models/([A-Za-z0-9][\w.-]{0,199}):([A-Za-z]+)", re.ASCII)
_VERSION = re.compile(r"v\d[0-9a-z]*")
_GEMINI_VERSION = re.compile(r"v1(?:(?:alpha|beta)\d*)?")
_MODEL = re.compile(r"/v\d\w*/((?:models|tunedModels|dynamic)/[^/]+?)(?::([^/:]*))?", re.ASCII)
_NAMED = re.compile(r"(/.*?/)(?:models|tunedModels|dynamic)/[^/]+?((?::|%3[aA])[^/:%]*)?")

_NAME = re.compile(r"[A-Za-z0-9][\w.@:/-]*", re.ASCII)
LONGEST_NAME = 200
LONGEST_VERB = 64
"""Records keep so much of a verb; the path that goes upstream keeps all of it."""


@dataclass(frozen=True, slots=True)
class Call:
    api: Literal["native", "openai"]
    path: str
    """What goes upstream: normalised, still percent-encoded."""
    query: str = ""
    """In the client's order and encoding, without credentials."""
    model: str | None = None
    """Without `models/`; a tuned one keeps its `tunedModels/`."""
    verb: str | None = None
    """What follows the colon; on the OpenAI paths, what follows `openai/`."""
    stream: Stream = "no"
    kind: Kind = "other"
    guard: str = ""
    """Which of GUARDS the path falls under, if kind is guarded."""

    @property
    def counted(self) -> bool:
        """It takes quota."""
        return self.kind in COUNTED


def read_target(method: str, raw_path: bytes | str, query: bytes | str = b"", *, bearer: bool = False) -> Call:
    """The call of a request line. Raises GatewayError for a path that leads out of the API.

    `bearer`: the client sent a Bearer token and no x-goog-api-key. Only this distinguishes OpenAI's `/v1/models`,
    `/v1/files` and `/v1/batches` from Google's.
    """
    path = raw_path if isinstance(raw_path, str) else raw_path.decode("latin-1")
    clean = strip_query(query if isinstance(query, str) else query.decode("latin-1")) if query else ""
    # Nearly every request. This shape and verb exclude all that the steps below look for.
    if (found := _PLAIN.fullmatch(path)) is not None and (kind := KINDS.get(found[2])) is not None:
        if method != "POST":
            return Call("native", path, clean, found[1], found[2])
        return Call("native", path, clean, found[1], found[2], _stream(found[2], clean), kind)
    path = safe_path(path)
    path, openai = _normal(path, bearer=bearer)
    if guard := guard_of(path):
        return Call("openai" if openai else "native", path, clean, kind="guarded", guard=guard)
    return _openai(method, path, clean) if openai else _native(method, path, clean)


def _normal(path: str, *, bearer: bool) -> tuple[str, bool]:
    """The path as Google has it, and whether it is an OpenAI path. Accepts what base URLs repeat or leave out."""
    segments = [segment for segment in path.split("/") if segment]
    at = 0
    versions: list[str] = []
    upload = openai = False
    while at < len(segments):
        if _VERSION.fullmatch(segments[at]):
            if not openai:
                versions.append(segments[at])
        elif segments[at] == "openai":
            openai = True
        elif segments[at] == "upload" and not upload:
            upload = True
        else:
            break
        at += 1
    segments = segments[at:]
    tail = "/".join(segments)
    version = next((v for v in reversed(versions) if _GEMINI_VERSION.fullmatch(v)), versions[-1] if versions else None)
    if not openai and not upload and (tail in OPENAI_KINDS or (bearer and _listed(segments, versions))):
        openai, version = True, DEFAULT_VERSION  # Google has no /v1/chat/completions
    if openai:
        return f"/{version or DEFAULT_VERSION}/openai" + (f"/{tail}" if tail else ""), True
    if version is None and segments and segments[0] in ("models", "tunedModels"):
        version = DEFAULT_VERSION
    front = (["upload"] if upload else []) + ([version] if version else [])
    return "/" + "/".join(front + segments), False


def _listed(segments: list[str], versions: list[str]) -> bool:
    """OpenAI's `/v1/models`, `/v1/models/{m}`, `/v1/files…` or `/v1/batches…`. Only Google has other versions, and
    verbs after a colon.
    """
    if not segments or not set(versions) <= {"v1"} or ":" in unquote(segments[-1]):
        return False
    return segments[0] in OPENAI_OWNED or (segments[0] == "models" and len(segments) <= 2)


def model_name(name: str) -> str:
    """The name, if it is a valid one for a model: it is put into paths and records."""
    if len(name) > LONGEST_NAME:
        raise GatewayError("BAD_REQUEST", f"the model's name has more than {LONGEST_NAME} characters")
    if _NAME.fullmatch(name) is None:
        raise GatewayError(
            "BAD_REQUEST",
            "the model's name must begin with a letter or digit and contain only letters, digits and _.@:/-",
        )
    if not {".", ".."}.isdisjoint(name.split("/")):
        raise GatewayError("BAD_REQUEST", "the model's name has a segment . or .., which is not allowed")
    return name


def _native(method: str, path: str, query: str) -> Call:
    plain = unquote(path)
    if re.fullmatch(r"/v\d\w*/models", plain):
        return Call("native", path, query, kind="list-models" if method in ("GET", "HEAD") else "other")
    found = _MODEL.fullmatch(plain)
    if found is None:
        return Call("native", path, query)
    model_name(found[1].partition("/")[2])
    model, verb = found[1].removeprefix("models/"), found[2]
    if verb is None:
        return Call("native", path, query, model, kind="get-model" if method in ("GET", "HEAD") else "other")
    kept = verb[:LONGEST_VERB]
    if method != "POST":
        return Call("native", path, query, model, kept)
    return Call("native", path, query, model, kept, _stream(verb, query), KINDS.get(verb, "other"))


def _openai(method: str, path: str, query: str) -> Call:
    verb = unquote(path.partition("/openai")[2].lstrip("/"))
    reads = method in ("GET", "HEAD")
    if verb == "models":
        return Call("openai", path, query, verb=verb, kind="list-models" if reads else "other")
    if verb.startswith("models/"):
        model = model_name(verb.removeprefix("models/").removeprefix("models/"))
        return Call("openai", path, query, model, "models", kind="get-model" if reads else "other")
    kind = OPENAI_KINDS.get(verb, "other") if method == "POST" else "other"
    return Call("openai", path, query, verb=verb[:LONGEST_VERB], kind=kind)


def _stream(verb: str, query: str) -> Stream:
    """A stream is an array unless `alt` says otherwise. `alt=proto` cannot be read and passes as it is."""
    if not verb.startswith("stream"):
        return "no"
    form = ""
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if unquote_plus(name).removeprefix("$") == "alt":
            form = unquote_plus(value).partition(";")[0].lower()
    return "sse" if form == "sse" else "array" if form in ("", "json") else "no"


def path_for(call: Call, model: str) -> str:
    """The same path with another model. Only the model's segment changes."""
    if call.model is None:
        return call.path
    collection, name = _with_collection(model)
    named = f"{collection}/{_quoted(name)}"
    found = _NAMED.fullmatch(call.path)
    if call.api == "openai":
        return call.path.partition("/models/")[0] + "/" + named
    if found is None or (found[2] is None) != (call.verb is None):  # in an unusual encoding
        plain = unquote(call.path)
        verb = "" if call.verb is None else ":" + _quoted(plain.rpartition(":")[2])
        return f"/{plain.split('/')[1]}/{named}{verb}"
    return f"{found[1]}{named}{found[2] or ''}"


def count_path(call: Call, model: str) -> str:
    """The path of countTokens of a model, in the call's API version."""
    collection, name = _with_collection(model)
    return f"/{unquote(call.path).split('/')[1]}/{collection}/{_quoted(name)}:countTokens"


def full_name(model: str) -> str:
    """The model's name with its collection, as bodies have it."""
    return "/".join(_with_collection(model))


def _with_collection(model: str) -> tuple[str, str]:
    collection, _, name = model.rpartition("/")
    if collection in ("tunedModels", "dynamic"):
        return collection, name
    return "models", model.removeprefix("models/")


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")
