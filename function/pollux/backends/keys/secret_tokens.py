"""Client and admin tokens from Secret Manager. Every enabled version is valid, so that each can be changed."""

import asyncio
import time
from collections.abc import Callable

from pollux.backends.keys.entries import Problem, clean
from pollux.backends.keys.records import ADMIN_TOKEN, TOKEN, token_name
from pollux.backends.keys.refreshing import Refreshing
from pollux.backends.keys.secrets_api import SecretError, SecretInfo, SecretsApi
from pollux.backends.keys.tokens import TokenError, Tokens

AT_ONCE = 4

_Values = dict[int, str]


class SecretManagerTokens:
    """A TokenSource over `pollux-token-<name>` and `pollux-admin-token`. A change is seen within a minute; what cannot
    be read keeps the tokens last known, and `problems` tells. The first deployment may have none."""

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
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._values: dict[tuple[str, float], _Values] = {}
        self._faults: tuple[Problem, ...] = ()
        self._tokens = Tokens((), None, query_token=query_token)

    def __repr__(self) -> str:
        return f"SecretManagerTokens({self._tokens!r})"

    @property
    def problems(self) -> tuple[Problem, ...]:
        failed = self._list.error
        if failed is None:
            return self._faults
        subject, reason = (
            (failed.subject, failed.reason) if isinstance(failed, SecretError) else ("Secret Manager", str(failed))
        )
        return (Problem(subject, 0, f"{reason}; the tokens known before stay valid"), *self._faults)

    async def tokens(self) -> Tokens:
        await self._list()
        return self._tokens

    async def close(self) -> None:
        await self._list.close()
        await self._api.close()

    async def _refresh(self) -> None:
        infos = await self._api.secrets(TOKEN, ADMIN_TOKEN)
        faults: list[Problem] = []
        read: list[SecretInfo] = []
        for info in infos:
            if token_name(info) is not None:
                read.append(info)
            elif info.name.startswith(TOKEN):
                reason = "a client's name is a letter and at most 31 of letters, digits, _ and -"
                faults.append(Problem(f"secret {info.name}", 0, reason))
        values: dict[tuple[str, float], _Values] = {}
        complete = True
        for info, result in zip(read, await asyncio.gather(*map(self._read, read)), strict=True):
            before = self._values.get((info.name, info.born), {})
            if isinstance(result, SecretError):
                faults.append(Problem(result.subject, 0, result.reason))
                complete = complete and bool(before)
                result = before
            values[info.name, info.born] = result
        made = self._made(read, values, faults)
        made.complete = complete
        if values != self._values or made.complete != self._tokens.complete:
            self._tokens = made  # the same object tells whoever asks that nothing changed
        self._values, self._faults = values, tuple(faults)

    async def _read(self, info: SecretInfo) -> _Values | SecretError:
        """The values of all enabled versions, by number; those that are known are not fetched again."""
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
                        if error.kind not in ("disabled", "missing"):  # the list may be behind
                            raise
        except SecretError as error:
            return error
        return values

    def _made(self, read: list[SecretInfo], values: dict[tuple[str, float], _Values], faults: list[Problem]) -> Tokens:
        """The tokens, without any that makes no sense: that one is a problem and costs no other anything."""
        clients: list[tuple[str, str]] = []
        admins: list[str] = []
        # The admin's come first: a client that has the same must not get the admin's rights, nor take them away.
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
