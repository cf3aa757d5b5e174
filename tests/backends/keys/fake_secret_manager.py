"""A fake Secret Manager that speaks gRPC with Google's own messages. Tests put secrets and faults into it."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
from google.cloud import secretmanager_v1 as sm
from google.protobuf import any_pb2, empty_pb2  # type: ignore[import-untyped]
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

SERVICE = "google.cloud.secretmanager.v1.SecretManagerService"
PROJECT, NUMBER = "pool", "123456"
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


class SecretManager(Secrets):
    """The service. `host` is for SECRET_MANAGER_EMULATOR_HOST."""

    def __init__(self, page_size: int = 3) -> None:
        super().__init__()
        self.page_size = page_size
        self.host = ""
        self._end = threading.Event()

    def list_secrets(self, request: sm.ListSecretsRequest, context: grpc.ServicerContext) -> sm.ListSecretsResponse:
        words = _filter_words(request.filter, context)
        if any(not word.startswith("name:") for word in words):
            _refuse(context, "INVALID_ARGUMENT", "Invalid filter.")
        parts = [word.removeprefix("name:") for word in words]
        found = [s for name, s in sorted(self.secrets.items()) if not parts or any(part in name for part in parts)]
        page, token = self._page(found, request, context)
        return sm.ListSecretsResponse(
            secrets=[self._shown(stored) for stored in page], next_page_token=token, total_size=len(found)
        )

    def get_secret(self, request: sm.GetSecretRequest, context: grpc.ServicerContext) -> sm.Secret:
        return self._shown(self._stored(request.name, context))

    def create_secret(self, request: sm.CreateSecretRequest, context: grpc.ServicerContext) -> sm.Secret:
        if request.secret_id in self.secrets:
            _refuse(context, "ALREADY_EXISTS", f"Secret [{request.secret_id}] already exists.")
        if "automatic" not in request.secret.replication:
            _refuse(context, "INVALID_ARGUMENT", "replication is required")
        _check_labels(request.secret.labels, context)
        labels, annotations = dict(request.secret.labels), dict(request.secret.annotations)
        return self._shown(self.put_described(request.secret_id, (), labels, annotations))

    def update_secret(self, request: sm.UpdateSecretRequest, context: grpc.ServicerContext) -> sm.Secret:
        stored = self._stored(request.secret.name, context)
        if request.secret.etag and request.secret.etag != stored.etag:
            _refuse(context, "FAILED_PRECONDITION", "The etag does not match.")
        _check_labels(request.secret.labels, context)
        for path in request.update_mask.paths:
            if path not in ("labels", "annotations"):
                _refuse(context, "INVALID_ARGUMENT", f"unknown path {path}")
            setattr(stored, path, dict(getattr(request.secret, path)))
        stored.etag = self._etag()
        return self._shown(stored)

    def delete_secret(self, request: sm.DeleteSecretRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        del self.secrets[self._stored(request.name, context).name]
        return empty_pb2.Empty()

    def list_secret_versions(
        self, request: sm.ListSecretVersionsRequest, context: grpc.ServicerContext
    ) -> sm.ListSecretVersionsResponse:
        words = _filter_words(request.filter, context)
        if words not in ([], ["state:ENABLED"]):
            _refuse(context, "INVALID_ARGUMENT", "Invalid filter.")
        stored = self._stored(request.parent, context)
        numbered = list(enumerate(stored.versions, 1))
        found = [item for item in reversed(numbered) if not words or item[1].state == "ENABLED"]
        page, token = self._page(found, request, context)
        versions = [self._version(stored, number) for number, _ in page]
        return sm.ListSecretVersionsResponse(versions=versions, next_page_token=token, total_size=len(found))

    def add_secret_version(
        self, request: sm.AddSecretVersionRequest, context: grpc.ServicerContext
    ) -> sm.SecretVersion:
        stored = self._stored(request.parent, context)
        return self._version(stored, self.add(stored.name, request.payload.data.decode()))

    def access_secret_version(
        self, request: sm.AccessSecretVersionRequest, context: grpc.ServicerContext
    ) -> sm.AccessSecretVersionResponse:
        stored, number = self._numbered(request.name, context)
        version = stored.versions[number - 1]
        if version.state != "ENABLED":
            _refuse(context, "FAILED_PRECONDITION", f"Secret Version [{request.name}] is in {version.state} state.")
        return sm.AccessSecretVersionResponse(
            name=self._version(stored, number).name, payload=sm.SecretPayload(data=version.value)
        )

    def disable_secret_version(
        self, request: sm.DisableSecretVersionRequest, context: grpc.ServicerContext
    ) -> sm.SecretVersion:
        return self._set_state(request.name, "DISABLED", context)

    def destroy_secret_version(
        self, request: sm.DestroySecretVersionRequest, context: grpc.ServicerContext
    ) -> sm.SecretVersion:
        return self._set_state(request.name, "DESTROYED", context)

    # --- how it is served

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "".join(word.title() for word in method.split("_")): self._handler(method, request, response)
                for method, request, response in _METHODS
            },
        )

    def stop(self) -> None:
        self._end.set()

    def _handler(self, method: str, request: Any, response: Any) -> Any:
        behaviour: Callable[[Any, grpc.ServicerContext], Any] = getattr(self, method)

        def answer(message: Any, context: grpc.ServicerContext) -> Any:
            resource = _resource(message)
            name = resource.partition("/secrets/")[2].partition("/")[0]
            with self.lock:
                self.calls[method] += 1
                self.asked.append((method, name))
            self._meet_faults(method, name, context)
            if resource.split("/")[1] not in (PROJECT, NUMBER):
                _refuse(context, "PERMISSION_DENIED", f"Permission denied on resource project {resource}.")
            with self.lock:
                return behaviour(message, context)

        serialize = response.SerializeToString if response is empty_pb2.Empty else response.serialize
        return grpc.unary_unary_rpc_method_handler(answer, request.deserialize, serialize)

    def _meet_faults(self, method: str, name: str, context: grpc.ServicerContext) -> None:
        for fault in self.faults:
            with self.lock:
                meant = fault.method in (method, EVERY) and fault.secret in (name, EVERY) and fault.times > 0
                fault.times -= meant
            if not meant:
                continue
            if fault.seconds:
                self._end.wait(fault.seconds)
            if fault.kind == "API_OFF":
                _api_off(context)
            elif fault.kind == "DENIED":
                _refuse(context, "PERMISSION_DENIED", f"Permission 'secretmanager.{method}' denied for resource.")
            elif fault.kind != "SLOW":
                _refuse(context, fault.kind, "ordered by the test")

    def _page(self, found: list[Any], request: Any, context: grpc.ServicerContext) -> tuple[list[Any], str]:
        if request.page_token and not request.page_token.isdigit():
            _refuse(context, "INVALID_ARGUMENT", "bad page token")
        start = int(request.page_token or 0)
        end = start + min(request.page_size or self.page_size, self.page_size)
        return found[start:end], str(end) if end < len(found) else ""

    def _stored(self, resource: str, context: grpc.ServicerContext) -> Stored:
        name = resource.partition("/secrets/")[2].partition("/")[0]
        if name not in self.secrets:
            _refuse(context, "NOT_FOUND", f"Secret [projects/{NUMBER}/secrets/{name}] not found.")
        return self.secrets[name]

    def _numbered(self, resource: str, context: grpc.ServicerContext) -> tuple[Stored, int]:
        stored, number = self._stored(resource, context), resource.rpartition("/")[2]
        if not number.isdigit() or not 0 < int(number) <= len(stored.versions):
            _refuse(context, "NOT_FOUND", f"Secret Version [{resource}] not found.")
        return stored, int(number)

    def _set_state(self, resource: str, state: str, context: grpc.ServicerContext) -> sm.SecretVersion:
        stored, number = self._numbered(resource, context)
        version = stored.versions[number - 1]
        if version.state == "DESTROYED":
            _refuse(context, "FAILED_PRECONDITION", "it is destroyed")
        version.state = state
        if state == "DESTROYED":
            version.value = b""
        return self._version(stored, number)

    def _shown(self, stored: Stored) -> sm.Secret:
        return sm.Secret(
            name=f"projects/{NUMBER}/secrets/{stored.name}",
            labels=stored.labels,
            annotations=stored.annotations,
            create_time=stored.made,
            etag=stored.etag,
            replication=sm.Replication(automatic=sm.Replication.Automatic()),
        )

    def _version(self, stored: Stored, number: int) -> sm.SecretVersion:
        version = stored.versions[number - 1]
        name = f"projects/{NUMBER}/secrets/{stored.name}/versions/{number}"
        return sm.SecretVersion(
            name=name, create_time=version.made, state=getattr(sm.SecretVersion.State, version.state)
        )


_METHODS: tuple[tuple[str, Any, Any], ...] = (
    ("list_secrets", sm.ListSecretsRequest, sm.ListSecretsResponse),
    ("get_secret", sm.GetSecretRequest, sm.Secret),
    ("create_secret", sm.CreateSecretRequest, sm.Secret),
    ("update_secret", sm.UpdateSecretRequest, sm.Secret),
    ("delete_secret", sm.DeleteSecretRequest, empty_pb2.Empty),
    ("list_secret_versions", sm.ListSecretVersionsRequest, sm.ListSecretVersionsResponse),
    ("add_secret_version", sm.AddSecretVersionRequest, sm.SecretVersion),
    ("access_secret_version", sm.AccessSecretVersionRequest, sm.AccessSecretVersionResponse),
    ("disable_secret_version", sm.DisableSecretVersionRequest, sm.SecretVersion),
    ("destroy_secret_version", sm.DestroySecretVersionRequest, sm.SecretVersion),
)


@contextmanager
def serving(secrets: SecretManager | None = None) -> Iterator[SecretManager]:
    """A Secret Manager at 127.0.0.1, on a free port, with `host` set."""
    secrets = secrets or SecretManager()
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((secrets.handlers(),))
    secrets.host = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield secrets
    finally:
        secrets.stop()
        server.stop(grace=0).wait()


def _resource(message: Any) -> str:
    if isinstance(message, sm.UpdateSecretRequest):
        return str(message.secret.name)
    if isinstance(message, sm.CreateSecretRequest):
        return f"{message.parent}/secrets/{message.secret_id}"
    return str(getattr(message, "parent", "") or getattr(message, "name", ""))


def _filter_words(text: str, context: grpc.ServicerContext) -> list[str]:
    words = text.split(" OR ") if text else []
    if any(not word or " " in word for word in words):
        _refuse(context, "INVALID_ARGUMENT", "Invalid filter.")
    return words


def _check_labels(labels: Mapping[str, str], context: grpc.ServicerContext) -> None:
    for name, value in labels.items():
        if not all(c.islower() or c.isdigit() or c in "_-" for c in name + value) or len(value) > 63:
            _refuse(context, "INVALID_ARGUMENT", "Invalid label.")


def _refuse(context: grpc.ServicerContext, status: str, message: str) -> NoReturn:
    context.abort(grpc.StatusCode[status], message)
    raise AssertionError("abort raises")


def _api_off(context: grpc.ServicerContext) -> NoReturn:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="SERVICE_DISABLED", domain="googleapis.com"))
    status = status_pb2.Status(
        code=code_pb2.PERMISSION_DENIED, message="Secret Manager API is disabled in it.", details=[detail]
    )
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")
