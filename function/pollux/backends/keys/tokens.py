"""Client and admin tokens: parsed, compared in constant time, and made by the first run on a machine."""

import json
import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from itertools import islice
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote_plus

from pollux.backends.keys import private
from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.entries import PLACEHOLDER, TOKEN_PREFIX, clean

log = logging.getLogger("pollux.auth")

SHORTEST = 4
LOOKED_AT = 4
"""How many different credentials of one request are compared. SDKs send one or two."""

RawHeaders = Iterable[tuple[bytes, bytes]]

NAMED = re.compile(r"([A-Za-z][A-Za-z0-9._-]{0,31})=(?=.*[^=])(.*)")  # only = behind: a padded base64 token
_NAME_ALONE = re.compile(r".{1,32}=+")  # a name whose token is missing, or a base64 token without a name
_KEY = re.compile(r"(?:^|&)(?:k|%6[bB])(?:e|%65)(?:y|%79)=([^&]+)")
_TOKEN_HEADERS = (b"x-goog-api-key", b"x-api-key")


class TokenError(ValueError):
    """A token that cannot be used: names the setting or the file, never the token."""


class TokenSource(Protocol):
    """Where tokens come from. Every request asks, so it must be cheap."""

    async def tokens(self) -> "Tokens":
        """The current tokens. Raises TokenError or KeySourceError if they cannot be read at all."""


class Tokens:
    """The valid tokens. `client` has pairs (name, token), or entries of POLLUX_TOKEN: name=TOKEN, or TOKEN, whose name
    is client-1, client-2, …

    Several may be valid at once, for the admin too, so that each can be replaced without a pause.
    """

    __slots__ = ("_admins", "_clients", "_query_token", "complete")

    def __init__(
        self, client: Iterable[str | tuple[str, str]], admin: str | Iterable[str] | None, *, query_token: bool
    ) -> None:
        clients: dict[bytes, str] = {}
        for number, written in enumerate(client, 1):
            where = f"POLLUX_TOKEN, entry {number}"
            name, token = _entry(written, number, where) if isinstance(written, str) else written
            clients.setdefault(_checked(token, where, name), name)
        admins = ((admin,) if admin else ()) if isinstance(admin, str) else admin or ()  # a setting may be empty
        self._clients = tuple(clients.items())
        self._admins = tuple(dict.fromkeys(_checked(token, "POLLUX_ADMIN_TOKEN", "admin") for token in admins))
        if not clients.keys().isdisjoint(self._admins):
            raise TokenError("POLLUX_ADMIN_TOKEN: a client token is the same; clients would have the admin's rights")
        self._query_token = query_token
        self.complete = True
        """False: other tokens may be valid, but cannot be read at the moment."""

    def __repr__(self) -> str:
        return f"Tokens({len(self._clients)} for clients, {len(self._admins)} for the admin)"

    @property
    def for_clients(self) -> int:
        return len(self._clients)

    @property
    def for_admin(self) -> int:
        return len(self._admins)

    async def tokens(self) -> "Tokens":
        """Fixed tokens are their own source."""
        return self

    def joined(self, more: "Tokens | None") -> "Tokens":
        """These and others (None: they cannot be read). A token that is a client's and the admin's is a client's."""
        both = object.__new__(Tokens)
        both._query_token, both.complete = self._query_token, more is not None and more.complete
        clients = dict(more._clients if more else ()) | dict(self._clients)
        admins = dict.fromkeys((*self._admins, *(more._admins if more else ())))
        both._clients = tuple(clients.items())
        both._admins = tuple(token for token in admins if token not in clients)
        return both

    def check(self, headers: RawHeaders, query: bytes | str = b"") -> str | None:
        """The client's name if any credential of the request is a valid token. Header names are lower case."""
        found = None
        for presented in _first(self._presented(headers, query)):
            found = self._client(presented) or found
        return found

    def knows(self, client: str) -> bool:
        """Whether this client has a valid token."""
        return any(name == client for _, name in self._clients)

    def admin(self, headers: RawHeaders) -> bool:
        """Whether the request has an admin token, as Bearer."""
        found = False
        for presented in _first(_bearer(value) for name, value in headers if name == b"authorization"):
            digest = sha256(presented).digest()
            for known in self._admins:
                found |= compare_digest(digest, known)
        return found

    def _presented(self, headers: RawHeaders, query: bytes | str) -> Iterator[bytes]:
        for name, value in headers:
            if name in _TOKEN_HEADERS:
                yield value.strip()
            elif name == b"authorization":
                yield _bearer(value)
        if query and self._query_token:
            text = query.decode("latin-1") if isinstance(query, bytes) else query
            for match in islice(_KEY.finditer(text), LOOKED_AT):
                yield unquote_plus(match[1]).strip().encode()

    def _client(self, presented: bytes) -> str | None:
        """Every token is compared, by digests of one length, so that the time taken reveals nothing about them."""
        digest = sha256(presented).digest()
        found = None
        for known, name in self._clients:
            if compare_digest(digest, known):
                found = name
        return found


class JoinedTokens:
    """The tokens of the settings together with those of another source. If that fails, the settings' stay valid."""

    def __init__(self, own: Tokens, source: TokenSource) -> None:
        self._own, self._source = own, source
        self._last: tuple[Tokens | None, Tokens] | None = None

    async def tokens(self) -> Tokens:
        found: Tokens | None = None
        try:
            found = await self._source.tokens()
        except (TokenError, KeySourceError) as error:
            if self._last is None or self._last[0] is not None:
                log.error("only the tokens of the settings are valid: %s", error)
        if self._last is None or self._last[0] is not found:
            joined = self._own.joined(found)
            if found is not None and joined.for_admin < len({*self._own._admins, *found._admins}):
                log.error("a token is both a client's and the admin's: it has only a client's rights")
            self._last = (found, joined)
        return self._last[1]

    @property
    def problems(self) -> tuple[object, ...]:
        return tuple(getattr(self._source, "problems", ()))

    async def close(self) -> None:
        if (ends := getattr(self._source, "close", None)) is not None:
            await ends()


@dataclass(frozen=True, slots=True)
class LocalTokens:
    """The tokens of this machine. `made`: just now, so that they have to be shown."""

    client: str = field(repr=False)
    admin: str = field(repr=False)
    made: bool
    warnings: tuple[str, ...] = ()


def load_or_make(data: Path) -> LocalTokens:
    """The tokens in tokens.json of the data folder, made by the first run. Raises TokenError if they are unusable."""
    path = data / "tokens.json"
    try:
        with private.locked(path):
            if path.exists():
                return _load(path)
            client, admin = new_token(), new_token()
            private.write(path, json.dumps({"client": client, "admin": admin}, indent=2) + "\n")
    except OSError as error:
        raise TokenError(f"{path}: {error.strerror}; set POLLUX_TOKEN, or POLLUX_DATA to a folder of yours") from None
    return LocalTokens(client, admin, made=True)


def greeting(token: str, url: str) -> str:
    """Shell lines that make the Gemini and OpenAI SDKs use this gateway."""
    base = url.rstrip("/")
    return (
        f"export GOOGLE_GEMINI_BASE_URL={base}\n"
        f"export GEMINI_API_KEY={token}\n"
        f"export OPENAI_BASE_URL={base}/v1beta/openai/ OPENAI_API_KEY={token}"
    )


def first_token(entries: Iterable[str]) -> str:
    """The token in the first entry of POLLUX_TOKEN; "" if there is none."""
    return next((_entry(written, 1, "POLLUX_TOKEN, entry 1")[1] for written in entries), "")


def _load(path: Path) -> LocalTokens:
    warnings: tuple[str, ...] = ()
    if os.name == "posix" and path.stat().st_mode & 0o077:
        path.chmod(private.FILE_MODE)
        warnings = (
            f"{path}: others could read the tokens (now they cannot); delete it and start anew if they might have",
        )
    try:
        written = json.loads(path.read_bytes())
        client, admin = written["client"], written["admin"]
        Tokens([client], [admin], query_token=False)
    except (ValueError, KeyError, TypeError, RecursionError):
        client = None
    if client is None:
        raise TokenError(f"{path}: not readable as tokens; delete it, and the next start makes new ones")
    return LocalTokens(client, admin, made=False, warnings=warnings)


def new_token() -> str:
    while True:
        token = TOKEN_PREFIX + secrets.token_urlsafe(24)
        if not token.endswith(("z", "Z")):  # Cloud Run reserves addresses that end in z; ?key=TOKEN may end one
            return token


def _entry(written: str, number: int, where: str) -> tuple[str, str]:
    if named := NAMED.fullmatch(written):
        return named[1], named[2]
    if _NAME_ALONE.fullmatch(written):
        raise TokenError(
            f"{where}: ends in =, so that it may be a name without its token (a variable that is not set?); "
            "write name=TOKEN, also for a token that itself ends in ="
        )
    return f"client-{number}", written


def _checked(token: str, where: str, name: str = "") -> bytes:
    """The digest of a token. Raises TokenError if it can be guessed, or cannot be sent in a header."""
    if not token:
        raise TokenError(f"{where}: it is empty")
    if len(token) < SHORTEST:
        raise TokenError(f"{where}: fewer than {SHORTEST} characters")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(f"{where}: has characters that a header cannot carry")
    if len(set(token)) == 1 or PLACEHOLDER.fullmatch(clean(token)):
        raise TokenError(f"{where}: a placeholder, or a variable that is not set")
    if name and token.rstrip("=").casefold() == name.casefold():
        raise TokenError(f"{where}: the token is the client's name")
    return sha256(token.encode()).digest()


def _first(presented: Iterable[bytes]) -> Iterator[bytes]:
    """The first LOOKED_AT that differ: each is compared with every token, so that a request cannot cost more."""
    seen: set[bytes] = set()
    for one in presented:
        if one and one not in seen:
            seen.add(one)
            yield one
            if len(seen) == LOOKED_AT:
                return


def _bearer(value: bytes) -> bytes:
    scheme, _, token = value.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
