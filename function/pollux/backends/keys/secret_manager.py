"""The keys and tokens in the Secret Manager of one project, kept up to date while they are used."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.backends.keys.entries import Problem, clean, value_fault
from pollux.backends.keys.records import (
    ADMIN_TOKEN,
    KEY,
    NAME_RULE,
    TOKEN,
    VERSION,
    key_id_of,
    key_of,
    secret_name,
    token_name,
)
from pollux.backends.keys.secrets_api import SecretError, SecretInfo, SecretsApi
from pollux.backends.keys.tokens import TokenError, Tokens

log = logging.getLogger("pollux.keys")

STALE_S = 30.0
OLD_S = 60.0
AGAIN_S = 5.0
PATIENCE_S = 3.0

RESTS_S = {"denied": 60.0, "missing": 30.0, "disabled": 30.0, "refused": 30.0}
"""How long a value that cannot be read is not tried again, by the kind of error."""
RESTS_ELSE_S = 5.0
REREAD_EVERY_S = 1.0
CHANGED_LATELY_S = 60.0
KEYS_AT_ONCE, TOKENS_AT_ONCE = 8, 4


class Refreshing:
    """Calls `fetch` before a use if the last fetch is too long ago. After 30 s it runs beside the caller; after 60 s
    the caller waits for it, at most 3 s and only if the last fetch did not fail. All callers share one fetch. After a
    failure the next one starts 5 s later at the earliest. `error` is the last failure, until a success. A call raises
    KeySourceError only if no fetch has ever succeeded.

    Ages are counted by the wall clock from the begin of a fetch: without requests the CPU may sleep during one.
    """

    def __init__(self, fetch: Callable[[], Awaitable[None]], clock: Callable[[], float]) -> None:
        self.error: KeySourceError | None = None
        self._fetch = fetch
        self._clock = clock
        self._fetched_at = -math.inf
        self._began_at = -math.inf
        self._task: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        now = self._clock()
        age = abs(now - self._fetched_at)  # refreshing goes on if the clock is set back
        if age < STALE_S:
            return
        if self._task is None and abs(now - self._began_at) >= AGAIN_S:
            self._began_at = now
            self._task = asyncio.create_task(self._refresh())
        if self._fetched_at == -math.inf:
            if self._task is not None:
                await asyncio.shield(self._task)  # a client that leaves must not cancel it for the others
            if self.error is not None:
                raise KeySourceError(str(self.error)) from None
        elif self._task is not None and age > OLD_S and self.error is None:
            await asyncio.wait({self._task}, timeout=PATIENCE_S)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _refresh(self) -> None:
        began = self._began_at
        try:
            await self._fetch()
        except KeySourceError as error:
            if self.error is None and self._fetched_at > -math.inf:  # before the first success the caller gets it
                log.warning("%s", error)
            self.error = error
        except Exception as error:
            log.exception("a refresh failed")
            self.error = KeySourceError(f"a refresh failed: {type(error).__name__}")
        else:
            self.error = None
            self._fetched_at = began
        finally:
            self._task = None


# --- keys -------------------------------------------------------------------------------------------------------------


class _Held(NamedTuple):
    version: int
    secret: Secret


class _Known:
    """What is known of one key's value."""

    def __init__(self, info: SecretInfo) -> None:
        self.info = info
        self.held: _Held | None = None
        self.fetching: asyncio.Task[bool] | None = None
        self.error: SecretError | None = None
        self.rests_until = 0.0
        self.refused = False
        """Google refused the value: each refresh looks for a newer one until it finds one."""
        self.reread_at = float("-inf")
        self.changed_at = float("-inf")


class SecretManagerKeyring:
    """A Keyring over the secrets `pollux-key-<id>`. New, changed and removed keys are seen within a minute. If a
    refresh fails, the known keys stay in use and `problems` says so. A value that cannot be read affects only its key.

    A new version is found when Google refuses the old one, or with the next refresh if `pollux keys rotate` made it.
    """

    def __init__(self, project: str, *, api: SecretsApi | None = None, clock: Callable[[], float] = time.time) -> None:
        self.notices: tuple[Problem, ...] = ()
        self._api = api or SecretsApi(project)
        self._clock = clock
        self._list = Refreshing(self._refresh, clock)
        self._turn = asyncio.Semaphore(KEYS_AT_ONCE)
        self._known: dict[str, _Known] = {}
        self._generations: dict[str, int] = {}
        self._faults: tuple[Problem, ...] = ()
        self._keys: tuple[Key, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        failed = self._list.error
        stale = [_problem(failed, "; the keys known before stay in use")] if failed else []
        return (*stale, *self._faults, *(_problem(k.error) for k in self._known.values() if k.error), *self._twins())

    @property
    def ids(self) -> frozenset[str]:
        """Of all secrets, also those that are not usable as keys."""
        return frozenset(self._known)

    async def keys(self) -> tuple[Key, ...]:
        await self._list()
        return self._keys

    async def value(self, key_id: str) -> Secret:
        known = self._known.get(key_id)
        if known is None:
            await self._list()
            known = self._known.get(key_id)
        if known is None:
            raise SecretError("missing", f"secret {secret_name(key_id)}", "it is not there any more")
        if known.held is None:
            if known.error is None or self._clock() >= known.rests_until:
                await self._fetched(key_id, known)
            if known.held is None:
                raise known.error or SecretError("missing", f"secret {secret_name(key_id)}", "it was removed just now")
        return known.held.secret

    async def reread(self, key_id: str) -> bool:
        """Several requests may be refused with the same old value: each is told that there is a new one."""
        known = self._known.get(key_id)
        if known is None:
            return False
        now = self._clock()
        if abs(now - known.changed_at) < CHANGED_LATELY_S:
            return True
        known.refused = True
        if known.fetching is None and abs(now - known.reread_at) < REREAD_EVERY_S:
            return False
        known.reread_at = now
        return await self._fetched(key_id, known)

    async def close(self) -> None:
        await self._list.close()
        running = [known.fetching for known in self._known.values() if known.fetching]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._api.close()

    async def _refresh(self) -> None:
        infos = {key_id_of(info.name): info for info in await self._api.secrets(KEY)}
        looked_for = []
        for key_id, info in infos.items():
            known = self._known.get(key_id)
            if known is None or known.info.born != info.born:  # a secret made again may hold another key
                if known is not None and known.held is not None:
                    self._count_change(key_id)
                self._known[key_id] = _Known(info)
                continue
            announced = known.info.annotations.get(VERSION) != info.annotations.get(VERSION)
            known.info = info
            known.rests_until = 0.0 if announced else known.rests_until
            if known.held is not None and (announced or known.refused):
                looked_for.append(self._fetched(key_id, known))
        for key_id in self._known.keys() - infos.keys():
            del self._known[key_id]
            self._count_change(key_id)  # if the id comes back, it may be another key
        self._publish()
        await asyncio.gather(*looked_for)

    def _count_change(self, key_id: str) -> None:
        self._generations[key_id] = self._generations.get(key_id, 0) + 1

    def _publish(self) -> None:
        found = [key_of(known.info, self._generations.get(key_id, 0)) for key_id, known in sorted(self._known.items())]
        self._faults = tuple(one for one in found if isinstance(one, Problem))
        keys = tuple(one for one in found if isinstance(one, Key))
        if keys != self._keys:  # the same tuple means that nothing has changed
            self._keys = keys

    async def _fetched(self, key_id: str, known: _Known) -> bool:
        """Whether the newest value differs from the one before. Callers share one fetch; it never raises."""
        if known.fetching is None:
            known.fetching = asyncio.create_task(self._fetch(key_id, known))
        return await asyncio.shield(known.fetching)

    async def _fetch(self, key_id: str, known: _Known) -> bool:
        before = known.held
        try:
            async with self._turn:
                known.held = await self._newest(known.info.name, before)
            known.error = None
        except SecretError as error:
            known.error = error
            known.rests_until = self._clock() + RESTS_S.get(error.kind, RESTS_ELSE_S)
            return False
        finally:
            known.fetching = None
        if before is None or before.secret == known.held.secret:
            return False
        known.refused = False
        known.changed_at = self._clock()
        self._count_change(key_id)
        self._publish()
        return True

    async def _newest(self, name: str, held: _Held | None) -> _Held:
        """By number, from the list of versions: `latest` may name an older one for a while. The list may lag, too."""
        for version in await self._api.versions(name):
            if held is not None and held.version == version.number:
                return held
            try:
                text = clean((await self._api.access(name, version.number)).reveal())
            except SecretError as error:
                if error.kind in ("disabled", "missing"):
                    continue
                raise
            if fault := value_fault(text):
                raise SecretError("refused", f"secret {name}", f"version {version.number} is not a key: {fault}")
            return _Held(version.number, Secret(text))
        reason = f"it has no enabled version; add one with: pollux keys rotate {key_id_of(name)}"
        raise SecretError("disabled", f"secret {name}", reason)

    def _twins(self) -> list[Problem]:
        first: dict[Secret, str] = {}
        problems = []
        for key_id, known in sorted(self._known.items()):
            if known.held and (other := first.setdefault(known.held.secret, key_id)) != key_id:
                reason = (
                    f"it holds the same key as secret {secret_name(other)}, whose quota is counted twice; remove one"
                )
                problems.append(Problem(f"secret {secret_name(key_id)}", 0, reason))
        return problems


def _problem(error: KeySourceError, then: str = "") -> Problem:
    if isinstance(error, SecretError):
        return Problem(error.subject, 0, error.reason + then)
    return Problem("Secret Manager", 0, f"{error}{then}")


# --- tokens -----------------------------------------------------------------------------------------------------------

_Values = dict[int, str]
"""The enabled versions of one secret."""


class SecretManagerTokens:
    """A TokenSource over `pollux-token-<name>` and `pollux-admin-token`. Every enabled version is valid, so that a
    token can be replaced without a pause. A change is seen within a minute. If a token cannot be read, the last known
    one stays valid, and `problems` says so."""

    def __init__(
        self,
        project: str,
        *,
        query_token: bool,
        api: SecretsApi | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._query_token = query_token
        self._api = api or SecretsApi(project)
        self._list = Refreshing(self._refresh, clock)
        self._turn = asyncio.Semaphore(TOKENS_AT_ONCE)
        self._values: dict[tuple[str, float], _Values] = {}
        self._faults: tuple[Problem, ...] = ()
        self._tokens = Tokens((), None, query_token=query_token)

    def __repr__(self) -> str:
        return f"SecretManagerTokens({self._tokens!r})"

    @property
    def problems(self) -> tuple[Problem, ...]:
        failed = self._list.error
        stale = [_problem(failed, "; the tokens known before stay valid")] if failed else []
        return (*stale, *self._faults)

    async def tokens(self) -> Tokens:
        await self._list()
        return self._tokens

    async def close(self) -> None:
        await self._list.close()
        await self._api.close()

    async def _refresh(self) -> None:
        infos = await self._api.secrets(TOKEN, ADMIN_TOKEN)
        read = [info for info in infos if token_name(info) is not None]
        faults = [
            Problem(f"secret {info.name}", 0, NAME_RULE)
            for info in infos
            if token_name(info) is None and info.name.startswith(TOKEN)
        ]
        values: dict[tuple[str, float], _Values] = {}
        complete = True
        for info, result in zip(read, await asyncio.gather(*map(self._read, read)), strict=True):
            before = self._values.get((info.name, info.born), {})
            if isinstance(result, SecretError):
                faults.append(_problem(result))
                complete = complete and bool(before)
                result = before
            values[info.name, info.born] = result
        made = self._made(read, values, faults)
        made.complete = complete
        if values != self._values or made.complete != self._tokens.complete:
            self._tokens = made  # the same object means that nothing has changed
        self._values, self._faults = values, tuple(faults)

    async def _read(self, info: SecretInfo) -> _Values | SecretError:
        """The values of all enabled versions, by number. Known values are not fetched again."""
        known = self._values.get((info.name, info.born), {})
        values: _Values = {}
        try:
            async with self._turn:
                for version in await self._api.versions(info.name):
                    try:
                        value = known.get(version.number)
                        if value is None:
                            value = clean((await self._api.access(info.name, version.number)).reveal())
                        values[version.number] = value
                    except SecretError as error:
                        if error.kind not in ("disabled", "missing"):  # the list of versions may lag
                            raise
        except SecretError as error:
            return error
        return values

    def _made(self, read: list[SecretInfo], values: dict[tuple[str, float], _Values], faults: list[Problem]) -> Tokens:
        """The usable tokens. An unusable one is a problem and does not affect the others."""
        clients: list[tuple[str, str]] = []
        admins: list[str] = []
        # The admin's come first: then a client's token that equals one is refused, and the admin's stays valid.
        for info in sorted(read, key=lambda info: info.name != ADMIN_TOKEN):
            name = token_name(info)
            for number, value in sorted(values[info.name, info.born].items(), reverse=True):
                try:
                    if name:
                        Tokens([(name, value)], admins, query_token=False)
                        clients.append((name, value))
                    else:
                        Tokens((), [value], query_token=False)
                        admins.append(value)
                except TokenError as error:
                    reason = str(error).partition(": ")[2]
                    faults.append(Problem(f"secret {info.name}", 0, f"version {number} is not a token: {reason}"))
        return Tokens(clients, admins, query_token=self._query_token)
