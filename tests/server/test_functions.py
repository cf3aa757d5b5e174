"""Under the Functions Framework: one start for many first requests, a failed start tried again, an orderly end."""

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.tokens import TokenError, Tokens
from pollux.backends.store.contract import StoreError
from pollux.backends.store.memory import MemoryStore
from pollux.backends.upstream import Upstream, UpstreamError
from pollux.pool.quota_document import unpack
from pollux.relay.client import Message
from pollux.server import functions as module
from pollux.server.admission import IN_CLOUD
from pollux.server.app import App
from pollux.server.functions import AGAIN_AFTER, GONE_AFTER, Entry, build
from pollux.server.wiring import make_app
from pollux.settings import Settings, SettingsError
from tests.gateway import (
    ADMIN,
    CHAT,
    FLASH,
    HELLO,
    STREAM,
    TOKEN,
    FakeUpstream,
    Got,
    Keys,
    answer,
    call,
    event,
    now,
    part,
    play,
    projects,
    streams,
    whole,
)

FUNCTION = Path(module.__file__).parents[2]
STREAM_ARRAY = STREAM.partition("?")[0]


class Made:
    """Builds gateways over memory; counts them, may take its time, and fails with what `fails` holds."""

    def __init__(self, upstream: Upstream | None = None, keys: Keys | None = None, **settings: Any) -> None:
        self.upstream = upstream or FakeUpstream(lambda _: whole(answer()))
        self.keys = keys or projects(2)
        self.settings = Settings(**settings)
        self.apps: list[App] = []
        self.tries = 0
        self.takes = 0.0
        self.fails: list[Exception] = []
        self.ended = 0
        self.kept: dict[str, Any] = {}

    async def __call__(self, stack: contextlib.ExitStack) -> App:
        self.tries += 1
        stack.callback(self._end)
        await asyncio.sleep(self.takes)
        if self.fails:
            raise self.fails.pop(0)
        store = Kept(self.kept)
        tokens = Tokens([f"tester={TOKEN}"], ADMIN, query_token=True)
        app = make_app(self.settings, tokens, store=store, keyring=self.keys, upstream=self.upstream)
        await app.start()
        self.apps.append(app)
        return app

    def _end(self) -> None:
        self.ended += 1


class Kept(MemoryStore):
    """A store whose documents are seen when it closes."""

    def __init__(self, kept: dict[str, Any]) -> None:
        super().__init__(now)
        self._seen = kept

    async def close(self) -> None:
        if self._kept is not None:
            self._seen.update({name: unpack(found[0]) for name, found in (await self.scan("quota:")).items()})
        await super().close()


def entry(made: Made) -> Entry:
    return Entry(made, clock=now)


# --- the start -------------------------------------------------------------------------------------------------------


def test_first_requests_that_come_together_start_it_once() -> None:
    async def scene() -> None:
        made = Made()
        made.takes = 0.5
        gateway = entry(made)
        got = await asyncio.gather(*(call(gateway) for _ in range(20)))
        assert {each.status for each in got} == {200}
        assert (made.tries, len(made.apps)) == (1, 1)

    play(scene)


def test_a_first_client_that_leaves_does_not_end_the_start_for_others() -> None:
    async def scene() -> None:
        made = Made()
        made.takes = 0.5
        gateway = entry(made)
        first = asyncio.create_task(call(gateway))
        second = asyncio.create_task(call(gateway))
        await asyncio.sleep(0.1)
        first.cancel()
        assert (await second).status == 200
        assert made.tries == 1

    play(scene)


@pytest.mark.parametrize(("path", "openai"), [(STREAM, False), (CHAT, True), ("/v1/chat/completions", True)])
def test_a_start_that_fails_is_a_503_in_the_shape_of_the_api_and_the_reason_is_in_the_log(
    path: str, openai: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> Got:
        made = Made()
        made.fails = [SettingsError("POLLUX_STORE: no such place")]
        got = await call(entry(made), path=path)
        assert made.ended == 1, "what was begun for it has ended"
        return got

    with caplog.at_level(logging.ERROR):
        got = play(scene)
    assert (got.status, got.reason) == (503, "NOT_STARTED")
    assert got.json["error"]["code"] == ("NOT_STARTED" if openai else 503)
    assert got.headers["retry-after"] == "1"
    assert "no such place" not in got.body.decode()
    assert "no such place" in caplog.text
    assert not caplog.records[-1].exc_info, "a fault of the settings needs no traceback"


def test_a_fault_of_ours_at_the_start_leaves_its_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        made = Made()
        made.fails = [ZeroDivisionError("by nought")]
        assert (await call(entry(made))).status == 503

    with caplog.at_level(logging.ERROR):
        play(scene)
    assert caplog.records[-1].exc_info


def test_a_start_that_failed_is_tried_again_by_later_requests_but_not_by_each() -> None:
    async def scene() -> None:
        made = Made()
        made.fails = [TokenError("none"), TokenError("none still")]
        gateway = entry(made)
        assert [(await call(gateway)).status for _ in range(5)] == [503] * 5
        assert made.tries == 1
        await asyncio.sleep(AGAIN_AFTER)
        assert {(await call(gateway)).status for _ in range(5)} == {503}
        assert made.tries == 2
        await asyncio.sleep(AGAIN_AFTER)
        assert [(await call(gateway)).status for _ in range(5)] == [200] * 5
        assert made.tries == 3

    play(scene)


def test_it_lives_while_it_cannot_start() -> None:
    async def scene() -> None:
        made = Made()
        made.fails = [TokenError("none")] * 9
        gateway = entry(made)
        await call(gateway)
        for method in ("GET", "HEAD"):
            assert (await call(gateway, method, "/health", token=None)).status == 200
        assert made.tries == 1, "to ask for its health starts nothing"
        assert (await call(gateway, "GET", "/admin/status", token=None)).status == 503

    play(scene)


def test_an_answer_that_broke_is_no_crash_of_the_function() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([streams(event(part("a")), UpstreamError("reset", "gone"))])
        got = await call(entry(Made(upstream)), path=f"{STREAM_ARRAY}?alt=proto")
        assert got.status == 200
        assert not got.complete
        assert not got.broken, "nothing is raised: the server cuts what is not complete"

    play(scene)


# --- the end ---------------------------------------------------------------------------------------------------------


class Ending:
    """What a gateway's end looked like: when, and whether all was given back before."""

    def __init__(self, gateway: Entry) -> None:
        self.began = now()
        self.took: float | None = None
        self.task = asyncio.create_task(gateway.end(self._leave))

    def _leave(self) -> None:
        assert self.took is None, "once"
        self.took = now() - self.began


def test_what_runs_is_finished_and_all_is_committed_before_the_server_goes() -> None:
    async def scene() -> None:
        made = Made(FakeUpstream(lambda _: whole(answer(50), after=3.0)), projects(1))
        gateway = entry(made)
        running = asyncio.create_task(call(gateway))
        await asyncio.sleep(1)
        ending = Ending(gateway)
        await asyncio.sleep(0.5)
        late = await call(gateway)
        assert (late.status, late.reason) == (503, "STOPPING")
        assert (late.headers["connection"], late.headers["retry-after"]) == ("close", "1")
        assert (await call(gateway, "GET", "/health", token=None)).status == 200
        got = await running
        assert (got.status, got.headers["connection"]) == (200, "close")
        await ending.task
        assert ending.took == pytest.approx(2.0, abs=0.2)
        assert [list(state.days.values()) for state in made.kept.values()] == [[(1, 50)]]
        assert made.ended == 1

    play(scene)


def test_who_waits_for_a_later_slot_is_told_at_once_and_gives_it_back() -> None:
    async def scene() -> None:
        made = Made(keys=projects(1, rpm=1))
        gateway = entry(made)
        assert (await call(gateway)).status == 200
        await asyncio.sleep(10)
        waiting = asyncio.create_task(call(gateway, headers={"x-pollux-fallback": "off"}))
        await asyncio.sleep(1)
        ending = Ending(gateway)
        got = await waiting
        await ending.task
        assert (got.status, got.reason) == (503, "STOPPING")
        assert ending.took is not None
        assert ending.took < IN_CLOUD.wait
        (state,) = made.kept.values()
        assert [requests for requests, _ in state.days.values()] == [1]

    play(scene)


@pytest.mark.parametrize(("path", "last"), [(STREAM, b'{"error"'), (CHAT, b'data: {"error"'), (STREAM_ARRAY, b",\n{")])
def test_what_still_runs_after_seven_seconds_is_cut_with_an_error(path: str, last: bytes) -> None:
    openai = path == CHAT
    piece = {"choices": [{"delta": {"content": "a"}}]} if openai else part("a")
    chunk = b"[" + json.dumps(piece).encode() if path == STREAM_ARRAY else event(piece)

    async def scene() -> None:
        says = {True: streams(chunk, 100.0), False: whole(answer(), after=100.0)}
        made = Made(FakeUpstream(lambda sent: says["stream" in sent.target or openai]), projects(1))
        gateway = entry(made)
        chat = {"model": FLASH, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        open_ = asyncio.create_task(call(gateway, path=path, body=chat if openai else HELLO))
        unanswered = asyncio.create_task(call(gateway)) if not openai else None
        await asyncio.sleep(1)
        ending = Ending(gateway)
        got = await open_
        assert got.status == 200
        assert got.chunks[0] == chunk
        assert last in got.chunks[-1]
        assert b"the gateway stops" in got.chunks[-1]
        assert got.complete
        assert now() - ending.began == pytest.approx(IN_CLOUD.cut, abs=0.1)
        if unanswered is not None:
            refused = await unanswered
            assert (refused.status, refused.reason) == (503, "STOPPING")
        await ending.task
        assert ending.took is not None
        assert ending.took <= GONE_AFTER + 0.01
        (state,) = made.kept.values()
        assert sum(requests for requests, _ in state.days.values()) == (1 if openai else 2), "sent is sent"

    play(scene)


def test_a_store_that_hangs_at_the_end_does_not_delay_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        made = Made()
        gateway = entry(made)
        await call(gateway)

        async def hang() -> None:
            await asyncio.sleep(1000)

        made.apps[0].stop = hang  # type: ignore[method-assign]
        ending = Ending(gateway)
        await ending.task
        assert ending.took is not None
        assert ending.took <= GONE_AFTER + 0.01

    with caplog.at_level(logging.ERROR):
        play(scene)
    assert "did not stop cleanly" in caplog.text


def test_an_end_in_the_middle_of_the_start_waits_for_it() -> None:
    async def scene() -> None:
        made = Made()
        made.takes = 2.0
        gateway = entry(made)
        first = asyncio.create_task(call(gateway))
        await asyncio.sleep(1)
        ending = Ending(gateway)
        assert ((await first).status, made.ended) == (503, 0)
        await ending.task
        assert (len(made.apps), made.ended) == (1, 1)

    play(scene)


def test_a_start_that_hangs_holds_back_no_end() -> None:
    async def scene() -> None:
        made = Made()
        made.takes = 1000.0
        gateway = entry(made)
        first = asyncio.create_task(call(gateway))
        await asyncio.sleep(1)
        ending = Ending(gateway)
        got = await first
        assert (got.status, got.reason) == (503, "STOPPING")
        await ending.task
        assert ending.took is not None
        assert ending.took <= GONE_AFTER
        assert (made.apps, made.ended) == ([], 1)

    play(scene)


def test_an_end_before_any_request_is_the_servers_own() -> None:
    async def scene() -> None:
        made = Made()
        ending = Ending(entry(made))
        await ending.task
        assert (ending.took, made.tries) == (0.0, 0)

    play(scene)


# --- what it is built of ---------------------------------------------------------------------------------------------


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of one's own, nothing configured, and logs left as they are."""
    import os

    for name in tuple(os.environ):
        if name.upper().startswith(("POLLUX_", "GEMINI_", "GOOGLE_", "K_SERVICE")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(module, "_configure_logs", lambda *_: None)
    monkeypatch.setenv("POLLUX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("POLLUX_STORE", "memory://")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built() -> tuple[int, str, int]:
    """Keys, upstream and client tokens of a gateway by the environment."""

    async def scene() -> tuple[int, str, int]:
        with contextlib.ExitStack() as stack:
            app = await build(stack)
            try:
                found = await app.tokens.tokens()
                return len(await app.keyring.keys()), app.settings.upstream, found.for_clients
            finally:
                await app.stop()

    return asyncio.run(scene())


def test_on_ones_own_machine_it_is_what_serve_is(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        keys, upstream, tokens = built()
    assert (keys, tokens) == (4, 1)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    where = place / "data/tokens.json"
    assert (
        said
        == f"ready: store memory://, 4 keys of 4 projects, tokens from {where}, upstream {upstream} (own connections)"
    )
    assert upstream.startswith("http://127.0.0.1")
    assert "SIMULATED" in caplog.text
    made = json.loads((place / "data/tokens.json").read_text())
    assert made["client"] not in caplog.text
    assert "tokens.json" in caplog.text


def test_the_simulated_gemini_takes_the_store_that_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_STORE", f"sqlite:///{place / 'own.db'}")
    assert built()[0] == 4
    assert (place / "own.db").exists()
    monkeypatch.setenv("POLLUX_STORE", "firestore://NO PROJECT")
    with pytest.raises(StoreError, match="NO PROJECT"):
        built()
    monkeypatch.delenv("POLLUX_STORE")
    assert built()[0] == 4
    assert not (place / "data/pollux.db").exists(), "what a simulator counts is not worth keeping"


@pytest.mark.parametrize("trouble", ["keys", "tokens", "store", "setting"])
def test_a_start_that_fails_leaves_nothing_open(place: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    opened: list[str] = []
    closed: list[str] = []

    class Far:
        def __init__(self, name: str) -> None:
            self.name = name
            opened.append(name)

        async def keys(self) -> Any:
            return self._answer(())

        async def tokens(self) -> Any:
            await asyncio.sleep(0.01)
            return self._answer(Tokens([TOKEN], None, query_token=False))

        def _answer(self, found: Any) -> Any:
            if trouble == self.name:
                raise KeySourceError("denied")
            return found

        async def close(self) -> None:
            closed.append(self.name)

    monkeypatch.setenv("POLLUX_SECRETS", "a-project")
    monkeypatch.setattr("pollux.server.wiring.open_keyring", lambda settings: Far("keys"))
    monkeypatch.setattr("pollux.backends.keys.secret_manager.SecretManagerTokens", lambda *_, **__: Far("tokens"))
    monkeypatch.setenv("POLLUX_ADMIN_TOKEN", ADMIN)
    if trouble == "store":
        monkeypatch.setenv("POLLUX_STORE", "firestore://NO PROJECT")
    if trouble == "tokens":
        monkeypatch.delenv("POLLUX_ADMIN_TOKEN")
    if trouble == "setting":
        monkeypatch.setenv("POLLUX_MAX_WAIT", "soon")
    with pytest.raises((KeySourceError, StoreError, SettingsError)):
        built()
    assert sorted(opened) == sorted(closed)
    assert bool(opened) == (trouble != "setting")


def test_in_the_cloud_no_token_is_made_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K_SERVICE", "pollux")
    with pytest.raises(TokenError, match="POLLUX_TOKEN"):
        built()
    assert not (place / "data").exists()


def test_in_the_cloud_there_is_no_simulated_gemini(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("K_SERVICE", "pollux")
    monkeypatch.setenv("POLLUX_TOKEN", TOKEN)
    with caplog.at_level(logging.WARNING):
        assert built() == (0, "https://generativelanguage.googleapis.com", 1)
    assert "no key is configured" in caplog.text
    assert "SIMULATED" not in caplog.text


def test_nothing_is_imported_that_only_the_cloud_needs() -> None:
    said = (
        "import sys; before = set(sys.modules); import pollux.server.functions\n"
        "unused = ('grpc', 'google', 'sqlite3', 'uvicorn', 'argparse')\n"
        "print([n for n in set(sys.modules) - before if n.partition('.')[0] in unused"
        " or n.startswith(('gemini_simulator', 'pollux.server.serve', 'pollux.cli', 'pollux.backends.keys.secret'))])"
    )
    run = subprocess.run([sys.executable, "-c", said], cwd=FUNCTION, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_entry_point_hands_over_the_whole_request() -> None:
    """As the Functions Framework does it: the handler's result is called as the response."""

    async def scene(messages: list[Message]) -> None:
        pytest.importorskip("functions_framework")
        from functions_framework.aio import create_asgi_app

        app: Any = create_asgi_app("gateway", str(FUNCTION / "main.py"))  # type: ignore[no-untyped-call]
        rest: list[Message] = [{"type": "http.request", "body": b""}]

        async def receive() -> Message:
            return rest.pop(0)

        async def send(message: Message) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": "/health", "query_string": b"", "headers": []}
        await app(scope, receive, send)

    messages: list[Message] = []
    asyncio.run(scene(messages))
    assert messages[0]["status"] == 200
    assert json.loads(messages[1]["body"]) == {"status": "ok"}
