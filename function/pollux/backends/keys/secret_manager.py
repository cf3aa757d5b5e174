"""The keys of one project's Secret Manager: listed at the start, values fetched on first use and after a refusal."""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.backends.keys.entries import Problem, clean, value_fault
from pollux.backends.keys.records import KEY, VERSION, key_id_of, key_of, secret_name
from pollux.backends.keys.refreshing import Refreshing
from pollux.backends.keys.secret_tokens import SecretManagerTokens
from pollux.backends.keys.secrets_api import SecretError, SecretInfo, SecretsApi

__all__ = ["SecretManagerKeyring", "SecretManagerTokens"]

RESTS_S = {"denied": 60.0, "missing": 30.0, "disabled": 30.0, "refused": 30.0}
RESTS_ELSE_S = 5.0
REREAD_EVERY_S = 1.0
CHANGED_LATELY_S = 60.0
AT_ONCE = 8


class _Held(NamedTuple):
    version: int
    secret: Secret


class _Known:
    """What this process knows of one key's value."""

    def __init__(self, info: SecretInfo) -> None:
        self.info = info
        self.held: _Held | None = None
        self.fetching: asyncio.Task[bool] | None = None
        self.error: SecretError | None = None
        self.rests_until = 0.0
        self.refused = False
        """Google refused the value: then a newer one is looked for with each refresh, until there is one."""
        self.reread_at = float("-inf")
        self.changed_at = float("-inf")


class SecretManagerKeyring:
    """A Keyring over the secrets `pollux-key-<id>`. New, changed and removed ones are seen within a minute; a failing
    refresh keeps what is known, and `problems` tells. A value that cannot be read costs only its key.

    A new version is found when Google refuses the old one, or at once if `pollux keys rotate` announced it.
    """

    def __init__(self, project: str, *, api: SecretsApi | None = None, clock: Callable[[], float] = time.time) -> None:
        self.notices: tuple[Problem, ...] = ()
        self._api = api or SecretsApi(project)
        self._clock = clock
        self._list = Refreshing(self._refresh, clock)
        self._turn = asyncio.Semaphore(AT_ONCE)
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
        """Of all secrets, also those that describe no usable key."""
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
        """Of requests that were under way together with the old value, each learns that there is a new one."""
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
            if known is None or known.info.born != info.born:  # a secret that was made anew is another one
                if known is not None and known.held is not None:
                    self._generations[key_id] = self._generations.get(key_id, 0) + 1
                self._known[key_id] = _Known(info)
                continue
            announced = known.info.annotations.get(VERSION) != info.annotations.get(VERSION)
            known.info = info
            known.rests_until = 0.0 if announced else known.rests_until
            if known.held is not None and (announced or known.refused):
                looked_for.append(self._fetched(key_id, known))
        for key_id in self._known.keys() - infos.keys():
            del self._known[key_id]
            self._generations[key_id] = self._generations.get(key_id, 0) + 1  # one that comes back may be another
        self._publish()
        await asyncio.gather(*looked_for)

    def _publish(self) -> None:
        keys, faults = [], []
        for key_id in sorted(self._known):
            found = key_of(self._known[key_id].info, self._generations.get(key_id, 0))
            if isinstance(found, Key):
                keys.append(found)
            else:
                faults.append(found)
        self._faults = tuple(faults)
        if tuple(keys) != self._keys:  # the same tuple tells whoever asks that nothing changed
            self._keys = tuple(keys)

    async def _fetched(self, key_id: str, known: _Known) -> bool:
        """Whether the newest value is another one than before. One look serves all who ask; it never raises."""
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
        self._generations[key_id] = self._generations.get(key_id, 0) + 1
        self._publish()
        return True

    async def _newest(self, name: str, held: _Held | None) -> _Held:
        """By number, from a list: what `latest` names is only eventually the newest. The list may be behind, too."""
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
        raise SecretError(
            "disabled",
            f"secret {name}",
            f"it has no enabled version; add one with: pollux keys rotate {key_id_of(name)}",
        )

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
