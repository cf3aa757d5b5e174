"""What the key commands rely on, for both places that keep keys: a keys.json and Secret Manager."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pollux.backends.keys.contract import KeySourceError, Secret
from pollux.backends.keys.entries import Entry
from pollux.backends.keys.places import FilePlace, KeyPlace, SecretManagerPlace
from pollux.settings import Settings
from tests.backends.keys.fake_secret_manager import PROJECT, serving
from tests.cli.command_line import without_keys

A, B, C = (Secret("AIza" + letter * 35) for letter in "abc")


@contextlib.contextmanager
def uncounted(total: int, what: str) -> Iterator[Callable[[], None]]:
    yield lambda: None


@pytest.fixture(params=["file", "secret-manager"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyPlace]:
    without_keys(tmp_path, monkeypatch)
    if request.param == "file":
        yield FilePlace(Settings(data=str(tmp_path / "data")))
        return
    with serving() as google:
        monkeypatch.setenv("SECRET_MANAGER_EMULATOR_HOST", google.host)
        place = SecretManagerPlace(PROJECT, uncounted)
        yield place
        place.close()


def values(place: KeyPlace) -> dict[str, Secret]:
    return {key_id: entry.secret for key_id, entry in place.read().entries.items()}


def test_a_key_is_there_once_it_is_added(place: KeyPlace) -> None:
    assert place.read(writing=True).keys == ()
    place.add("alice", A, {"project": "team", "tier": "free", "limits": {"m": {"rpm": 5}}})
    contents = place.read(writing=True)
    (key,) = contents.keys
    assert (key.id, key.project, key.tier, key.limits, key.enabled) == (
        "alice",
        "team",
        "free",
        {"m": {"rpm": 5}},
        True,
    )
    assert contents.entries["alice"].secret == A
    assert (set(contents.ids), contents.owned) == ({"alice"}, {A: "alice"})
    assert [*contents.unread, *contents.problems, *contents.notices] == []


def test_only_the_keys_that_are_wanted_come_with_their_values(place: KeyPlace) -> None:
    place.add("alice", A, {})
    place.add("bob", B, {})
    contents = place.read(lambda key: key.id == "bob")
    assert [key.id for key in contents.keys] == ["alice", "bob"]
    assert contents.entries.keys() == {"bob"}


def test_edit_changes_what_is_named_and_none_removes(place: KeyPlace) -> None:
    place.add("alice", A, {"project": "team", "limits": {"m": {"rpm": 5}, "n": {"rpm": 6}}})
    place.edit("alice", {"project": None, "tier": "tier1", "limits": {"m": None, "*": {"rpd": 9}}, "enabled": False})
    (key,) = place.read().keys
    assert (key.project, key.tier, key.limits, key.enabled) == (
        "alice",
        "tier1",
        {"n": {"rpm": 6}, "*": {"rpd": 9}},
        False,
    )
    place.edit("alice", {"enabled": True})
    assert place.read().keys[0].enabled


def test_a_new_value_counts_once_it_is_accepted(place: KeyPlace) -> None:
    place.add("alice", A, {})
    offered: list[Secret] = []

    def accepted(value: Secret, name: str) -> bool:
        offered.append(value)
        return name.startswith("the new one")

    done = place.replace("alice", B, accepted)
    assert done is not None
    assert (values(place), offered, done[1]) == ({"alice": B}, [B], "")


def test_a_new_value_that_is_not_accepted_changes_nothing(place: KeyPlace) -> None:
    def interrupt(value: Secret, name: str) -> bool:
        raise KeyboardInterrupt

    place.add("alice", A, {})
    assert place.replace("alice", B, lambda value, name: False) is None
    with pytest.raises(KeyboardInterrupt):
        place.replace("alice", C, interrupt)
    assert values(place) == {"alice": A}


def test_a_key_that_is_removed_is_gone(place: KeyPlace) -> None:
    place.add("alice", A, {})
    assert "alice" in place.question("alice")
    place.remove("alice")
    assert place.read(writing=True).ids in (set(), frozenset())


def test_keys_of_another_source_are_adopted(place: KeyPlace) -> None:
    place.add("alice", A, {})
    taken = {"bob": Entry("x", B, "f", project="p", tier="free", enabled=False), "carol": Entry("y", C, "f")}
    assert sorted(place.adopt(taken)) == ["bob", "carol"]
    assert values(place) == {"alice": A, "bob": B, "carol": C}
    bob = next(key for key in place.read().keys if key.id == "bob")
    assert (bob.project, bob.tier, bob.enabled) == ("p", "free", False)


@pytest.mark.parametrize("key_id", ["nobody", "AIza" + "z" * 35])
def test_what_is_not_there_is_an_error_that_repeats_no_value(place: KeyPlace, key_id: str) -> None:
    calls = (
        lambda: place.edit(key_id, {"tier": "free"}),
        lambda: place.require(key_id),
        lambda: place.question(key_id),
    )
    for call in calls:
        with pytest.raises(KeySourceError) as found:
            call()
        assert (key_id in str(found.value)) == (key_id == "nobody")


def test_no_value_is_in_a_repr(place: KeyPlace) -> None:
    place.add("alice", A, {})
    shown = f"{place!r} {vars(place)} {place.read(writing=True)!r}"
    assert A.reveal() not in shown
