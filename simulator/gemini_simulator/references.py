"""Which things of a project the body of a request names. PURE, and no copy of the gateway's own reader."""

import re
from collections.abc import Container, Iterator
from functools import cache
from typing import Any

from gemini_simulator.errors import bad_request

_FILE = re.compile(r"(?:(https?://[^/]+(?:/[^/?#]+)*)/v\d\w*/)?(files/[A-Za-z0-9-]+)(?::download\?alt=media)?")


@cache
def snake(camel: str) -> str:
    """Cached, so only for names that are constants in our code."""
    return re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), camel)


def field(document: Any, camel: str) -> Any:
    """By its name in camelCase or in snake_case."""
    if not isinstance(document, dict):
        return None
    if camel in document:
        return document[camel]
    return document.get(snake(camel))


def file_of(uri: Any, roots: Container[str] = ()) -> str | None:
    """files/ID for a name or an address of one. Addresses of anything else, such as a video, give None.

    `roots`: what the addresses of the simulator's own files begin with. Raises ApiError for a file's address at
    another host: a gateway in between should have replaced it.
    """
    found = _FILE.fullmatch(uri) if isinstance(uri, str) else None
    if found is None:
        return None
    if found[1] is not None and found[1] not in roots:
        raise bad_request(f"Unsupported file URI: {uri}")
    return found[2]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _of_parts(contents: Any, roots: Container[str]) -> Iterator[str]:
    for content in _listed(contents):
        for part in _listed(field(content, "parts")):
            if name := file_of(field(field(part, "fileData"), "fileUri"), roots):
                yield name
            if response := field(part, "functionResponse"):
                yield from _of_parts(response, roots)


def _of_tools(tools: Any) -> Iterator[str]:
    for tool in _listed(tools):
        for store in _listed(field(field(tool, "fileSearch"), "fileSearchStoreNames")):
            if isinstance(store, str):
                yield store


def names_in(document: Any, roots: Container[str]) -> Iterator[str]:
    """Of a generateContent, countTokens or embedContent, and of the requests inside one. Raises ApiError."""
    yield from _of_parts(field(document, "contents"), roots)
    yield from _of_parts(field(document, "content"), roots)
    yield from _of_parts(field(document, "systemInstruction"), roots)
    yield from _of_tools(field(document, "tools"))
    if isinstance(cache := field(document, "cachedContent"), str):
        yield cache if cache.startswith("cachedContents/") else f"cachedContents/{cache}"
    if inner := field(document, "generateContentRequest"):
        yield from names_in(inner, roots)
    requests = field(document, "requests")
    for request in requests if isinstance(requests, list) else ():
        yield from names_in(request, roots)
