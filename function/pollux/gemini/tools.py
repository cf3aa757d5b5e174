"""Tools that have their own quota at Google: which of them a request uses, which of them a text names.

Their names here are those of the native API. Requests and errors are matched by pattern: each API spells the names
differently, and new spellings appear.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

SEARCH, MAPS, URLS = "googleSearch", "googleMaps", "urlContext"
TOOLS = (SEARCH, MAPS, URLS)
GROUNDING = "grounding"
"""Errors may use this word for search and maps together."""

PATTERNS = (
    (
        SEARCH,
        re.compile(r"(?:google|web)[ _-]?search|(?<!file)(?<!file[ _-])search[ _-]?(?:ground|quer|request|tool)", re.I),
    ),
    (MAPS, re.compile(r"google[ _-]?maps|maps[ _-]?(?:ground|quer|request|tool)", re.I)),
    (URLS, re.compile(r"url[ _-]?context", re.I)),
    (GROUNDING, re.compile(r"ground(?:ing|ed)", re.I)),
)
_URL = re.compile(r"https?://\S+")
NONE: frozenset[str] = frozenset()
NAME_MOST = 40
"""Longer names are ignored: clients choose them, and no tool has one."""
NAMES_MOST = 10_000
"""The most names of tools that are looked at in one request."""


def named_in(text: str) -> str | None:
    """The tool, or GROUNDING, that a quota's name or a message mentions. URLs in it are ignored."""
    text = _URL.sub("", text)
    return next((name for name, pattern in PATTERNS if pattern.search(text)), None)


def used_by(parsed: Mapping[str, Any]) -> frozenset[str]:
    """The tools that a request uses, whether it is native, OpenAI-shaped or an interaction."""
    extra = parsed.get("extra_body")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    holders = (parsed, google) if isinstance(google, Mapping) else (parsed,)
    names = islice((name for holder in holders for name in _named(holder.get("tools"))), NAMES_MOST)
    return frozenset(tool for name in names if len(name) <= NAME_MOST and (tool := _tool(name)) is not None)


def _named(tools: Any) -> Iterator[str]:
    for tool in tools if isinstance(tools, list) else (tools,):
        if not isinstance(tool, dict) or (kind := tool.get("type")) == "function":
            continue
        if isinstance(kind, str):  # {"type": "web_search"}; the native API has {"googleSearch": {}}
            yield kind
        else:
            yield from (name for name, value in tool.items() if value is not None)


@lru_cache(maxsize=256)
def _tool(name: str) -> str | None:
    found = named_in(name)
    return found if found in TOOLS else None
