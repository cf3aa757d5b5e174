"""`pollux serve`: from settings to a running gateway on this machine, and its orderly end."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from pollux import log as logs
from pollux.backends.keys.tokens import greeting
from pollux.redaction import redact_values
from pollux.server import admission
from pollux.server.app import App
from pollux.server.request_head import Protocol
from pollux.server.wiring import START_ERRORS, Gateway, open_gateway, simulator_is_installed
from pollux.settings import Settings, SettingsError

BACKLOG = 2048
WEAK_TOKEN = 16
RULE = "*" * 78


def serve(settings: Settings, host: str, port: int, *, demo: bool) -> int:
    """Run until Ctrl-C or SIGTERM. Returns the exit code. If the start fails, one line says why."""
    logs.configure(settings.log_form, settings.log_level)
    try:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(listen(host, port))
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                return runner.run(_serve(settings, listener, demo=demo, stack=stack))
    except START_ERRORS as error:
        _say(redact_values(f"pollux serve: {error}"))  # --host may be a key by mistake
        return 2


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def listen(host: str, port: int) -> socket.socket:
    """Raises SettingsError if the port is taken or the host is invalid."""
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # early clients wait in the backlog for the start
    except OSError as error:
        if listener is not None:
            listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and --port"
        ) from None
    return listener


async def _serve(settings: Settings, listener: socket.socket, *, demo: bool, stack: contextlib.ExitStack) -> int:
    opened = await open_gateway(settings, stack, demo=demo)
    await opened.app.start()
    try:
        host, port = listener.getsockname()[:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
        _greet(opened, f"http://{shown}:{port}")
        await _Server(opened.app).serve(sockets=[listener])
    finally:
        await opened.app.stop()
    return 0


def _greet(opened: Gateway, url: str) -> None:
    app, keys, local = opened.app, opened.keys, opened.local
    warnings = [*(() if local is None else local.warnings), *map(str, getattr(app.keyring, "problems", ()))]
    if any(len(token) < WEAK_TOKEN for token in app.settings.token):
        warnings.append(f"a client token has fewer than {WEAK_TOKEN} characters: it can be guessed")
    for warning in warnings:
        _say(f"WARNING: {warning}")
    if opened.simulated:
        _say(RULE)
        _say("  SIMULATED GEMINI: no key is configured, so answers are made up by a simulator.")
        _say("  For the real one: `pollux keys add`, or GEMINI_API_KEY in .env; then start again.")
        _say(RULE)
    if not keys:
        demo = " `pollux serve --demo` needs none." if simulator_is_installed() else ""
        _say(RULE)
        _say("  WARNING: THERE IS NO KEY, so every request gets 503 NO_USABLE_KEY.")
        _say("  Add one with `pollux keys add`, or set GEMINI_API_KEY in .env and start again;")
        _say(f"  `pollux keys list` shows which keys are found.{demo}")
        _say(RULE)
    projects = len({key.project for key in keys})
    _say(f"Pollux listens on {url}, with {len(keys)} keys of {projects} projects. Ctrl-C stops it.")
    _say(opened.ready)
    if local is not None and local.made and local.client:
        _say("\nA client token was made for this machine; it is shown only now, and kept in tokens.json")
        _say(f"in {app.settings.data}. These three lines configure an SDK:\n")
        _say(greeting(local.client, url) + "\n")
    elif local is not None and local.client:
        _say(f"The client token is in {Path(app.settings.data) / 'tokens.json'}.")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class _Server(uvicorn.Server):
    """Finishes running requests before it stops."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._patience = admission.IN_CLOUD if app.settings.in_cloud else admission.AT_HOME
        config = uvicorn.Config(
            app.routes,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http=Protocol,
            timeout_graceful_shutdown=self._patience.finish,
            backlog=BACKLOG,
        )
        super().__init__(config)

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
        self._app.pool.end(self._patience.wait)
        asyncio.get_running_loop().call_later(self._patience.cut, self._app.admission.cut)
        self.handle_exit(number, None)
