"""Calls of Cloud Storage's JSON API: authorised, tried again within a deadline, refusals explained.

It does not use Google's client library, which is synchronous, built on requests, and would be loaded at each start of
an instance.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

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
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
LOGIN = "run: gcloud auth application-default login"
Headers = Sequence[tuple[str, str]]

T = TypeVar("T")


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any] | None:
        """None if it is not a JSON object."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    @property
    def reason(self) -> str:
        """Google's word for an error: only letters, so that nothing else gets into a message."""
        error = (self.json() or {}).get("error")
        errors = error.get("errors") if isinstance(error, dict) else None
        first = errors[0] if isinstance(errors, list) and errors else None
        reason = first.get("reason") if isinstance(first, dict) else None
        return reason if isinstance(reason, str) and reason.isalpha() else ""


class TransientError(Exception):
    """The call failed and may be tried again; the message says what happened."""


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

    async def rest(self, trouble: TransientError) -> None:
        pause = self._pause * (1 - self._times.chance() / 2)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S)
        if self._times.now() + pause > self._until:
            raise BlobUnavailableError(
                f"{self._subject}: {trouble}, after tries for {self._times.deadline:g} s; try again later"
            )
        await self._times.sleep(pause)


class GoogleToken:
    """The token of Google's default credentials, fetched in a thread and kept while it is valid."""

    def __init__(self, credentials: Any = None) -> None:
        """`credentials`: those of google.auth, for tests; by default they are looked up by the first call."""
        self._credentials = credentials
        self._refused = False
        self._fetching = asyncio.Lock()

    async def __call__(self) -> str:
        """For the header Authorization. Raises BlobError."""
        async with self._fetching:
            if self._credentials is None or self._refused or not self._credentials.valid:
                await self._fetch()
            return str(self._credentials.token)

    def forget(self) -> None:
        """The last one was refused."""
        self._refused = True

    async def _fetch(self) -> None:
        try:
            from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        except ModuleNotFoundError:
            raise BlobError("blobs in gs:// need Google's libraries: pip install 'pollux-gateway[cloud]'") from None
        failure: BlobError
        try:
            await asyncio.to_thread(self._refresh)  # may ask the metadata server and waits for it
            self._refused = False
            return
        except DefaultCredentialsError:
            failure = BlobError(f"Cloud Storage: there are no Google credentials here; {LOGIN}")
        except GoogleAuthError as error:
            failure = BlobUnavailableError(
                f"Cloud Storage: no token for the credentials here ({type(error).__name__}); try again, or {LOGIN}"
            )
        raise failure  # outside of the handlers: a library's text about credentials stays out of the traceback

    def _refresh(self) -> None:
        import google.auth
        from google.auth.transport.requests import Request

        if self._credentials is None:
            self._credentials, _ = google.auth.default(scopes=[SCOPE])
        self._credentials.refresh(Request())


class GcsCalls:
    """One bucket, from one event loop. `subject` names in errors what a call was about; the statuses in `also` are
    answers too, besides 2xx."""

    def __init__(self, bucket: str, token: GoogleToken | None, *, base: str = SERVICE, times: Times = REAL) -> None:
        """`token` None: for an emulator, which must never see a real one."""
        self.bucket = bucket
        self._times = times
        self._token = token
        self._http = open_upstream(base, timeout=times.timeout, connect_timeout=min(CONNECT_S, times.timeout))

    async def close(self) -> None:
        await self._http.close()

    def pace(self, subject: str) -> Pace:
        return Pace(self._times, subject)

    async def begin(
        self, method: str, target: str, subject: str, headers: Headers = (), also: Sequence[int] = ()
    ) -> Answer:
        """An answer whose body is still to be read, after as many tries as needed."""
        return await self._retried(subject, lambda: self._once(method, target, subject, headers, b"", also))

    async def call(
        self,
        method: str,
        target: str,
        subject: str,
        *,
        headers: Headers = (),
        body: bytes = b"",
        also: Sequence[int] = (),
    ) -> Reply:
        """The whole answer, after as many tries as needed. Only for calls that may be made twice."""
        return await self._retried(
            subject, lambda: self.once(method, target, subject, headers=headers, body=body, also=also)
        )

    async def once(
        self,
        method: str,
        target: str,
        subject: str,
        *,
        headers: Headers = (),
        body: bytes = b"",
        also: Sequence[int] = (),
    ) -> Reply:
        """One try. Raises TransientError if another may succeed."""
        return await _read(await self._once(method, target, subject, headers, body, also))

    async def _retried(self, subject: str, attempt: Callable[[], Awaitable[T]]) -> T:
        pace = self.pace(subject)
        while True:
            try:
                return await attempt()
            except TransientError as trouble:
                await pace.rest(trouble)

    async def _once(
        self, method: str, target: str, subject: str, headers: Headers, body: bytes, also: Sequence[int]
    ) -> Answer:
        for fresh in (False, True):
            own = [("Accept-Encoding", "identity")]
            if self._token is not None:
                own.append(("Authorization", f"Bearer {await self._token()}"))
            try:
                answer = await self._http.send(method, target, [*own, *headers], body)
            except UpstreamError as error:
                raise TransientError(f"no answer from Cloud Storage ({error})") from None
            if answer.status < 300 or answer.status in also:
                return answer
            reply = await _read(answer)
            if reply.status != 401 or fresh or self._token is None:
                break
            self._token.forget()
        if reply.status in PASSING or (reply.status == 403 and reply.reason.endswith("ateLimitExceeded")):
            raise TransientError(f"Cloud Storage answered {reply.status}")
        raise refused(reply, self.bucket, subject)


def odd(subject: str) -> BlobError:
    return BlobError(f"{subject}: that is not an answer of Cloud Storage; check {EMULATOR} and proxies")


def refused(reply: Reply, bucket: str, subject: str) -> BlobError:
    """In our own words, because the service's name neither the setting nor the role."""
    status = reply.status
    if status == 401:
        what = "Cloud Storage does not accept these Google credentials; check which account runs this"
    elif status == 403:
        what = f"not allowed ({reply.reason or 'forbidden'}); grant {ROLE} on bucket {bucket} to the account of Pollux"
    elif status == 404:
        what = f"there is no bucket {bucket}; create it, or name another in POLLUX_BLOBS"
    else:
        what = f"Cloud Storage answered {status} ({reply.reason or 'without a reason'})"
    return BlobError(f"{subject}: {what}")


def no_bucket(reply: Reply) -> bool:
    """A missing bucket and a missing object are both `notFound`; only the text tells them apart."""
    return reply.status == 404 and b"bucket does not exist" in reply.body


async def _read(answer: Answer) -> Reply:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
    try:
        return Reply(answer.status, headers, await answer.read())
    except UpstreamError as error:
        answer.close()
        raise TransientError(f"half an answer from Cloud Storage ({error})") from None
