"""Calls of Cloud Storage's JSON API: authorised, tried again within a deadline, refusals explained. Which calls there
are is known in `gcs` and `gcs_upload`.

Not its client library: that is synchronous, built on requests, and would be loaded by each start of an instance.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pollux.backends.blobs.contract import BlobError, BlobUnavailableError
from pollux.backends.transport import open_upstream
from pollux.backends.upstream import Answer, UpstreamError

SERVICE = "https://storage.googleapis.com"
EMULATOR = "STORAGE_EMULATOR_HOST"
TIMEOUT_S, CONNECT_S = 30.0, 10.0
DEADLINE_S = 60.0
"""After that a call that failed is not tried again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
PASSING = frozenset({408, 429, 500, 502, 503, 504})
ROLE = "roles/storage.objectUser"


class Token(Protocol):
    async def __call__(self) -> str:
        """For the header Authorization; "" where none is needed. Raises BlobError."""

    def forget(self) -> None:
        """The last one was refused."""


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any] | None:
        """None: it is no object of JSON."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


class PassingError(Exception):
    """Worth another try; the message says what happened."""


@dataclass(frozen=True, slots=True)
class Times:
    """Time and chance, so that tests need neither."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random
    deadline: float = DEADLINE_S
    timeout: float = TIMEOUT_S


REAL = Times()


class Pace:
    """The pauses between the tries of one call: twice as long each time, by chance up to half shorter."""

    def __init__(self, times: Times, subject: str) -> None:
        self._times = times
        self._subject = subject
        self._until = times.now() + times.deadline
        self._pause = FIRST_PAUSE_S

    async def rest(self, trouble: PassingError) -> None:
        pause = self._pause * (1 - self._times.chance() / 2)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S)
        if self._times.now() + pause > self._until:
            raise BlobUnavailableError(
                f"{self._subject}: {trouble}, and not for {self._times.deadline:g} s; try again later"
            )
        await self._times.sleep(pause)


class GcsCalls:
    """One bucket, from one event loop. `subject` is what an error speaks of."""

    def __init__(self, bucket: str, token: Token, *, base: str = SERVICE, times: Times = REAL) -> None:
        self.bucket = bucket
        self.times = times
        self._token = token
        self._http = open_upstream(base, timeout=times.timeout, connect_timeout=min(CONNECT_S, times.timeout))

    async def close(self) -> None:
        await self._http.close()

    def pace(self, subject: str) -> Pace:
        return Pace(self.times, subject)

    async def begin(
        self, method: str, target: str, subject: str, headers: Sequence[tuple[str, str]] = (), also: Sequence[int] = ()
    ) -> Answer:
        """An answer whose body is still to come: 2xx or one of `also`, after as many tries as it takes."""
        pace = self.pace(subject)
        while True:
            try:
                return await self._once(method, target, subject, headers, b"", also)
            except PassingError as trouble:
                await pace.rest(trouble)

    async def call(
        self,
        method: str,
        target: str,
        subject: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        also: Sequence[int] = (),
    ) -> Reply:
        """The same with the whole answer. Only for what may be done twice."""
        pace = self.pace(subject)
        while True:
            try:
                return await self.once(method, target, subject, headers=headers, body=body, also=also)
            except PassingError as trouble:
                await pace.rest(trouble)

    async def once(
        self,
        method: str,
        target: str,
        subject: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        also: Sequence[int] = (),
    ) -> Reply:
        """One try. Raises PassingError if another is worth it."""
        return await _read(await self._once(method, target, subject, headers, body, also))

    async def _once(
        self,
        method: str,
        target: str,
        subject: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        also: Sequence[int],
    ) -> Answer:
        for fresh in (False, True):
            token = await self._token()
            own = [("Authorization", f"Bearer {token}")] if token else []
            try:
                answer = await self._http.send(method, target, [*own, ("Accept-Encoding", "identity"), *headers], body)
            except UpstreamError as error:
                raise PassingError(f"no answer from Cloud Storage ({error})") from None
            if answer.status < 300 or answer.status in also:
                return answer
            reply = await _read(answer)
            if reply.status != 401 or fresh:
                break
            self._token.forget()
        reason = _reason(reply)
        if reply.status in PASSING or (reply.status == 403 and reason.endswith("ateLimitExceeded")):
            raise PassingError(f"Cloud Storage answered {reply.status}")
        raise refused(reply, self.bucket, subject)


def odd(subject: str) -> BlobError:
    return BlobError(f"{subject}: that is no answer of Cloud Storage's; look at {EMULATOR} and at proxies")


def refused(reply: Reply, bucket: str, subject: str) -> BlobError:
    """Why, in our words: the service's name neither the setting nor the role."""
    status = reply.status
    if status == 401:
        return BlobError(f"{subject}: Cloud Storage does not take these Google credentials; look who runs this")
    if status == 403:
        reason = _reason(reply) or "forbidden"
        return BlobError(f"{subject}: not allowed ({reason}); grant {ROLE} on bucket {bucket} to who runs this")
    if status == 404:
        return BlobError(f"{subject}: there is no bucket {bucket}; make it, or name another in POLLUX_BLOBS")
    return BlobError(f"{subject}: Cloud Storage answered {status} ({_reason(reply) or 'without a reason'})")


def no_bucket(reply: Reply) -> bool:
    """Bucket and object are both `notFound`; the text alone tells them apart."""
    return reply.status == 404 and b"bucket does not exist" in reply.body


async def _read(answer: Answer) -> Reply:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
    try:
        return Reply(answer.status, headers, await answer.read())
    except UpstreamError as error:
        answer.close()
        raise PassingError(f"half an answer from Cloud Storage ({error})") from None


def _reason(reply: Reply) -> str:
    """Google's word for it: letters alone, so that nothing else gets into an error."""
    error = (reply.json() or {}).get("error")
    errors = error.get("errors") if isinstance(error, dict) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    reason = first.get("reason") if isinstance(first, dict) else None
    return reason if isinstance(reason, str) and reason.isalpha() else ""
