"""PURE. Which resources of a project an answer names, and until when they last."""

from collections.abc import Iterable, Sequence, Set
from datetime import datetime
from typing import Any

from pollux.gemini.call import Call
from pollux.gemini.names import CHAINED, COLLECTIONS, GOOGLE, below, collection, dicts, named_by, resource, with_kind

# Only what Google itself fills in: OpenAI's `metadata` is the client's own, and could name what is not its.
_OF_OPENAI = frozenset({"data"})
_OF_CHAINED = frozenset({"environment", "interaction", "triggerExecutions"})
_HOLDERS = frozenset(
    {
        "batch", "documents", "file", "generateVideoResponse", "generatedSamples", "generatedVideos", "metadata",
        "output", "response", "video",
    }
)  # fmt: skip
_NAMING = ("name", "uri", "responsesFile", "responses_file", "input_file_id", "output_file_id", "error_file_id")
_ENDS = ("expirationTime", "expireTime", "expire_time", "expiration_time", "expires_at")

_LAST = 253402300800
"""The end of the year 9999."""


def answer_names(document: Any, call: Call, bases: Iterable[str] = (GOOGLE,)) -> dict[str, float | None]:
    """What the answer of a resource call names, and when it expires where that is said. Lists name many."""
    found: dict[str, float | None] = {}
    bare = call.api == "openai" or below(call).count("/") < 2
    kind = collection(call) if bare else ""  # whose ids have no collection in front
    holders = _OF_OPENAI if call.api == "openai" else _OF_CHAINED if collection(call) in CHAINED else _HOLDERS
    _answered(document, kind, tuple(bases), found, holders, 6)
    return found


def _answered(
    document: Any, kind: str, bases: Sequence[str], found: dict[str, float | None], holders: Set[str], depth: int
) -> None:
    for thing in dicts(document):
        end = next((at for field in _ENDS if (at := _time(thing.get(field))) is not None), None)
        values = [thing.get(field) for field in _NAMING]
        values += [
            with_kind("interactions", thing.get("interaction_id")),
            with_kind("environments", thing.get("environment_id")),
        ]
        if isinstance(own := thing.get("id"), str) and kind in COLLECTIONS:
            values.append(own if resource(own) else f"{kind}/{own}")
        for value in values:
            name = named_by(value, bases) if isinstance(value, str) else None
            if name is not None:
                found[name] = found.get(name) or end
        for field, inner in thing.items() if depth else ():
            if field in holders or (field in COLLECTIONS and isinstance(inner, list)):
                own_kind = field + "s" if field + "s" in COLLECTIONS else field if field in COLLECTIONS else kind
                _answered(inner, own_kind, bases, found, holders, depth - 1)


def _time(value: Any) -> float | None:
    """Google's RFC 3339 or OpenAI's seconds, as seconds since 1970."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if 0 < value < _LAST else None
    try:
        when = datetime.fromisoformat(value)
        return when.timestamp() if when.tzinfo is not None and when.year > 1970 else None
    except (TypeError, ValueError, OverflowError):
        return None
