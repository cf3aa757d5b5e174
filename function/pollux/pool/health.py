"""PURE. The health document: keys, projects, models and tools of a project that are set aside, each with its cause and
its end. The cooldowns of quotas are in `quota`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

from pollux.gemini.verdict.causes import PROBED

Kind = Literal["keys", "projects", "models", "tools"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_PROJECTS: tuple[Kind, ...] = ("models", "tools")
"""Kinds whose names are "project/name"."""
SCHEMA = 1
FORGET_AFTER = 2 * 86400.0
"""A streak is kept this long after the end of the rest."""
MODELS_MOST = 3000
"""Clients may invent names of models: of more entries, those that end first are dropped to keep the document small."""
CHECKED_MOST = 5000
FREE_AGE = 3600.0
"""A time in `free` is written again only if it is older than this."""


class Aside(NamedTuple):
    until: float
    reason: str
    since: float
    streak: int = 1


@dataclass(frozen=True, slots=True)
class Health:
    keys: dict[str, Aside] = field(default_factory=dict)
    projects: dict[str, Aside] = field(default_factory=dict)
    models: dict[str, Aside] = field(default_factory=dict)
    """By "project/model": a project may be refused one model while others work."""
    tools: dict[str, Aside] = field(default_factory=dict)
    """By "project/tool": Google counts the use of search, maps and URLs apart from the quota of the model."""
    buckets: dict[str, str] = field(default_factory=dict)
    """Model -> the bucket that a 429 named."""
    checked: frozenset[str] = frozenset()
    """The keys that Google accepted, for a request or a check."""
    free: dict[str, float] = field(default_factory=dict)
    """Project -> when a refusal last named a quota of the free tier."""


def set_aside(
    health: Health, now: float, kind: Kind, name: str, reason: str, seconds: float, ceiling: float | None = None
) -> Health:
    """Set aside for some seconds, and twice as long each time for the same reason, up to the ceiling. This never
    shortens a longer rest."""
    entries: dict[str, Aside] = getattr(health, kind)
    last = entries.get(name)
    again = last is not None and last.reason == reason
    if last is not None and again and now < last.until:
        return health  # refusals of requests that were under way together
    streak = last.streak + 1 if last is not None and again else 1
    if ceiling is not None:
        seconds = min(ceiling, seconds * 2.0 ** min(streak - 1, 32))
    if last is not None and last.until > now + seconds:
        return health
    entries = entries | {name: Aside(now + seconds, reason, now, streak)}
    if kind == "models" and len(entries) > MODELS_MOST:
        entries = dict(sorted(entries.items(), key=lambda entry: entry[1].until)[-MODELS_MOST:])
    return _with(health, kind, entries)


def awaits_probe(entry: Aside) -> bool:
    """Whether this key must be found well by a probe before it serves again."""
    return entry.reason in PROBED and entry.until > entry.since


def key_rests(entry: Aside | None, now: float) -> bool:
    return entry is not None and (entry.until > now or awaits_probe(entry))


def found_well(health: Health, now: float, key_id: str) -> Health:
    """A free call found the key well. The streak stays until a request is served: a key with which Google accepts only
    free calls rests twice as long next time."""
    health, entry = accepted(health, key_id), health.keys.get(key_id)
    if entry is None:
        return health
    return replace(health, keys=health.keys | {key_id: entry._replace(until=now, since=now)})


def accepted(health: Health, key_id: str) -> Health:
    """Google accepted the key."""
    if key_id in health.checked or len(health.checked) >= CHECKED_MOST:
        return health
    return replace(health, checked=health.checked | {key_id})


def lifted(health: Health, key_id: str, project: str | None, *, well: bool) -> Health:
    """An operator ends the rest of the key and, if a project is given, of the project, its models and tools. `well`:
    Google accepted the key just now; if not, it counts as never checked."""
    health = clear(health, "keys", key_id)
    if project is not None:
        health = clear(health, "projects", project)
        for kind in OF_PROJECTS:
            for name in [name for name in getattr(health, kind) if name.startswith(f"{project}/")]:
                health = clear(health, kind, name)
    if well:
        return accepted(health, key_id)
    return replace(health, checked=health.checked - {key_id}) if key_id in health.checked else health


def held(health: Health, now: float, key_id: str, project: str | None) -> list[str]:
    """Returns, in words, what `lifted` would end."""
    words = [f"key {key_id}"] if key_rests(health.keys.get(key_id), now) else []
    if project is None:
        return words
    entries = {f"project {project}": health.projects.get(project)}
    for kind in OF_PROJECTS:
        of_kind: dict[str, Aside] = getattr(health, kind)
        entries |= {f"{kind[:-1]} {name}": e for name, e in of_kind.items() if name.startswith(f"{project}/")}
    return words + [name for name, entry in entries.items() if entry is not None and entry.until > now]


def seen_tier(health: Health, now: float, project: str, tier: str | None) -> Health:
    """Record that a refusal named a quota of the free tier or of a paid one."""
    known = health.free.get(project)
    if tier == "free" and (known is None or now - known > FREE_AGE):
        return replace(health, free=health.free | {project: now})
    if tier == "paid" and known is not None:
        return replace(health, free={name: when for name, when in health.free.items() if name != project})
    return health


def clear(health: Health, kind: Kind, name: str) -> Health:
    entries: dict[str, Aside] = getattr(health, kind)
    return _with(health, kind, {n: e for n, e in entries.items() if n != name}) if name in entries else health


def learn_bucket(health: Health, model: str, bucket: str) -> Health:
    return health if health.buckets.get(model) == bucket else replace(health, buckets=health.buckets | {model: bucket})


def _with(health: Health, kind: Kind, entries: dict[str, Aside]) -> Health:
    changed: dict[str, Any] = {kind: entries}
    return replace(health, **changed)


def tidy(health: Health, now: float) -> Health:
    ends = (entry.until for kind in KINDS for entry in getattr(health, kind).values())
    if not any(until + FORGET_AFTER < now for until in (*ends, *health.free.values())):
        return health
    health = replace(health, free={name: when for name, when in health.free.items() if when + FORGET_AFTER >= now})
    for kind in KINDS:
        kept = {n: e for n, e in getattr(health, kind).items() if e.until + FORGET_AFTER >= now}
        health = _with(health, kind, kept)
    return health


def free_quota(tiers: Mapping[str, str]) -> str:
    """Returns the warning about projects on the free quota. `tiers`: project -> the paid tier that its keys name."""
    several = len(tiers) > 1
    named = ", ".join(f"{project} ({tier})" if several else project for project, tier in tiers.items())
    said = "their keys name paid tiers" if several else f"its keys say {next(iter(tiers.values()))}"
    return (
        f"project{'s' * several} {named} {'are' if several else 'is'} still on the free quota, though {said}: Google "
        f"refused {'them' if several else 'it'} by a quota whose id ends in -FreeTier; if billing is linked, it has "
        "not taken effect: look at the plan in AI Studio"
    )


def pack(health: Health) -> dict[str, Any]:
    document: dict[str, Any] = {"schema": SCHEMA, "buckets": dict(health.buckets)}
    document["checked"] = sorted(health.checked)
    document["free"] = dict(health.free)
    for kind in KINDS:
        document[kind] = {name: entry._asdict() for name, entry in getattr(health, kind).items()}
    return document


def unpack(document: Mapping[str, Any]) -> Health:
    if document.get("schema") != SCHEMA:
        raise ValueError(f"the health document has schema {document.get('schema')!r}, this version knows {SCHEMA}")
    entries = {
        # documents of earlier versions have no tools
        kind: {name: Aside(**entry) for name, entry in document.get(kind, {}).items()}
        for kind in KINDS
    }
    return Health(
        **entries,
        buckets=dict(document["buckets"]),
        checked=frozenset(document.get("checked", ())),
        free=dict(document.get("free", {})),
    )
