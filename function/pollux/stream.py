"""PURE. Reads a streamed answer while it passes: is there content yet, an error, an end, and how many tokens it took.

Chunks are cut anywhere. Once content was seen, a chunk costs a few searches, and nothing of it is kept.
"""

import re

from pollux.verdict import error_in_stream

_PROMPT = re.compile(rb'(?<!\\)"(?:promptTokenCount|prompt_tokens)"\s*:\s*(\d{1,15})')
_FINISH = re.compile(rb'(?<!\\)"(?:finishReason|finish_reason|blockReason)"\s*:\s*"')
_CONTENT = re.compile(rb'(?<!\\)"(?:candidates|promptFeedback|choices)"\s*:')
_OVERLAP = 64
MOST_HELD = 1 << 16
"""Of an event that does not end, so much is kept for its errors: a picture is not an error body."""


class StreamReader:
    def __init__(self, form: str) -> None:
        self.form = form
        self.content_seen = False
        self.finished = False
        self.error: bytes | None = None
        self.prompt_tokens: int | None = None
        self._tail = b""
        self._held = b""

    def feed(self, chunk: bytes) -> None:
        text = self._tail + chunk
        if found := _PROMPT.findall(text):
            self.prompt_tokens = int(found[-1])
        if not self.finished:
            self.finished = _FINISH.search(text) is not None or (self.form == "openai-sse" and b"data: [DONE]" in text)
        self._tail = text[-_OVERLAP:]
        if self.error is None:
            self._look_for_error(chunk)
        if not self.content_seen and self.error is None:
            self.content_seen = _CONTENT.search(self._held or text) is not None

    def _look_for_error(self, chunk: bytes) -> None:
        """An error stands by itself between or after events, or is an event; quick to rule out in anything else."""
        held = self._held + chunk
        if self.content_seen and b'"error"' not in held:
            self._held = held[-_OVERLAP:] if len(held) < MOST_HELD else b""
            return
        self.error = error_in_stream(held)
        self._held = held if len(held) < MOST_HELD else held[-MOST_HELD:]

    def close(self) -> None:
        """The stream ended."""
        if self.error is None and self._held:
            self.error = error_in_stream(self._held)
