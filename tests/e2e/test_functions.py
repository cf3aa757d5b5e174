"""Under the Functions Framework: the start, streams as they come, clients that leave, and the end after SIGTERM."""

import asyncio
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gemini_simulator import Fault, Simulator
from pollux.backends.store.sqlite import SqliteStore
from pollux.pool.quota_document import unpack
from tests.e2e.conftest import COUNTED, Pair
from tests.e2e.processes import (
    ADMIN,
    FLASH,
    LAST,
    TOKEN,
    Answered,
    Gateway,
    call,
    environment,
    eventually,
    functions,
    prompt,
    simulated,
    write_keys,
)
from tests.e2e.test_leaving import CHAT, asking, generating

STREAM = generating(verb="streamGenerateContent")


@contextmanager
def started(folder: Path, **settings: str) -> Iterator[tuple[Gateway, Simulator]]:
    """A gateway of the test's own, with counters in a file that it can look into."""
    keys = str(write_keys(folder, [1, 2, 3, 4], {LAST: {"rpm": 1}}))
    store = f"sqlite:///{folder / 'pollux.db'}"
    chosen = {"keys_file": keys, "store": store, "token": TOKEN, "admin_token": ADMIN} | settings
    with simulated() as (simulator, url):
        chosen.setdefault("upstream", url)
        with functions(folder / "gateway", environment(**chosen)) as gateway:
            yield gateway, simulator


# --- the start -------------------------------------------------------------------------------------------------------


def test_first_requests_that_come_together(tmp_path: Path) -> None:
    with started(tmp_path, store="memory://") as (gateway, simulator):  # two starts would be two sets of counters
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: gateway.generate(), range(16)))
        assert {answer.status for answer in answers} == {200}
        assert len(simulator.calls) == 16
        totals = gateway.status()["pool"]
        assert totals["requests"] == 16
    assert "Traceback" not in gateway.said()


def test_a_start_that_fails_and_is_mended(tmp_path: Path) -> None:
    keys = tmp_path / "mine.json"
    keys.write_text('{"providers": {"gemini": {"keys": [')
    with started(tmp_path, keys_file=str(keys)) as (gateway, _):
        native, openai = gateway.generate(), call(gateway.url, "POST", "/v1/chat/completions", CHAT)
        assert (native.status, native.reason, native.headers["retry-after"]) == (503, "NOT_STARTED", "1")
        assert openai.json()["error"]["code"] == "NOT_STARTED"
        assert b"mine.json" not in native.body + openai.body
        assert "mine.json" in gateway.said()
        assert call(gateway.url, "GET", "/health").status == 200
        write_keys(tmp_path, [1]).replace(keys)
        assert eventually(5, lambda: gateway.generate().status == 200)
        assert gateway.said().count("could not start") <= 3
        assert "Traceback" not in gateway.said()


def test_in_the_cloud_without_a_token_nothing_starts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    environ = environment(data=str(data), store="memory://") | {"K_SERVICE": "pollux"}
    with functions(tmp_path, environ) as gateway:
        assert gateway.generate().reason == "NOT_STARTED"
        line = next(line for line in gateway.said().splitlines() if line.startswith("{"))
        assert (json.loads(line)["severity"], "POLLUX_TOKEN" in line) == ("ERROR", True)
    assert not data.exists()


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_stream_comes_chunk_by_chunk(functions_pairs: list[Pair]) -> None:
    for pair in functions_pairs:
        pair.simulator.faults.append(Fault(kind="drip", seconds=1))
        ended: list[bool] = []
        with asking(pair.gateway.url, STREAM, prompt(), "connection: close") as made:
            while data := made.recv(65536):
                ended += [pair.simulator.calls[-1].finished_at is not None] * data.count(b"data: ")
        assert len(ended) == 4
        assert not any(ended[:2]), "they came before the last was made"


@pytest.mark.parametrize(("target", "body"), [(STREAM, prompt()), ("/v1/chat/completions", CHAT)])
def test_a_client_that_leaves_ends_its_call(functions_pairs: list[Pair], target: str, body: bytes) -> None:
    pair = functions_pairs[0]
    pair.simulator.calls.clear()
    pair.simulator.faults.append(Fault(kind="drip", seconds=30))
    with asking(pair.gateway.url, target, body) as made:
        assert b"200 OK" in made.recv(1000)
    assert eventually(10, lambda: pair.simulator.calls[-1].disconnected_at)


def test_a_stream_that_breaks_without_words_is_cut_and_no_crash(tmp_path: Path) -> None:
    with started(tmp_path) as (gateway, simulator):
        simulator.faults.append(Fault(kind="mid-reset", after=2, count=1))
        target = f"/v1beta/models/{FLASH}:streamGenerateContent?alt=proto"
        with pytest.raises(http.client.IncompleteRead):
            gateway.call("POST", target, prompt(), content_type="application/json")
        assert gateway.generate().status == 200
        assert "the answer broke" in gateway.said()
        assert "Traceback" not in gateway.said()
        assert "  error  " not in gateway.said()


def test_no_token_of_a_query_gets_into_the_log(functions_pairs: list[Pair]) -> None:
    gateway = functions_pairs[0].gateway
    assert call(gateway.url, "POST", f"{generating()}?key={TOKEN}", prompt()).status == 200
    assert call(gateway.url, "POST", f"{generating()}?key={TOKEN}", prompt()).status == 200
    assert TOKEN not in gateway.said()


def test_a_connection_serves_again_and_is_closed_when_it_idles(functions_pairs: list[Pair]) -> None:
    connection = http.client.HTTPConnection(urlsplit(functions_pairs[0].gateway.url).netloc, timeout=10)
    for _ in range(3):
        connection.request("POST", generating(), prompt(), {"x-goog-api-key": TOKEN})
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
        assert connection.sock is not None
        time.sleep(0.5)
    connection.sock.settimeout(5)  # two seconds are the framework's
    assert connection.sock.recv(1) == b""
    connection.close()


def test_what_one_process_used_the_other_knows(functions_pairs: list[Pair]) -> None:
    one, two = (pair.gateway for pair in functions_pairs)
    for gateway in (one, two, one):
        assert gateway.generate(COUNTED).status == 200
    used = [q["used"]["rpm"] for q in two.status()["quotas"] if q["model"] == COUNTED]
    assert sum(used) == 3


# --- the end ---------------------------------------------------------------------------------------------------------


def booked(folder: Path) -> dict[str, int]:
    """Requests of the day by document, from the counters' file."""

    async def read() -> dict[str, int]:
        store = SqliteStore(folder / "pollux.db")
        await store.open()
        try:
            found = await store.scan("quota:")
        finally:
            await store.close()
        return {name: sum(r for r, _ in unpack(document).days.values()) for name, (document, _) in found.items()}

    return asyncio.run(read())


def in_background(ask: Any) -> tuple[threading.Thread, list[Answered]]:
    answers: list[Answered] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    return thread, answers


def test_sigterm_finishes_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    with started(tmp_path) as (gateway, simulator):
        gateway.generate()
        simulator.faults.append(Fault(kind="slow", seconds=2))
        thread, answers = in_background(gateway.generate)
        eventually(5, lambda: len(simulator.calls) == 2)
        began = time.monotonic()
        gateway.process.terminate()
        time.sleep(0.5)
        late = gateway.generate()
        assert (late.status, late.reason, late.headers["connection"]) == (503, "STOPPING", "close")
        gateway.process.wait(10)
        assert time.monotonic() - began < 4
        thread.join(5)
        assert [answer.status for answer in answers] == [200]
        assert sum(booked(tmp_path).values()) == 2
        assert "Traceback" not in gateway.said()


def test_sigterm_cuts_streams_that_do_not_end(tmp_path: Path) -> None:
    with started(tmp_path) as (gateway, simulator):
        simulator.faults.append(Fault(kind="drip", seconds=30))
        with (
            asking(gateway.url, STREAM, prompt()) as native,
            asking(gateway.url, "/v1/chat/completions", CHAT) as openai,
        ):
            heads = native.recv(65536), openai.recv(65536)
            assert all(b"200 OK" in head for head in heads)
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            with ThreadPoolExecutor(2) as pool:
                ends = list(pool.map(rest, (native, openai)))
        for head, (came, at), last in zip(heads, ends, (b'\n{"error"', b'data: {"error"'), strict=True):
            assert 6 < at - began < 8
            assert last in head + came
            assert b"the gateway stops" in came
            assert came.endswith(b"0\r\n\r\n"), "it is complete for HTTP"
        gateway.process.wait(5)
        assert time.monotonic() - began < 8.5
        assert sum(booked(tmp_path).values()) == 2


def rest(made: socket.socket) -> tuple[bytes, float]:
    """What comes until the end of a connection, and when that is."""
    came = b""
    while data := made.recv(65536):
        came += data
    return came, time.monotonic()


def test_sigterm_refuses_who_waits_and_gives_their_slots_back(tmp_path: Path) -> None:
    with started(tmp_path, max_wait="90") as (gateway, _):
        for _ in range(4):
            assert gateway.generate(LAST).status == 200
        waiting = [in_background(lambda: gateway.generate(LAST)) for _ in range(3)]
        eventually(5, lambda: gateway.status()["pool"]["waiting"] == 3)
        assert sum(booked(tmp_path).values()) == 7
        began = time.monotonic()
        gateway.signal()
        assert time.monotonic() - began < 3
        for thread, answers in waiting:
            thread.join(5)
            assert [(answer.status, answer.reason) for answer in answers] == [(503, "STOPPING")]
        assert sum(booked(tmp_path).values()) == 4


def test_sigterm_before_the_first_request(tmp_path: Path) -> None:
    with started(tmp_path) as (gateway, _):
        began = time.monotonic()
        gateway.signal()
        assert time.monotonic() - began < 3
