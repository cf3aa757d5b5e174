"""PURE. URIs of files: Google's become ours on their way to the client, ours become Google's on the way back.

Only a whole JSON string under a name such as `uri` or `fileUri` is exchanged; every other byte stays.
"""

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from urllib.parse import unquote

from pollux.gemini.names import COLLECTIONS, GOOGLE

_FORM = re.compile(r"(https?://[\w.:\[\]-]{1,260}(?:/[\w.~-]{1,64}){0,8}?)/v\d\w*/(files/[\w-]{1,100})", re.ASCII)
_MENTIONED = re.compile(r"files/+([A-Za-z0-9_][\w-]{0,99})", re.ASCII)
_KNOWN_PATTERNS = 128
"""Clients call this gateway by few names; what a stranger writes into Host pushes out only an entry of a cache."""


def elsewhere(reference: str) -> tuple[str, str] | None:
    """(base, name) of a URI that has the form of a file's, below whatever address: it may be another name of ours."""
    found = _FORM.fullmatch(reference)
    return (found[1], found[2]) if found is not None else None


def mentioned(references: Iterable[str]) -> set[str]:
    """Files that a reference may mean, however it is spelt."""
    return {f"files/{found}" for text in references for found in _MENTIONED.findall(unquote(unquote(text)))}


def to_client(body: bytes, upstream: str, own: str) -> bytes:
    """URIs below the upstream's address, or Google's, point to us."""
    return _exchanged(body, (upstream, GOOGLE), own, None)


def to_upstream(body: bytes, own: Iterable[str], upstream: str, only: Collection[str] | None = None) -> bytes:
    """URIs below any of our addresses point to the upstream again; `only` those of its values, if given."""
    return _exchanged(body, tuple(own), upstream, only)


def _exchanged(body: bytes, bases: tuple[str, ...], new: str, only: Collection[str] | None) -> bytes:
    bases = tuple(dict.fromkeys(base.rstrip("/") for base in bases))
    new = new.rstrip("/")
    for slash in ("/", "\\/"):
        if any(base.replace("/", slash).encode() in body for base in bases):

            def exchange(found: re.Match[bytes], slash: str = slash) -> bytes:
                written = found[2] + found[3]
                if only is not None and written.decode("latin-1").replace(slash, "/") not in only:
                    return found[0]
                return found[1] + new.replace("/", slash).encode() + found[3]

            body = _pattern(bases, slash).sub(exchange, body)
    return body


@lru_cache(_KNOWN_PATTERNS)
def _pattern(bases: tuple[str, ...], slash: str) -> re.Pattern[bytes]:
    """In three groups: the member's name with the quote before its value, the base, the rest.

    Inside a JSON string every quote has a backslash before it, so that no text of anybody's can look like a member.
    """
    addresses = "|".join(re.escape(base.replace("/", slash)) for base in bases)
    step = re.escape(slash)
    below = rf"{step}(?:(?:upload|download){step})?v\d\w*{step}(?:{'|'.join(sorted(COLLECTIONS))}){step}"
    text = rf'((?<!\\)"\w{{0,20}}[uU]r[il]"\s*:\s*")({addresses})({below}[^"\\]*(?:\\/[^"\\]*)*)(?=")'
    return re.compile(text.encode(), re.ASCII)
