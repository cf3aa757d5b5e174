"""`pollux serve`: from settings to a running gateway on this machine, and its orderly end."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pollux import log as logs
from pollux.auth import LocalTokens, TokenError, greeting
from pollux.catalog import CatalogError
from pollux.keys import Key, Keyring, KeySourceError, Secret
from pollux.ready import ready
from pollux.settings import Settings, SettingsError, in_cloud
from pollux.store import StoreError

if TYPE_CHECKING:
    from pollux.app import App

DEMO_KEYS = 4
BACKLOG = 2048
WEAK_TOKEN = 16


class FixedKeyring:
    """The keys of the demo: always the same."""

    simulated = True

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
            listener = stack.enter_context(listen(host, port))
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                return runner.run(_serve(settings, listener, simulated=demo, stack=stack))
    except (SettingsError, TokenError, CatalogError, KeySourceError, StoreError) as error:
        print(f"pollux serve: {error}", file=sys.stderr)
        return 2


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def listen(host: str, port: int) -> socket.socket:
    """SettingsError if the port is taken or the host is none."""
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


async def _serve(settings: Settings, listener: socket.socket, *, simulated: bool, stack: contextlib.ExitStack) -> int:
    from pollux.app import App, load_catalog, open_keyring, open_tokens

    keyring: Keyring = open_keyring(settings)
    configured = settings.keys_file or settings.secrets or settings.upstream != Settings().upstream
    simulated = simulated or (not configured and not in_cloud() and not await keyring.keys())
    if simulated:
        settings, keyring = demo(settings, stack)
    catalog = load_catalog(settings)
    tokens, local = await open_tokens(settings)  # last: a token that is made is shown once
    _warn(settings, local)
    app = App(settings, tokens, keyring=keyring, catalog=catalog)
    await app.start()
    try:
        host, port = listener.getsockname()[:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
        await _greet(app, f"http://{shown}:{port}", local, simulated=simulated)
        await _Gateway(app).serve(listener)
    finally:
        await app.stop()
    return 0


def demo(settings: Settings, stack: contextlib.ExitStack) -> tuple[Settings, Keyring]:
    """Settings and keys for a simulated Gemini, which runs until the stack ends. A store that is named stays."""
    from pollux.simulator import DEFAULTS, Simulator, demo_keys, running

    made = demo_keys(DEMO_KEYS)
    keys = [(Key(id_, project, limits={"*": DEFAULTS}), value) for id_, project, value in made]
    simulated = Simulator(made, DEFAULTS, keep=0)
    url = stack.enter_context(running(simulated))
    return replace(settings, upstream=url, store=settings.store or "memory://"), FixedKeyring(keys)


def _warn(settings: Settings, local: LocalTokens | None) -> None:
    for warning in () if local is None else local.warnings:
        _say(f"WARNING: {warning}")
    for token in settings.token:
        if len(token) < WEAK_TOKEN:
            _say(f"WARNING: a client token has fewer than {WEAK_TOKEN} characters: it can be guessed")


async def _greet(app: "App", url: str, local: LocalTokens | None, *, simulated: bool) -> None:
    keys = await app.keyring.keys()
    if simulated:
        _say("*" * 78)
        _say("  SIMULATED GEMINI: no key is configured, so answers are made up by a simulator.")
        _say("  For the real one: `pollux keys add`, or GEMINI_API_KEY in .env; then start again.")
        _say("*" * 78)
    for problem in getattr(app.keyring, "problems", ()):
        _say(f"WARNING: {problem}")
    if not keys:
        _say("*" * 78)
        _say("  WARNING: THERE IS NO KEY, so every request gets 503 NO_USABLE_KEY.")
        _say("  Add one with `pollux keys add`, or set GEMINI_API_KEY in .env and start again;")
        _say("  `pollux keys list` shows which keys are found. `pollux serve --demo` needs none.")
        _say("*" * 78)
    projects = len({key.project for key in keys})
    _say(f"Pollux listens on {url}, with {len(keys)} keys of {projects} projects. Ctrl-C stops it.")
    _say(ready(app.settings, keys, local))
    if local is not None and local.made and local.client:
        _say("\nA client token was made for this machine; it is shown only now, and kept in tokens.json")
        _say(f"in {app.settings.data}. These three lines configure an SDK:\n")
        _say(greeting(local.client, url) + "\n")
    elif local is not None and local.client:
        _say(f"The client token is in {Path(app.settings.data) / 'tokens.json'}.")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class _Gateway:
    """uvicorn, with an end that finishes running requests first, and signals that do not cut it short."""

    def __init__(self, app: "App") -> None:
        import uvicorn

        from pollux.front import Protocol
        from pollux.reception import AT_HOME, IN_CLOUD

        patience = IN_CLOUD if in_cloud() else AT_HOME

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
                app.pool.end(patience.wait)
                asyncio.get_running_loop().call_later(patience.cut, app.reception.cut)
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
                http=Protocol,
                timeout_graceful_shutdown=patience.finish,
                backlog=BACKLOG,
            )
        )

    async def serve(self, listener: socket.socket) -> None:
        await self._server.serve(sockets=[listener])
