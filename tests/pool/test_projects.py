import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pollux.backends.keys.contract import Key
from pollux.backends.store.contract import StoreUnavailableError
from pollux.pool import health, quota
from pollux.pool.quota import State
from pollux.pool.shared_document import Change
from tests.pools import (
    BEGAN,
    MODEL,
    FaultyStore,
    Full,
    House,
    Keys,
    Reservation,
    Tried,
    catalog,
    changed,
    house,
    keys_of,
    memory,
    play,
)


def _aside(kind: health.Kind, name: str, seconds: float = 3600, reason: str = "invalid-key") -> Change[Any, None]:
    return lambda value, now: (health.set_aside(value, now, kind, name, reason, seconds), None)


def _learned(tier: str | None, **limits: int) -> Change[State, None]:
    return lambda state, now: (quota.learn(state, now, limits, tier), None)


def _cooled(seconds: float) -> Change[State, None]:
    return lambda state, now: (quota.cool(state, now, "rpm", seconds), None)


def _able(h: House, model: str = MODEL) -> dict[str, str]:
    able, _ = h.projects.candidates(model, (), (), h.pool.now())
    return {project.name: key.id for project, key in able}


# --- keys that change while the gateway runs --------------------------------------------------------------------------


def test_a_new_key_is_used_a_removed_one_not_and_without_any_there_is_nothing_to_say() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=5))
        assert (await h.send()).key.id == "k0"
        h.keys.now = (*h.keys.now, Key("new", "q", limits={"*": {"rpm": 5}}))
        assert (await h.send()).key.id == "new"
        h.keys.now = h.keys.now[1:]
        assert [(await h.send()).key.id for _ in range(3)] == ["new"] * 3
        h.keys.now = ()
        assert await h.reserve() == Full({})
        assert await h.pool.pick(None, Tried()) is None
        h.keys.now = keys_of(1, rpm=5).now
        assert (await h.send()).key.id == "k0"
        assert quota.used(h.quota().value, h.pool.now()).requests == 2  # what it had used is not forgotten

    play(scene())


def test_other_keys_keep_their_rests_when_keys_change() -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=5))
        await h.reserve()
        await h.projects.health.apply(_aside("keys", "k0"))
        await h.quota("p1").apply(_cooled(1000))
        h.keys.now = (*h.keys.now[:2], Key("new", "q", limits={"*": {"rpm": 1}}))
        assert (await h.send(wait=0)).key.id == "new"
        found = await h.reserve(wait=0)
        assert isinstance(found, Full)
        assert {name: str(refusal.why) for name, refusal in found.refusals.items()} == {
            "p0": "aside:invalid-key",
            "p1": "cooling:rpm",
            "q": "rpm",
        }

    play(scene())


def test_a_disabled_key_is_not_used_and_no_reason_for_a_refusal() -> None:
    async def scene() -> None:
        h = await house(Keys(Key("a", "p", enabled=False), Key("b", "q", enabled=False)))
        assert await h.reserve() == Full({})
        h.keys.now = (h.keys.now[0], replace(h.keys.now[1], enabled=True))
        assert (await h.send()).key.id == "b"

    play(scene())


def test_another_tier_forgets_what_was_learned_and_going_back_does_not_remember() -> None:
    async def scene() -> None:
        h = await house(Keys(Key("a", "p", tier="free", limits={"*": {"rpm": 10}})))
        await h.reserve()
        await h.quota("p").apply(_learned("free", rpm=2))
        project = h.projects.by_name["p"]
        assert h.projects.limits(project, MODEL) == {"rpm": 2}
        h.keys.now = (replace(h.keys.now[0], tier="tier1"),)
        await h.projects.ready()
        assert h.projects.limits(h.projects.by_name["p"], MODEL) == {"rpm": 10}
        await h.quota("p").apply(_learned("tier1", rpm=300))
        assert h.projects.limits(h.projects.by_name["p"], MODEL) == {"rpm": 300}
        h.keys.now = (replace(h.keys.now[0], tier="free"),)
        await h.projects.ready()
        assert h.projects.limits(h.projects.by_name["p"], MODEL) == {"rpm": 10}

    play(scene())


def test_other_limits_in_the_key_file_count_at_once() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        assert isinstance(await h.reserve(wait=0), Full)
        h.keys.now = keys_of(1, rpm=2).now
        await h.send(wait=0)

    play(scene())


def test_limits_come_newest_learned_first_then_the_key_then_the_catalog() -> None:
    async def scene() -> None:
        model = "gemini-2.5-flash"
        known = catalog().limits(model, "free")
        assert {"rpm", "tpm", "rpd"} <= set(known)
        h = await house(Keys(Key("a", "p", "free", {"*": {"rpm": 7, "tpm": 70}, model: {"tpm": 71}})))
        await h.reserve(model=model)
        project = h.projects.by_name["p"]
        assert h.projects.limits(project, model) == known | {"rpm": 7, "tpm": 71}
        await h.quota("p", model).apply(_learned("free", rpm=3))
        assert h.projects.limits(project, model) == known | {"rpm": 3, "tpm": 71}
        assert h.projects.smallest_token_limit(model) == 71
        await asyncio.sleep(7 * 86400)
        assert h.projects.limits(project, model) == known | {"rpm": 7, "tpm": 71}
        h.keys.now = (Key("a", "p"),)
        await h.projects.ready()
        assert h.projects.limits(h.projects.by_name["p"], model) == {}
        assert h.projects.smallest_token_limit(model) is None

    play(scene())


# --- another value behind the same id ---------------------------------------------------------------------------------


def test_a_new_value_is_not_blamed_for_the_old_one() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=5))
        await h.reserve()
        for name in ("k0", "k1"):
            await h.projects.health.apply(_aside("keys", name))
        assert _able(h) == {}
        h.keys.now = (replace(h.keys.now[0], generation=1), h.keys.now[1])
        assert (await h.send()).key.id == "k0"
        assert _able(h) == {"p0": "k0"}
        await h.projects.health.flush()
        other = House(FaultyStore(h.store.inner), keys_of(2, rpm=5))
        await other.projects.ready()
        assert _able(other) == {"p0": "k0"}
        await h.projects.health.apply(_aside("keys", "k0"))  # the new value is refused as well
        await h.projects.ready()
        assert _able(h) == {}

    play(scene())


def test_a_key_that_comes_back_with_another_value_is_new() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await h.projects.ready()
        await h.projects.health.apply(_aside("keys", "k0"))
        (key,) = h.keys.now
        h.keys.now = ()
        await h.projects.ready()
        h.keys.now = (key,)
        await h.projects.ready()
        assert _able(h) == {}
        h.keys.now = (replace(key, generation=1),)
        await h.projects.ready()
        assert _able(h) == {"p0": "k0"}

    play(scene())


def test_a_store_that_is_down_does_not_make_the_new_value_bad() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await h.projects.ready()
        await h.projects.health.apply(_aside("keys", "k0"))
        h.store.faults = ["down", "down"]
        h.keys.now = (replace(h.keys.now[0], generation=1),)
        await h.projects.ready()
        assert _able(h) == {"p0": "k0"}
        await h.projects.health.flush()
        await h.projects.health.refresh(0)
        assert _able(h) == {"p0": "k0"}
        await h.projects.close()
        assert (await h.store.inner.read(["health"]))["health"][0]["keys"] == {}

    play(scene())


# --- who may serve ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["keys", "projects", "models"])
def test_what_is_aside_is_left_out_until_its_end_and_says_why(kind: health.Kind) -> None:
    async def scene() -> None:
        h = await house(keys_of(2))
        await h.projects.ready()
        name = {"keys": "k0", "projects": "p0", "models": f"p0/{MODEL}"}[kind]
        await h.projects.health.apply(_aside(kind, name, 60))
        able, refusals = h.projects.candidates(MODEL, (), (), h.pool.now())
        assert [project.name for project, _ in able] == ["p1"]
        assert str(refusals["p0"].why) == "aside:invalid-key"
        assert refusals["p0"].until == BEGAN + 60
        assert set(_able(h, "another-model")) == ({"p0", "p1"} if kind == "models" else {"p1"})
        await asyncio.sleep(60)
        h.pool.recovery.begin()
        assert set(_able(h)) == {"p0", "p1"}

    play(scene())


def test_a_project_with_a_healthy_key_left_serves() -> None:
    async def scene() -> None:
        h = await house(Keys(Key("a", "p"), Key("b", "p")))
        await h.projects.ready()
        await h.projects.health.apply(_aside("keys", "a", 100))
        assert _able(h) == {"p": "b"}
        await h.projects.health.apply(_aside("keys", "b", 50, "suspended"))
        _, refusals = h.projects.candidates(MODEL, (), (), h.pool.now())
        assert refusals["p"] == (BEGAN + 50, ("suspended", "aside", ""))

    play(scene())


def test_health_is_read_once_and_again_after_half_a_minute() -> None:
    async def scene() -> None:
        inner = await memory()
        h, other = [House(FaultyStore(inner), keys_of(2)) for _ in range(2)]
        for _ in range(5):
            await h.projects.ready()
        assert h.store.reads == 1
        await other.projects.ready()
        await other.projects.health.apply(_aside("keys", "k0"))
        await asyncio.sleep(29)
        await h.projects.ready()
        assert set(_able(h)) == {"p0", "p1"}
        await asyncio.sleep(2)
        await asyncio.gather(*(h.projects.ready() for _ in range(5)))
        assert set(_able(h)) == {"p1"}
        assert h.store.reads == 2

    play(scene())


def test_quotas_are_read_in_one_round_trip() -> None:
    async def scene() -> None:
        inner = await memory()
        first, second = [House(FaultyStore(inner, lambda: 0.05), keys_of(9, rpm=2)) for _ in range(2)]
        for _ in range(18):
            await first.send(wait=0)
        found = await asyncio.gather(*(second.reserve(wait=0) for _ in range(4)))
        assert all(isinstance(one, Full) for one in found)
        assert second.store.reads <= 1 + 4  # health, and whoever came before the first answer

    play(scene())


def test_everything_in_the_store_can_be_seen_whatever_its_name() -> None:
    async def scene() -> None:
        inner = await memory()
        strange = "a:b/c d%é"
        first, second = [House(FaultyStore(inner), Keys(Key("k", strange, limits={"*": {"rpm": 9}}))) for _ in range(2)]
        await first.send(model="tuned/a:b")
        await second.projects.load_all()
        assert quota.used(second.projects.quota(strange, "tuned/a:b").document.value, second.pool.now()).requests == 1

    play(scene())


def test_looking_at_everything_does_not_undo_a_commit_of_meanwhile() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=9))
        await h.send()
        delays = iter([0.0, 5.0])
        h.store.delay = lambda: next(delays, 0.0)
        looking = asyncio.create_task(h.projects.load_all())
        await asyncio.sleep(1)
        await h.send()
        await looking
        assert quota.used(h.quota().value, h.pool.now()).requests == 2

    play(scene())


def test_a_store_that_cannot_be_read_is_an_error_and_later_none() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=9))
        h.store.read_faults = ["down"]
        with pytest.raises(StoreUnavailableError):
            await h.reserve()
        assert isinstance(await h.reserve(), Reservation)

    play(scene())


def test_quotas_of_invented_models_are_forgotten_and_those_that_hold_something_are_not() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=100))
        await h.send(model="kept")
        h.quota(model="kept").add_to_next_commit(lambda state, _: state)
        for number in range(100):
            await h.send(model=f"invented-{number}")
            assert len(h.projects.quotas) <= 20
        assert ("p0", "kept") in h.projects.quotas
        again = await h.send(model="invented-0")
        assert again.quota.document.value.slots.keys(), "the store knows it still"
        assert sum(want.requests for want in again.quota.document.value.slots.values()) == 2
        assert again.quota.document.commits_tried == 2

    with changed(MOST_QUOTAS=20):
        play(scene())
