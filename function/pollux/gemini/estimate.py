"""Estimates the input tokens, requests and images of a request body. `media` estimates pictures and files."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pollux.gemini.media import Base64, media_tokens, mime_of, remote_tokens, resolution_of

TURN = 3  # tokens of a turn besides its text: its role and its marks
CACHED = 4096  # a cache counts as input too; its length is not known, this is the least that can be cached

# Long jobs have their own quota (enqueued tokens); they take no input tokens per minute.
_JOBS = frozenset(("batchGenerateContent", "asyncBatchEmbedContent"))

# Lower-case letters, white space, and every byte of a character beyond ASCII.
_LIGHT = bytes(range(ord("a"), ord("z") + 1)) + b" \t\n\r" + bytes(range(0x80, 0x100))


class Estimate(NamedTuple):
    tokens: int
    requests: int
    images: int


def text_tokens(text: str) -> int:
    """A token per 4.5 letters, 0.7 for a digit, capital or mark, 0.25 more for each byte beyond a character's first.

    That makes 4.1 characters a token for English prose, 2.5 to 3 for code and JSON, 2 for Base64 and Cyrillic, 1.4 for
    Chinese and Japanese: a little more than Google counts. Digits and marks are mostly tokens of their own, and longer
    encodings are rarer. Never more than the UTF-8 bytes, which are the true upper bound.
    """
    raw = text.encode("utf-8", "surrogatepass")
    heavy = len(raw.translate(None, _LIGHT))
    return math.ceil((len(text) - heavy) / 4.5 + heavy * 0.7 + (len(raw) - len(text)) * 0.25)


def estimate(body: Mapping[str, Any] | None, *, size: int, verb: str | None, generation: int) -> Estimate:
    """For any JSON object, in time linear to its size. `size` counts only if `body` could not be read."""
    if not isinstance(body, Mapping):
        return Estimate(size // 4, 1, 0)
    if verb in _JOBS:
        return Estimate(0, 1, 0)
    tally = _Tally(generation)
    tally.body(body, verb)
    tally.drain()
    return Estimate(text_tokens("".join(tally.text)) + tally.extra, tally.requests, tally.images)


class _Tally:
    """Adds up one body. Values still to be read wait in two lists, not on the stack: a body may be thousands deep.

    `prose` has contents, messages, parts: only their texts count. `json` has what the model sees as JSON, tools and
    calls: there names and punctuation count too, and a "file" or "uri" is an ordinary word.
    """

    __slots__ = ("extra", "generation", "images", "json", "prose", "requests", "resolution", "text")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.resolution: str | None = None
        self.text: list[str] = []
        self.prose: list[Any] = []
        self.json: list[Any] = []
        self.extra, self.requests, self.images = 0, 1, 0

    def body(self, whole: Mapping[str, Any], verb: str | None) -> None:
        bodies, known = [whole], False
        while bodies:
            body = bodies.pop()
            for key, value in body.items():
                if key in _PROSE:
                    self.prose.append(value)
                elif key in _JSON:
                    self.json.append(value)
                elif key == "generationConfig" or key == "generation_config":
                    self.config(value)
                elif key == "generateContentRequest" or key == "generate_content_request":
                    bodies.extend([value] if isinstance(value, dict) else [])
                elif key == "requests" and isinstance(value, list):
                    self.requests = max(1, len(value))
                    bodies.extend(one for one in value if isinstance(one, dict))
                elif key == "input":
                    self.inputs(value)
                elif key == "modalities":
                    self.modalities(value)
                elif key in ("cachedContent", "cached_content") and value:
                    self.extra += CACHED
                else:
                    continue
                known = True
        if verb == "predict":
            parameters, instances = whole.get("parameters"), whole.get("instances")
            asked = parameters.get("sampleCount") if isinstance(parameters, dict) else None
            self.images = _count(asked, 4) * (len(instances) or 1 if isinstance(instances, list) else 1)
        elif isinstance(whole.get("prompt"), str) and _CHAT.isdisjoint(whole):  # OpenAI's images/generations
            self.images = _count(whole.get("n"), 1)
        if not known:
            self.json.append(dict(whole))

    def config(self, config: Any) -> None:
        if isinstance(config, dict):
            level = config.get("mediaResolution") or config.get("media_resolution")
            self.resolution = resolution_of(level) if level else None
            self.modalities(config.get("responseModalities") or config.get("response_modalities"))
            self.json.extend(config[key] for key in _SCHEMAS if key in config)

    def modalities(self, asked: Any) -> None:
        if isinstance(asked, list) and any(isinstance(one, str) and one.lower() == "image" for one in asked):
            self.images = max(1, self.images)

    def inputs(self, value: Any) -> None:
        """OpenAI embeddings: a text, texts, a list of tokens, lists of tokens. Elsewhere `input` is a conversation."""
        if not isinstance(value, list) or not value or isinstance(value[0], dict):
            self.prose.append(value)
        elif isinstance(value[0], int):
            self.extra += len(value)
        else:
            self.requests = len(value)
            self.extra += sum(len(one) for one in value if isinstance(one, list))
            self.prose.extend(one for one in value if isinstance(one, str))

    def drain(self) -> None:
        prose, json, text = self.prose, self.json, self.text
        while prose or json:
            while prose:
                item = prose.pop()
                if isinstance(item, str):
                    text.append(item)
                elif isinstance(item, dict):
                    self.part(item)
                elif isinstance(item, list):
                    prose.extend(item)
            while json:
                item = json.pop()
                if isinstance(item, str):
                    text.append(item)
                elif isinstance(item, dict):
                    self.extra += 2 * len(item)
                    text.extend(item)
                    if _DEEP.isdisjoint(item):
                        json.extend(item.values())
                    else:  # a tool may answer with a picture
                        json.extend(v for k, v in item.items() if k not in _DEEP or not _HANDLERS[k](self, v, item))
                elif isinstance(item, list):
                    self.extra += len(item)
                    json.extend(item)
                else:
                    self.extra += _digits(item)

    def part(self, item: dict[str, Any]) -> None:
        """A turn or one of its parts: text, media, a call or its answer."""
        for key, value in item.items():
            if key == "text" and isinstance(value, str):
                self.text.append(value)
            elif key == "parts" or key == "content":
                self.extra += TURN
                self.prose.append(value)
            elif key in _FREE:
                continue
            elif handler := _HANDLERS.get(key):
                if not handler(self, value, item):
                    self.json.append(value)
            else:
                self.extra += TURN
                self.json.append(value)

    def media(self, mime: str, data: Base64, part: Mapping[str, Any]) -> bool:
        resolution = resolution_of(part.get("mediaResolution") or part.get("media_resolution")) or self.resolution
        clip = part.get("videoMetadata") or part.get("video_metadata")
        self.extra += media_tokens(mime, data, generation=self.generation, resolution=resolution, clip=clip)
        return True

    def remote(self, mime: str, part: Mapping[str, Any]) -> bool:
        resolution = resolution_of(part.get("mediaResolution") or part.get("media_resolution")) or self.resolution
        self.extra += remote_tokens(mime, generation=self.generation, resolution=resolution)
        return True

    def url(self, url: Any, mime: str, part: Mapping[str, Any]) -> bool:
        if not isinstance(url, str):
            return False
        head = url[:200].partition(",")[0]
        if not head.startswith("data:"):
            return self.remote(mime, part)
        return head.endswith(";base64") and self.media(head[5:], Base64(url, len(head) + 1), part)


def _inline(tally: _Tally, value: Any, part: Mapping[str, Any]) -> bool:
    """inlineData, or its flat form: {"type": "image", "data": …, "mime_type": …}."""
    holder = value if isinstance(value, dict) else part
    data, mime = holder.get("data", holder.get("bytesBase64Encoded")), mime_of(holder)
    return isinstance(data, str) and bool(mime) and tally.media(mime, Base64(data), part)


def _file(tally: _Tally, value: Any, part: Mapping[str, Any]) -> bool:
    """fileData; OpenAI's file, which has a data URL under nearly the same name; or a uri alone."""
    if isinstance(value, str):
        kind = mime_of(part) or part.get("type")
        return ":" in value[:20] and tally.url(value, kind if isinstance(kind, str) else "", part)
    if not isinstance(value, dict):
        return False
    uri = value.get("fileUri") or value.get("file_uri") or value.get("file_data") or value.get("file_id")
    return tally.url(uri, mime_of(value), part)


def _image_url(tally: _Tally, value: Any, part: Mapping[str, Any]) -> bool:
    return tally.url(value.get("url") if isinstance(value, dict) else value, "image/", part)


def _input_audio(tally: _Tally, value: Any, part: Mapping[str, Any]) -> bool:
    data, form = (value.get("data"), value.get("format")) if isinstance(value, dict) else (None, None)
    return isinstance(data, str) and isinstance(form, str) and tally.media(f"audio/{form}", Base64(data), part)


def _signature(tally: _Tally, value: Any, part: Mapping[str, Any]) -> bool:
    if not isinstance(value, str):
        return False
    tally.extra += len(value) // 4
    return True


_HANDLERS: dict[str, Callable[[_Tally, Any, Mapping[str, Any]], bool]] = {
    "inlineData": _inline,
    "inline_data": _inline,
    "data": _inline,
    "bytesBase64Encoded": _inline,
    "fileData": _file,
    "file_data": _file,
    "file": _file,
    "uri": _file,
    "image_url": _image_url,
    "input_audio": _input_audio,
    "thoughtSignature": _signature,
    "thought_signature": _signature,
}
_DEEP = frozenset(_HANDLERS) - {"data", "file", "uri", "image_url", "input_audio"}
_SYSTEM = ("systemInstruction", "system_instruction", "instructions")
_PROSE = frozenset(("contents", "content", "messages", "prompt", "instances", *_SYSTEM))
_CHAT = frozenset(("contents", "messages", "input", "instances"))
_JSON = frozenset(("tools", "functions", "response_format"))
_SCHEMAS = ("responseSchema", "response_schema", "responseJsonSchema", "response_json_schema")
_MIME = ("mimeType", "mime_type", "displayName", "display_name", "mediaResolution", "media_resolution")
_FREE = frozenset(
    ("role", "type", "thought", "detail", "format", "videoMetadata", "video_metadata", "tool_call_id", "index", *_MIME)
)


def _count(value: Any, otherwise: int) -> int:
    return min(value, 100) if type(value) is int and value > 0 else otherwise


def _digits(value: Any) -> int:
    """One token a digit. Python refuses to print very long numbers, so their bits are counted."""
    if type(value) is int and not -(10**15) < value < 10**15:
        return value.bit_length() * 3 // 10
    return len(repr(value)) if type(value) in (int, float) else 1
