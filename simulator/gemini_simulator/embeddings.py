"""Embeddings: a vector that is the same for the same text, and means nothing. PURE."""

import base64
import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from gemini_simulator.counting import Prompt
from gemini_simulator.errors import bad_request
from gemini_simulator.references import field

DIMENSIONS = 3072


def vector(text: str, size: int) -> list[float]:
    """Of length 1. A vector with fewer dimensions is the beginning of a longer one."""
    data = hashlib.shake_256(text.encode("utf-8", "replace")).digest(2 * size)
    values = [value + 0.5 for value in struct.unpack(f"<{size}h", data)]
    length = math.sqrt(sum(value * value for value in values))
    return [round(value / length, 8) for value in values]


def embeddings(verb: str, model: str, document: Mapping[str, Any], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The vectors, in the shape that the verb has."""
    if verb == "batchEmbedContents":
        sizes = [_size(field(request, "outputDimensionality")) for request in document["requests"]]
    elif verb == "embedContent":
        sizes = [_size(field(document, "outputDimensionality"))]
    else:
        sizes = [_size(document.get("dimensions"))] * len(prompts)
    vectors = [vector(prompt.text, size) for prompt, size in zip(prompts, sizes, strict=True)]
    if verb == "embedContent":
        return {"embedding": {"values": vectors[0]}}
    if verb == "batchEmbedContents":
        return {"embeddings": [{"values": values} for values in vectors]}
    form = document.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise bad_request(f"Invalid encoding_format: {form}")
    tokens = sum(prompt.tokens for prompt in prompts)
    data = [
        {"object": "embedding", "index": place, "embedding": _packed(values) if form == "base64" else values}
        for place, values in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _packed(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _size(given: Any) -> int:
    if given is None:
        return DIMENSIONS
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= DIMENSIONS:
        raise bad_request(f"output_dimensionality must be between 1 and {DIMENSIONS}")
    return given
