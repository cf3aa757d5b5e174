"""A whole gateway while its store is gone, hangs, is slow, is wiped or holds what nobody can read; in virtual time.

The same with real processes and the Firestore emulator: e2e/test_store_faults.
"""

import asyncio
import logging
from typing import Any

import pytest

from pollux.backends.store.contract import Document
from pollux.backends.store.memory import MemoryStore
from tests.gateway import FLASH, now, play
from tests.pool.outage import GIVEN_UP, house, said, see, statuses


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
def test_ninety_seconds_without_the_store(hangs: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scene() -> None:
        async with house() as h:
            before = await h.load(1, 20)
            for way in h.ways:
                way.fail(90, hangs=hangs)
            safe = await h.load(1, 55)
            # A commit that is given up, and a look whether it was made; who came in the meantime waits no longer.
            assert max(one.seconds for one in safe) <= (GIVEN_UP + 2.1 if hangs else 0.1)
            assert not any(one.seconds > 0.1 for one in safe if one.at > safe[0].at + 2 * GIVEN_UP)
            shown = (await see(h.apps[0]))["store"]
            assert (shown["state"], shown["why"]) == ("down", "the store does not answer")
            assert shown["since"] is not None
            spent = await h.load(1, 30)
            await asyncio.sleep(10)
            after = await h.load(1, 30)
            assert statuses(before + safe) == {200}, "the share is enough for that"
            # Of a quota not seen for a minute nothing is spent.
            late = [one for one in spent if one.at > before[-1].at + 75]
            assert statuses(late) == {503}
            assert {one.got.reason for one in late} == {"STORE_DOWN"}
            assert {one.got.headers["retry-after"] for one in late} == {"2"}
            assert statuses(after) == {200}
            assert (await see(h.apps[0]))["store"]["state"] == "ok"
            await asyncio.sleep(1)
            assert await h.booked() == h.sent(), "what was spent meanwhile is booked"
            h.check(most=30)

    play(scene)
    told = said(caplog)
    assert sum("the store is down: the store does not answer" in line for line in told) == 2, "one for each instance"
    assert sum("the store answers again, after 9" in line for line in told) == 2
    assert len(told) == 4, told


def test_the_store_is_gone_for_good(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scene() -> None:
        async with house(rpm=10) as h:
            await h.load(1, 8)
            for way in h.ways:
                way.fail()
            left = 4 * 10 - 8
            first = await h.load(5, 12)
            served = sum(one.got.status == 200 for one in first)
            assert left // 2 <= served <= left, "the share of the two"
            assert statuses(first) == {200, 503}
            assert {one.got.reason for one in first if one.got.status == 503} == {"STORE_DOWN"}
            calls = len(h.upstream.simulator.calls)
            await asyncio.sleep(60)
            hours = await h.load(0.1, 3600)
            assert statuses(hours) == {503}
            assert max(one.seconds for one in hours) <= 1.0, "for word of the store, no longer"
            assert len(h.upstream.simulator.calls) == calls, "what cannot be counted is not sent"
            assert (await see(h.apps[1]))["store"]["state"] == "down"
            h.check(most=10)
            began = now()
        assert now() - began <= 10, "it stops all the same"

    play(scene)
    told = said(caplog)
    assert sum("the store is down" in line for line in told) == 2
    assert sum("documents could not be written: their last counts are lost" in line for line in told) == 2
    assert len(told) == 4, told


def test_closed_sends_nothing_without_the_store() -> None:
    async def scene() -> None:
        async with house(store_down="closed") as h:
            await h.load(1, 8)
            for way in h.ways:
                way.fail(30)
            assert statuses(await h.load(1, 25)) == {503}
            assert len(h.upstream.simulator.calls) == 8
            await asyncio.sleep(5)
            assert statuses(await h.load(1, 8)) == {200}
            h.check(most=30)
            assert await h.booked() == h.sent()

    play(scene)


def test_one_of_two_instances_loses_the_store_and_exceeds_by_its_share_at_most() -> None:
    """The price of going on, as published. The other one keeps the limit and hears of it afterwards."""

    async def scene() -> None:
        async with house(rpm=20, projects_=2) as h:
            await h.load(1, 4)
            h.ways[0].fail(30)
            await h.load(10, 25)
            share = 20 // 2
            h.check(most=20 + share)
            assert max(h.peaks().values()) > 20, "else this would be another test"
            await asyncio.sleep(6)
            await h.load(1, 4)
            assert await h.booked() == h.sent()
            used = {q["project"]: q["used"]["rpm"] for q in (await see(h.apps[1]))["quotas"]}
            assert used == h.sent(), "the other knows what was spent without the store"

    play(scene)


@pytest.mark.parametrize("instances", [1, 2])
def test_the_store_is_wiped_under_load(instances: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scene() -> None:
        async with house(instances, rpm=15, projects_=2) as h:
            await h.load(1, 16)
            for name, (_, version) in (await h.inner.scan("")).items():
                await h.inner.delete(name, version)
            after = await h.load(2, 40)
            assert statuses(after) == {200, 429}
            # Each writes back what it knows; what the others did since it looked last is forgotten.
            h.check(most=15 if instances == 1 else 15 + 8)
            if instances == 1:
                assert await h.booked() == h.sent()
            assert (await see(h.apps[0]))["store"]["state"] == "ok"

    play(scene)
    assert said(caplog) == []


def test_a_slow_store(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scene() -> None:
        async with house(rpm=30, projects_=2) as h:
            await h.load(1, 6)
            for way in h.ways:
                way.delay = lambda: 0.7
            slow = await h.load(1, 40)
            assert statuses(slow) == {200}
            shown = (await see(h.apps[0]))["store"]
            assert shown["state"] == "slow"
            assert shown["why"].endswith("commits in a row took longer than 1 s")
            assert shown["commit_ms"]["p99"] >= 1400
            known = [one for one in slow if one.at > slow[0].at + 12]
            assert sum(one.seconds < 0.1 for one in known) >= len(known) / 2, "the share is spent without waiting"
            for way in h.ways:
                way.delay = lambda: 0.0
            await h.load(1, 10)
            assert (await see(h.apps[0]))["store"]["state"] == "ok"
            h.check(most=30)
            assert await h.booked() == h.sent()

    play(scene)
    told = said(caplog)
    assert sum("the store is slow: 3 commits in a row" in line for line in told) == 2
    assert sum("the store answers again" in line for line in told) == 2
    assert len(told) == 4, told


@pytest.mark.parametrize("path", ["/admin/status", f"/admin/explain?model={FLASH}"])
def test_an_operator_sees_what_is_known_here_while_the_store_is_gone(path: str) -> None:
    async def scene() -> None:
        async with house() as h:
            await h.load(1, 8)
            h.ways[0].fail()
            shown = await see(h.apps[0], path)
            listed = shown["quotas" if "quotas" in shown else "candidates"]
            assert {entry["project"] for entry in listed} == {"p1", "p2", "p3", "p4"}

    play(scene)


# --- a document that this version cannot read ------------------------------------------------------------------------


async def change(inner: MemoryStore, name: str, **fields: Any) -> Document:
    document, version = (await inner.read([name]))[name]
    changed = {**document, **fields}
    await inner.commit(name, changed, version)
    return changed


def test_a_document_of_an_unknown_schema_is_an_error_and_is_never_written_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = f"quota:p1:{FLASH}"

    async def scene() -> None:
        async with house(1, projects_=1) as h:
            await h.load(1, 4)
            foreign = await change(h.inner, name, schema=2)
            refused = await h.load(1, 6)
            assert statuses(refused) == {503}
            assert {one.got.reason for one in refused} == {"STORE_DOWN"}
            assert (await h.inner.read([name]))[name][0] == foreign
            (problem,) = (await see(h.apps[0]))["pool"]["problems"]
            assert f"document {name!r} of the store: a quota document has schema 2" in problem
            assert "upgrade Pollux" in problem
            assert (await see(h.apps[0], f"/admin/explain?model={FLASH}"))["candidates"]
            await change(h.inner, name, schema=1)
            assert statuses(await h.load(1, 4)) == {200}
            assert await h.booked() == h.sent()
            h.check(most=30)

    play(scene)
    assert "has schema 2, this version knows 1: upgrade Pollux" in caplog.text


def test_a_process_that_starts_with_such_a_document_neither_guesses_nor_writes() -> None:
    name = f"quota:p1:{FLASH}"

    async def scene() -> None:
        async with house(2, projects_=1) as h:
            await h.load(1, 2, apps=h.apps[:1])
            foreign = await change(h.inner, name, schema=2)
            assert statuses(await h.load(1, 4, apps=h.apps[1:])) == {503}
            assert (await h.inner.read([name]))[name][0] == foreign

    play(scene)
