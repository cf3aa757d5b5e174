"""ready: what a gateway has started with, and nothing that is secret."""

import pytest

from pollux.auth import LocalTokens
from pollux.keys import Key
from pollux.ready import ready
from pollux.settings import Settings

CLIENT, ADMIN = "test-client-token-of-nobody", "test-admin-token-of-nobody"
KEYS = (Key("alice", "team-a"), Key("anna", "team-a"), Key("bob", "team-b"))


@pytest.fixture(autouse=True)
def _no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "FIRESTORE_EMULATOR_HOST",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


def test_on_ones_own_machine() -> None:
    said = ready(Settings(data="/d"), KEYS, LocalTokens(CLIENT, ADMIN, made=True))
    assert said == (
        "ready: store sqlite:////d/pollux.db, 3 keys of 2 projects, tokens from /d/tokens.json, "
        "upstream https://generativelanguage.googleapis.com (own connections)"
    )


def test_in_the_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
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
