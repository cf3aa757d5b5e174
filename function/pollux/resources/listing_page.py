"""PURE. One page of a list over all projects: how many entries each project is asked for; its token, which holds each
project's own page token.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote_plus

from pollux.backends.keys.entries import project_fault
from pollux.gemini.call import Call
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import CHAINED, collection

_SIZES, _TOKENS = ("pageSize", "page_size"), ("pageToken", "page_token")

Tokens = dict[str, str]
"""Project -> its page token, "" for the first page. A project that is not in it has no more entries."""


class Page:
    """A page never has more entries than were asked for, and is empty only if it is the last: clients take an empty
    page for the end, or even for an entry.
    """

    def __init__(self, left: Tokens, most: int | None) -> None:
        self.left = left
        """Where the next page continues."""
        self.answered = False
        self._most = most
        self._merged: dict[str, Any] = {}
        self._filled = False
        self._peeked = False

    def shares(self) -> dict[str, int | None]:
        """Whom to ask next, and for how many entries. Nobody when the page has an entry, or nothing is left."""
        if self._filled:
            return {}
        if self._most is None:
            return dict.fromkeys(self.left)
        share, rest = divmod(self._most, len(self.left) or 1)
        return {project: share + (at < rest) for at, project in enumerate(self.left) if share or at < rest}

    def unseen(self) -> dict[str, int | None]:
        """Whom to ask, once, whether it has anything at all: if the page is still empty, so as not to ask all projects
        in shares; or if no other project said that there is a next page.
        """
        if self._peeked or (self._filled and any(self.left.values())):
            return {}
        self._peeked = True
        return {project: 1 for project, token in self.left.items() if not token}

    def document(self, call: Call) -> dict[str, Any]:
        """The page as Google would write it, with a token if there is a next one."""
        if self.left:
            token = base64.urlsafe_b64encode(json.dumps(self.left, separators=(",", ":")).encode()).rstrip(b"=")
            self._merged["next_page_token" if _is_snake(call) else "nextPageToken"] = token.decode()
        return self._merged

    def add(self, project: str, document: Mapping[str, Any] | None, *, peek: bool) -> None:
        """A project's answer; None if it gave none. `peek`: see only whether it has entries."""
        own_token = self.left.pop(project)
        if document is None:
            return
        self.answered = True
        token = document.get("nextPageToken") or document.get("next_page_token")
        lists = {field: value for field, value in document.items() if isinstance(value, list)}
        if peek:
            if token or any(lists.values()):
                self.left[project] = own_token
            return
        for field, value in lists.items():
            self._merged.setdefault(field, []).extend(value)
            self._filled = self._filled or bool(value)
        if isinstance(token, str) and token:
            self.left[project] = token


def tokens_of(token: str) -> Tokens:
    """The projects' page tokens in one of ours. It is not sealed: its holder may have changed it."""
    try:
        tokens = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if isinstance(tokens, dict):
            "".join(tokens.values()).encode()
    except (ValueError, TypeError, RecursionError):  # ValueError: half a character, or no Base64
        tokens = None
    if not isinstance(tokens, dict) or any(map(project_fault, tokens)):
        raise foreign_token()
    return tokens


def foreign_token() -> GatewayError:
    return GatewayError("BAD_REQUEST", "the page token is none of this gateway's; begin the list anew")


def _is_snake(call: Call) -> bool:
    """The newer parts of the API have no other spelling."""
    return collection(call) in CHAINED


def asked_page(query: str) -> tuple[str, int | None]:
    """The page token and size. None: the client leaves the size to Google."""
    size = parameter(query, _SIZES)
    number = int(size) if size.isascii() and size.isdigit() and len(size) < 6 else 0
    return parameter(query, _TOKENS), number or None


def parameter(query: str, names: Sequence[str]) -> str:
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if unquote_plus(name) in names:
            return unquote_plus(value)
    return ""


def target_at(call: Call, token: str, size: int | None) -> str:
    """The same list from a project's page token on, with this size."""
    snake, parts = _is_snake(call), _without(call.query, _TOKENS if size is None else (*_TOKENS, *_SIZES))
    parts += [] if size is None else [f"{_SIZES[snake]}={size}"]
    parts += [f"{_TOKENS[snake]}={quote(token, safe='', errors='replace')}"] if token else []
    return f"{call.path}?{'&'.join(parts)}" if parts else call.path


def target_after(call: Call, after: str, limit: int) -> str:
    """The same list of OpenAI's from an id on."""
    parts = [*_without(call.query, ("after", "limit")), f"limit={limit}"]
    parts += [f"after={quote(after, safe='', errors='replace')}"] if after else []
    return f"{call.path}?{'&'.join(parts)}"


def _without(query: str, names: Sequence[str]) -> list[str]:
    return [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) not in names]
