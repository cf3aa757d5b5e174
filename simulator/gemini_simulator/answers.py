"""What answers of every shape are made of: JSON as Google writes it, pieces of a text, pictures of :predict. PURE."""

import json
from collections.abc import Mapping
from typing import Any

from gemini_simulator.errors import bad_request

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="  # one pixel
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ": ")).encode


def encode(value: Any) -> bytes:
    """JSON as Google writes its chunks. A lone surrogate, which JSON allows and UTF-8 does not, becomes "?"."""
    return _encode(value).encode("utf-8", "replace")


def pieces(text: str, count: int) -> list[str]:
    """The text in that many parts (fewer if it is short), none of them empty."""
    count = max(1, min(count, len(text)))
    return [text[len(text) * i // count : len(text) * (i + 1) // count] for i in range(count)]


def without_finish(chunk: dict[str, Any]) -> dict[str, Any]:
    """The last chunk of a stream that was cut, without its finish reason, in both shapes."""
    for entry in (*chunk.get("candidates", ()), *chunk.get("choices", ())):
        entry.pop("finishReason", None)
        entry.pop("finish_reason", None)
    return chunk


def predictions(count: int) -> dict[str, Any]:
    return {"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": PNG} for _ in range(count)]}


def samples(document: Mapping[str, Any]) -> int:
    """How many images :predict is asked for."""
    if not document.get("instances"):
        raise bad_request("* PredictRequest.instances: instances is not specified\n")
    parameters = document.get("parameters")
    count = parameters.get("sampleCount", 1) if isinstance(parameters, Mapping) else 1
    if not isinstance(count, int) or not 1 <= count <= 8:
        raise bad_request("sampleCount must be between 1 and 8")
    return count
