"""PURE. One page of a list over all projects: who is asked for how much, and its token: each project's place."""

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

Places = dict[str, str]
"""Project -> its page token, "" for the first page. Who is not in it has nothing left."""


class Page:
    """One page. It has no more on it than was asked for, and is empty only if it is the last: clients
    take an empty page for the end, or even for an entry.
    """

    def __init__(self, left: Places, most: int | None) -> None:
        self.left = left
        """Where the next page goes on."""
        self._merged: dict[str, Any] = {}
        self.told = False
        self._most = most
        self._filled = False
        self._peeked = False

    def shares(self) -> dict[str, int | None]:
        """Who is asked next, and for how many. Nobody once there is something on the page, or nothing is left."""
        if self._filled:
            return {}
        if self._most is None:
            return dict.fromkeys(self.left)
        share, rest = divmod(self._most, len(self.left) or 1)
        return {project: share + (place < rest) for place, project in enumerate(self.left) if share or place < rest}

    def unseen(self) -> dict[str, int | None]:
        """Who has to be asked, once, whether it has anything at all: the page is still empty, and to go round them all
        in shares would take too long; or nobody else said that there is a next page.
        """
        if self._peeked or (self._filled and any(self.left.values())):
            return {}
        self._peeked = True
        return {project: 1 for project, place in self.left.items() if not place}

    def document(self, call: Call) -> dict[str, Any]:
        """The page as Google would write it, with a token if there is a next one."""
        if self.left:
            self._merged["next_page_token" if _is_snake(call) else "nextPageToken"] = _token(self.left)
        return self._merged

    def take(self, project: str, document: Mapping[str, Any] | None, *, peek: bool) -> None:
        """What a project said; None if nothing. `peek`: only whether there is something."""
        place = self.left.pop(project)
        if document is None:
            return
        self.told = True
        token = document.get("nextPageToken") or document.get("next_page_token")
        lists = {field: value for field, value in document.items() if isinstance(value, list)}
        if peek:
            if token or any(lists.values()):
                self.left[project] = place
            return
        for field, value in lists.items():
            self._merged.setdefault(field, []).extend(value)
            self._filled = self._filled or bool(value)
        if isinstance(token, str) and token:
            self.left[project] = token


def _token(places: Places) -> str:
    return base64.urlsafe_b64encode(json.dumps(places, separators=(",", ":")).encode()).rstrip(b"=").decode()


def places_of(token: str) -> Places:
    """What a page token of ours says. It is not sealed: its holder may write into it whatever he likes."""
    try:
        places = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if isinstance(places, dict):
            "".join(places.values()).encode()
    except (ValueError, TypeError, RecursionError):  # of the first kind are half a character, and what is no base64
        places = None
    if not isinstance(places, dict) or any(map(project_fault, places)):
        raise foreign_token()
    return places


def foreign_token() -> GatewayError:
    return GatewayError("BAD_REQUEST", "the page token is none of this gateway's; begin the list anew")


def _is_snake(call: Call) -> bool:
    """The newer parts of the API have no other spelling."""
    return collection(call) in CHAINED


def asked_page(query: str) -> tuple[str, int | None]:
    """The page token and size that Google's own clients send."""
    return parameter(query, _TOKENS), _number(parameter(query, _SIZES))


def parameter(query: str, names: Sequence[str]) -> str:
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if unquote_plus(name) in names:
            return unquote_plus(value)
    return ""


def _without(query: str, names: Sequence[str]) -> list[str]:
    return [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) not in names]


def target_at(call: Call, place: str, size: int | None) -> str:
    """The same list from another place, and as long as this project's share."""
    parts = _without(call.query, _TOKENS if size is None else (*_TOKENS, *_SIZES))
    snake = _is_snake(call)
    parts += [] if size is None else [f"{_SIZES[snake]}={size}"]
    parts += [f"{_TOKENS[snake]}={quote(place, safe='', errors='replace')}"] if place else []
    return _target(call, parts)


def target_after(call: Call, after: str, limit: int) -> str:
    parts = [*_without(call.query, ("after", "limit")), f"limit={limit}"]
    return _target(call, [*parts, f"after={quote(after, safe='', errors='replace')}"] if after else parts)


def _target(call: Call, parts: Sequence[str]) -> str:
    return f"{call.path}?{'&'.join(parts)}" if parts else call.path


def _number(size: str) -> int | None:
    """None where the client leaves the size to Google."""
    return (int(size) or None) if size.isascii() and size.isdigit() and len(size) < 6 else None
