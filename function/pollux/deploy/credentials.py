"""Where `pollux deploy check` takes its tokens from: never from its arguments, which every process may read."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from pollux.log_safety import clean

IDENTITY = "IDENTITY_TOKEN"
"""No setting of a gateway, and so not named like one: `pollux serve` in the same shell would refuse to start."""
Ask = Callable[[str], str]


class CredentialError(Exception):
    """A token cannot be had, or cannot be one: what was looked at, never a token."""


@dataclass(frozen=True, slots=True)
class Credentials:
    client: str = field(repr=False)
    client_from: str
    admin: str = field(default="", repr=False)
    admin_from: str = ""
    identity: str = field(default="", repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.client, self.admin, self.identity)))


@dataclass(frozen=True, slots=True)
class Sources:
    """All places, in this order: a file, the settings, this machine's tokens.json, a person. None: not to be asked."""

    token_file: str | None
    admin_token_file: str | None
    settings_token: str = field(repr=False)
    settings_admin: str = field(repr=False)
    tokens_json: Path | None
    ask: Ask | None
    stdin: TextIO

    def find(self, environ: Mapping[str, str]) -> Credentials:
        """CredentialError without a client token. Without the admin's the status is skipped."""
        read = _from_file(self.token_file, self.stdin) if self.token_file else {}
        own = _from_tokens_json(self.tokens_json)
        client, client_from = self._first(
            (read.get("client", ""), self.token_file or ""),
            (self.settings_token, "POLLUX_TOKEN"),
            (own.get("client", ""), str(self.tokens_json)),
            asking="Client token (not shown): ",
        )
        if not client:
            local = f"{self.tokens_json} has none; " if self.tokens_json else ""
            raise CredentialError(
                f"no client token: {local}set POLLUX_TOKEN, or say --token-file FILE (- is standard input)"
            )
        admin_read = _from_file(self.admin_token_file, self.stdin) if self.admin_token_file else {}
        admin, admin_from = self._first(
            (admin_read.get("admin") or admin_read.get("client", ""), self.admin_token_file or ""),
            (read.get("admin", ""), self.token_file or ""),
            (self.settings_admin, "POLLUX_ADMIN_TOKEN"),
            (own.get("admin", ""), str(self.tokens_json)),
            asking="Admin token (not shown; Enter leaves out the status): ",
        )
        identity = environ.get(IDENTITY, "").strip()
        for token, where in ((client, client_from), (admin, admin_from), (identity, IDENTITY)):
            if token and not (token.isascii() and token.isprintable() and " " not in token):
                raise CredentialError(f"{where}: has characters that a header cannot carry")
        return Credentials(client, client_from, admin, admin_from, identity)

    def _first(self, *found: tuple[str, str], asking: str) -> tuple[str, str]:
        known = next(((token, where) for token, where in found if token), None)
        if known is None:
            return (self.ask(asking).strip(), "the terminal") if self.ask else ("", "")
        return known


def _from_file(name: str, stdin: TextIO) -> Mapping[str, str]:
    """A file with a token in its first line, or one like tokens.json."""
    try:
        text = stdin.read() if name == "-" else Path(name).expanduser().read_text()
    except OSError as error:
        raise CredentialError(f"{clean(name)}: {error.strerror}") from None  # it may be a token by mistake
    except UnicodeDecodeError:
        raise CredentialError(f"{name}: not UTF-8 text") from None
    if text.lstrip().startswith("{"):
        if found := _tokens(text):
            return found
        raise CredentialError(f'{name}: expected {{"client": …, "admin": …}}, or a token in its first line')
    lines = text.split("\n", 1)
    if not lines[0].strip():
        raise CredentialError(f"{name}: its first line is empty; a token belongs there")
    return {"client": lines[0].strip()}


def _from_tokens_json(path: Path | None) -> Mapping[str, str]:
    try:
        return _tokens(path.read_text()) if path else {}
    except (OSError, UnicodeDecodeError):
        return {}


def _tokens(text: str) -> Mapping[str, str]:
    try:
        found = json.loads(text)
        return {name: str(found[name]).strip() for name in ("client", "admin") if found.get(name)}
    except (ValueError, RecursionError, AttributeError):
        return {}
