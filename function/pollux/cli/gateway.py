"""How commands reach a gateway: its address, the admin token, and the one way to make an HTTP client."""

import contextlib
import ipaddress
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from pollux.settings import Settings, base_url, proxy_for

TIMEOUT_S = 10


class AskError(click.ClickException):
    """The gateway gave no usable answer: says what happened and what to do next. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.ctx = click.get_current_context(silent=True)


class Address(click.ParamType[str]):
    """A gateway's address. An invalid one is not repeated: it may hold a password."""

    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode("ascii")
            return base_url(value)
        except ValueError:
            self.fail("expected one such as http://127.0.0.1:3145 or https://pollux-….run.app, without token or query")


url_option = click.option(
    "--url",
    type=Address(),
    metavar="URL",
    help="The gateway's address (default: POLLUX_URL, else http://127.0.0.1:3145).",
)


def admin_token(settings: Settings) -> str:
    """The admin token of the settings, else the one in tokens.json of this machine."""
    path = tokens_file(settings)
    if token := settings.admin_token or tokens_in(path).get("admin"):
        return token
    raise AskError(f"no admin token: set POLLUX_ADMIN_TOKEN ({path} has none either)")


def tokens_file(settings: Settings) -> Path:
    return Path(settings.data) / "tokens.json"


def tokens_in(path: Path) -> dict[str, str]:
    """The client and the admin token in a tokens.json; {} if it cannot be read."""
    try:
        return parsed_tokens(path.read_text(errors="replace"))
    except OSError:
        return {}


def parsed_tokens(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
        return {kind: str(found[kind]).strip() for kind in ("client", "admin") if found.get(kind)}
    except (ValueError, RecursionError, AttributeError):
        return {}


def is_local(url: str) -> bool:
    """Whether the address is of this machine."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def http_options(url: str) -> dict[str, Any]:
    """Options for an httpx2 client: the same proxy and certificates as the gateway uses to reach Gemini.

    `trust_env` is off because httpx2 would ask a proxy for 127.0.0.1.
    """
    import ssl

    import httpx2

    proxy = proxy_for(url)
    through = httpx2.Proxy(proxy.url, auth=(proxy.user, proxy.password) if proxy.user else None) if proxy else None
    return {"proxy": through, "verify": ssl.create_default_context(), "trust_env": False}


def through_proxy(url: str) -> str:
    """For an error text: which proxy was asked for this address."""
    proxy = proxy_for(url)
    return f" through the proxy {proxy.url}" if proxy else ""


def ask(url: str, path: str, token: str, *, method: str = "GET") -> dict[str, Any]:
    """Call the admin API of the gateway at `url`. Raises AskError."""
    import httpx2

    try:
        with httpx2.Client(**http_options(url), timeout=TIMEOUT_S, follow_redirects=True) as client:
            answer = client.request(method, url + path, headers={"authorization": f"Bearer {token}"})
        if answer.is_success:
            found: dict[str, Any] = answer.json()
            return found
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise AskError(
            f"no gateway answers at {url}{through_proxy(url)} ({error}); start one with `pollux serve`, or name its "
            "address with --url"
        ) from None
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.reason_phrase
    raise AskError(f"{url} answers {answer.status_code}: {message}")
