"""The list of settings, and the only module that uses os.environ. The CLI's help and docs/settings.md come from it."""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

PREFIX = "POLLUX_"
ENVIRON: Mapping[str, str] = os.environ
"""No other module uses os.environ. One that reads a variable besides the settings takes this, or `Settings.environ`, as
an argument; docs/settings.md lists these variables."""
GUARDS = ("auth_tokens", "permissions", "transferOwnership", "webhooks", "files:register", "batch", "$rpc")
"""The same as in gemini.guard, which is not imported for them: every command reads the settings first."""
MODES = ("both", "pro_only", "flash_only", "flash_lite_only")
STORES = "sqlite:///PATH, memory:// or firestore://PROJECT[/DATABASE]"
BLOBS = "file:///PATH or gs://BUCKET[/PREFIX]"
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class SettingsError(Exception):
    """A setting is misspelt or not valid. The message names it and what was expected, and never has a token."""


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError("expected a number, 0 or more")
    return value


def _count(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and int(digits)):
        raise ValueError("expected a whole number, 1 or more")
    return int(digits)


def _size(text: str) -> int:
    units = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
    digits = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = digits[-1:] if digits[-1:] in units else ""
    try:
        return int(_number(digits.removesuffix(unit)) * units[unit])
    except ValueError:
        raise ValueError("expected a size such as 33554432 or 32MiB") from None


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "on", "yes"):
        return True
    if text.lower() in ("0", "false", "off", "no"):
        return False
    raise ValueError("expected on or off")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _guards(text: str) -> tuple[str, ...]:
    words = _words(text)
    if not set(words) <= set(GUARDS):
        raise ValueError(f"expected some of {', '.join(GUARDS)}")
    return words


def _optional(parse: Callable[[str], Any], empty: Any = "") -> Callable[[str], Any]:
    return lambda text: parse(text) if text else empty


def _url_of(expected: str, *starts: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text and not text.startswith(starts):
            raise ValueError(f"expected {expected}")
        return text

    return parse


def base_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:  # an unclosed bracket, an invalid port
        sound = False
    if not sound or parts.username is not None or any(c.isspace() for c in text):
        raise ValueError("expected a URL such as https://generativelanguage.googleapis.com")
    return text.rstrip("/")


def data_folder() -> Path:
    """The folder of the user's data: POLLUX_DATA, or pollux in XDG_DATA_HOME or ~/.local/share."""
    if own := ENVIRON.get("POLLUX_DATA"):
        return Path(own)
    base = ENVIRON.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "pollux"


def _in_cloud() -> bool:
    return "K_SERVICE" in ENVIRON


def quiet_grpc() -> None:
    """Call it before gRPC is imported: otherwise gRPC writes its own lines to stderr."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@dataclass(frozen=True, slots=True)
class Proxy:
    """`url` has no credentials, so it may be shown."""

    url: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    setting: str = ""
    """The variable that names it."""


def proxy_for(base: str, environ: Mapping[str, str] = ENVIRON) -> Proxy | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names for that URL, unless NO_PROXY excludes it.

    This machine itself is never called through a proxy. The names in lower case come first, as with curl.
    """
    parts = urlsplit(base)
    names = (f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    name, text = next(((name, environ[name].strip()) for name in names if environ.get(name, "").strip()), ("", ""))
    if not text or _past_proxy(parts, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    try:
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        host, port = proxy.hostname, proxy.port or (443 if proxy.scheme == "https" else 80)
    except ValueError:
        host = None
    if not host or proxy.scheme not in ("http", "https") or not host.isascii():
        raise SettingsError(f"{name}: expected a proxy such as http://HOST:PORT; SOCKS is not supported")
    shown = f"[{host}]" if ":" in host else host
    return Proxy(f"{proxy.scheme}://{shown}:{port}", unquote(proxy.username or ""), unquote(proxy.password or ""), name)


def _past_proxy(parts: SplitResult, exempt: str) -> bool:
    """`exempt`: names with their subdomains, addresses and networks, each with a port or for all ports, or *."""
    host = (parts.hostname or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    for entry in exempt.lower().replace(",", " ").split():
        name, _, end = entry.rpartition(":")
        if name and end.isdigit() and (":" not in name or name.endswith("]")):
            if int(end) != port:
                continue
            entry = name
        entry = entry.strip("[]").removeprefix("*.").strip(".")
        if entry and (entry in ("*", host) or host.endswith(f".{entry}")):
            return True
        try:
            if address is not None and address in ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def _container_memory() -> int:
    for place in CONTAINER_LIMITS:
        try:
            text = Path(place).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**50:
            return int(text)
    return 2**30


def _setting(default: Any, parse: Callable[[str], Any], help_: str, *, shown: str = "", secret: bool = False) -> Any:
    """`shown`: the default as the docs say it, where it depends on something."""
    metadata = {"parse": parse, "help": help_, "shown": shown, "secret": secret}
    if callable(default):
        return field(default_factory=default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


def _choice(help_: str, *choices: str, default: str = "", shown: str = "") -> Any:
    """Without `default` it is the first choice."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text

    return _setting(default or choices[0], parse, help_, shown=shown)


def _surroundings(read: Callable[[], Any]) -> Any:
    """A field that is no setting but comes from the environment too. It may contain keys, so no repr shows it."""
    return field(default_factory=read, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Each field is the setting POLLUX_<NAME>, except `in_cloud` and `environ`."""

    data: str = _setting(
        lambda: str(data_folder()),
        str,
        "Folder for the local database, keys and tokens.",
        shown="~/.local/share/pollux",
    )
    keys_file: str = _setting(
        "", str, "The only file that keys are read from (keys.json, key.txt or .env). Unset: every local source."
    )
    keys: tuple[str, ...] = _setting((), _words, "API keys, comma separated: one of the local sources.", secret=True)
    secrets: str = _setting("", str, "Google Cloud project whose Secret Manager holds the keys and the tokens.")
    store: str = _setting(
        "",
        _url_of(STORES, "sqlite:///", "memory://", "firestore://"),
        f"Where counters are stored: {STORES}.",
        shown="sqlite in the data folder",
    )
    token: tuple[str, ...] = _setting(
        (), _words, "Client tokens, comma separated.", secret=True, shown="made on the first local run"
    )
    admin_token: str = _setting("", str.strip, "The token of /admin.", secret=True, shown="made on the first local run")
    url: str = _setting(
        "", _optional(base_url), "The running gateway that commands call.", shown="http://127.0.0.1:3145"
    )
    upstream: str = _setting("https://generativelanguage.googleapis.com", base_url, "The Gemini API's base URL.")
    public_url: str = _setting(
        "",
        _optional(base_url),
        "This gateway's base URL as clients know it, for URLs in answers; with the path that it is mounted under.",
        shown="what the request says",
    )
    catalog: str = _setting("", str, "A catalog file of your own; its entries replace those of the built-in one.")
    strategy: str = _choice(
        "How a project is chosen: earliest, round_robin, least_recently_used or most_available.",
        "earliest",
        "round_robin",
        "least_recently_used",
        "most_available",
    )
    mode: str = _choice("Which text models may answer: both, pro_only, flash_only or flash_lite_only.", *MODES)
    window: str = _choice("How minutes are counted: sliding (safe) or minute (by the wall clock).", "sliding", "minute")
    max_wait: float = _setting(
        65.0,
        _number,
        "Seconds that a request may wait for a slot; 0: never wait. The window of a minute is 61.5 seconds long.",
    )
    fallback_after: float | None = _setting(
        None,
        _optional(_number, None),
        "Seconds of waiting after which the next model of the chain is preferred.",
        shown="max_wait",
    )
    never_below: tuple[str, ...] = _setting(
        (),
        _words,
        "The lowest model to fall back to, one for each chain, comma separated; overrides never_below of the catalog.",
    )
    max_attempts: int = _setting(
        4, _count, "Attempts of one request while Google fails (5xx, no answer); refusals are not counted."
    )
    timeout: float = _setting(
        600.0, _number, "Seconds until the first byte of an answer, and between two of its chunks."
    )
    connect_timeout: float = _setting(10.0, _number, "Seconds to connect to Gemini.")
    http: str = _choice(
        "How to connect to Gemini: own (Pollux's own connections), httpx, or auto: httpx where a proxy is to be used.",
        "auto",
        "own",
        "httpx",
    )
    sticky: bool = _setting(True, _switch, "Prefer the project that served a conversation last, if it has room.")
    allow_paths: tuple[str, ...] = _setting((), _guards, f"Guarded paths to allow: {', '.join(GUARDS)}.")
    query_token: bool = _setting(
        lambda: not _in_cloud(), _switch, "Accept a client token as ?key=.", shown="on locally, off in the cloud"
    )
    cors_origins: tuple[str, ...] = _setting((), _words, "Origins that browsers may call from, comma separated, or *.")
    max_body: int = _setting(32 * 2**20, _size, "Largest request body.", shown="32MiB")
    body_memory: int = _setting(
        lambda: _container_memory() // 2,
        _size,
        "Memory for the bodies of all requests in progress.",
        shown="half of the container's",
    )
    max_concurrent: int = _setting(1000, _count, "Requests in progress at once, including those that wait.")
    max_instances: int = _setting(
        0,
        _count,
        "The most instances that may run; the safe share when the store does not answer is the limit divided by it.",
        shown="10 with Firestore, else 1",
    )
    store_down: str = _choice(
        "When the store does not answer: safe spends a safe share, closed answers 503.", "safe", "closed"
    )
    files: str = _choice(
        "Where uploaded files are stored: own (in the project that took it) or pooled (here, and copied to projects).",
        "own",
        "pooled",
    )
    blobs: str = _setting(
        "",
        _url_of(BLOBS, "file:///", "gs://"),
        f"Where the contents of pooled files are stored for 48 hours: {BLOBS}.",
        shown="a folder in the data folder; none in the cloud",
    )
    log: str = _choice(
        "Log lines as json or text.", "auto", "json", "text", shown="json in the cloud, text in a terminal"
    )
    log_level: str = _choice(
        "Lowest level logged: debug, info, warning or error.", "debug", "info", "warning", "error", default="info"
    )
    in_cloud: bool = _surroundings(_in_cloud)
    """Whether Cloud Run runs this process: it sets K_SERVICE."""
    environ: Mapping[str, str] = _surroundings(lambda: ENVIRON)
    """All variables; some may be keys."""

    @property
    def most_instances(self) -> int:
        """Only Firestore may be shared by instances on other machines."""
        return self.max_instances or (10 if self.store.startswith("firestore://") else 1)

    @property
    def log_form(self) -> str:
        return self.log if self.log != "auto" else "json" if self.in_cloud else "text"

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{Path(self.data) / 'pollux.db'}"

    @property
    def gateway_url(self) -> str:
        return self.url or "http://127.0.0.1:3145"

    @property
    def blobs_url(self) -> str:
        return self.blobs or f"file://{Path(self.data).expanduser().absolute() / 'blobs'}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = ENVIRON, **overrides: Any) -> "Settings":
        """Read every POLLUX_* variable. An unknown one is an error: a misspelt limit must not be ignored."""
        known = {PREFIX + f.name.upper(): f for f in fields(cls) if f.metadata}
        values: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise SettingsError(
                    f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else "; see docs/settings.md")
                )
            spec = known[name]
            try:
                values[spec.name] = spec.metadata["parse"](text)
            except ValueError as error:
                shown = "" if spec.metadata["secret"] else f"={text}"
                raise SettingsError(f"{name}{shown}: {error}") from None
        settings = cls(**(values | overrides))
        if settings.files == "pooled" and not settings.blobs and settings.in_cloud:  # local folders there are memory
            raise SettingsError("POLLUX_FILES=pooled needs POLLUX_BLOBS=gs://BUCKET[/PREFIX], shared by all instances")
        return settings


def describe() -> list[tuple[str, str, str]]:
    """(variable, default, help) of every setting, for the CLI and docs/settings.md."""
    empty = Settings()
    rows = []
    for f in fields(Settings):
        if not f.metadata:
            continue
        default = f.metadata["shown"] or getattr(empty, f.name)
        text = {True: "on", False: "off"}.get(default, default) if isinstance(default, bool) else default
        text = "" if text in ((), None) else f"{text:g}" if isinstance(text, float) else str(text)
        rows.append((PREFIX + f.name.upper(), text, f.metadata["help"]))
    return rows
