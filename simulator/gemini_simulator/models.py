"""The models that the simulator knows unless it is told others: the bucket of each, and what it can do. PURE."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

# Names from real lists of late 2026, with the buckets that 429s named: aliases and rerouted models share one.
MODELS: Mapping[str, str] = {
    **{
        name: name
        for name in (
            "gemini-4-argon",
            "gemini-4-carbon",
            "gemini-3.8-flash",
            "gemini-3.6-flash",
            "gemini-3.5-flash-lite",
            "gemini-3.1-flash-lite",
            "gemini-2.5-pro",
            "gemini-2.5-flash",
            "gemini-2.5-flash-lite",
            "gemini-3.1-flash-image",
            "gemini-3.1-flash-lite-image",
            "gemini-3-pro-image",
            "gemini-nano-banana-2.1",
            "gemini-3.8-flash-tts",
            "gemini-3.8-flash-lite-tts",
            "gemini-3.1-flash-tts",
            "gemini-3.5-transcribe",
            "gemini-embedding-2",
            "gemini-omni-1.1-flash",
            "imagen-4.0-generate-001",
            "veo-3.1-generate-001",
        )
    },
    "gemini-3.7-flash": "gemini-3.8-flash",
    "gemini-3.5-flash": "gemini-3.6-flash",
    "gemini-flash-latest": "gemini-3.8-flash",
    "gemini-flash-lite-latest": "gemini-3.5-flash-lite",
    "gemini-pro-latest": "gemini-3.1-pro",
    "gemini-3.1-pro-preview": "gemini-3.1-pro",
    "gemini-3.1-pro-preview-customtools": "gemini-3.1-pro",
    "gemini-3-pro-preview": "gemini-3-pro",
    "gemini-3-flash-preview": "gemini-3-flash",
    "gemini-2.5-flash-image": "gemini-2.5-flash-preview-image",
    "gemini-embedding-001": "gemini-embedding-1.0",
    "gemma-4-31b-it": "gemma-4-31b",
    "gemma-4-26b-a4b-it": "gemma-4-26b-a4b",
    "gemma-3-27b-it": "gemma-3-27b",
}

_EMBED = ("embedContent", "batchEmbedContents", "countTokens", "asyncBatchEmbedContent")
_PREDICT = ("predict", "countTokens")
_FILM = ("predictLongRunning",)
_GENERATE = ("generateContent", "streamGenerateContent", "countTokens", "batchGenerateContent")


def methods(model: str) -> tuple[str, ...]:
    """By the name: a model that neither embeds nor predicts generates."""
    if "embedding" in model:
        return _EMBED
    if model.startswith("veo"):
        return _FILM
    return _PREDICT if model.startswith("imagen") else _GENERATE


@lru_cache(1000)
def modalities(model: str) -> frozenset[str]:
    """What its answers may consist of."""
    if "image" in model or "nano-banana" in model:
        return frozenset({"TEXT", "IMAGE"})
    return frozenset({"AUDIO"}) if model.endswith("-tts") else frozenset({"TEXT"})


_GENERATION = re.compile(r"gemini-(\d+(?:\.\d+)?)-")


@lru_cache(1000)
def generation_of(model: str) -> float:
    """3.8 for gemini-3.8-flash. Names of Google's without a number mean new ones; all others are 0."""
    if found := _GENERATION.match(model):
        return float(found[1])
    return 3.0 if model.startswith("gemini-") else 0.0


def describe(model: str) -> dict[str, Any]:
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model.replace("-", " ").title(),
        "description": f"A simulated {model}",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": list(methods(model)),
    }


def describe_openai(model: str) -> dict[str, Any]:
    return {"id": f"models/{model}", "object": "model", "owned_by": "google"}
