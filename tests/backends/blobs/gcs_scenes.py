"""What the tests of Cloud Storage in trouble share: time that passes by itself, a token, a store on a test's server."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pollux.backends.blobs.contract import Blobs
from pollux.backends.blobs.gcs import GcsBlobs
from pollux.backends.blobs.gcs_calls import DEADLINE_S, Times
from tests.backends.blobs.storage_server import BUCKET


@dataclass
class Clock:
    """Sleeping takes no time but this clock's; chance is at its middle."""

    at: float = 1000.0
    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds

    def times(self, timeout: float = 5.0, chance: float = 0.5) -> Times:
        return Times(lambda: self.at, self.sleep, lambda: chance, DEADLINE_S, timeout)


@dataclass
class CountingToken:
    value: str = "good"
    forgotten: int = 0
    after: str = "good"

    async def __call__(self) -> str:
        return self.value

    def forget(self) -> None:
        self.forgotten += 1
        self.value = self.after


def play(address: str, scene: Callable[[Blobs], Awaitable[None]], *, bucket: str = BUCKET, **how: object) -> None:
    async def run() -> None:
        options = {"times": Clock().times(), **how}
        blobs = GcsBlobs(bucket, environ={"STORAGE_EMULATOR_HOST": address}, **options)  # type: ignore[arg-type]
        try:
            await scene(blobs)
        finally:
            await blobs.close()

    asyncio.run(run())
