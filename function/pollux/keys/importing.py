"""Which keys of a file come over into the pool's own, and under which id. Pure; reading and writing is `commands`'."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pollux.keys import Secret
from pollux.keys.entries import Entry
from pollux.keys.local import free_id


@dataclass
class Plan:
    added: dict[str, Entry] = field(default_factory=dict)
    skipped: list[tuple[Entry, str]] = field(default_factory=list)
    """Entries that are there already, and the id they have there."""


def plan(entries: Iterable[Entry], owned: Mapping[Secret, str], known: Mapping[str, Secret]) -> Plan:
    """`owned`: what the file written to holds. `known`: all ids in use, in any source, with their values.

    A key that is in use from another source keeps the id it has there, and with it its counters and cooldowns.
    """
    result = Plan()
    there = dict(owned)
    ids = {secret: key_id for key_id, secret in known.items()}
    for entry in entries:
        if entry.secret in there:
            result.skipped.append((entry, there[entry.secret]))
            continue
        wanted = ids.get(entry.secret, entry.id)
        taken = {key_id for key_id, secret in known.items() if secret != entry.secret}
        key_id = free_id(wanted, taken | set(there.values()))
        result.added[key_id] = entry
        there[entry.secret] = key_id
    return result
