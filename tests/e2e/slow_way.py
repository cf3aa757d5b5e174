"""A slow network in front of a server: what comes back comes late."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator


class SlowWay:
    """A TCP proxy. `delay`: seconds by which each answer is late; it may change at any time."""

    def __init__(self, target: str) -> None:
        self.delay = 0.0
        self.host = ""
        self._target = target.rsplit(":", 1)

    async def serve(self, ready: threading.Event, end: asyncio.Event) -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection(self._target[0], int(self._target[1]))
            for source, drain, late in ((reader, far_writer, False), (far_reader, writer, True)):
                task = asyncio.create_task(self._carry(source, drain, late=late))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await end.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, source: asyncio.StreamReader, drain: asyncio.StreamWriter, *, late: bool) -> None:
        """Each piece when it is due: many may be under way at once. A queue keeps their order; timers of the loop would
        not, where several are due at the same moment, and gRPC's connection would hang on what comes out of order."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def pass_on() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    return
                drain.write(data)

        passing = asyncio.create_task(pass_on())
        try:
            while data := await source.read(65536):
                under_way.put_nowait((loop.time() + (self.delay if late else 0.0), data))
            under_way.put_nowait((0.0, b""))  # the end, after all that is under way
            await passing
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            passing.cancel()
            drain.close()


@contextlib.contextmanager
def slow_way(target: str) -> Iterator[SlowWay]:
    way, ready = SlowWay(target), threading.Event()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(way.serve(ready, end),))
    thread.start()
    assert ready.wait(5)
    try:
        yield way
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
        loop.close()
