"""How much of Pollux one request passes: the modules it enters, and the Python calls in them.

python -m bench.calls [--functions]

Counted is one plain generateContent that is answered with 200, from the call of the ASGI app until its tasks end,
in a gateway that has served 50 such requests: memory store, three projects with a key each of which no limit is known
(the usual case). A call is a `call` event of sys.setprofile in a file of the package `pollux`: each continuation of
a coroutine or generator counts, as each costs, and so does each comprehension (Python 3.12 makes none). The keys
and the upstream are stand-ins of this module: the connection to Gemini, uvicorn and libraries are not counted.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pollux
from bench.load import ANSWER, BODY
from bench.processes import PATH, TOKEN, show
from pollux.backends.keys.contract import Key, Secret
from pollux.backends.keys.tokens import Tokens
from pollux.backends.upstream import Streamed
from pollux.relay.client import Message
from pollux.server.app import App
from pollux.server.wiring import make_app
from pollux.settings import Settings

PACKAGE = Path(pollux.__file__).parent
PROJECTS = 3
WARM = 50
MODULES_MOST, CALLS_MOST = 30, 320


class Keys:
    async def keys(self) -> tuple[Key, ...]:
        return KEYS

    async def value(self, key_id: str) -> Secret:
        return SECRET

    async def reread(self, key_id: str) -> bool:
        return False


KEYS = tuple(Key(f"k{i}", f"p{i}") for i in range(PROJECTS))
SECRET = Secret("bench-key-value")


class Answer:
    """That of bench.load, which is there at once."""

    status = 200
    headers = ((b"content-type", b"application/json; charset=UTF-8"), (b"content-length", b"%d" % len(ANSWER)))
    length = len(ANSWER)

    def __init__(self) -> None:
        self._rest = ANSWER

    async def read(self) -> bytes:
        return await self.chunk()

    async def chunk(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest

    def close(self) -> None:
        pass


class Upstream:
    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> Answer:
        return Answer()

    async def close(self) -> None:
        pass


async def ask(app: App) -> int:
    """The status of one answer."""
    headers = [
        (b"host", b"127.0.0.1:3145"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(BODY)),
        (b"x-goog-api-key", TOKEN.encode()),
    ]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "scheme": "http", "http_version": "1.1", "root_path": ""}
    scope |= {"path": PATH, "raw_path": PATH.encode(), "query_string": b"", "headers": headers}
    scope |= {"client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 3145)}
    waiting: list[Message] = [{"type": "http.request", "body": BODY, "more_body": False}]
    statuses: list[int] = []

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()  # the client stays
        return waiting.pop()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app.routes(scope, receive, send)
    return statuses[0]


async def count() -> Counter[tuple[str, str]]:
    """(module, function) -> calls of one request."""
    calls: Counter[tuple[str, str]] = Counter()

    def seen(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(f"{PACKAGE}/"):
            calls[file[len(str(PACKAGE)) + 1 :], frame.f_code.co_qualname] += 1

    settings = Settings(store="memory://")
    tokens = Tokens((TOKEN,), "admin-token-of-the-bench", query_token=False)
    app = make_app(settings, tokens, keyring=Keys(), upstream=Upstream())
    await app.start()
    for _ in range(WARM):
        if (status := await ask(app)) != 200:
            raise SystemExit(f"a request was answered {status}")
    await _quiet()
    sys.setprofile(seen)
    try:
        await ask(app)
        await _quiet()
    finally:
        sys.setprofile(None)
    await app.stop()
    return calls


async def _quiet() -> None:
    """Let all tasks go on that wait for nothing but their turn."""
    for _ in range(20):
        await asyncio.sleep(0)


def _by_module(calls: Counter[tuple[str, str]]) -> Counter[str]:
    modules: Counter[str] = Counter()
    for (module, _), times in calls.items():
        modules[module] += times
    return modules


def totals(calls: Counter[tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [
        ("modules", str(len(_by_module(calls))), f"at most {MODULES_MOST}"),
        ("calls", str(calls.total()), f"at most {CALLS_MOST}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", action="store_true", help="show each function, not only modules")
    chosen = parser.parse_args()
    calls = asyncio.run(count())
    for module, times in _by_module(calls).most_common():
        show([(module, str(times), "")])
        if chosen.functions:
            show([(f"    {name}", str(n), "") for (inside, name), n in calls.most_common() if inside == module])
    show(totals(calls))


if __name__ == "__main__":
    main()
