"""A store in Firestore, which any number of instances share. `firestore_documents` has the form of a document there.

It uses Google's messages and channel, but not Google's client: through it a commit costs twice the CPU, and if an
answer is lost it sends the commit again, and reports a failed condition although the commit succeeded.
"""

import asyncio
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import google.auth
import grpc  # type: ignore[import-untyped]
from google.api_core.gapic_v1.routing_header import to_grpc_metadata
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcAsyncIOTransport

from pollux.backends.store import firestore_documents as documents
from pollux.backends.store.clock import StoreClock
from pollux.backends.store.contract import ConflictError, Document, StoreError, StoreUnavailableError, Version, Write
from pollux.backends.store.documents import check, encode
from pollux.backends.store.firestore_errors import CREDENTIALS, StoreInfo, is_conflict, trouble

TIMEOUT = 5.0
CHANNEL = (
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # By default a connection is tried again only after up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_DATABASE = re.compile(r"\(default\)|[a-z][a-z0-9-]{2,61}[a-z0-9]")
_UNDER_WAY = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)
_SERVICE = "/google.firestore.v1.Firestore/"


class FirestoreStore:
    """A commit is one conditional write, in one round trip, without locks. A version is Firestore's own update time.

    Open it after a fork, never before. `emulator`: the host and port of an emulator to use instead of Firestore.
    """

    def __init__(
        self,
        project: str,
        database: str = "(default)",
        clock: Callable[[], float] = time.time,
        *,
        timeout: float = TIMEOUT,
        emulator: str | None = None,
    ) -> None:
        self._name = f"store firestore://{project}" + ("" if database == "(default)" else f"/{database}")
        if not _PROJECT.fullmatch(project):
            raise StoreError(f"{self._name}: {project!r} is not a project id; use firestore://PROJECT[/DATABASE]")
        if not _DATABASE.fullmatch(database):
            raise StoreError(f"{self._name}: {database!r} is not a database id; use firestore://PROJECT[/DATABASE]")
        self.project, self.database = project, database
        self.time = StoreClock()
        self._clock, self._timeout = clock, timeout
        self._emulator = emulator or None
        self._root = f"projects/{project}/databases/{database}"
        self._folder = f"{self._root}/documents/{documents.COLLECTION}/"
        self._metadata = self._headers("database", self._root)
        self._channel: Any = None
        self._calls: _Calls | None = None
        self._nonces: Iterator[str] = iter(())

    def _headers(self, field: str, value: str) -> tuple[tuple[str, str], ...]:
        """Google routes a call by these."""
        prefix = ("google-cloud-resource-prefix", self._root)
        routing = to_grpc_metadata(((field, value),))  # type: ignore[no-untyped-call]
        return (prefix, routing, ("authorization", "Bearer owner")) if self._emulator else (prefix, routing)

    async def open(self) -> None:
        if self._calls is not None:
            return
        self._channel = await self._new_channel()
        self._calls = _Calls(self._channel)
        writer = os.urandom(6).hex()
        self._nonces = (f"{writer}-{count}" for count in itertools.count())
        try:
            await self._connected(self._channel)
            await self.read(["open"])
        except StoreError as error:
            await self.close()
            raise StoreError(str(error)) from error
        except BaseException:
            await self.close()
            raise

    async def _new_channel(self) -> Any:
        if self._emulator:
            return grpc.aio.insecure_channel(self._emulator, options=CHANNEL)
        transport = FirestoreGrpcAsyncIOTransport
        try:  # it may ask a metadata server, and blocks meanwhile
            credentials, _ = await asyncio.to_thread(google.auth.default, scopes=transport.AUTH_SCOPES)
        except GoogleAuthError as error:
            raise StoreError(f"{self._name}: {CREDENTIALS}") from error
        return transport.create_channel(transport.DEFAULT_HOST, credentials=credentials, options=CHANNEL)

    async def _connected(self, channel: Any) -> None:
        """Wait for the connection, or its failure: the time to connect must not count as part of the first exchange,
        which would then tell little about the store's clock. Without a connection, the first request says why."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while (state := channel.get_state(try_to_connect=True)) in _UNDER_WAY:
                    await channel.wait_for_state_change(state)

    async def close(self) -> None:
        channel, self._channel, self._calls = self._channel, None, None
        if channel is not None:
            await channel.close()

    def now(self) -> float:
        return self.time.now(self._clock())

    def error(self) -> float:
        return self.time.error

    async def read(self, names: Iterable[str]) -> Mapping[str, tuple[Document, Version]]:
        calls, wanted = self._open(), {self._path(name): name for name in names}
        if not wanted:
            return {}
        request = calls.BatchGetDocuments(database=self._root, documents=list(wanted))
        answers = await self._answers(calls.batch_get, request, self._metadata)
        found = {answer.found.name: answer.found for answer in answers if answer.HasField("found")}
        return {name: self._opened(name, found[path]) for path, name in wanted.items() if path in found}

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        return (await self.commit_all([Write(name, document, version)]))[0]

    async def commit_all(self, writes: Sequence[Write]) -> list[Version]:
        calls = self._open()
        check(writes)
        request = calls.Commit(database=self._root)
        impossible = [write.name for write in writes if not self._add(request, write)]
        if impossible:
            raise ConflictError(impossible[0])
        if not writes:
            return []
        sent = self._clock()
        try:
            answer = await self._await(calls.commit(request, metadata=self._metadata, timeout=self._timeout))
        except grpc.RpcError as error:
            if is_conflict(error):
                raise ConflictError(await self._culprit(writes)) from error
            raise self._trouble(error) from error
        self._learn(sent, answer.commit_time)
        return [
            "" if write.document is None else documents.version_of(result.update_time)
            for write, result in zip(writes, answer.write_results, strict=True)
        ]

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        calls = self._open()
        request = calls.RunQuery(parent=f"{self._root}/documents")
        query, start = request.structured_query, documents.escaped(prefix)
        query.from_.add(collection_id=documents.COLLECTION)
        query.order_by.add(direction=1).field.field_path = "__name__"
        if start:
            query.start_at.values.add(reference_value=self._folder + start)
            query.start_at.before = True
        end = documents.successor(start)
        if end:
            query.end_at.values.add(reference_value=self._folder + end)
            query.end_at.before = True
        found = {}
        for answer in await self._answers(calls.run_query, request, self._headers("parent", request.parent)):
            if answer.HasField("document"):
                name = documents.unescaped(answer.document.name.removeprefix(self._folder))
                if name.startswith(prefix):
                    found[name] = self._opened(name, answer.document)
        return {name: found[name] for name in sorted(found)}

    async def delete(self, name: str, version: Version) -> None:
        await self.commit_all([Write(name, None, version)])

    def _open(self) -> "_Calls":
        if self._calls is None:
            raise StoreError(f"{self._name} is not open: open it first, and do not use it after close")
        return self._calls

    def _path(self, name: str) -> str:
        return self._folder + documents.escaped(name)

    def _opened(self, name: str, document: Any) -> tuple[Document, Version]:
        return documents.opened(document.fields, name, self._name), documents.version_of(document.update_time)

    def _add(self, request: Any, write: Write) -> bool:
        """Add the write to the request. False if no document can have its version."""
        change = request.writes.add()
        if write.document is None:
            change.delete = self._path(write.name)
        else:
            body = encode(write.document)
            if len(body) > documents.LARGEST:
                raise ValueError(f"document {write.name!r} has {len(body)} bytes, more than {documents.LARGEST}")
            change.update.name = self._path(write.name)
            documents.fill(change.update.fields, body, write.document, next(self._nonces))
        return documents.set_condition(change.current_document, write.version)

    async def _culprit(self, writes: Sequence[Write]) -> str:
        """Which of the documents was changed, as Firestore does not say. The first one if that cannot be found out."""
        if len(writes) > 1:
            try:
                found = await self.read(write.name for write in writes)
            except StoreError:
                return writes[0].name
            for write in writes:
                if (found[write.name][1] if write.name in found else None) != write.version:
                    return write.name
        return writes[0].name

    async def _answers(self, call: Callable[..., Any], request: Any, metadata: Any) -> list[Any]:
        sent, answers = self._clock(), []
        try:
            stream = call(request, metadata=metadata, timeout=self._timeout)
            while (answer := await self._await(stream.read())) is not grpc.aio.EOF:
                if answer.HasField("read_time"):
                    self._learn(sent, answer.read_time)
                answers.append(answer)
        except grpc.RpcError as error:
            raise self._trouble(error) from error
        return answers

    async def _await(self, answer: Any) -> Any:
        """When its channel closes, gRPC cancels the calls and the tasks that wait for them. Here that is an error, no
        cancellation."""
        try:
            return await answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise StoreUnavailableError(f"{self._name} was closed while a request was under way") from None

    def _trouble(self, error: Any) -> StoreError:
        return trouble(StoreInfo(self._name, self.project, self.database, self._emulator, self._timeout), error)

    def _learn(self, sent: float, moment: Any) -> None:
        self.time.learn(sent, self._clock(), moment.seconds + moment.nanos / 1e9)


class _Calls:
    """The three calls, on Google's plain protobuf messages: its wrapper classes would double the cost of a commit."""

    def __init__(self, channel: Any) -> None:
        self.Commit = types.CommitRequest.pb()
        self.BatchGetDocuments = types.BatchGetDocumentsRequest.pb()
        self.RunQuery = types.RunQueryRequest.pb()
        self.commit = self._call(channel.unary_unary, "Commit", self.Commit, types.CommitResponse)
        self.batch_get = self._call(
            channel.unary_stream, "BatchGetDocuments", self.BatchGetDocuments, types.BatchGetDocumentsResponse
        )
        self.run_query = self._call(channel.unary_stream, "RunQuery", self.RunQuery, types.RunQueryResponse)

    @staticmethod
    def _call(kind: Callable[..., Any], name: str, request: Any, answer: Any) -> Any:
        return kind(
            _SERVICE + name,
            request_serializer=request.SerializeToString,
            response_deserializer=answer.pb().FromString,
        )
