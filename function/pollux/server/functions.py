"""The gateway under the Functions Framework, which has no lifespan: the first request starts it, SIGTERM ends it.

gunicorn forks after the import, so nothing here uses an event loop before the first request.
"""

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

from pollux import log as logs
from pollux.gemini.errors import GatewayError
from pollux.relay.client import Message, Receive, Scope, Send
from pollux.relay.passing import BrokenAnswerError, refuse
from pollux.server.admission import IN_CLOUD
from pollux.server.app import App
from pollux.server.routes import health, is_health
from pollux.server.wiring import START_ERRORS, open_gateway
from pollux.settings import Settings, SettingsError

log = logging.getLogger("pollux")

AGAIN_AFTER = 1.0
"""Seconds after a failed start until the next attempt; requests are refused meanwhile."""
LAST_WORDS = 0.4
GONE_AFTER = 7.9

Build = Callable[[contextlib.ExitStack], Awaitable[App]]


class NotStartedError(Exception):
    """The gateway could not start. Its log says why."""


async def build(stack: contextlib.ExitStack) -> App:
    """Start a gateway with the settings of the environment. The stack closes everything else that is opened for it."""
    try:
        settings = Settings.from_env()
    except SettingsError:
        defaults = Settings()
        _configure_logs(defaults.log_form, defaults.log_level)
        raise
    _configure_logs(settings.log_form, settings.log_level)
    opened = await open_gateway(settings, stack)
    if opened.local is not None and opened.local.made:
        log.warning("tokens were made for this machine; they are in tokens.json in %s", settings.data)
    if opened.simulated:
        log.warning("SIMULATED GEMINI: no key is configured, so answers are made up by a simulator")
    elif not opened.keys:
        log.warning("no key is configured: every request is refused until there is one")
    await opened.app.start()
    log.info("%s", opened.ready)
    return opened.app


@lru_cache(maxsize=1)
def _configure_logs(kind: str, level: str) -> None:
    """Configure logging once, not at each attempt to start: a new handler would drop the lines that the old one has not
    written."""
    logs.configure(kind, level)
    logging.getLogger("uvicorn.access").disabled = True  # it would show ?key=; we log requests ourselves
    logging.getLogger("uvicorn.error").addFilter(_no_surprise)


def _no_surprise(record: logging.LogRecord) -> bool:
    return record.msg != "ASGI callable returned without completing response."  # logged before, with the reason


class Entry:
    """An ASGI app that becomes the gateway with its first request."""

    def __init__(self, build: Build = build, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._build = build
        self._clock = clock
        self._app: App | None = None
        self._starting: asyncio.Task[App] | None = None
        self._failed_at = float("-inf")
        self._stack = contextlib.ExitStack()
        self._listens = self._stopping = False
        self._under_way = 0
        self._idle = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._listens:
            self._listens = True
            self._take_signals()
        if is_health(scope):  # also when the start fails: a restart of the process would not help
            await health(scope, receive, send)
            return
        self._under_way += 1
        self._idle.clear()
        try:
            await self._serve(scope, receive, self._closing(send))
        except BrokenAnswerError:
            pass  # returning early cuts the connection too, and the framework does not call it a crash
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: App | None = None
        if not self._stopping:
            with contextlib.suppress(NotStartedError):
                app = self._app or await self._started()
        if self._stopping:
            await refuse(scope, send, GatewayError("STOPPING", "the gateway stops", retry_after=1.0))
        elif app is None:
            said = "the gateway could not start; its log says why"
            await refuse(scope, send, GatewayError("NOT_STARTED", said, retry_after=AGAIN_AFTER))
        else:
            await app.routes(scope, receive, send)

    def _closing(self, send: Send) -> Send:
        """Close connections after their answer once the process stops."""

        async def last(message: Message) -> None:
            if self._stopping and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        return last

    # --- the start ---

    async def _started(self) -> App:
        """Simultaneous first requests share one start. A client that leaves does not cancel it."""
        if self._starting is None:
            if self._clock() - self._failed_at < AGAIN_AFTER:
                raise NotStartedError
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> App:
        try:
            self._app = await self._build(self._stack)
        except asyncio.CancelledError:
            raise NotStartedError from None
        except Exception as error:
            exc_info = None if isinstance(error, START_ERRORS) else error
            log.error("the gateway could not start: %s", error, exc_info=exc_info)
            self._stack.close()
            self._failed_at = self._clock()
            raise NotStartedError from None
        finally:
            self._starting = None
        return self._app

    # --- the end ---

    def _take_signals(self) -> None:
        """Replace the server's handlers, which close connections at once and then wait for open streams without end."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            servers = signal.getsignal(number)
            with contextlib.suppress(NotImplementedError):  # on Windows
                loop.add_signal_handler(number, self._told, number, servers)

    def _told(self, number: int, servers: Any) -> None:
        if self._stopping:  # a second time: at once
            servers(number, None)
            return
        self._stopping = True
        self._ending = asyncio.create_task(self.end(lambda: servers(number, None)))

    async def end(self, leave: Callable[[], None]) -> None:
        """Finish running requests, cut those that do not end, stop the gateway, then `leave`."""
        self._stopping = True
        began = self._clock()
        try:
            if self._starting is not None:
                await asyncio.wait({self._starting}, timeout=IN_CLOUD.cut)
            if self._starting is not None:
                self._starting.cancel()
                await self._idle_within(LAST_WORDS)
            app = self._app
            if app is None:
                return
            app.pool.end(IN_CLOUD.wait)
            if not await self._idle_within(began + IN_CLOUD.cut - self._clock()):
                app.admission.cut()
                await self._idle_within(LAST_WORDS)
            async with asyncio.timeout(max(LAST_WORDS, began + GONE_AFTER - self._clock())):
                await app.stop()
        except Exception as error:
            log.error("the gateway did not stop cleanly: %s", error or type(error).__name__)
        finally:
            self._stack.close()
            leave()

    async def _idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                while self._under_way:
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True
