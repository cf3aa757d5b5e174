"""app: routes, start and stop, pages of other origins, and what is refused before it begins."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pollux.app import App
from pollux.auth import LocalTokens, TokenError, Tokens
from pollux.inbound import Message
from pollux.keys import KeySourceError
from pollux.packing import unpack
from pollux.settings import Settings, SettingsError
from pollux.store import StoreError
from pollux.store.memory import MemoryStore
from pollux.store.sqlite import SqliteStore
from pollux.wiring import load_catalog, make_app, open_tokens
from tests.gateway import FLASH, FakeUpstream, answer, call, gateway, now, play, projects, whole

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
def test_a_page_whose_origin_is_named_may_call_and_read_our_headers(origins: tuple[str, ...]) -> None:
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


async def converse(app: App, *messages: str) -> list[Message]:
    said: list[Message] = []
    rest = [{"type": f"lifespan.{name}"} for name in messages]

    async def receive() -> Message:
        return rest.pop(0)

    async def send(message: Message) -> None:
        said.append(message)

    await app({"type": "lifespan"}, receive, send)
    return said


def made(**settings: Any) -> App:
    return make_app(Settings(**settings), Tokens(["a-test-token"], None, query_token=False), keyring=projects(1))


def test_lifespan_opens_and_closes_the_store(tmp_path: Path) -> None:
    async def scene() -> None:
        app = made(data=str(tmp_path))
        said = await converse(app, "startup", "shutdown")
        assert [message["type"] for message in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert isinstance(app.store, SqliteStore)
        assert (tmp_path / "pollux.db").is_file()
        with pytest.raises(StoreError):
            await app.store.read(["health"])

    asyncio.run(scene())


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "pollux.db").write_text("this is no database, and long enough to be looked at" * 9)
    said = asyncio.run(converse(made(data=str(tmp_path)), "startup"))
    assert said[0]["type"] == "lifespan.startup.failed"
    assert str(tmp_path / "pollux.db") in said[0]["message"]


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


def test_the_live_api_is_refused_before_it_is_accepted() -> None:
    async def scene() -> list[Message]:
        said: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            said.append(message)

        async with gateway(FakeUpstream([])) as app:
            await app({"type": "websocket", "path": "/ws", "headers": []}, receive, send)
        return said

    said = play(scene)
    assert [message["type"] for message in said] == ["websocket.close"]
    assert "Live API" in said[0]["reason"]


# --- where tokens come from ------------------------------------------------------------------------------------------

MINE, FAR, FAR_ADMIN = "test-token-of-the-settings", "test-token-of-far-away", "test-admin-of-far-away"


class FarTokens:
    """Secret Manager's tokens, as a test has them."""

    found: Tokens | Exception = Tokens((), None, query_token=False)
    closed = 0

    def __init__(self, project: str, *, query_token: bool) -> None:
        assert project == "a-project"

    async def tokens(self) -> Tokens:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def close(self) -> None:
        FarTokens.closed += 1


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> type[FarTokens]:
    monkeypatch.delenv("K_SERVICE", raising=False)
    monkeypatch.setattr("pollux.keys.secret_manager.SecretManagerTokens", FarTokens)
    FarTokens.closed = 0
    FarTokens.found = Tokens([f"far={FAR}"], FAR_ADMIN, query_token=False)
    return FarTokens


def known(data: Path, **settings: Any) -> tuple[Tokens, LocalTokens | None]:
    async def scene() -> tuple[Tokens, LocalTokens | None]:
        source, local = await open_tokens(Settings(data=str(data), **settings))
        return await source.tokens(), local

    return asyncio.run(scene())


def clients(tokens: Tokens, *asked: str) -> list[str | None]:
    return [tokens.check([(b"x-goog-api-key", token.encode())]) for token in asked]


def admins(tokens: Tokens, *asked: str) -> list[bool]:
    return [tokens.admin([(b"authorization", f"Bearer {token}".encode())]) for token in asked]


def test_tokens_of_the_settings_need_no_others(far: type[FarTokens], tmp_path: Path) -> None:
    tokens, local = known(tmp_path, token=(MINE,), admin_token="test-admin-of-mine")
    assert clients(tokens, MINE, FAR) == ["client-1", None]
    assert local is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cloud", [False, True])
def test_with_secret_manager_both_count_and_this_machine_makes_none(
    far: type[FarTokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: bool
) -> None:
    if cloud:
        monkeypatch.setenv("K_SERVICE", "pollux")
    tokens, local = known(tmp_path, token=(MINE,), admin_token="test-admin-of-mine", secrets="a-project")
    assert clients(tokens, MINE, FAR) == ["client-1", "far"]
    assert admins(tokens, "test-admin-of-mine", FAR_ADMIN) == [True, True]
    tokens, local = known(tmp_path, secrets="a-project")
    assert (clients(tokens, MINE, FAR), admins(tokens, FAR_ADMIN)) == ([None, "far"], [True])
    assert local is None
    assert not list(tmp_path.iterdir())


def test_this_machines_own_tokens_fill_what_is_missing(far: type[FarTokens], tmp_path: Path) -> None:
    far.found = Tokens([f"far={FAR}"], None, query_token=False)
    tokens, local = known(tmp_path, secrets="a-project")
    assert local is not None
    assert (local.client, local.made) == ("", False), "its client token is not in use"
    assert admins(tokens, local.admin) == [True]
    assert clients(tokens, FAR) == ["far"]
    far.found = Tokens((), None, query_token=False)
    tokens, local = known(tmp_path, secrets="a-project")
    assert local is not None
    assert clients(tokens, local.client) == ["client-1"]


def test_in_the_cloud_no_token_is_an_error_that_says_where_to_put_one(
    far: type[FarTokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K_SERVICE", "pollux")
    far.found = Tokens((), None, query_token=False)
    with pytest.raises(TokenError, match=r"pollux-token-NAME of a-project.*POLLUX_TOKEN"):
        known(tmp_path, secrets="a-project")
    with pytest.raises(TokenError, match="POLLUX_TOKEN"):
        known(tmp_path)
    assert far.closed == 1, "nothing is left open for the next try"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cloud", [False, True])
def test_while_secret_manager_is_away_only_the_settings_tokens_start_a_gateway(
    far: type[FarTokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: bool
) -> None:
    if cloud:
        monkeypatch.setenv("K_SERVICE", "pollux")
    far.found = KeySourceError("denied")
    with pytest.raises(KeySourceError, match="denied"):
        known(tmp_path, secrets="a-project")
    tokens, _ = known(tmp_path, secrets="a-project", token=(MINE,))
    assert clients(tokens, MINE) == ["client-1"]
    assert not tokens.complete
    assert not list(tmp_path.iterdir())


# --- a catalog of one's own ------------------------------------------------------------------------------------------


def test_a_catalog_of_ones_own_replaces_entries(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(f'[aliases]\nmine = "{FLASH}"\n')
    assert load_catalog(Settings(catalog=str(own))).resolve("mine") == FLASH
    assert load_catalog(Settings()).resolve("mine") == "mine"


def test_a_catalog_that_is_missing_names_the_setting_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"POLLUX_CATALOG=.*none\.toml"):
        load_catalog(Settings(catalog=str(tmp_path / "none.toml")))
