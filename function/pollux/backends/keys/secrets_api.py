"""The calls of Secret Manager that Pollux needs. A failure is a SecretError: which secret, and what to do about it."""

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pollux.backends.keys.contract import KeySourceError, Secret
from pollux.settings import ENVIRON

if TYPE_CHECKING:
    from google.cloud.secretmanager_v1 import SecretManagerServiceAsyncClient

EMULATOR = "SECRET_MANAGER_EMULATOR_HOST"
READ_S, WRITE_S = 3.0, 20.0
AGAIN_AFTER_S = 0.25
HOST = "secretmanager.googleapis.com:443"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
ACCESSOR, VIEWER, ADMIN = (f"roles/secretmanager.{role}" for role in ("secretAccessor", "viewer", "admin"))

T = TypeVar("T")


class SecretInfo(NamedTuple):
    """A secret without its value. `name` is the last part of its path; `born` differs after it was made again."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    born: float
    etag: str


class Version(NamedTuple):
    number: int
    made: float


class SecretError(KeySourceError):
    """`kind`: denied, missing, disabled, unavailable, exhausted, exists, changed, api-off, credentials,
    library or refused."""

    def __init__(self, kind: str, subject: str, reason: str) -> None:
        super().__init__(f"{subject}: {reason}")
        self.kind, self.subject, self.reason = kind, subject, reason
        self.transient = kind in ("unavailable", "exhausted", "credentials")


class SecretsApi:
    """The secrets of one project, for one event loop. SECRET_MANAGER_EMULATOR_HOST is used without TLS instead."""

    def __init__(self, project: str, *, environ: Mapping[str, str] = ENVIRON, read_s: float = READ_S) -> None:
        self.project = project
        self._emulator = environ.get(EMULATOR, "")
        self._read_s = read_s
        self._client: SecretManagerServiceAsyncClient | None = None
        self._credentials: Any = None
        self._opening = asyncio.Lock()

    async def secrets(self, *parts: str) -> list[SecretInfo]:
        """All secrets whose name begins with one of these. The service only filters by parts of names."""
        wanted = {"parent": f"projects/{self.project}", "filter": " OR ".join(f"name:{part}" for part in parts)}
        found = await self._read("", "list_secrets", wanted)
        infos = (_info(secret) for secret in found)
        return sorted(info for info in infos if info.name.startswith(parts))

    async def secret(self, name: str) -> SecretInfo:
        return _info(await self._read(name, "get_secret", {"name": self._path(name)}))

    async def versions(self, name: str) -> list[Version]:
        """The enabled versions, the newest first."""
        asked = {"parent": self._path(name), "filter": "state:ENABLED"}
        found = await self._read(name, "list_secret_versions", asked)
        return sorted((_version(version) for version in found if version.state.name == "ENABLED"), reverse=True)

    async def access(self, name: str, number: int) -> Secret:
        answer = await self._read(name, "access_secret_version", {"name": self._path(name, number)})
        try:
            return Secret(answer.payload.data.decode())
        except UnicodeDecodeError:
            pass
        raise SecretError("refused", self._subject(name), f"version {number} is not text")

    async def create(self, name: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        secret = {"replication": {"automatic": {}}, "labels": dict(labels), "annotations": dict(annotations)}
        asked = {"parent": f"projects/{self.project}", "secret_id": name, "secret": secret}
        await self._write(name, "create_secret", asked)

    async def describe(self, info: SecretInfo, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        """Replace the labels and annotations of the secret. Fails if it was changed since `info` was read."""
        secret = {"name": self._path(info.name), "etag": info.etag, "labels": labels, "annotations": annotations}
        await self._write(
            info.name, "update_secret", {"secret": secret, "update_mask": {"paths": ["labels", "annotations"]}}
        )

    async def add_version(self, name: str, value: Secret) -> int:
        asked = {"parent": self._path(name), "payload": {"data": value.reveal().encode()}}
        return _version(await self._write(name, "add_secret_version", asked)).number

    async def disable(self, name: str, number: int) -> None:
        await self._write(name, "disable_secret_version", {"name": self._path(name, number)})

    async def destroy(self, name: str, number: int) -> None:
        await self._write(name, "destroy_secret_version", {"name": self._path(name, number)})

    async def delete(self, name: str) -> None:
        await self._write(name, "delete_secret", {"name": self._path(name)})

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.transport.close()  # type: ignore[no-untyped-call]

    def _subject(self, name: str) -> str:
        return f"secret {name}" if name else f"project {self.project}"

    def _path(self, name: str, number: int | None = None) -> str:
        version = "" if number is None else f"/versions/{number}"
        return f"projects/{self.project}/secrets/{name}{version}"

    async def _read(self, name: str, method: str, asked: Mapping[str, Any]) -> Any:
        """Tries twice: after the CPU slept, the connection may be dead."""
        used = await self._connected()
        try:
            return await self._call(name, method, asked, self._read_s)
        except SecretError as error:
            if error.kind != "unavailable":
                raise
        if self._client is used:
            self._client = None  # not closed: other calls may still use it
        await asyncio.sleep(AGAIN_AFTER_S)
        return await self._call(name, method, asked, self._read_s)

    async def _write(self, name: str, method: str, asked: Mapping[str, Any]) -> Any:
        return await self._call(name, method, asked, WRITE_S)

    async def _call(self, name: str, method: str, asked: Mapping[str, Any], seconds: float) -> Any:
        client = await self._connected()
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError

        call: Callable[..., Awaitable[Any]] = getattr(client, method)
        try:
            async with asyncio.timeout(seconds * 1.1):  # gRPC's own timeout does not cover connecting
                answer = await call(request=asked, retry=None, timeout=seconds)
                return [item async for item in answer] if isinstance(answer, AsyncIterable) else answer
        except TimeoutError:
            failure = SecretError("unavailable", self._subject(name), _NO_ANSWER.format(status="DEADLINE_EXCEEDED"))
        except GoogleAPICallError as error:
            failure = self._failure(name, method, error)
        except GoogleAuthError:
            failure = self._no_credentials()
        except Exception as error:  # from gRPC itself, for example because the channel was closed
            failure = SecretError("unavailable", self._subject(name), _NO_ANSWER.format(status=type(error).__name__))
        raise failure  # outside of the handlers: the request may hold a value, and a chained traceback would show it

    async def _connected(self) -> "SecretManagerServiceAsyncClient":
        async with self._opening:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> "SecretManagerServiceAsyncClient":
        try:
            import google.auth
            import grpc  # type: ignore[import-untyped]
            from google.auth.exceptions import GoogleAuthError
            from google.cloud.secretmanager_v1 import SecretManagerServiceAsyncClient as Client
            from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
                SecretManagerServiceGrpcAsyncIOTransport as Transport,
            )
        except ImportError:
            raise SecretError(
                "library", "Secret Manager", "its library is not installed; run: pip install 'pollux-gateway[cloud]'"
            ) from None
        _keep_quiet()
        options = [("grpc.use_local_subchannel_pool", 1)]  # else a new channel shares the dead connection of the old
        if self._emulator:
            channel = grpc.aio.insecure_channel(self._emulator, options=[*options, ("grpc.enable_http_proxy", 0)])
            return Client(transport=Transport(channel=channel))
        if self._credentials is None:
            try:  # in a thread: it may call the metadata server
                self._credentials, _ = await asyncio.to_thread(google.auth.default, scopes=[SCOPE])
            except GoogleAuthError:
                raise self._no_credentials() from None
        channel = Transport.create_channel(HOST, credentials=self._credentials, scopes=[SCOPE], options=options)
        return Client(transport=Transport(channel=channel))

    def _no_credentials(self) -> SecretError:
        return SecretError(
            "credentials",
            "Secret Manager",
            "there are no valid Google credentials here; run: gcloud auth application-default login",
        )

    def _failure(self, name: str, method: str, error: Any) -> SecretError:
        """The service's own message names neither the role that is missing nor the command that helps."""
        status = getattr(error.grpc_status_code, "name", "UNKNOWN")
        if status == "PERMISSION_DENIED" and _is_off(error):
            return SecretError(
                "api-off",
                self._subject(""),
                f"the Secret Manager API is off there; run: gcloud services enable secretmanager.googleapis.com "
                f"--project {self.project}",
            )
        if status == "UNAUTHENTICATED" or (status == "UNAVAILABLE" and "plugin failed" in str(error)):
            return self._no_credentials()
        if status == "PERMISSION_DENIED":
            where = f"on secret {name}" if method in _ON_SECRET else f"on project {self.project}"
            doubt = "" if name else f" (or there is no project {self.project})"
            role = _ROLES.get(method, ADMIN)
            kind, reason = "denied", f"permission denied; grant {role} {where} to the account that runs this{doubt}"
        elif status == "NOT_FOUND" and not name:
            kind, reason = "missing", "there is no such project"
        elif status == "FAILED_PRECONDITION" and method == "access_secret_version":
            kind, reason = "disabled", "that version is disabled or destroyed"
        else:
            kind, reason = _FAILURES.get(status, ("refused", f"Secret Manager refused {method} ({status})"))
            reason = reason.format(status=status, project=self.project)
        return SecretError(kind, self._subject(name), reason)


@contextmanager
def known_as(what: str, project: str) -> Iterator[None]:
    """An error about a missing secret names the key or token instead."""
    try:
        yield
    except SecretError as error:
        if error.kind != "missing":
            raise
        raise KeySourceError(f"no {what} in project {project}") from None


_NO_ANSWER = "Secret Manager did not answer ({status}); try again"
_CHANGED = ("changed", "somebody else changed it just now; try again")
_FAILURES = {
    "NOT_FOUND": ("missing", "no such secret, or no such version, in project {project}"),
    "ALREADY_EXISTS": ("exists", "it is there already, in project {project}"),
    "ABORTED": _CHANGED,
    "FAILED_PRECONDITION": _CHANGED,
    "RESOURCE_EXHAUSTED": (
        "exhausted",
        "the project's requests a minute to Secret Manager are used up; try again in a minute",
    ),
    **dict.fromkeys(
        ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "CANCELLED", "UNKNOWN"), ("unavailable", _NO_ANSWER)
    ),
}
"""gRPC status -> kind and reason, where the call makes no difference."""
_ROLES = {
    "list_secrets": VIEWER,
    "list_secret_versions": VIEWER,
    "get_secret": VIEWER,
    "access_secret_version": ACCESSOR,
}
_ON_SECRET = ("list_secret_versions", "get_secret", "access_secret_version")


def _info(secret: Any) -> SecretInfo:
    return SecretInfo(
        secret.name.rpartition("/")[2],
        dict(secret.labels),
        dict(secret.annotations),
        secret.create_time.timestamp() if secret.create_time else 0.0,
        secret.etag,
    )


def _version(version: Any) -> Version:
    made = version.create_time.timestamp() if version.create_time else 0.0
    return Version(int(version.name.rpartition("/")[2]), made)


def _is_off(error: Any) -> bool:
    return "SERVICE_DISABLED" in (getattr(error, "reason", None) or "") or "has not been used in project" in str(error)


def _keep_quiet() -> None:
    """At level debug Google's client logs requests and answers, values included."""
    logging.getLogger("google.cloud.secretmanager_v1").setLevel(logging.INFO)
