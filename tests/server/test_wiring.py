"""How a gateway is put together from its settings, and the line that says so."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from pollux.backends.keys.contract import Key, KeySourceError
from pollux.backends.keys.tokens import LocalTokens, TokenError, Tokens
from pollux.server.wiring import load_catalog, open_gateway, ready, token_source, with_local_tokens
from pollux.settings import Settings, SettingsError
from tests.gateway import FLASH

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
    monkeypatch.setattr("pollux.backends.keys.secret_manager.SecretManagerTokens", FarTokens)
    FarTokens.closed = 0
    FarTokens.found = Tokens([f"far={FAR}"], FAR_ADMIN, query_token=False)
    return FarTokens


def known(data: Path, **settings: Any) -> tuple[Tokens, LocalTokens | None]:
    async def scene() -> tuple[Tokens, LocalTokens | None]:
        own = Settings(data=str(data), **settings)
        source, local = await with_local_tokens(own, token_source(own))
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


# --- all of it together ----------------------------------------------------------------------------------------------


def opened(tmp_path: Path, *, demo: bool = False, **settings: Any) -> tuple[str, bool, bool]:
    """The upstream of a gateway, whether it is the simulator, and whether a token was made."""

    async def scene() -> tuple[str, bool, bool]:
        with contextlib.ExitStack() as stack:
            own = Settings(data=str(tmp_path / "data"), store="memory://", environ={}, in_cloud=False, **settings)
            gateway = await open_gateway(own, stack, demo=demo)
            await gateway.app.close()
            return gateway.app.settings.upstream, gateway.simulated, (tmp_path / "data/tokens.json").exists()

    return asyncio.run(scene())


def test_a_key_file_that_is_missing_is_told_before_a_token_is_made(tmp_path: Path) -> None:
    with pytest.raises(KeySourceError, match=r"none\.json"):
        opened(tmp_path, keys_file=str(tmp_path / "none.json"))
    assert not (tmp_path / "data").exists()


def test_keys_that_cannot_be_asked_for_are_told_before_a_token_is_made(
    far: type[FarTokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.found = Tokens((), None, query_token=False)

    class Denied:
        def __init__(self, _: str) -> None: ...

        async def keys(self) -> tuple[Key, ...]:
            raise KeySourceError("denied")

    monkeypatch.setattr("pollux.backends.keys.secret_manager.SecretManagerKeyring", Denied)
    with pytest.raises(KeySourceError, match="denied"):
        opened(tmp_path, secrets="a-project")
    assert far.closed == 1
    assert not (tmp_path / "data").exists()


def test_the_demo_needs_no_keys_that_can_be_read(tmp_path: Path) -> None:
    upstream, simulated, made = opened(tmp_path, demo=True, keys_file=str(tmp_path / "none.json"))
    assert upstream.startswith("http://127.0.0.1")
    assert (simulated, made) == (True, True)


def test_an_upstream_that_is_named_is_never_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened(tmp_path, upstream="http://127.0.0.1:9")[:2] == ("http://127.0.0.1:9", False)
    assert opened(tmp_path)[1]


def test_without_the_simulator_a_gateway_starts_without_keys_and_the_demo_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert opened(tmp_path)[:2] == (Settings().upstream, False)
    with pytest.raises(SettingsError, match="simulator, which is not installed"):
        opened(tmp_path, demo=True)


# --- the line that says what it was put together from ----------------------------------------------------------------

CLIENT, ADMIN = "test-client-token-of-nobody", "test-admin-token-of-nobody"
KEYS = (Key("alice", "team-a"), Key("anna", "team-a"), Key("bob", "team-b"))


@pytest.fixture(autouse=True)
def _no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")
    for name in ("FIRESTORE_EMULATOR_HOST", *proxies):
        monkeypatch.delenv(name, raising=False)


def test_ready_on_ones_own_machine() -> None:
    said = ready(Settings(data="/d"), KEYS, LocalTokens(CLIENT, ADMIN, made=True))
    assert said == (
        "ready: store sqlite:////d/pollux.db, 3 keys of 2 projects, tokens from /d/tokens.json, "
        "upstream https://generativelanguage.googleapis.com (own connections)"
    )


def test_ready_in_the_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(store="firestore://shop", secrets="shop", token=(CLIENT,), admin_token=ADMIN)
    said = ready(settings, KEYS[:1], None)
    assert "store firestore://shop, 1 key of 1 project, tokens from the settings and Secret Manager of shop," in said
    assert CLIENT not in said
    assert ADMIN not in said
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:8080")
    assert "firestore://shop (emulator 127.0.0.1:8080)," in ready(settings, KEYS, None)


def test_it_says_where_pooled_files_lie() -> None:
    assert "files" not in ready(Settings(), KEYS, None)
    said = ready(Settings(files="pooled", blobs="gs://shop-files/a"), KEYS, None)
    assert ", files pooled in gs://shop-files/a, " in said


def test_without_a_key_it_says_what_follows_and_what_to_do() -> None:
    assert ", NO KEY (every request gets 503: add one with `pollux keys add`), " in ready(Settings(), (), None)


def test_it_says_how_the_upstream_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready(Settings(http="httpx"), KEYS, None).endswith("googleapis.com (httpx)")
    monkeypatch.setenv("HTTPS_PROXY", "http://somebody:a-password@proxy.example:3128")
    assert ready(Settings(), KEYS, None).endswith("googleapis.com (httpx through the proxy http://proxy.example:3128)")
    assert ready(Settings(http="own"), KEYS, None).endswith("googleapis.com (own connections)")
