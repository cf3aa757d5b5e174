"""PURE. Tools whose use Google counts apart from the model's own quota: what a request asks for, what a text names.

Their names here are those of the native API. Requests and errors are read by pattern: each API spells them in its own
way, and new spellings come.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

SEARCH, MAPS, URLS = "googleSearch", "googleMaps", "urlContext"
TOOLS = (SEARCH, MAPS, URLS)
GROUNDING = "grounding"
"""What an error may say of search and maps together."""

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
"""No tool's name is longer. Longer ones are not looked at, as clients choose them."""
NAMES_MOST = 10_000
"""Of one request, no more names of tools are looked at than that."""


def named(text: str) -> str | None:
    """The tool, or GROUNDING, that the name of a quota or a message speaks of. Links do not count."""
    text = _URL.sub("", text)
    return next((name for name, pattern in PATTERNS if pattern.search(text)), None)


def asked(parsed: Mapping[str, Any]) -> frozenset[str]:
    """Those that a request asks for: native, OpenAI-shaped or an interaction."""
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
    found = named(name)
    return found if found in TOOLS else None
