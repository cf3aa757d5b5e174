"""The app: start and stop, pages of other origins, and requests that are refused early."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.tokens import Tokens
from pollux.backends.store.contract import StoreError
from pollux.backends.store.memory import MemoryStore
from pollux.backends.store.sqlite import SqliteStore
from pollux.pool.quota_document import unpack
from pollux.server.app import App
from pollux.server.wiring import make_app
from pollux.settings import Settings
from tests.gateway import FakeUpstream, answer, call, gateway, now, play, projects, whole

PAGE = "https://page.example"


def test_health_says_that_it_lives_to_anybody_and_nothing_else() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([])
        async with gateway(upstream) as app:
            got = await call(app, "GET", "/health", token=None)
            assert (got.status, got.json) == (200, {"status": "ok"})
            assert set(got.headers) == {"content-type", "content-length"}
            assert (await call(app, "HEAD", "/health", token=None)).status == 200
            assert app.journal.requests == 0
        assert not upstream.sent

    play(scene)


def test_options_is_answered_here() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([])
        async with gateway(upstream) as app:
            got = await call(app, "OPTIONS", token=None)
        assert (got.status, got.body) == (204, b"")
        assert "POST" in got.headers["allow"]
        assert not any(name.startswith("access-control") for name in got.headers)
        assert not upstream.sent

    play(scene)


# --- pages of other origins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origins", [(PAGE, "https://other.example"), ("*",)])
def test_a_page_of_an_allowed_origin_may_call_and_read_our_headers(origins: tuple[str, ...]) -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([whole(answer())]), cors_origins=origins) as app:
            asked = {"origin": PAGE, "access-control-request-headers": "x-goog-api-key, content-type"}
            preflight = await call(app, "OPTIONS", headers=asked, token=None)
            assert preflight.headers["access-control-allow-origin"] == PAGE
            assert preflight.headers["access-control-allow-headers"] == "x-goog-api-key, content-type"
            assert "POST" in preflight.headers["access-control-allow-methods"]
            got = await call(app, headers={"origin": PAGE})
            assert (got.status, got.headers["access-control-allow-origin"]) == (200, PAGE)
            assert "x-pollux-request-id" in got.headers["access-control-expose-headers"]
            assert got.headers["vary"] == "origin"
            refused = await call(app, headers={"origin": PAGE}, token=None)
            assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, PAGE)

    play(scene)


def test_other_pages_are_told_nothing() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([whole(answer())]), cors_origins=(PAGE,)) as app:
            for method in ("OPTIONS", "POST"):
                got = await call(app, method, headers={"origin": "https://evil.example"})
                assert not any(name.startswith("access-control") for name in got.headers)
                assert got.headers["vary"] == "origin"

    play(scene)


def test_no_page_may_call_unless_the_setting_says_so() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([whole(answer())])) as app:
            got = await call(app, headers={"origin": PAGE})
            assert not any(name.startswith("access-control") for name in got.headers)

    play(scene)


def test_an_origin_never_travels() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([whole(answer())])
        async with gateway(upstream, cors_origins=("*",)) as app:
            await call(app, headers={"origin": PAGE, "referer": PAGE, "cookie": "a=b"})
        assert not {"origin", "referer", "cookie"} & {name for name, _ in upstream.sent[0].headers}

    play(scene)


# --- start and stop --------------------------------------------------------------------------------------------------


def made(**settings: Any) -> App:
    return make_app(Settings(**settings), Tokens(["a-test-token"], None, query_token=False), keyring=projects(1))


def test_start_opens_the_store_and_stop_closes_it(tmp_path: Path) -> None:
    async def scene() -> None:
        app = made(data=str(tmp_path))
        await app.start()
        assert isinstance(app.store, SqliteStore)
        assert (tmp_path / "pollux.db").is_file()
        await app.stop()
        with pytest.raises(StoreError):
            await app.store.read(["health"])

    asyncio.run(scene())


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "pollux.db").write_text("this is no database, and long enough to be looked at" * 9)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "pollux.db"))):
        asyncio.run(made(data=str(tmp_path)).start())


def test_a_start_that_fails_leaves_nothing_open() -> None:
    closed: list[str] = []

    class Far:
        async def tokens(self) -> Tokens:
            raise KeySourceError("denied")

        async def close(self) -> None:
            closed.append("tokens")

    class Watched(MemoryStore):
        async def close(self) -> None:
            closed.append("store")
            await super().close()

    async def scene() -> None:
        app = make_app(Settings(), Far(), store=Watched(), keyring=projects(1), upstream=FakeUpstream([]))
        with pytest.raises(KeySourceError, match="denied"):
            await app.start()

    asyncio.run(scene())
    assert sorted(closed) == ["store", "tokens"]


def test_stopping_commits_what_still_rides() -> None:
    async def scene() -> None:
        store = MemoryStore(now)
        kept: list[Any] = []

        class Watched(MemoryStore):
            async def open(self) -> None:
                await store.open()

            async def close(self) -> None:
                kept.extend((await store.scan("quota:")).values())
                await store.close()

            def __getattribute__(self, name: str) -> Any:
                mine = name in ("open", "close") or name.startswith("__")
                return super().__getattribute__(name) if mine else getattr(store, name)

        async with gateway(FakeUpstream(lambda sent: whole(answer(50))), projects(1), store=Watched(now)) as app:
            for _ in range(3):  # no limit is known: counted in memory, committed now and then
                await call(app)
        states = [unpack(document) for document, _ in kept]
        assert [list(state.days.values()) for state in states] == [[(3, 150)]]

    play(scene)
