"""What the Secret Manager of the tests holds, what was asked of it, and the faults that it has."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

EVERY = "*"


@dataclass
class Version:
    value: bytes
    made: datetime
    state: str = "ENABLED"


@dataclass
class Stored:
    name: str
    labels: dict[str, str]
    annotations: dict[str, str]
    made: datetime
    etag: str
    versions: list[Version] = field(default_factory=list)


@dataclass
class Fault:
    """What calls of a method on a secret meet: DENIED, API_OFF, UNAVAILABLE, …, or a wait of `seconds`."""

    method: str
    kind: str
    secret: str
    times: float
    seconds: float = 0.0


class Secrets:
    """What a test puts there, looks at and breaks."""

    def __init__(self) -> None:
        self.secrets: dict[str, Stored] = {}
        self.calls: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._numbers = count(1)

    # --- what a test does to it

    def put(self, name: str, *values: str, **labels: str) -> Stored:
        """A secret as somebody made it by hand; its versions are numbered from 1."""
        return self.put_described(name, values, labels)

    def put_described(
        self,
        name: str,
        values: tuple[str, ...],
        labels: Mapping[str, str],
        annotations: Mapping[str, str] | None = None,
    ) -> Stored:
        with self.lock:
            stored = Stored(name, dict(labels), dict(annotations or {}), self._now(), self._etag())
            self.secrets[name] = stored
            for value in values:
                self.add(name, value)
            return stored

    def add(self, name: str, value: str) -> int:
        with self.lock:
            versions = self.secrets[name].versions
            versions.append(Version(value.encode(), self._now()))
            return len(versions)

    def disable(self, name: str, number: int, state: str = "DISABLED") -> None:
        self.secrets[name].versions[number - 1].state = state

    def states(self, name: str) -> list[str]:
        return [version.state for version in self.secrets[name].versions]

    def values(self, name: str) -> list[str]:
        return [version.value.decode() for version in self.secrets[name].versions]

    def fail(
        self, method: str, kind: str, secret: str = EVERY, *, times: float = float("inf"), seconds: float = 0.0
    ) -> None:
        """`kind` is DENIED, API_OFF or the name of a gRPC status; SLOW only waits. `method` * is all."""
        self.faults.append(Fault(method, kind, secret, times, seconds))

    def heal(self) -> None:
        self.faults.clear()

    def _etag(self) -> str:
        return f'"{next(self._numbers):x}"'

    def _now(self) -> datetime:
        return datetime.fromtimestamp(time.time() + next(self._numbers) / 1000, UTC)  # no two alike
