"""A document that several instances write: its last seen value and its commits.

One commit runs at a time; changes that arrive meanwhile go into the next one. A change is a function, which runs again
after a conflict.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pollux.backends.store.contract import ConflictError, Document, StoreError, StoreUnavailableError, Version
from pollux.pool.instance import has_ended
from pollux.pool.store_health import SLOW, Counters, StoreHealth

log = logging.getLogger("pollux.store")
T = TypeVar("T")
R = TypeVar("R")
Change = Callable[[T, float], tuple[T, R]]
"""(value, time) -> (value, result). It runs again after a conflict, so it must not have side effects."""
Update = Callable[[T, float], T]
"""The same without a result, for changes in the background: no caller waits for their commit."""

_Entry = tuple[Change[T, Any], "asyncio.Future[Any]", Callable[[Any], Update[T] | None] | None]

MOST_CONFLICTS = 50
MOST_UNCOMMITTED = 2000
"""The most changes that are kept while the store does not answer."""
FULL = 1000
AGAIN_AFTER = 1.0
"""Seconds between two commits in the background while the store does not answer."""
WRITER_FOR = 60.0
UNKNOWN_KEPT = 64

Marks = dict[str, list[float]]
"""Instance -> [number, time] of its last commit."""


@dataclass(slots=True)
class Writers:
    """Who wrote a document lately, and whether it contains a commit of this instance whose answer was lost.

    Each commit writes the next number of its instance into the document's `writers`: an instance that finds its own
    last number there knows that the commit was applied.
    """

    me: str
    sequence: int = 0
    marks: Marks = field(default_factory=dict)
    _unknown: dict[int, int] = field(default_factory=dict)
    """Commits that may or may not have been applied: number -> how many changes in the background they had."""

    def sign(self, now: float, uncommitted: int) -> Marks:
        """The marks for the next commit. `uncommitted`: how many changes in the background it contains."""
        self.sequence += 1
        self._unknown[self.sequence] = uncommitted
        self._unknown.pop(self.sequence - UNKNOWN_KEPT, None)
        return self.recent(self.marks, now) | {self.me: [self.sequence, now]}

    def recent(self, marks: Mapping[str, list[float]], now: float) -> Marks:
        """Returns the marks of the last minute, without those of processes that have ended. This instance's own mark
        stays however old it is, because the answer to its commit may have been lost that long ago."""
        return {
            name: mark
            for name, mark in marks.items()
            if name == self.me or (now - mark[1] < WRITER_FOR and not has_ended(name))
        }

    def names(self, now: float) -> frozenset[str]:
        return frozenset((*self.recent(self.marks, now), self.me))

    def is_alone(self, now: float) -> bool:
        return len(self.marks) < 2 or self.names(now) == {self.me}

    def read(self, marks: Marks, *, changed: bool) -> int:
        """Replace the marks by those of the document. Returns how many background changes of this instance the document
        contains. If it changed, then either a commit whose answer was lost was applied, or none of them can be applied
        any more."""
        self.marks = marks
        applied = self._unknown.get(int(self._mark()), 0) if changed else 0
        if changed:
            self._unknown.clear()
        self.sequence = max(self.sequence, int(self._mark()))  # larger if this object was forgotten and made anew
        return applied

    def committed(self, marks: Marks) -> None:
        self.marks = marks
        self._unknown.clear()

    @property
    def holds_last(self) -> bool:
        """Whether the document contains the last commit that was tried."""
        return self._mark() == self.sequence

    def _mark(self) -> float:
        return self.marks.get(self.me, [0])[0]


@dataclass(slots=True)
class Codec(Generic[T]):
    """Turns a value into a document and back. `empty` is the value of a missing document; `tidy` drops what is old."""

    empty: T
    pack: Callable[[T], Document]
    unpack: Callable[[Mapping[str, Any]], T]
    tidy: Callable[[T, float], T]
    keeps: float | None = None
    """Seconds after the last commit when the document may be deleted; None: never."""


class SharedDocument(Generic[T]):
    def __init__(
        self, name: str, codec: Codec[T], writer: str, watch: StoreHealth, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self.changed = changed
        """Called whenever `value` became another one."""
        self.counters = Counters()
        self.written_last_here = False
        """The last commit that this instance knows of is its own."""
        self.value: T = codec.empty
        self.seen_at = float("-inf")
        self.committed_at = float("-inf")
        self._store = watch.store
        self._codec = codec
        self._watch = watch
        self._version: Version | None = None
        self._writers = Writers(writer)
        self._waiting: list[_Entry[T]] = []
        self._due = False
        """The changes in the background are to be committed now, not with the next commit that is needed anyway."""
        self._uncommitted: list[Update[T]] = []
        self._tried_at = float("-inf")
        self._later: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    def apply(self, change: Change[T, R], undo: Callable[[R], Update[T] | None] | None = None) -> "asyncio.Future[R]":
        """Change the value; the future is done when that is committed. Cancelling it cancels no commit: if that
        was made already, `undo` returns the change that takes it back."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, future, undo))
        self._start()
        return future

    async def perform(self, change: Change[T, R], undo: Callable[[R], Update[T] | None]) -> R:
        """Await `apply`. If the caller is cancelled, its change is undone, even if it is committed already."""
        future = self.apply(change, undo)
        try:
            return await future
        except asyncio.CancelledError:
            # If the result came in the same iteration of the loop, it must be taken back here.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._take_back(undo(future.result()))
            raise

    def _take_back(self, update: Update[T] | None) -> None:
        if update is not None:
            self.submit(update)

    def submit(self, update: Update[T]) -> None:
        """Change the value and commit in the background. If the commit fails, the next one contains the change."""
        self.add_to_next_commit(update)
        self._due = True
        self._start()

    def add_to_next_commit(self, update: Update[T]) -> None:
        """Change the value here at once, and in the store with the next commit. This starts no commit."""
        if len(self._uncommitted) < MOST_UNCOMMITTED:
            self._uncommitted.append(update)
        else:
            log.error("too many uncommitted changes wait for the store: a change of %s is lost", self.name)
        self.value = update(self.value, self._store.now())
        self.changed()

    @property
    def is_full(self) -> bool:
        """Too many uncommitted changes: stop booking."""
        return len(self._uncommitted) >= FULL

    def submit_later(self, update: Update[T]) -> None:
        """Like `submit`, but try a commit at most once a second, because the store does not answer."""
        if self._store.now() - self._tried_at >= AGAIN_AFTER:
            self.submit(update)
        else:
            self.add_to_next_commit(update)

    async def note(self, update: Update[T]) -> None:
        """Change the value and wait for the commit. If the store does not answer, a later commit has the change."""
        if self._watch.down:
            self.submit_later(update)
            return
        try:
            await self.apply(lambda value, now: (update(value, now), None))
        except StoreUnavailableError:
            self.add_to_next_commit(update)

    def commit_soon(self, every: float) -> None:
        """Commit the changes in the background, at the earliest `every` seconds after the last commit."""
        if not self._uncommitted:
            return
        wait = self.committed_at + every - self._store.now()
        if wait <= 0:
            self._start()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(wait, self._commit_now)

    def _commit_now(self) -> None:
        self._later = None
        if self._uncommitted:
            self._start()

    @property
    def busy(self) -> bool:
        """Whether a commit is under way. The store may then have an older value than this object."""
        return self._task is not None

    @property
    def uncommitted(self) -> int:
        """How many background changes wait for the next commit."""
        return len(self._uncommitted)

    @property
    def writers(self) -> frozenset[str]:
        """The instances that wrote this document within the last minute, and this one."""
        return self._writers.names(self._store.now())

    @property
    def is_only_writer(self) -> bool:
        return self._writers.is_alone(self._store.now())

    @property
    def commits_tried(self) -> int:
        """A number that grows with every commit that is tried. It shows whether a read began before a commit."""
        return self._writers.sequence

    async def flush(self) -> None:
        """Commit all changes and wait for every commit under way."""
        await self._idle()
        if self._uncommitted:
            self._start()
            await self._idle()

    async def _idle(self) -> None:
        while self._task is not None:
            await asyncio.shield(self._task)

    async def refresh(self, older_than: float) -> None:
        """Read the document if the last read is older than `older_than` seconds. Callers share one read."""
        if self._store.now() - self.seen_at <= older_than:
            return
        if self._task is not None:  # the commit under way tells as much as a read
            await self.apply(lambda value, _: (value, None))
            if self._store.now() - self.seen_at <= older_than or self._task is not None:
                return
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._reread())
            self._reading.add_done_callback(self._read_done)
        await asyncio.shield(self._reading)

    def _read_done(self, task: "asyncio.Task[None]") -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()

    def load(self, found: tuple[Document, Version] | None, asked: int | None = None) -> None:
        """Replace the value here by the stored one. A document that vanished is written again from the value here.
        `asked`: `commits_tried` when the read began; if a commit was tried since, the answer is too old to be used."""
        if asked is not None and (self._task is not None or asked != self._writers.sequence):
            return
        now = self._store.now()
        if found is None:
            self._version = None
        else:
            document, version = found
            # This comes first, so that a document that cannot be read is never overwritten.
            value, writers = self._unpacked(document, now)
            changed = version != self._version
            del self._uncommitted[: self._writers.read(writers, changed=changed)]
            self.written_last_here = self.written_last_here and not changed
            self._version = version
            self.value = value
            for update in self._uncommitted:
                self.value = update(self.value, now)
            self.changed()
        self.seen_at = now

    def _unpacked(self, document: Document, now: float) -> tuple[T, Marks]:
        try:
            return self._codec.unpack(document), self._writers.recent(document.get("writers", {}), now)
        except Exception as error:  # the document of another program, or of a newer version
            said = str(error) if isinstance(error, ValueError) else f"it cannot be read ({type(error).__name__})"
            raise StoreError(f"document {self.name!r} of the store: {said}; mend or delete it") from error

    async def _read(self) -> tuple[Document, Version] | None:
        self.counters.reads += 1
        return (await self._watch.read([self.name])).get(self.name)

    async def _reread(self) -> None:
        asked = self._writers.sequence
        self.load(await self._read(), asked)

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while True:
                # Skip changes that can be undone if their callers have left.
                waiting = [entry for entry in self._waiting if entry[2] is None or not entry[1].cancelled()]
                self._waiting, self._due = [], False
                began = asyncio.get_running_loop().time()
                try:
                    results = await self._commit([entry[0] for entry in waiting])
                except Exception as error:  # the callers that wait must get it, whatever it is
                    if asyncio.get_running_loop().time() - began > SLOW:  # callers that came meanwhile waited long too
                        waiting, self._waiting = waiting + self._waiting, []
                    self._fail(waiting, error)
                    return
                for (_, future, undo), result in zip(waiting, results, strict=True):
                    if not future.done():
                        future.set_result(result)
                    elif undo is not None:
                        self._take_back(undo(result))
                if not self._waiting and not self._due:
                    return
        finally:
            self._task = None
            if self._waiting or self._due:
                self._start()

    def _fail(self, waiting: "list[_Entry[T]]", error: Exception) -> None:
        if self._uncommitted and not isinstance(error, StoreUnavailableError):  # which `StoreHealth` logs, once
            log.warning("uncommitted changes of %s wait for a later commit: %s", self.name, error)
        for _, future, _ in waiting:
            if not future.done():
                future.set_exception(error)

    async def _commit(self, changes: list[Change[T, Any]]) -> list[Any]:
        for _ in range(MOST_CONFLICTS):
            now = self._store.now()
            uncommitted = len(self._uncommitted)  # these are in self.value already
            base, value, results = self.value, self.value, []
            for change in changes:
                value, result = change(value, now)
                results.append(result)
            if value is base and not uncommitted:
                return results
            value = self._codec.tidy(value, now)
            document = self._codec.pack(value)
            document["writers"] = writers = self._writers.sign(now, uncommitted)
            if self._codec.keeps is not None:
                document["expires"] = math.ceil(now + self._codec.keeps)
            self._tried_at = now
            try:
                version = await self._watch.commit(self.name, document, self._version, self.counters)
            except ConflictError:
                if not await self._was_applied():
                    continue
            except StoreUnavailableError:
                if not await self._was_applied(within=2 * SLOW):
                    raise
            else:
                del self._uncommitted[:uncommitted]
                self._writers.committed(writers)
                for update in self._uncommitted:
                    value = update(value, now)
                self.value, self._version, self.seen_at = value, version, now
                self.changed()
                self.written_last_here = True
            self.committed_at = now
            return results
        raise StoreUnavailableError(f"document {self.name!r} changed {MOST_CONFLICTS} times while one commit was tried")

    async def _was_applied(self, within: float | None = None) -> bool:
        """Whether the last commit, whose answer was lost, was applied: then the document has its number. `within`: how
        long to wait for a store that did not answer before."""
        try:
            async with asyncio.timeout(within):
                found = await self._read()
        except TimeoutError:
            return False
        self.load(found)
        return found is not None and self._writers.holds_last
