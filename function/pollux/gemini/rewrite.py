"""Replaces URIs and names of files in bodies: Google's URIs by ours and back, a file's by those of its copy.

Only a whole JSON string under a name such as `uri`, `fileUri` or `fileId` is replaced; every other byte stays.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from pollux.gemini.names import COLLECTIONS, GOOGLE

_FILE_URI = re.compile(r"(https?://[\w.:\[\]-]{1,260}(?:/[\w.~-]{1,64}){0,8}?)/v\d\w*/(files/[\w-]{1,100})", re.ASCII)
_MENTIONED = re.compile(r"files/+([A-Za-z0-9_][\w-]{0,99})", re.ASCII)
_MEMBER = r"\w{0,20}[uU]r[il]|file_?[nN]ame|(?:input_?)?[fF]ile_?[iI]d"
_MEMBERS = re.compile(_MEMBER, re.ASCII)
# Inside a JSON string every quote has a backslash before it, so that no client's text can look like a member.
_NAMING = re.compile(rf'((?<!\\)"(?:{_MEMBER})"\s*:\s*")((?:[^"\\]|\\/)*)(?=")'.encode(), re.ASCII)
_GOOGLES = re.compile("generativelanguage", re.IGNORECASE)


def file_uri_parts(reference: str) -> tuple[str, str] | None:
    """(base, name) of a file's URI below any address: it may be another address of this gateway."""
    found = _FILE_URI.fullmatch(reference)
    return (found[1], found[2]) if found is not None else None


def files_mentioned(references: Iterable[str]) -> set[str]:
    """Files that the references may mean, in any encoding."""
    return {f"files/{found}" for text in references for found in _MENTIONED.findall(unquote(unquote(text)))}


def may_be_named(parsed: Mapping[str, Any]) -> set[str]:
    """Names and Google's URIs under any member that can name a file, also where Google does not look for one."""
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
    """The body with each name replaced, and which of the names it had. Names written with \\u escapes are not found."""
    found: set[str] = set()

    def replaced(member: re.Match[bytes]) -> bytes:
        text = member[2].decode("utf-8", "replace")
        old = text.replace("\\/", "/")
        if (new := names.get(old)) is None:
            return member[0]
        found.add(old)
        return member[1] + (new.replace("/", "\\/") if old != text else new).encode()

    return _NAMING.sub(replaced, body), found


def to_client(body: bytes, upstream: str, own: str) -> bytes:
    """The body in which URIs below the upstream's address, or Google's, are below ours."""
    return _with_base(body, (upstream, GOOGLE), own, None)


def to_upstream(body: bytes, own: Iterable[str], upstream: str, only: Collection[str] | None = None) -> bytes:
    """The body in which URIs below our addresses are below the upstream's. `only`: those of its values, if given."""
    return _with_base(body, tuple(own), upstream, only)


def _with_base(body: bytes, bases: tuple[str, ...], new: str, only: Collection[str] | None) -> bytes:
    bases = tuple(dict.fromkeys(base.rstrip("/") for base in bases))
    new = new.rstrip("/")
    for slash in ("/", "\\/"):
        if any(base.replace("/", slash).encode() in body for base in bases):

            def replaced(found: re.Match[bytes], slash: str = slash) -> bytes:
                written = found[2] + found[3]
                if only is not None and written.decode("latin-1").replace(slash, "/") not in only:
                    return found[0]
                return found[1] + new.replace("/", slash).encode() + found[3]

            body = _uri_pattern(bases, slash).sub(replaced, body)
    return body


@lru_cache(128)  # clients know the gateway by few names; another one, sent in Host, only displaces an entry
def _uri_pattern(bases: tuple[str, ...], slash: str) -> re.Pattern[bytes]:
    """In three groups: the member's name with the quote before its value, the base, the rest."""
    addresses = "|".join(re.escape(base.replace("/", slash)) for base in bases)
    step = re.escape(slash)
    below = rf"{step}(?:(?:upload|download){step})?v\d\w*{step}(?:{'|'.join(sorted(COLLECTIONS))}){step}"
    text = rf'((?<!\\)"\w{{0,20}}[uU]r[il]"\s*:\s*")({addresses})({below}[^"\\]*(?:\\/[^"\\]*)*)(?=")'
    return re.compile(text.encode(), re.ASCII)
