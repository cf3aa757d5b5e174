"""What a simulated Gemini says: token counts, answers and their chunks, in Google's shapes and in OpenAI's. PURE.

The text is deterministic: it names the model and repeats the beginning of the prompt.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pollux.simulator.errors import bad_request

MEDIA_TOKENS = 258
"""What any inline or linked medium counts."""
_FORCED = re.compile(r"tokens=(\d{1,12})(?:\s|$)")
_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="  # one pixel
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ": ")).encode


def encode(value: Any) -> bytes:
    """JSON as Google writes its chunks. A lone surrogate, which JSON allows and UTF-8 does not, becomes "?"."""
    return _encode(value).encode("utf-8", "replace")


class Prompt(NamedTuple):
    tokens: int
    text: str
    """The last text, of which the answer repeats the beginning."""


def _measure(texts: Sequence[str], extra: int, media: int) -> Prompt:
    """Characters through four, rounded up, and the media. A first text such as "tokens=12345 …" sets the count."""
    if texts and (forced := _FORCED.match(texts[0])):
        return Prompt(int(forced[1]), texts[-1])
    return Prompt(-(-(sum(map(len, texts)) + extra) // 4) + media * MEDIA_TOKENS, texts[-1] if texts else "")


def _parts(contents: Any, where: str) -> Iterable[dict[str, Any]]:
    for content in contents if isinstance(contents, list) else [contents]:
        if not isinstance(content, Mapping):
            raise bad_request(f"Invalid value at '{where}' (type.googleapis.com/google.ai.generativelanguage.Content)")
        parts = content.get("parts")
        for part in parts if isinstance(parts, list) else [parts] if parts is not None else []:
            if not isinstance(part, dict):
                raise bad_request(f"Invalid value at '{where}.parts'")
            yield part


def _field(document: Mapping[str, Any], camel: str, snake: str) -> Any:
    return document.get(camel, document.get(snake))


def native_prompt(document: Mapping[str, Any], *, whole: bool = True) -> Prompt:
    """`whole`: with system instruction and tools, which countTokens leaves out when it is given contents alone."""
    contents = document.get("contents")
    if not contents:
        raise bad_request("* GenerateContentRequest.contents: contents is not specified\n")
    texts: list[str] = []
    extra = media = seen = 0
    parts = list(_parts(contents, "contents"))
    if whole:
        if instruction := _field(document, "systemInstruction", "system_instruction"):
            parts += _parts(instruction, "system_instruction") if not isinstance(instruction, str) else ()
        if tools := document.get("tools"):
            extra += len(_encode(tools))
    for part in parts:
        seen += 1
        if isinstance(text := part.get("text"), str):
            texts.append(text)
        elif any(name in part for name in ("inlineData", "inline_data", "fileData", "file_data")):
            media += 1
        else:
            extra += len(_encode(part))
    if not seen:
        raise bad_request("* GenerateContentRequest.contents[0].parts: contents.parts must not be empty.\n")
    return _measure(texts, extra, media)


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
        parts = list(_parts(content, "content"))
        texts = [str(part["text"]) for part in parts if "text" in part]
        prompts.append(_measure(texts, 0, len(parts) - len(texts)))
    return prompts


def openai_prompt(document: Mapping[str, Any]) -> Prompt:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("Request has empty input.")
    texts: list[str] = []
    media = extra = 0
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
                    media += 1
    extra += len(_encode(document["tools"])) if document.get("tools") else 0
    return _measure(texts, extra, media)


def openai_inputs(document: Mapping[str, Any]) -> list[Prompt]:
    given = document.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad_request("Request has empty input.")
    if len(texts) > 100:
        raise bad_request("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n")
    return [_measure([text], 0, 0) for text in texts]


def text_of(model: str, prompt: Prompt) -> str:
    return f"Simulated answer of {model} to: {prompt.text[:40]}"


def pieces(text: str, count: int) -> list[str]:
    """The text in that many parts (fewer if it is short), none of them empty."""
    count = max(1, min(count, len(text)))
    return [text[len(text) * i // count : len(text) * (i + 1) // count] for i in range(count)]


def _tokens(text: str) -> int:
    return -(-len(text) // 4)


def native_chunk(
    model: str, prompt: Prompt, text: str, *, said: int, last: bool, response_id: str, image: bool = False
) -> dict[str, Any]:
    """One chunk; `said`: answer tokens up to and with it. A plain answer is a stream's one and last chunk."""
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
        if image:
            candidate["content"]["parts"].append({"inlineData": {"mimeType": "image/png", "data": _PNG}})
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": prompt.tokens,
            "candidatesTokenCount": said,
            "totalTokenCount": prompt.tokens + said,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt.tokens}],
        },
        "modelVersion": model,
        "responseId": response_id,
    }


def native_chunks(model: str, prompt: Prompt, count: int, response_id: str, *, image: bool) -> list[dict[str, Any]]:
    chunks: list[dict[str, Any]] = []
    said = ""
    parts = pieces(text_of(model, prompt), count)
    for number, part in enumerate(parts, 1):
        said += part
        last = number == len(parts)
        chunks.append(
            native_chunk(
                model, prompt, part, said=_tokens(said), last=last, response_id=response_id, image=image and last
            )
        )
    return chunks


def without_finish(chunk: dict[str, Any]) -> dict[str, Any]:
    """The last chunk of a stream that was cut: what says that it is the last is taken out, in both shapes."""
    for entry in (*chunk.get("candidates", ()), *chunk.get("choices", ())):
        entry.pop("finishReason", None)
        entry.pop("finish_reason", None)
    return chunk


def openai_answer(model: str, prompt: Prompt, response_id: str, created: int) -> dict[str, Any]:
    text = text_of(model, prompt)
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
        "created": created,
        "id": response_id,
        "model": model,
        "object": "chat.completion",
        "usage": _usage(prompt.tokens, _tokens(text)),
    }


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def openai_chunks(
    model: str, prompt: Prompt, count: int, response_id: str, created: int, *, usage: bool
) -> list[dict[str, Any]]:
    text = text_of(model, prompt)
    head = {"created": created, "id": response_id, "model": model, "object": "chat.completion.chunk"}
    chunks: list[dict[str, Any]] = [
        {"choices": [{"delta": {"role": "assistant", "content": part}, "index": 0}], **head}
        for part in pieces(text, count)
    ]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    if usage:
        chunks.append({"choices": [], **head, "usage": _usage(prompt.tokens, _tokens(text))})
    return chunks


def vector(text: str, size: int) -> list[float]:
    """A vector that is the same for the same text. It means nothing."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return [(digest[i % 32] - 128) / 128 for i in range(size)]


def predictions(count: int) -> dict[str, Any]:
    return {"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": _PNG} for _ in range(count)]}


def samples(document: Mapping[str, Any]) -> int:
    """How many images :predict is asked for."""
    if not document.get("instances"):
        raise bad_request("* PredictRequest.instances: instances is not specified\n")
    parameters = document.get("parameters")
    count = parameters.get("sampleCount", 1) if isinstance(parameters, Mapping) else 1
    if not isinstance(count, int) or not 1 <= count <= 8:
        raise bad_request("sampleCount must be between 1 and 8")
    return count


def embeddings(verb: str, model: str, document: Mapping[str, Any], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The vectors, in the shape that the verb has."""
    if verb == "batchEmbedContents":
        sizes = [_dimensions(request.get("outputDimensionality")) for request in document["requests"]]
    else:
        sizes = [_dimensions(document.get("outputDimensionality", document.get("dimensions")))] * len(prompts)
    vectors = [vector(prompt.text, size) for prompt, size in zip(prompts, sizes, strict=True)]
    if verb == "embedContent":
        return {"embedding": {"values": vectors[0]}}
    if verb == "batchEmbedContents":
        return {"embeddings": [{"values": values} for values in vectors]}
    tokens = sum(prompt.tokens for prompt in prompts)
    data = [{"object": "embedding", "index": i, "embedding": values} for i, values in enumerate(vectors)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _dimensions(given: Any) -> int:
    if given is None:
        return 768
    if not isinstance(given, int) or not 1 <= given <= 3072:
        raise bad_request("output_dimensionality must be between 1 and 3072")
    return given
