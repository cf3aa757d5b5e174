"""What the tests of the pool share: stores with delays and faults, keys that change, several pools over one store.

The classes of the pool are imported from here, and its constants are changed here, so that a module that moves is
named in one place.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar
from unittest.mock import patch

from bench.virtual import run
from pollux.backends.keys.contract import Key, Secret
from pollux.backends.store.clock import StoreClock
from pollux.backends.store.contract import ConflictError, Document, StoreUnavailableError, Version, Write
from pollux.backends.store.memory import MemoryStore
from pollux.gemini.catalog import Catalog
from pollux.pool import candidates, projects, quota, windows
from pollux.pool.feedback import Feedback
from pollux.pool.pool import Pool
from pollux.pool.projects import Projects
from pollux.pool.reservation import Ask, Choice, Full, Reservation, StoppingError, Tried
from pollux.pool.shared_document import Codec, SharedDocument, Update
from pollux.pool.store_health import StoreHealth
from pollux.pool.windows import Want
from pollux.server.wiring import builtin_catalog
from pollux.settings import Settings

__all__ = ["Ask", "Choice", "Feedback", "Full", "Pool", "Projects", "Reservation", "StoppingError", "Tried"]

T = TypeVar("T")

BEGAN = 1_790_000_000.0
"""A morning in California: no midnight is near, here or in UTC."""
MODEL = "a-model"
"""The catalog has no limits for it: what the keys say is all."""


@contextmanager
def changed(**constants: Any) -> Iterator[None]:
    """Constants of the pool with other values, in every module that has them."""
    with ExitStack() as stack:
        for name, value in constants.items():
            modules = [module for module in (candidates, quota, projects, windows) if hasattr(module, name)]
            assert modules, name
            for module in modules:
                stack.enter_context(patch.object(module, name, value))
        yield


def play(scene: Coroutine[Any, Any, T]) -> T:
    """Run a scene in virtual time. A deadlock fails at once."""

    async def bounded() -> T:
        async with asyncio.timeout(10 * 86400):
            return await scene

    return run(bounded())


class FaultyStore:
    """One instance's way to a store that others use too: slow, with a clock of its own, and with bad moments.

    `faults` holds what happens to the next commits: "" nothing, "down" nothing is written, "lost" and "conflict" are
    written but say StoreUnavailableError and ConflictError, "late" says StoreUnavailableError and is written after it,
    "spurious" says ConflictError without a faster writer.
    """

    def __init__(
        self,
        inner: MemoryStore,
        delay: Callable[[], float] = lambda: 0.0,
        offset: float = 0.0,
        *,
        back: Callable[[], float] | None = None,
        drift: float = 0.0,
        clock: StoreClock | None = None,
    ) -> None:
        self.inner = inner
        self.delay = delay
        self.back = back
        """How long an answer takes, if not as long as the way there."""
        self.offset = offset
        self.drift = drift
        self.clock = clock
        """Corrects the clock of this instance by what the store's answers say of their time."""
        self.faults: list[str] = []
        self.read_faults: list[str] = []
        self.commits = 0
        self.reads = 0
        self.under_way = 0
        self.most_under_way = 0
        self.frozen_until = 0.0
        """Until then (by the loop's clock) nothing of this instance runs."""
        self.dead = False
        """What this instance still waits for never comes; what is on its way to the store arrives."""
        self.out_until = 0.0
        """Until then no answer comes, whatever is asked."""
        self._began = inner.now()
        self._late: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        local = self.local()
        return local if self.clock is None else self.clock.now(local)

    def error(self) -> float:
        return 0.0 if self.clock is None else self.clock.error

    def local(self) -> float:
        true = self.inner.now()
        return true + self.offset + self.drift * (true - self._began)

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        """The others still use it."""

    async def read(self, names: Iterable[str]) -> Mapping[str, tuple[Document, Version]]:
        names = list(names)
        self.reads += 1
        fault = "down" if self._is_out() else self.read_faults.pop(0) if self.read_faults else ""
        sent = await self._there()
        if fault:
            await self._here()
            raise StoreUnavailableError("the store does not answer")
        found, when = await self.inner.read(names), self.inner.now()
        await self._here(sent, when)
        return found

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        self.commits += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        fault = "down" if self._is_out() else self.faults.pop(0) if self.faults else ""
        try:
            sent = await self._there()
            if fault in ("down", "late", "spurious"):
                if fault == "late":
                    self._land(name, document, version)
                await self._here()
                raise ConflictError(name) if fault == "spurious" else StoreUnavailableError("the store does not answer")
            written: Version | None = None
            with suppress(ConflictError):
                written = await self.inner.commit(name, document, version)
            when = self.inner.now()
            if written is None or fault == "conflict":
                await self._here()  # an error tells no time
                raise ConflictError(name)
            if fault == "lost":
                await self._here()
                raise StoreUnavailableError("the answer was lost")
            await self._here(sent, when)
            return written
        finally:
            self.under_way -= 1

    def _land(self, name: str, document: Document, version: Version | None) -> None:
        async def land() -> None:
            await asyncio.sleep(1)
            with suppress(ConflictError):
                await self.inner.commit(name, document, version)

        task = asyncio.get_running_loop().create_task(land())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def commit_all(self, writes: Sequence[Write]) -> list[Version]:
        return await self.inner.commit_all(writes)

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        await self._there()
        found = await self.inner.scan(prefix)
        await self._here()
        return found

    async def delete(self, name: str, version: Version) -> None:
        await self.inner.delete(name, version)

    def _is_out(self) -> bool:
        return self.out_until > asyncio.get_running_loop().time()

    async def _there(self) -> float:
        """On its way; gives when it was sent, by the clock of this instance."""
        if self.dead:
            await self.awake()
        sent = self.local()
        if (delay := self.delay()) > 0:
            await asyncio.sleep(delay)
        return sent

    async def _here(self, sent: float | None = None, when: float = 0.0) -> None:
        """And back: with the store's time of `when`."""
        if (delay := (self.back or self.delay)()) > 0:
            await asyncio.sleep(delay)
        await self.awake()
        if self.clock is not None and sent is not None:
            self.clock.learn(sent, self.local(), when)

    async def sleep(self, delay: float) -> None:
        """As this instance sleeps: it wakes no earlier than it thaws."""
        await asyncio.sleep(delay)
        await self.awake()

    async def awake(self) -> None:
        loop = asyncio.get_running_loop()
        while (frozen := self.frozen_until - loop.time()) > 0:  # noqa: ASYNC110 (it may freeze again)
            await asyncio.sleep(frozen)
        if self.dead:
            await loop.create_future()


async def memory() -> MemoryStore:
    loop = asyncio.get_running_loop()
    store = MemoryStore(lambda: BEGAN + loop.time())
    await store.open()
    return store


def up_to(seconds: float, rng: random.Random) -> Callable[[], float]:
    """Half of a round trip that takes up to that long."""
    return lambda: rng.uniform(0, seconds / 2)


class Keys:
    """A keyring whose keys a test changes."""

    def __init__(self, *keys: Key) -> None:
        self.now = keys

    async def keys(self) -> tuple[Key, ...]:
        return self.now

    async def value(self, key_id: str) -> Secret:
        return Secret("AIza" + "x" * 35)

    async def reread(self, key_id: str) -> bool:
        return False


def keys_of(projects: int, **limits: int) -> Keys:
    return Keys(*(Key(f"k{number}", f"p{number}", limits={"*": limits}) for number in range(projects)))


@lru_cache(maxsize=1)
def catalog() -> Catalog:
    return Catalog.parse(builtin_catalog())


class House:
    """A pool with all that belongs to it, as one instance of the gateway has it."""

    def __init__(self, store: FaultyStore, keys: Keys, **settings: Any) -> None:
        self.store = store
        self.keys = keys
        self.projects = Projects(store, keys, catalog())
        self.pool = Pool(Settings(**settings), self.projects, sleep=store.sleep)
        self.feedback = Feedback(self.pool)
        self.began = asyncio.get_running_loop().time()

    @property
    def clock(self) -> float:
        """Seconds since the test began."""
        return asyncio.get_running_loop().time() - self.began

    def ask(self, wait: float = 60.0, tokens: int = 0, **more: Any) -> Ask:
        return Ask(Want(1, tokens), self.pool.now() + wait, **more)

    async def reserve(
        self, wait: float = 60.0, tokens: int = 0, tried: Tried | None = None, model: str = MODEL, **more: Any
    ) -> Reservation | Full:
        return await self.pool.reserve(model, self.ask(wait, tokens, **more), tried or Tried())

    async def send(self, wait: float = 60.0, tokens: int = 0, **more: Any) -> Reservation:
        """A reservation that is used."""
        found = await self.reserve(wait, tokens, **more)
        assert isinstance(found, Reservation), found
        found.sent = True
        return found

    def quota(self, project: str = "p0", model: str = MODEL) -> SharedDocument[Any]:
        return self.projects.quota(project, self.projects.bucket(model)).document


def until(full: Full) -> float:
    """When the first project can be asked again."""
    return min(refusal.until for refusal in full.refusals.values())


async def house(keys: Keys, delay: Callable[[], float] = lambda: 0.0, **settings: Any) -> House:
    return House(FaultyStore(await memory(), delay), keys, **settings)


# A document of plain numbers, by which every change that is lost or made twice can be seen.


def _packed(value: dict[str, int]) -> Document:
    return {"counts": dict(value)}


def _unpacked(document: Mapping[str, Any]) -> dict[str, int]:
    return dict(document["counts"])


def _untouched(value: dict[str, int], _: float) -> dict[str, int]:
    return value


COUNTS: Codec[dict[str, int]] = Codec({}, _packed, _unpacked, _untouched)


def counts(store: FaultyStore, writer: str = "me") -> SharedDocument[dict[str, int]]:
    return SharedDocument("counts", COUNTS, writer, StoreHealth(store))


def add(name: str, amount: int = 1) -> Callable[[dict[str, int], float], tuple[dict[str, int], str]]:
    return lambda value, _: (value | {name: value.get(name, 0) + amount}, name)


def added(name: str, amount: int = 1) -> Update[dict[str, int]]:
    """The same for a change that no request waits for."""
    return lambda value, now: add(name, amount)(value, now)[0]


def take(name: str) -> Callable[[Any], Update[dict[str, int]]]:
    """The undoing of `add`."""
    return lambda _: added(name, -1)


async def stored(store: FaultyStore) -> dict[str, int]:
    found = await store.inner.read(["counts"])
    return {name: count for name, count in found["counts"][0]["counts"].items() if count} if found else {}
