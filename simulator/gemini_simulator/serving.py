"""Serves a simulator: in this loop, or in a thread. And the keys and limits of the demo."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gemini_simulator.api import Simulator

if TYPE_CHECKING:
    import uvicorn

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than the gateway keeps one, as with Google."""
DEFAULTS = {"rpm": 15, "tpm": 250_000, "rpd": 500}
"""Limits of each project and model."""


def demo_keys(count: int) -> list[tuple[str, str, str]]:
    """(id, project, value) of that many keys, each with its own project. They do not look like real keys."""
    return [(f"simulated-{i}", f"simulated-project-{i}", f"simulated-key-{i}") for i in range(1, count + 1)]


def make_server(simulator: Simulator, log_level: str | None = "critical") -> "uvicorn.Server":
    import uvicorn  # not needed where the simulator is called in-process

    return uvicorn.Server(
        uvicorn.Config(
            simulator,
            log_config=None,
            log_level=log_level,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,
            backlog=2048,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    simulator: Simulator,
    host: str = "127.0.0.1",
    port: int = 0,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve in this loop until cancelled. `started` gets the URL. Raises OSError if the port is taken.

    In the main thread uvicorn takes over SIGINT and SIGTERM, and all its loggers are silenced: otherwise use `running`.
    """
    with listen(host, port) as listener:
        server = make_server(simulator)
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            if started is not None:
                started(url_of(listener))
            await asyncio.shield(task)
        finally:
            server.should_exit = True
            await task


@contextlib.contextmanager
def running(simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve in a thread with its own loop; gives the URL. Calls that still run at the end are cut."""
    with listen(host, port) as listener:
        server = make_server(simulator, log_level=None)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                server.run(sockets=[listener])
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=work, name=f"simulator-{id(server):x}", daemon=True)
        # Calls that are cut are no errors here. All uvicorn servers of a process share their loggers, and a gateway may
        # run beside this one: so the thread is silenced, not the logger.
        logger = logging.getLogger("uvicorn.error")
        silence: Callable[[logging.LogRecord], bool] = lambda record: record.threadName != thread.name  # noqa: E731
        logger.addFilter(silence)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.002)
            if failures:
                raise failures[0]
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(10)
            logger.removeFilter(silence)
