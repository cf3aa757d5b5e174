import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.pool import health
from pollux.pool.health import KINDS, Aside, Health, Kind

DAY = 86400.0


@pytest.mark.parametrize("kind", KINDS)
def test_setting_aside_touches_one_entry_of_one_kind(kind: Kind) -> None:
    found = health.set_aside(Health(), 100.0, kind, "a", "spend", 60.0)
    assert getattr(found, kind) == {"a": Aside(160.0, "spend", 100.0, 1)}
    assert all(not getattr(found, other) for other in KINDS if other != kind)
    assert health.clear(found, kind, "b") is found
    assert health.clear(found, kind, "a") == Health()


def test_each_rest_that_follows_upon_the_last_is_twice_as_long_up_to_the_ceiling() -> None:
    value, now, rests = Health(), 0.0, []
    for _ in range(12):
        value = health.set_aside(value, now, "keys", "a", "suspended", 600.0, DAY)
        rests.append(value.keys["a"].until - now)
        now = value.keys["a"].until + 1
    assert rests == [min(DAY, 600.0 * 2**number) for number in range(12)]


def test_without_a_ceiling_it_does_not_grow() -> None:
    value, now = Health(), 0.0
    for _ in range(3):
        value = health.set_aside(value, now, "keys", "a", "invalid-key", DAY)
        assert value.keys["a"].until == now + DAY
        now += DAY + 1


def test_refusals_of_requests_under_way_together_are_one() -> None:
    first = health.set_aside(Health(), 0.0, "keys", "a", "suspended", 600.0, DAY)
    assert health.set_aside(first, 0.5, "keys", "a", "suspended", 600.0, DAY) is first
    assert health.set_aside(first, 599.0, "keys", "a", "suspended", 600.0, DAY) is first


def test_another_reason_restarts_the_streak_and_shortens_no_longer_cooldown() -> None:
    leaked = health.set_aside(Health(), 0.0, "keys", "a", "leaked-key", DAY)
    assert health.set_aside(leaked, 1.0, "keys", "a", "key-source", 60.0) is leaked
    suspended = health.set_aside(Health(), 0.0, "keys", "a", "suspended", 600.0, DAY)
    found = health.set_aside(suspended, 1.0, "keys", "a", "leaked-key", DAY)
    assert found.keys["a"] == Aside(DAY + 1, "leaked-key", 1.0, 1)
    later = health.set_aside(leaked, DAY + 5, "keys", "a", "key-source", 60.0)
    assert later.keys["a"] == Aside(DAY + 65, "key-source", DAY + 5, 1)


def test_a_success_ends_the_streak() -> None:
    value = health.set_aside(Health(), 0.0, "keys", "a", "suspended", 600.0, DAY)
    value = health.set_aside(health.clear(value, "keys", "a"), 700.0, "keys", "a", "suspended", 600.0, DAY)
    assert value.keys["a"].until == 1300.0


def test_a_streak_is_forgotten_two_days_after_its_end() -> None:
    value = health.set_aside(Health(), 0.0, "keys", "old", "spend", 60.0, 600.0)
    value = health.set_aside(value, 2 * DAY, "projects", "new", "spend", 60.0, 600.0)
    assert health.tidy(value, 2 * DAY + 60) is value
    assert health.tidy(value, 2 * DAY + 61).keys == {}
    assert health.tidy(value, 2 * DAY + 61).projects == value.projects


def test_a_bucket_is_learned_once() -> None:
    value = health.learn_bucket(Health(), "model-preview", "model")
    assert value.buckets == {"model-preview": "model"}
    assert health.learn_bucket(value, "model-preview", "model") is value
    assert health.learn_bucket(value, "model-preview", "other").buckets == {"model-preview": "other"}


_NAMES = st.text(max_size=9)
_ENTRIES = st.dictionaries(
    _NAMES, st.builds(Aside, st.floats(0, 2e9), _NAMES, st.floats(0, 2e9), st.integers(1, 99)), max_size=4
)


@given(st.builds(Health, _ENTRIES, _ENTRIES, _ENTRIES, _ENTRIES, st.dictionaries(_NAMES, _NAMES, max_size=4)))
def test_a_document_comes_back_as_it_was(value: Health) -> None:
    assert health.unpack(json.loads(json.dumps(health.pack(value)))) == value


def test_a_document_of_a_version_that_knew_no_tools_is_read() -> None:
    value = health.set_aside(Health(), 0.0, "keys", "a", "suspended", 600.0)
    document = health.pack(value)
    del document["tools"]
    assert health.unpack(document) == value


def test_a_document_of_a_later_version_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="schema 2"):
        health.unpack(health.pack(Health()) | {"schema": 2})


def test_invented_models_do_not_grow_the_document_without_end() -> None:
    value = health.set_aside(Health(), 0.0, "keys", "k", "spend", 1.0)
    for number in range(health.MODELS_MOST + 20):
        value = health.set_aside(value, float(number), "models", f"p/{number}", "model-access", DAY)
    assert len(value.models) == health.MODELS_MOST
    assert "p/19" not in value.models
    assert {"p/20", f"p/{health.MODELS_MOST + 19}"} <= set(value.models)
    assert set(value.keys) == {"k"}
