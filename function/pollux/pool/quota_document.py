"""Turns a quota's state into a document and back, PURE. Slots become a string, as a map would need twice the bytes."""

import json
from collections.abc import Mapping
from typing import Any

from pollux.pool.quota import Cooldown, State
from pollux.pool.windows import Slots, Want

SCHEMA = 1


class SchemaError(ValueError):
    """The document was written by another version of Pollux."""


def pack(state: State) -> dict[str, Any]:
    document: dict[str, Any] = {"schema": SCHEMA, "slots": _pack_slots(state.slots), "days": _lists(state.days)}
    if state.learned:
        document["learned"] = _lists(state.learned)
        document["tier"] = state.tier
    if state.cooldown:
        document["cooldown"] = list(state.cooldown)
    if state.zone != "pacific":
        document["zone"] = state.zone
    if state.proved != (0, 0):
        document["proved"] = list(state.proved)
    for name in ("probe_until", "sliding_until", "spent_at", "utc_probe_at", "granted"):
        if value := getattr(state, name):
            document[name] = value
    return document


def unpack(document: Mapping[str, Any]) -> State:
    if document.get("schema") != SCHEMA:
        raise SchemaError(
            f"a quota document has schema {document.get('schema')!r}, this version knows {SCHEMA}: upgrade Pollux"
        )
    cooldown = document.get("cooldown")
    requests, tokens = document.get("proved", (0, 0))
    return State(
        slots=_unpack_slots(document["slots"]),
        days={day: (r, t) for day, (r, t) in document["days"].items()},
        learned={name: (value, when) for name, (value, when) in document.get("learned", {}).items()},
        tier=document.get("tier"),
        cooldown=Cooldown(*cooldown) if cooldown else None,
        probe_until=document.get("probe_until", 0.0),
        sliding_until=document.get("sliding_until", 0.0),
        zone=document.get("zone", "pacific"),
        spent_at=document.get("spent_at", 0.0),
        utc_probe_at=document.get("utc_probe_at", 0.0),
        granted=document.get("granted", 0),
        proved=(requests, tokens),
    )


def _lists(values: Mapping[str, tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: list(value) for name, value in values.items()}


def _pack_slots(slots: Mapping[int, Want]) -> str:
    """`distance,requests[,tokens[,images]];…`: slots in order, each by its distance from the one before, or from 0."""
    entries = []
    before = 0
    for slot, (r, t, i) in sorted(slots.items()):
        d = slot - before
        entries.append(f"{d},{r},{t},{i}" if i else f"{d},{r},{t}" if t else f"{d},{r}")
        before = slot
    return ";".join(entries)


def _unpack_slots(text: str) -> Slots:
    slots: dict[int, Want] = {}
    slot = 0
    entries = json.loads("[[" + text.replace(";", "],[") + "]]") if text else []  # faster than splitting here
    for distance, *amounts in entries:
        slot += distance
        slots[slot] = Want(*amounts)
    return Slots(slots)
