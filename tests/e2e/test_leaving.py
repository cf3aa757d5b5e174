"""Clients that leave: their calls end at once, and what they had reserved is free for others."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, LAST, TOKEN, eventually, gateway, prompt, simulated


@contextmanager
def asking(url: str, target: str, body: bytes, *headers: str) -> Iterator[socket.socket]:
    """A request that is sent and not waited for. The connection is closed at the end of the block."""
    address = urlsplit(url)
    head = [f"POST {target} HTTP/1.1", "host: x", f"x-goog-api-key: {TOKEN}", f"content-length: {len(body)}", *headers]
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as made:
        made.sendall("\r\n".join([*head, "", ""]).encode() + body)
        yield made


def generating(model: str = FLASH, verb: str = "generateContent") -> str:
    return f"/v1beta/models/{model}:{verb}" + ("?alt=sse" if verb.startswith("stream") else "")


CHAT = json.dumps({"model": FLASH, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (generating(verb="streamGenerateContent"), prompt()),
        (f"/v1beta/models/{FLASH}:streamGenerateContent", prompt()),
        ("/v1/chat/completions", CHAT),
    ],
    ids=["events", "array", "openai"],
)
def test_in_the_middle_of_a_stream(pair: Pair, target: str, body: bytes) -> None:
    pair.simulator.faults.append(Fault(kind="drip", seconds=30))
    with asking(pair.gateway.url, target, body) as made:
        assert b"200 OK" in made.recv(1000)
    assert eventually(10, lambda: pair.simulator.calls[-1].disconnected_at)
    assert len(pair.simulator.calls) == 1


@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent", "countTokens"])
def test_before_the_first_byte(pair: Pair, verb: str) -> None:
    pair.simulator.faults.append(Fault(kind="slow", seconds=30))
    with asking(pair.gateway.url, generating(verb=verb), prompt()):
        eventually(2, lambda: pair.simulator.calls)
    assert eventually(10, lambda: pair.simulator.calls[-1].disconnected_at)
    assert eventually(2, lambda: pair.gateway.status()["pool"]["under_way"] == 0)
    assert len(pair.simulator.calls) == 1


def test_while_waiting_for_a_slot(tmp_path: Path) -> None:
    limits = {"*": {"rpm": 1}}
    with simulated(1) as (simulator, url), gateway(tmp_path, url, keys=[1], limits=limits, max_wait="300") as started:
        assert started.generate(LAST).status == 200
        free = started.quota(LAST)["next_slot"]
        with asking(started.url, generating(LAST), prompt()):
            eventually(2, lambda: started.status()["pool"]["waiting"] == 1)
            assert started.quota(LAST)["next_slot"] > free + 60
        eventually(1, lambda: started.quota(LAST)["next_slot"] == free)
        pool = started.status()["pool"]
        assert (pool["waiting"], pool["under_way"], pool["endings"]) == (0, 0, {"client-gone": 1})
        assert len(simulator.calls) == 1


def test_in_the_middle_of_its_own_body(pair: Pair) -> None:
    body = prompt()
    with asking(pair.gateway.url, generating(), body[:10], "x-test: short") as made:
        made.shutdown(socket.SHUT_WR)
    with asking(pair.gateway.url, generating(), b"", f"content-length: {len(body)}") as made:
        made.sendall(body[:10])
        time.sleep(0.1)
    assert eventually(2, lambda: pair.gateway.status()["pool"]["under_way"] == 0)
    assert pair.gateway.generate().status == 200
