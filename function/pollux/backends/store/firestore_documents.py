"""The form of a document in Firestore: its id, the envelope around its JSON text, versions. No I/O."""

import re
from typing import Any
from urllib.parse import unquote

from pollux.backends.store.contract import Document, StoreError, Version
from pollux.backends.store.documents import decode

COLLECTION = "pollux"
FORMAT = 1
"""Of the envelope: `v`, `json`, `nonce`, perhaps `expires_at`. A reader refuses newer formats."""
LARGEST = 1_000_000
"""Bytes of JSON text; Firestore's own limit of 1 MiB includes names."""
LAST_SECOND = 253_402_300_799
"""The end of the year 9999, and of Firestore's time."""

_VERSION = re.compile(r"([0-9]{1,11})\.([0-9]{9})")


def escaped(name: str) -> str:
    """A name as Firestore's id, which must not contain `/`, nor be `.`, `..` or `__…__`.

    It replaces single characters, so that the id of a prefix is a prefix of the id; `.` and `_` only at the start.
    """
    text = name.replace("%", "%25").replace("/", "%2F")
    if text.startswith("."):
        return "%2E" + text[1:]
    return "%5F" + text[1:] if text.startswith("_") else text


def unescaped(document_id: str) -> str:
    return unquote(document_id)


def successor(prefix: str) -> str:
    """The first text, by code point, after all that start with the prefix; empty if there is none."""
    while prefix:
        prefix, last = prefix[:-1], ord(prefix[-1]) + 1
        if 0xD800 <= last <= 0xDFFF:
            last = 0xE000
        if last <= 0x10FFFF:
            return prefix + chr(last)
    return ""


def version_of(update_time: Any) -> Version:
    return f"{update_time.seconds}.{update_time.nanos:09}"


def set_condition(condition: Any, version: Version | None) -> bool:
    """Set the condition of a write. False if no document can have that version."""
    if version is None:
        condition.exists = False
        return True
    match = _VERSION.fullmatch(version)
    if match is not None:
        condition.update_time.seconds, condition.update_time.nanos = int(match[1]), int(match[2])
    return match is not None


def fill(fields: Any, body: str, document: Document, nonce: str) -> None:
    """Write the envelope. Without its nonce, an unchanged document would keep its update time, which is our version."""
    fields["v"].integer_value = FORMAT
    fields["json"].string_value = body
    fields["nonce"].string_value = nonce
    expires = document.get("expires")
    if isinstance(expires, int | float) and not isinstance(expires, bool) and 0 <= expires <= LAST_SECOND:
        fields["expires_at"].timestamp_value.seconds = int(expires)


def opened(fields: Any, name: str, store: str) -> Document:
    """Read the envelope. StoreError if another program or a newer version of Pollux wrote it."""
    known = fields["v"].integer_value if "v" in fields else None
    if isinstance(known, int) and known > FORMAT:
        raise StoreError(
            f"{store}: document {name!r} has format {known}, this Pollux knows {FORMAT}: upgrade it to the version "
            "that the other instances run"
        )
    return decode(fields["json"].string_value if known == FORMAT and "json" in fields else None, name, store)
