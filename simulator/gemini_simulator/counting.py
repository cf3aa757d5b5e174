"""Counts input tokens: a quarter of the characters, and a fixed number for each image or other medium. PURE."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gemini_simulator.errors import bad_request
from gemini_simulator.references import field

MEDIA_TOKENS = 258
"""What any inline or linked medium counts."""
_FORCED = re.compile(r"tokens=(\d{1,12})(?:\s|$)")
_MODALITIES = {"image": "IMAGE", "video": "VIDEO", "audio": "AUDIO", "application": "DOCUMENT", "text": "DOCUMENT"}
_MEDIA = ("inlineData", "fileData")
_length = json.JSONEncoder(ensure_ascii=False, separators=(",", ": ")).encode


class Prompt(NamedTuple):
    tokens: int
    text: str
    """The last text, of which the answer repeats the beginning."""
    media: Mapping[str, int] = {}
    """Modality -> how many tokens of it are in `tokens`."""

    @property
    def details(self) -> list[dict[str, Any]]:
        """Tokens by modality, as Google lists them."""
        text = self.tokens - sum(self.media.values())
        found = [{"modality": "TEXT", "tokenCount": text}] if text or not self.media else []
        return found + [{"modality": name, "tokenCount": count} for name, count in self.media.items()]


def tokens_of(text: str) -> int:
    return -(-len(text) // 4)


def _measure(texts: Sequence[str], extra: int, media: Sequence[str], last: str | None = None) -> Prompt:
    """`media`: the MIME type of each. A first text such as "tokens=12345 …" sets the count."""
    last = (texts[-1] if texts else "") if last is None else last
    if texts and (forced := _FORCED.match(texts[0])):
        return Prompt(int(forced[1]), last)
    counts = Counter(_MODALITIES.get(kind.partition("/")[0], "IMAGE") for kind in media)
    by_modality = {name: count * MEDIA_TOKENS for name, count in counts.items()}
    return Prompt(-(-(sum(map(len, texts)) + extra) // 4) + sum(by_modality.values()), last, by_modality)


def parts_of(contents: Any, where: str) -> Iterable[dict[str, Any]]:
    for content in contents if isinstance(contents, list) else [contents]:
        if not isinstance(content, Mapping):
            raise bad_request(f"Invalid value at '{where}' (type.googleapis.com/google.ai.generativelanguage.Content)")
        parts = content.get("parts")
        for part in parts if isinstance(parts, list) else [parts] if parts is not None else []:
            if not isinstance(part, dict):
                raise bad_request(f"Invalid value at '{where}.parts'")
            yield part


def native_prompt(document: Mapping[str, Any], *, whole: bool = True) -> Prompt:
    """`whole`: with system instruction and tools, which countTokens leaves out when it is given contents alone."""
    contents = document.get("contents")
    if not contents:
        raise bad_request("* GenerateContentRequest.contents: contents is not specified\n")
    texts: list[str] = []
    media: list[str] = []
    extra = 0
    last = ""
    said = list(parts_of(contents, "contents"))
    if not said:
        raise bad_request("* GenerateContentRequest.contents[0].parts: contents.parts must not be empty.\n")
    ruled: list[dict[str, Any]] = []
    if whole:
        if (instruction := field(document, "systemInstruction")) and not isinstance(instruction, str):
            ruled = list(parts_of(instruction, "system_instruction"))
        if tools := document.get("tools"):
            extra += len(_length(tools))
    for place, part in enumerate(said + ruled):
        if isinstance(text := part.get("text"), str):
            texts.append(text)
            last = text if place < len(said) else last or text
        elif (medium := next((name for name in _MEDIA if field(part, name) is not None), None)) is not None:
            kind = field(field(part, medium), "mimeType")
            media.append(kind if isinstance(kind, str) else "")
        else:
            extra += len(_length(part))
    return _measure(texts, extra, media, last)


def embed_prompts(document: Mapping[str, Any], verb: str) -> list[Prompt]:
    """One for each text: each is a request to the quota."""
    requests = document.get("requests") if verb == "batchEmbedContents" else [document]
    if not isinstance(requests, list) or not requests:
        raise bad_request("* BatchEmbedContentsRequest.requests: requests must not be empty\n")
    if len(requests) > 100:
        raise bad_request("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n")
    prompts = []
    for request in requests:
        content = request.get("content") if isinstance(request, Mapping) else None
        if not content:
            raise bad_request("* EmbedContentRequest.content: content is not specified\n")
        parts = list(parts_of(content, "content"))
        texts = [str(part["text"]) for part in parts if "text" in part]
        prompts.append(_measure(texts, 0, [""] * (len(parts) - len(texts))))
    return prompts


def openai_prompt(document: Mapping[str, Any]) -> Prompt:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("Request has empty input.")
    texts: list[str] = []
    media: list[str] = []
    extra = 0
    for message in messages:
        if not isinstance(message, Mapping):
            raise bad_request("Invalid value at 'messages'")
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, Mapping):
                if isinstance(part.get("text"), str):
                    texts.append(part["text"])
                else:
                    media.append("audio" if part.get("type") == "input_audio" else "image")
        if calls := message.get("tool_calls"):
            extra += len(_length(calls))
    extra += len(_length(document["tools"])) if document.get("tools") else 0
    return _measure(texts, extra, media)


def openai_inputs(document: Mapping[str, Any]) -> list[Prompt]:
    given = document.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad_request("Request has empty input.")
    if len(texts) > 100:
        raise bad_request("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n")
    return [_measure([text], 0, []) for text in texts]
