"""PURE. Names and URIs of files in a body, one taken for another: that of a copy for that of the file, and back.

Only a whole JSON string under a member that can name a file is exchanged; every other byte stays.
"""

import re
from collections.abc import Mapping
from typing import Any

_MEMBER = rb"\w{0,20}[uU]r[il]|file_?[nN]ame|(?:input_?)?[fF]ile_?[iI]d"
_NAMING = re.compile(rb'((?<!\\)"(?:' + _MEMBER + rb')"\s*:\s*")((?:[^"\\]|\\/)*)(?=")', re.ASCII)

_MEMBERS = re.compile(_MEMBER.decode(), re.ASCII)
_GOOGLES = re.compile("generativelanguage", re.IGNORECASE)


def may_be_named(parsed: Mapping[str, Any]) -> set[str]:
    """Names and Google's URIs under any such member, also where no field is known that Google would look at."""
    found: set[str] = set()
    unread: list[Any] = [parsed]
    while unread:
        thing = unread.pop()
        if isinstance(thing, list):
            unread += thing
        elif isinstance(thing, dict):
            for name, value in thing.items():
                if not isinstance(value, str):
                    unread.append(value)
                elif _MEMBERS.fullmatch(name) and ("://" not in value or _GOOGLES.search(value)):
                    found.add(value)
    return found


def renamed(body: bytes, names: Mapping[str, str]) -> tuple[bytes, set[str]]:
    """The body with the one in the place of the other, and which of them stood there as such a string. One that is
    there in another spelling (with \\u escapes) is not among them."""
    found: set[str] = set()

    def exchange(there: re.Match[bytes]) -> bytes:
        text = there[2].decode("utf-8", "replace")
        escaped = "\\/" in text
        text = text.replace("\\/", "/")
        new = names.get(text)
        if new is None:
            return there[0]
        found.add(text)
        return there[1] + (new.replace("/", "\\/") if escaped else new).encode()

    return _NAMING.sub(exchange, body), found
