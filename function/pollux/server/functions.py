"""The gateway under the Functions Framework, which has no lifespan: the first request starts it, SIGTERM ends it.

`pollux serve` does not use this. gunicorn forks after the import, so nothing here is bound to a loop before a request
comes.
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
from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.tokens import TokenError
from pollux.backends.store.contract import StoreError
from pollux.gemini.catalog import CatalogError
from pollux.gemini.errors import GatewayError
from pollux.relay.client import Message, Receive, Scope, Send
from pollux.relay.passing import BrokenAnswerError, refuse
from pollux.server.admission import IN_CLOUD
from pollux.server.app import App
from pollux.server.routes import health, is_health
from pollux.server.wiring import open_gateway
from pollux.settings import Settings, SettingsError

log = logging.getLogger("pollux")

AGAIN_AFTER = 1.0
"""Seconds after a failed start in which requests are refused without another try."""
LAST_WORDS = 0.4
GONE_AFTER = 7.9

Build = Callable[[contextlib.ExitStack], Awaitable[App]]


class NotStartedError(Exception):
    """The gateway could not start; the log says why."""


async def build(stack: contextlib.ExitStack) -> App:
    """A gateway that has started, as the environment says. What it needs beside itself ends with the stack."""
    try:
        settings = Settings.from_env()
    except SettingsError:
        defaults = Settings()
        _configure_logs(defaults.log_form, defaults.log_level)
        raise
    _configure_logs(settings.log_form, settings.log_level)
    opened = await open_gateway(settings, stack)
    if opened.local is not None and opened.local.made:
        log.warning("tokens were made for this machine: they are in tokens.json in %s", settings.data)
    if opened.simulated:
        log.warning("SIMULATED GEMINI: no key is configured, so answers are made up by a simulator")
    elif not opened.keys:
        log.warning("no key is configured: every request will be refused until one is")
    await opened.app.start()
    log.info("%s", opened.ready)
    return opened.app


@lru_cache(maxsize=1)
def _configure_logs(kind: str, level: str) -> None:
    """Once, not with every try to start: a new outlet would lose what the old one has not written yet."""
    logs.configure(kind, level)
    logging.getLogger("uvicorn.access").disabled = True  # whole addresses, ?key= too; requests have a line of ours
    logging.getLogger("uvicorn.error").addFilter(_no_surprise)


def _no_surprise(record: logging.LogRecord) -> bool:
    return record.msg != "ASGI callable returned without completing response."  # said before, with the reason


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
        if is_health(scope):  # also while the start fails: a restart of the process would not help
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
        if not self._stopping:
            try:
                app = self._app or await self._started()
            except NotStartedError as error:
                await refuse(scope, send, GatewayError("NOT_STARTED", str(error), retry_after=AGAIN_AFTER))
                return
        if self._stopping:
            await refuse(scope, send, GatewayError("STOPPING", "the gateway stops", retry_after=1.0))
            return
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
        """First requests that come together share one start. A client that leaves does not cancel it."""
        if self._starting is None:
            if self._clock() - self._failed_at < AGAIN_AFTER:
                raise NotStartedError("the gateway could not start; its log says why")
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> App:
        try:
            self._app = await self._build(self._stack)
        except asyncio.CancelledError:
            raise NotStartedError("the gateway was told to stop before it had started") from None
        except Exception as error:
            known = isinstance(error, SettingsError | TokenError | CatalogError | KeySourceError | StoreError)
            log.error("the gateway could not start: %s", error, exc_info=None if known else error)
            self._stack.close()
            self._failed_at = self._clock()
            raise NotStartedError("the gateway could not start; its log says why") from None
        finally:
            self._starting = None
        return self._app

    # --- the end ---

    def _take_signals(self) -> None:
        """The server's own handlers would close at once, then wait for open streams without end."""
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
        """Finish running requests, cut those that do not end, give back what was reserved ahead, then let go."""
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
            log.error("not all was given back at the end: %s", error or type(error).__name__)
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
