"""Shared by the tests of outages: load whose every request is recorded, what the store holds, gateways on it."""

import asyncio
import contextlib
import http.client
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemini_simulator import Simulator
from pollux.backends.store.contract import Document
from pollux.backends.store.firestore import FirestoreStore
from pollux.pool.quota_document import unpack
from tests.e2e.processes import (
    ADMIN,
    FLASH,
    TOKEN,
    Answered,
    Gateway,
    environment,
    functions,
    key_value,
    serving,
    write_keys,
)

NO_WAIT = {"x_pollux_fallback": "off", "x_pollux_max_wait": "0"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its text, by which the simulator's record knows it, and what came back; None: nothing."""

    text: str
    gateway: Gateway
    answer: Answered | None
    seconds: float
    at: float

    @property
    def status(self) -> int:
        return self.answer.status if self.answer else 0


@dataclass(slots=True)
class Load:
    asked: list[Asked] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(one.status for one in list(self.asked))

    @property
    def reasons(self) -> set[str]:
        return {one.answer.reason for one in list(self.asked) if one.answer and one.status != 200}

    def since(self, moment: float) -> list[Asked]:
        return [one for one in list(self.asked) if one.at >= moment]


@contextlib.contextmanager
def load(*gateways: Gateway, clients: int = 6, pause: float = 1.0, **headers: str) -> Iterator[Load]:
    """Clients that ask, rest a little and ask again, until the end of the block; each of one gateway."""
    made = Load()

    def ask(number: int) -> None:
        gateway = gateways[number % len(gateways)]
        made.stop.wait(pause * number / clients)
        while not made.stop.is_set():
            text, began = uuid.uuid4().hex, time.monotonic()
            try:
                answer: Answered | None = gateway.generate(text=text, **NO_WAIT | headers)
            except (OSError, http.client.HTTPException):
                answer = None
            made.asked.append(Asked(text, gateway, answer, time.monotonic() - began, began))
            made.stop.wait(pause)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.stop.set()
        for thread in threads:
            thread.join(40)
        assert not any(thread.is_alive() for thread in threads), "a client still waits for its answer"


def nothing_lost_nothing_twice(made: Load, simulator: Simulator, *, dead: Gateway | None = None) -> None:
    """Every request has its answer, but those of a gateway that was killed; what was served was sent once, and what
    was not served was not sent. What Google refused does not count as sent."""
    sent = Counter(text_of(call.body) for call in list(simulator.calls) if call.status in (None, 200))
    assert not [text for text, times in sent.items() if times > 1], "sent twice"
    unanswered = {one.text for one in made.asked if one.answer is None}
    assert not {one.text for one in made.asked if one.text in unanswered and one.gateway is not dead}, "lost"
    served = {one.text for one in made.asked if one.status == 200}
    assert served <= sent.keys()
    assert sent.keys() - served <= unanswered


def text_of(body: bytes) -> str:
    return str(json.loads(body)["contents"][0]["parts"][0]["text"])


def peaks(simulator: Simulator, model: str = FLASH) -> dict[str, int]:
    """The most requests that each project saw within 60 s. The simulator counts and refuses nothing."""
    return {
        project: simulator.enforcer.peak_in_60s(project, name).requests
        for project, name in simulator.enforcer.names()
        if name == model
    }


def complaints(gateway: Gateway) -> list[str]:
    """What its log (POLLUX_LOG=json) warns of, without the lines of requests; and no key's value anywhere in it."""
    said = gateway.said()
    assert not any(key_value(number) in said for number in range(1, 10))
    assert "Traceback" not in said, said
    entries = [json.loads(line) for line in said.splitlines() if line.startswith('{"severity"')]
    return [entry["message"] for entry in entries if entry["severity"] != "INFO" and "request" not in entry]


def one_outage(gateway: Gateway, begins: str) -> None:
    """Its log tells of the beginning and the end. On a busy machine what comes back may stumble; never a line for each
    request."""
    lines = complaints(gateway)
    assert 2 <= len(lines) <= 6, lines
    assert lines[0].startswith(begins), lines
    assert lines[-1].startswith("the store answers again, after "), lines


@dataclass(frozen=True, slots=True)
class Shape:
    """Gateways that share a store and a simulator."""

    folder: Path
    upstream: str
    host: str
    """Where the emulator is."""
    project: str = field(default_factory=lambda: f"demo-{uuid.uuid4().hex[:12]}")

    def environ(self, limits: Mapping[str, int], keys: int, host: str = "", **settings: str) -> dict[str, str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = write_keys(self.folder, range(1, keys + 1), {"*": limits})
        chosen = {"store": f"firestore://{self.project}", "keys_file": str(file), "upstream": self.upstream}
        chosen |= {"token": TOKEN, "admin_token": ADMIN, "data": str(self.folder / "data")}
        chosen |= {"max_instances": "2", "log": "json"}
        return environment(**(chosen | settings)) | {"FIRESTORE_EMULATOR_HOST": host or self.host}

    @contextlib.contextmanager
    def gateway(
        self, name: str, limits: Mapping[str, int], keys: int = 4, host: str = "", **settings: str
    ) -> Iterator[Gateway]:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with serving(folder, self.environ(limits, keys, host, **settings)) as started:
            yield started

    @contextlib.contextmanager
    def function(self, name: str, limits: Mapping[str, int], keys: int = 4, **settings: str) -> Iterator[Gateway]:
        with functions(self.folder / name, self.environ(limits, keys, **settings)) as started:
            yield started

    def documents(self) -> dict[str, Document]:
        """What the store holds."""
        return asyncio.run(self._scanned())

    async def _scanned(self) -> dict[str, Document]:
        store = FirestoreStore(self.project, emulator=self.host)
        await store.open()
        try:
            return {name: dict(document) for name, (document, _) in (await store.scan("")).items()}
        finally:
            await store.close()

    def put(self, name: str, **changed: Any) -> None:
        """Change a document, as somebody else would."""

        async def write() -> None:
            store = FirestoreStore(self.project, emulator=self.host)
            await store.open()
            try:
                found, version = (await store.read([name])).get(name, ({}, None))
                await store.commit(name, dict(found) | changed, version)
            finally:
                await store.close()

        asyncio.run(write())

    def booked(self) -> dict[str, int]:
        """Requests of the day by project, as the store has them."""
        found = self.documents()
        return {
            name.split(":")[1]: sum(requests for requests, _ in unpack(document).days.values())
            for name, document in found.items()
            if name.startswith("quota:")
        }


def sent_by_project(simulator: Simulator) -> Counter[str]:
    return Counter(call.project or "" for call in list(simulator.calls))
