"""Reads a streamed answer while it passes: whether content, an error or the end has come, and how many tokens.

It changes no byte. Chunks may be cut anywhere. Only a few bytes of overlap and what is incomplete are kept; a chunk
costs a few searches.
"""

import json
import re
from typing import Any

LONG = 16 * 1024
"""An event as long as this counts as content (an image): it is passed on before it is complete."""
OVERLAP = 64
USAGE_MOST = 8 * 1024
ERROR_MOST = 64 * 1024
TRIES_MOST = 200
"""How often a possible error is parsed before its end: it may come byte by byte."""

# A JSON string has no raw line feed and no unescaped quote, so these do not match inside one.
_FINISH = re.compile(rb'"(?:finishReason|blockReason)"\s*:\s*["\d]')
_OPENAI_FINISH = re.compile(rb'"finish_reason"\s*:\s*"|\ndata: ?\[DONE\]')
_SSE_ERROR = re.compile(rb'\n(?:data:)?\s*(?=\[?\s*\{\s*"error"\s*:)')
_ARRAY_ERROR = re.compile(rb'[,\]\n]\s*\[?\s*(?=\{\s*"error"\s*:)')
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_ERROR_HEAD = re.compile(rb'\s*(?:data:)?[\s,]*\[?\s*\{\s*"error"\s*:')
_DATA = b"data:"
_BETWEEN = b"[], \r\n\t"
_AFTER_LAST = b" \r\n\t]"

# A value up to two objects deep: usage holds lists of {modality, tokenCount}. None of its strings has a brace.
_OBJECT = rb"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})"
_USAGE = {name: re.compile(name + _OBJECT) for name in (b'"usageMetadata"', b'"usage"')}

_QUIET = frozenset({"candidates", "choices", "promptFeedback", "usageMetadata", "usage", "error"})
_LABELS = frozenset({"modelVersion", "responseId", "createTime", "serviceTier", "id", "object", "created", "model"})
_DECODER = json.JSONDecoder()


class StreamReader:
    """`form`: sse or array (native), openai-sse. Feed it every chunk, then `close`."""

    __slots__ = (
        "_array", "_cold", "_error_at", "_finish", "_marker", "_rest", "_suspect", "_tries", "_usage",
        "content_seen", "error", "finished", "form",
    )  # fmt: skip

    def __init__(self, form: str) -> None:
        self.form = form
        self.content_seen = False
        """An event had content: it was no error, and had at least one part."""
        self.finished = False
        """A finish or block reason, or [DONE], came. Without one the answer was cut off."""
        self._array = form == "array"
        self._finish = _OPENAI_FINISH if form.startswith("openai") else _FINISH
        self._error_at = _ARRAY_ERROR if self._array else _SSE_ERROR
        self._marker = b'"usage"' if form.startswith("openai") else b'"usageMetadata"'
        self._rest = b"\n"  # the start of the stream is the start of a line
        self._usage: bytes | None = None
        self._cold = b""
        """The bytes before the first content that were not judged yet."""
        self._suspect: bytearray | None = None
        """The bytes since an error seemed to begin."""
        self._tries = 0
        self.error: bytes | None = None
        """The JSON of the first error, unchanged. In an array only the last element can be an error."""

    def feed(self, chunk: bytes) -> None:
        text = self._rest + chunk
        incomplete = self._look_for_usage(text)
        if not self.finished and (b"eason" in text or b"[DONE]" in text):
            self.finished = self._finish.search(text) is not None
        if (self.error is None or self._array) and (self._suspect is not None or b'"error"' in text):
            self._look_for_error(text, chunk)
        if not self.content_seen:
            self._cold += chunk
            # Only these end an event or an element: parsing after each byte of a long one would take very long.
            if (b"}" if self._array else b"\n") in chunk:
                self._look_for_content()
            if not self.content_seen and len(self._cold) > LONG:
                waiting = self._cold.rstrip(b" \r\n\t")
                self.content_seen = len(waiting) > LONG and not _ERROR_HEAD.match(waiting)
            if self.content_seen:
                self._cold = b""
        self._rest = text[incomplete:] if incomplete >= 0 else text[-OVERLAP:]

    def close(self) -> None:
        """The stream ended: judge what is left, although it is incomplete."""
        if not self.content_seen and not self._array and self._cold:
            self._judge(self._cold)
        if self.error is None and self._suspect:
            self.error = self._parsed(self._suspect)
            if self.error is None and not (self._array and self.content_seen):
                self.error = bytes(self._suspect.strip())

    @property
    def error_begun(self) -> bool:
        """Whether the last bytes may be the beginning of an error."""
        return self._suspect is not None and self.error is None

    @property
    def prompt_tokens(self) -> int | None:
        """Returns the input tokens, by Google's name or OpenAI's."""
        usage = self.usage() or {}
        found = (usage.get(name) for name in ("promptTokenCount", "prompt_tokens"))
        return next((value for value in found if isinstance(value, int)), None)

    def usage(self) -> dict[str, Any] | None:
        """Returns the last event's usage, which is cumulative."""
        try:
            usage = json.loads(self._usage or b"null")
        except ValueError:
            return None
        return usage if isinstance(usage, dict) else None

    # --- searches in each chunk --------------------------------------------------------------------------------------

    def _look_for_usage(self, text: bytes) -> int:
        """Keep the last complete usage. Returns where an incomplete one begins, or -1."""
        last = at = text.rfind(self._marker)
        while at >= 0:
            if (found := _USAGE[self._marker].match(text, at)) is not None:
                self._usage = found[1]
                break
            at = text.rfind(self._marker, 0, at)
        return last if last != at and len(text) - last < USAGE_MOST else -1

    def _look_for_error(self, text: bytes, chunk: bytes) -> None:
        if self._suspect is not None:
            self._suspect += chunk
        elif (found := self._error_at.search(text)) is not None:
            chunk = text[found.end() :]
            self._suspect, self._tries = bytearray(chunk), 0
        else:
            return
        if b"}" in chunk:
            self._tries += 1
            self.error = self._parsed(self._suspect) if self._tries <= TRIES_MOST else None
        elif chunk.strip(_AFTER_LAST):
            self.error = None
        if len(self._suspect) > ERROR_MOST:  # too long for an error: a function's argument of that name
            self._suspect = None
            if self._array:
                self.error = None

    def _parsed(self, suspect: bytearray) -> bytes | None:
        text = bytes(suspect)
        return self._last_element(text) if self._array else _first_value(text)

    def _last_element(self, suspect: bytes) -> bytes | None:
        at = 0
        while at >= 0:
            value = _first_value(suspect[at:])
            if value is not None and not suspect[at + len(value) :].strip(_AFTER_LAST):
                return value
            found = _ARRAY_ERROR.search(suspect, at)
            at = found.end() if found is not None else -1
        return None

    # --- is there content yet? ---------------------------------------------------------------------------------------

    def _look_for_content(self) -> None:
        if self._array:
            self._read_elements()
        else:
            *events, rest = _BLANK_LINE.split(self._cold)
            for event in events:
                self._judge(event)
            self._cold = rest

    def _read_elements(self) -> None:
        self._cold = self._cold.lstrip(_BETWEEN)
        while not self.content_seen and b"}" in self._cold and (element := _first_value(self._cold)) is not None:
            self._judge(element)
            self._cold = self._cold[len(element) :].lstrip(_BETWEEN)

    def _judge(self, event: bytes) -> None:
        """`event`: of SSE as it came, or an element of an array."""
        if self.content_seen:
            return
        if len(event) > LONG:
            self.content_seen = not _ERROR_HEAD.match(event)
            return
        data = event if self._array else _data_of(event)
        if not data:
            return
        try:
            self.content_seen = _has_content(json.loads(data))
        except (ValueError, RecursionError):
            self.content_seen = not data.startswith(b"[DONE]")


def _data_of(event: bytes) -> bytes:
    """The data of an SSE event. Lines without `data:` are comments, other fields, or an error: no content."""
    lines = [line.strip() for line in event.split(b"\n")]
    return b"\n".join(line[len(_DATA) :].lstrip() for line in lines if line.startswith(_DATA))


def _first_value(text: bytes) -> bytes | None:
    """The JSON value at the beginning of the text, if it is complete."""
    try:
        plain = text.decode("utf-8", "surrogateescape")
        _, end = _DECODER.raw_decode(plain)
    except (ValueError, RecursionError):
        return None
    return plain[:end].encode("utf-8", "surrogateescape")


def _has_content(event: Any) -> bool:
    """Any part, finish or block counts, and so does anything unknown: the client may understand it."""
    if isinstance(event, list):
        return any(_has_content(one) for one in event)
    if not isinstance(event, dict):
        return True
    if event.get("error"):
        return False
    feedback = event.get("promptFeedback")
    return (
        any(_candidate_says(one) for one in _listed(event.get("candidates")))
        or any(_choice_says(one) for one in _listed(event.get("choices")))
        or (isinstance(feedback, dict) and bool(feedback.get("blockReason")))
        or any(name not in _QUIET and name not in _LABELS for name in event)
    )


def _listed(value: Any) -> list[Any]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _candidate_says(candidate: dict[str, Any]) -> bool:
    content = candidate.get("content")
    parts = _listed(content.get("parts")) if isinstance(content, dict) else []
    return bool(candidate.get("finishReason")) or any(any(part.values()) for part in parts)


def _choice_says(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    said = isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")
    return said or bool(choice.get("finish_reason"))
