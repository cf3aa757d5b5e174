"""`pollux serve`: from settings to a running gateway on this machine, and its orderly end."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pollux import log as logs
from pollux.auth import TokenError, Tokens, greeting, load_or_make
from pollux.catalog import CatalogError
from pollux.keys import Key, Keyring, KeySourceError, Secret
from pollux.settings import Settings, SettingsError
from pollux.store import StoreError, open_store

if TYPE_CHECKING:
    from pollux.app import App

DEMO_KEYS = 4
FINISH_WITHIN = 30
WAIT_AT_THE_END = 5.0
"""Who has its slot within so many seconds is still served when the process stops."""
BACKLOG = 2048
WEAK_TOKEN = 16


class FixedKeyring:
    """The keys of the demo: always the same."""

    def __init__(self, keys: Sequence[tuple[Key, str]]) -> None:
        self._keys = tuple(key for key, _ in keys)
        self._values = {key.id: Secret(value) for key, value in keys}

    async def keys(self) -> tuple[Key, ...]:
        return self._keys

    async def value(self, key_id: str) -> Secret:
        return self._values[key_id]

    async def reread(self, key_id: str) -> bool:
        return False


def serve(settings: Settings, host: str, port: int, *, demo: bool) -> int:
    """Run until Ctrl-C or SIGTERM. Returns the exit code; what cannot start says why in one line."""
    logs.configure(settings.log, settings.log_level)
    try:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listen(host, port))
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                return runner.run(_serve(settings, listener, demo=demo, stack=stack))
    except (SettingsError, TokenError, CatalogError, KeySourceError, StoreError) as error:
        print(f"pollux serve: {error}", file=sys.stderr)
        return 2


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # before anybody is told of it; who comes early waits for the start
    except OSError as error:
        if listener is not None:
            listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and --port"
        ) from None
    return listener


async def _serve(settings: Settings, listener: socket.socket, *, demo: bool, stack: contextlib.ExitStack) -> int:
    from pollux.app import App, open_keyring

    keyring: Keyring = open_keyring(settings)
    configured = settings.keys_file or settings.secrets or settings.upstream != Settings().upstream
    demo = demo or (not configured and not await keyring.keys())
    if demo:
        settings, keyring = _demo(settings, stack)
    tokens, made = _tokens(settings)
    app = App(settings, tokens, keyring=keyring)
    await app.start()
    try:
        host, port = listener.getsockname()[:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
        await _greet(app, f"http://{shown}:{port}", demo=demo, made=made)
        await _Gateway(app).serve(listener)
    finally:
        await app.stop()
    return 0


def _demo(settings: Settings, stack: contextlib.ExitStack) -> tuple[Settings, Keyring]:
    from pollux.simulator import DEFAULTS, Simulator, demo_keys, running

    made = demo_keys(DEMO_KEYS)
    keys = [(Key(id_, project, limits={"*": DEFAULTS}), value) for id_, project, value in made]
    simulated = Simulator(made, DEFAULTS, keep=0)
    url = stack.enter_context(running(simulated))
    return replace(settings, upstream=url, store="memory://"), FixedKeyring(keys)


def _tokens(settings: Settings) -> tuple[Tokens, str | None]:
    """The tokens, and the client token if it was made just now."""
    client, admin, made = settings.token, settings.admin_token, None
    if not client or not admin:
        local = load_or_make(Path(settings.data))
        for warning in local.warnings:
            print(f"WARNING: {warning}", file=sys.stderr)
        if not client:
            client, made = (local.client,), local.client if local.made else None
        admin = admin or local.admin
    tokens = Tokens(client, admin, query_token=settings.query_token)
    for token in client:
        if len(token) < WEAK_TOKEN:
            print(f"WARNING: a client token has fewer than {WEAK_TOKEN} characters: it can be guessed", file=sys.stderr)
    return tokens, made


async def _greet(app: "App", url: str, *, demo: bool, made: str | None) -> None:
    keys = await app.keyring.keys()
    if demo:
        _say("*" * 78)
        _say("  SIMULATED GEMINI: no key is configured, so answers are made up by a simulator.")
        _say("  For the real one: `pollux keys add`, or GEMINI_API_KEY in .env; then start again.")
        _say("*" * 78)
    for problem in getattr(app.keyring, "problems", ()):
        _say(f"WARNING: {problem}")
    projects = len({key.project for key in keys})
    _say(f"Pollux listens on {url}, with {len(keys)} keys of {projects} projects. Ctrl-C stops it.")
    if made:
        _say("\nA client token was made for this machine; it is shown only now, and kept in tokens.json")
        _say(f"in {app.settings.data}. These three lines configure an SDK:\n")
        _say(greeting(made, url) + "\n")
    elif not app.settings.token:
        _say(f"The client token is in {Path(app.settings.data) / 'tokens.json'}.")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class _Gateway:
    """uvicorn, with an end that finishes running requests first, and signals that do not cut it short."""

    def __init__(self, app: "App") -> None:
        import uvicorn

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                loop = asyncio.get_running_loop()
                signals = (signal.SIGINT, signal.SIGTERM)
                for number in signals:
                    loop.add_signal_handler(number, self._end, number)
                try:
                    yield
                finally:
                    for number in signals:
                        loop.remove_signal_handler(number)

            def _end(self, number: int) -> None:
                app.pool.end(WAIT_AT_THE_END)
                self.handle_exit(number, None)

        self._server = Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws="none",
                http="httptools",
                timeout_graceful_shutdown=FINISH_WITHIN,
                backlog=BACKLOG,
            )
        )

    async def serve(self, listener: socket.socket) -> None:
        await self._server.serve(sockets=[listener])


def health_reader(settings: Settings) -> Callable[[], Mapping[str, Any]]:
    """Reads the store's health document, for `pollux keys list`."""

    def read() -> Mapping[str, Any]:
        return asyncio.run(_read_health(settings))

    return read


async def _read_health(settings: Settings) -> Mapping[str, Any]:
    try:
        store = open_store(settings.store_url)
        await store.open()
    except StoreError as error:
        raise LookupError(str(error)) from None
    try:
        found = await store.read(["health"])
        return found["health"][0] if "health" in found else {}
    finally:
        await store.close()
