"""The health that key commands read: from which store, and what a new value of a key resets."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pollux.backends.store.contract import ConflictError, Document, Version
from pollux.backends.store.opening import open_store
from pollux.backends.store.sqlite import SqliteStore
from pollux.cli.key_health import TRIES, leave_aside, lift
from pollux.pool import health
from pollux.settings import Settings


def document(*ids: str) -> Document:
    value = health.Health()
    for key_id in ids:
        value = health.set_aside(value, 4e9, "keys", key_id, "leaked-key", 86400.0)
    value = health.set_aside(value, 4e9, "projects", "p", "prepay", 60.0)
    return health.pack(value) | {"writers": {"w": [3, 4e9]}}


def write(url: str, written: Document) -> None:
    """The health document, as a gateway writes it first."""

    async def commit() -> None:
        store = open_store(url)
        await store.open()
        await store.commit("health", written, None)
        await store.close()

    asyncio.run(commit())


def aside(url: str, *ids: str) -> None:
    """A gateway that left these keys aside, for a long time."""
    write(url, document(*ids))


def read(url: str) -> Mapping[str, Any]:
    async def found() -> Mapping[str, Any]:
        store = open_store(url)
        await store.open()
        documents = await store.read(["health"])
        await store.close()
        return documents["health"][0] if documents else {}

    return asyncio.run(found())


def resting(url: str) -> list[str]:
    return sorted(read(url)["keys"])


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'pollux.db'}"


def test_only_the_entry_of_that_key_goes(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    aside(url, "a", "b")
    asyncio.run(lift(Settings(store=url), "pool", {"a": None}, well=False))
    assert read(url) == document("b")
    asyncio.run(lift(Settings(store=url), "pool", {"nobody": None}, well=False))
    assert read(url) == document("b")
    assert capsys.readouterr().err == ""


def test_a_store_without_a_health_document_stays_without(url: str) -> None:
    asyncio.run(lift(Settings(store=url), "", {"a": None}, well=False))
    assert read(url) == {}


def test_the_store_of_other_keys_is_left_alone(url: str) -> None:
    aside(url, "a")
    asyncio.run(lift(Settings(store=url, secrets="other"), "pool", {"a": None}, well=False))
    assert resting(url) == ["a"]


def test_this_machines_own_store_is_not_made_for_it(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    asyncio.run(lift(settings, "", {"a": None}, well=False))
    assert list(tmp_path.iterdir()) == []
    aside(settings.store_url, "a")
    asyncio.run(lift(settings, "pool", {"a": None}, well=False))
    assert resting(settings.store_url) == ["a"]
    asyncio.run(lift(settings, "", {"a": None}, well=False))
    assert resting(settings.store_url) == []


def test_a_refused_key_is_left_aside_until_a_probe_finds_it_well(url: str) -> None:
    aside(url, "a")
    assert asyncio.run(leave_aside(Settings(store=url), "pool", {"b": "invalid-key", "c": "suspended"}))
    value = health.unpack(read(url))
    assert resting(url) == ["a", "b", "c"]
    assert value.keys["a"] == health.unpack(document("a")).keys["a"]
    assert health.awaits_probe(value.keys["b"])
    assert value.keys["b"].until - value.keys["b"].since == 30.0
    assert read(url)["writers"] == {"w": [3, 4e9]}


def test_a_refusal_is_kept_for_a_gateway_that_starts_later(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path / "data"))
    assert asyncio.run(leave_aside(settings, "", {"a": "leaked-key"}))
    assert resting(settings.store_url) == ["a"]


def test_a_refusal_is_not_written_to_the_store_of_other_keys(url: str) -> None:
    aside(url, "a")
    assert not asyncio.run(leave_aside(Settings(store=url, secrets="other"), "pool", {"b": "invalid-key"}))
    assert resting(url) == ["a"]


class Contended(SqliteStore):
    """Somebody is faster so many times."""

    conflicts = 0

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        if self.conflicts:
            self.conflicts -= 1
            raise ConflictError(name)
        return await super().commit(name, document, version)


@pytest.mark.parametrize(("conflicts", "left"), [(TRIES - 1, []), (TRIES, ["a"])])
def test_who_is_faster_is_followed_but_not_for_ever(
    url: str, conflicts: int, left: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    aside(url, "a")
    store = Contended(Path(url.removeprefix("sqlite:///")))
    store.conflicts = conflicts
    asyncio.run(lift(Settings(store=url), "pool", {"a": None}, well=False, open_=lambda _: store))
    assert resting(url) == left
    assert ("it may stay so until it is tried again" in capsys.readouterr().err) == bool(left)


def test_a_document_of_a_later_version_is_told_and_left(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(url, document("a") | {"schema": 99})
    asyncio.run(lift(Settings(store=url), "pool", {"a": None}, well=False))
    assert read(url)["schema"] == 99
    assert "the health document has schema 99" in capsys.readouterr().err
