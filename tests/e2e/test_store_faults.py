"""Gateways on a Firestore emulator that hangs, is slow, goes, comes back empty or never; and kill -9 with grants held.

Longer outages, in virtual time: tests/test_store_trouble.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gemini_simulator import Simulator
from tests.e2e.outages import (
    NO_WAIT,
    Shape,
    complaints,
    load,
    nothing_lost_nothing_twice,
    one_outage,
    peaks,
    sent_by_project,
)
from tests.e2e.processes import FLASH, eventually, pollux, simulated
from tests.e2e.slow_way import slow_way
from tests.e2e.test_leaving import CHAT
from tools.emulator import Emulator, started

RPM = 60
MINUTE = {"rpm": RPM}
SLEEP = 10.0


@pytest.fixture(scope="module")
def _own() -> Iterator[Emulator]:
    with started() as emulator:
        yield emulator


@pytest.fixture
def emulator(_own: Emulator) -> Iterator[Emulator]:
    """One that may be stopped and killed: the next test finds it running."""
    if _own.pid is None:
        _own.start()
    yield _own
    if _own.pid is not None:
        _own.resume()


@pytest.fixture
def simulator() -> Iterator[tuple[Simulator, str]]:
    """It enforces nothing, so that its record shows what an enforcing one would have refused."""
    with simulated() as made:
        yield made


@pytest.fixture
def shape(tmp_path: Path, emulator: Emulator, simulator: tuple[Simulator, str]) -> Shape:
    return Shape(tmp_path, simulator[1], emulator.host)


# --- ten seconds -----------------------------------------------------------------------------------------------------


def test_it_hangs_for_ten_seconds_under_load(
    shape: Shape, emulator: Emulator, simulator: tuple[Simulator, str]
) -> None:
    with shape.gateway("one", MINUTE) as one, shape.gateway("two", MINUTE) as two:
        with load(one, two) as made:
            time.sleep(2)
            emulator.pause()
            began = time.monotonic()
            time.sleep(6)
            shown = one.status()["store"]
            assert (shown["state"], shown["since"] is not None) == ("down", True)
            assert "did not answer within 5 s" in shown["why"]
            time.sleep(max(0.0, began + SLEEP - time.monotonic()))
            emulator.resume()
            time.sleep(3)
        assert set(made.statuses) == {200}
        # Who is under way when it begins waits: for a commit, then for a read whether it was made.
        assert max(asked.seconds for asked in made.asked) < SLEEP + 3
        nothing_lost_nothing_twice(made, simulator[0])
        assert max(peaks(simulator[0]).values()) <= RPM
        for gateway in (one, two):
            assert gateway.status()["store"]["state"] == "ok"
            one_outage(gateway, "the store is down: store firestore://demo-")
            assert gateway.signal() == 0
        booked, sent = shape.booked(), sent_by_project(simulator[0])
        # A commit that was given up may have been made when it woke: counted twice then, never too few.
        assert all(sent[name] <= booked[name] <= sent[name] + 4 for name in sent), (booked, sent)


def test_it_is_gone_for_ten_seconds_and_comes_back_empty(
    shape: Shape, emulator: Emulator, simulator: tuple[Simulator, str]
) -> None:
    with shape.gateway("one", MINUTE) as one, shape.gateway("two", MINUTE) as two:
        with load(one, two) as made:
            time.sleep(2)
            emulator.kill()
            began = time.monotonic()
            time.sleep(5)
            shown = two.status()["store"]
            assert shown["state"] == "down"
            assert f"no emulator answers at {emulator.host}" in shown["why"]
            time.sleep(max(0.0, began + SLEEP - time.monotonic()))
            emulator.start()
            time.sleep(3)
        assert set(made.statuses) == {200}
        assert max(asked.seconds for asked in made.asked) < 3
        nothing_lost_nothing_twice(made, simulator[0])
        assert max(peaks(simulator[0]).values()) <= RPM
        for gateway in (one, two):
            one_outage(gateway, "the store is down: store firestore://demo-")
            assert gateway.signal() == 0
        booked, sent = shape.booked(), sent_by_project(simulator[0])
        # Each wrote back what it knew, and what it spent meanwhile; what the other did just before may be missing.
        assert all(sent[name] - 4 <= booked[name] <= sent[name] for name in sent), (booked, sent)


# --- slow, wiped -----------------------------------------------------------------------------------------------------


def test_it_answers_slowly(shape: Shape, emulator: Emulator, simulator: tuple[Simulator, str]) -> None:
    with slow_way(emulator.host) as way, shape.gateway("one", MINUTE, host=way.host) as one:
        with load(one) as made:
            time.sleep(2)
            assert one.status()["store"]["state"] == "ok"
            way.delay = 1.3
            eventually(15, lambda: one.status()["store"]["state"] == "slow")
            slow_since = time.monotonic()
            time.sleep(4)
            assert one.status()["store"]["commit_ms"]["p99"] > 1000
            way.delay = 0.0
            slow_until = time.monotonic()
            eventually(30, lambda: one.status()["store"]["state"] == "ok")
            time.sleep(2)
        assert set(made.statuses) == {200}
        nothing_lost_nothing_twice(made, simulator[0])
        assert max(peaks(simulator[0]).values()) <= RPM
        known = sorted(asked.seconds for asked in made.since(slow_since) if asked.at < slow_until)
        assert known[len(known) // 2] < 1.3, "the share is spent without waiting for a commit"
        one_outage(one, "the store is slow: 3 commits in a row took longer than 1 s")
        assert one.signal() == 0
    assert shape.booked() == sent_by_project(simulator[0])


def test_it_is_wiped_under_load(shape: Shape, emulator: Emulator, simulator: tuple[Simulator, str]) -> None:
    limits = {"rpm": 20}
    with shape.gateway("one", limits) as one, shape.gateway("two", limits) as two:
        with load(one, two, pause=0.4) as made:
            time.sleep(2)
            emulator.wipe(shape.project)
            eventually(20, lambda: made.statuses[429] > 12)
        assert set(made.statuses) == {200, 429}
        assert made.reasons == {"QUOTA_BUSY"}
        nothing_lost_nothing_twice(made, simulator[0])
        # What one instance did since the other looked last is forgotten, if the other writes first.
        assert max(peaks(simulator[0]).values()) <= 20 + 3
        assert sum(peaks(simulator[0]).values()) >= 4 * 20
        for gateway in (one, two):
            assert gateway.status()["store"]["state"] == "ok"
            assert complaints(gateway) == []


# --- kill -9, the start ----------------------------------------------------------------------------------------------


def test_kill_9_with_grants_in_hand(shape: Shape, simulator: tuple[Simulator, str]) -> None:
    limits = {"rpm": 120}
    with shape.gateway("one", limits, 2) as one, shape.gateway("two", limits, 2) as two:
        with load(one, two, clients=8, pause=0.1) as made:
            eventually(10, lambda: sum(quota["granted"] for quota in one.status()["quotas"]) >= 4)
            one.kill()
            eventually(15, lambda: made.statuses[429] > 20)
        nothing_lost_nothing_twice(made, simulator[0], dead=one)
        assert {asked.status for asked in made.asked if asked.gateway is two} == {200, 429}
        assert max(peaks(simulator[0]).values()) <= 120
        assert complaints(two) == []
        assert two.signal() == 0, "it gives back what it holds itself"
        booked, sent = shape.booked(), sent_by_project(simulator[0])
        held = sum(booked.values()) - sum(sent.values())
        assert 0 < held <= 2 * 120 // 8 + 8, "what it held is lost for a minute, and no more"
        assert all(booked[project] <= 120 for project in booked)


def test_two_instances_start_at_the_same_moment_on_an_empty_database(
    shape: Shape, simulator: tuple[Simulator, str]
) -> None:
    """Under the Functions Framework the first request starts an instance: here come all of them at once."""
    limits = {"rpm": 8}
    with shape.function("one", limits, 2) as one, shape.function("two", limits, 2) as two:
        with ThreadPoolExecutor(24) as clients:
            asked = list(clients.map(lambda n: (one, two)[n % 2].generate(text=f"{n}", **NO_WAIT), range(24)))
        assert sorted(answer.status for answer in asked) == [200] * 16 + [429] * 8
        assert peaks(simulator[0]) == {"team-1": 8, "team-2": 8}
        assert shape.booked() == sent_by_project(simulator[0])
        for gateway in (one, two):
            shown = gateway.status()["store"]
            assert (shown["state"], shown["instances"]) == ("ok", 2)
            assert complaints(gateway) == []


def test_a_start_without_the_store_which_comes_later(shape: Shape, emulator: Emulator) -> None:
    emulator.kill()
    ended = pollux(shape.folder, shape.environ(MINUTE, 1), "serve", "--port", "0")
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
    assert f"no emulator answers at {emulator.host}" in ended.stderr
    with shape.function("one", MINUTE) as one:
        refused = one.generate()
        assert (refused.status, refused.reason, refused.headers["retry-after"]) == (503, "NOT_STARTED", "1")
        (why,) = complaints(one)
        assert why.startswith("the gateway could not start: store firestore://demo-")
        assert f"no emulator answers at {emulator.host}" in why
        emulator.start()
        eventually(5, lambda: one.generate().status == 200)
        assert one.status()["store"]["state"] == "ok"
        assert shape.booked() == {"team-1": 1}


# --- for good --------------------------------------------------------------------------------------------------------


def test_it_is_gone_for_good(shape: Shape, emulator: Emulator, simulator: tuple[Simulator, str]) -> None:
    limits = {"rpm": 12}
    with shape.function("one", limits, 2) as one:
        assert [one.generate(text=f"before {n}").status for n in range(4)] == [200] * 4
        emulator.kill()
        with load(one, pause=0.3, clients=4) as made:
            eventually(30, lambda: made.statuses[503] > 12)
        share = (2 * 12 - 4) // 2
        assert made.statuses == {200: share, 503: made.statuses[503]}
        assert made.reasons == {"STORE_DOWN"}
        refused = [asked.answer for asked in made.asked if asked.answer and asked.status == 503]
        assert {answer.headers["retry-after"] for answer in refused} == {"2"}
        assert len(simulator[0].calls) == 4 + share, "what cannot be counted is not sent"
        openai = one.call("POST", "/v1/chat/completions", CHAT, **NO_WAIT)
        assert (openai.status, openai.json()["error"]["code"]) == (503, "STORE_DOWN")
        shown = one.status()
        assert shown["store"]["state"] == "down"
        assert {quota["project"] for quota in shown["quotas"]} == {"team-1", "team-2"}, "what is known is shown"
        began = time.monotonic()
        assert one.signal() == 0
        assert time.monotonic() - began < 8
        down, end = complaints(one)
        assert down.startswith("the store is down: ")
        assert "documents could not be written: their last counts are lost" in end


def test_sigterm_while_it_hangs(shape: Shape, emulator: Emulator, simulator: tuple[Simulator, str]) -> None:
    with shape.function("one", MINUTE, 1) as one, ThreadPoolExecutor(1) as client:
        assert one.generate().status == 200
        emulator.pause()
        waiting = client.submit(one.generate, text="waiting", **NO_WAIT)
        time.sleep(1)
        began = time.monotonic()
        assert one.signal() == 0
        assert time.monotonic() - began < 10, "ten seconds after SIGTERM comes SIGKILL"
        answer = waiting.result(5)
        # Its commit is given up after 5 s, and 2 s more go for a look: the share serves it, or the end comes first.
        if answer.status == 200:
            assert len(simulator[0].calls) == 2
        else:
            assert (answer.status, answer.reason) == (503, "STOPPING")
            assert len(simulator[0].calls) == 1
        assert complaints(one)[0].startswith("the store is down: ")


def test_nothing_is_sent_without_the_store_where_that_is_forbidden(
    shape: Shape, emulator: Emulator, simulator: tuple[Simulator, str]
) -> None:
    with shape.gateway("one", MINUTE, store_down="closed") as one:
        assert one.generate().status == 200
        emulator.kill()
        answers = [one.generate(text=f"{n}", **NO_WAIT) for n in range(5)]
        assert {(answer.status, answer.reason) for answer in answers} == {(503, "STORE_DOWN")}
        assert len(simulator[0].calls) == 1
        assert one.signal() == 0


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_a_document_of_an_unknown_version(shape: Shape) -> None:
    name = f"quota:team-1:{FLASH}"
    with shape.gateway("one", MINUTE, 1) as one, shape.gateway("two", MINUTE, 1) as two:
        assert one.generate().status == 200
        shape.put(name, schema=2)
        before = shape.documents()[name]
        answers = [gateway.generate(text=f"{n}", **NO_WAIT) for n in range(3) for gateway in (one, two)]
        assert {(answer.status, answer.reason) for answer in answers} == {(503, "STORE_DOWN")}
        assert shape.documents()[name] == before, "it is never written over"
        for gateway in (one, two):
            (problem,) = gateway.status()["pool"]["problems"]
            assert f"the store failed: {problem}" in complaints(gateway)
            assert "has schema 2, this version knows 1: upgrade Pollux; mend or delete it" in problem
        shape.put(name, schema=1)
        assert {gateway.generate(text="mended").status for gateway in (one, two)} == {200}
