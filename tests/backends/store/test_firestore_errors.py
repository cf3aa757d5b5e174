"""What each refusal of Firestore becomes, against a server that refuses everything."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import google.auth
import grpc  # type: ignore[import-untyped]
import pytest
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import firestore
from google.cloud.firestore_v1 import types
from grpc import StatusCode

from pollux.backends.store.contract import ConflictError, StoreError, StoreUnavailableError, Write
from pollux.backends.store.firestore import FirestoreStore
from pollux.backends.store.opening import open_store

SECRET = "what-a-document-holds"
MARK = "1795000000.000000000"
ROUTING = ("authorization", "google-cloud-resource-prefix", "x-goog-request-params")


@dataclass
class Refuser:
    """Refuses with `code` and `details` once that is set; before, there is an empty database."""

    code: StatusCode | None = None
    details: str = ""
    port: int = 0
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def service(self, call_details: Any) -> Any:
        name = call_details.method.rpartition("/")[2]
        self.headers.append({key: value for key, value in call_details.invocation_metadata if key in ROUTING})

        async def refuse(context: Any) -> None:
            self.asked.append(name)
            if self.code is not None:
                await context.abort(self.code, self.details)

        async def commit(request: Any, context: Any) -> Any:
            await refuse(context)
            return types.CommitResponse.pb()()

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await refuse(context)
            yield (types.BatchGetDocumentsResponse if name == "BatchGetDocuments" else types.RunQueryResponse).pb()()

        serialize = lambda message: message.SerializeToString()  # noqa: E731
        if name == "Commit":
            return grpc.unary_unary_rpc_method_handler(commit, types.CommitRequest.pb().FromString, serialize)
        return grpc.unary_stream_rpc_method_handler(stream, lambda data: data, serialize)


@asynccontextmanager
async def refusing(refuser: Refuser) -> AsyncIterator[FirestoreStore]:
    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        service = staticmethod(refuser.service)

    server = grpc.aio.server(handlers=[Handler()])
    refuser.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = FirestoreStore("demo-refused", "other-one", emulator=f"127.0.0.1:{refuser.port}")
    try:
        yield store
    finally:
        await store.close()
        await server.stop(None)


def refused(code: StatusCode, details: str, use: str) -> tuple[Exception, list[str]]:
    """The error of one use of an open store, and what the server was asked for it."""

    async def play() -> tuple[Exception, list[str]]:
        refuser = Refuser()
        async with refusing(refuser) as store:
            await store.open()
            refuser.asked.clear()
            refuser.code, refuser.details = code, details
            uses: dict[str, Callable[[], Awaitable[object]]] = {
                "commit": lambda: store.commit("a", {"secret": SECRET}, MARK),
                "create": lambda: store.commit("a", {"secret": SECRET}, None),
                "delete": lambda: store.delete("a", MARK),
                "all": lambda: store.commit_all([Write("a", {"secret": SECRET}, None), Write("b", None, MARK)]),
                "read": lambda: store.read(["a"]),
                "scan": lambda: store.scan("a"),
            }
            with pytest.raises((StoreError, ConflictError)) as caught:
                await uses[use]()
            return caught.value, refuser.asked

    return asyncio.run(play())


@pytest.mark.parametrize("use", ["commit", "create", "delete", "read", "scan"])
@pytest.mark.parametrize(
    ("code", "says"),
    [
        (StatusCode.UNAVAILABLE, "no emulator answers"),
        (StatusCode.DEADLINE_EXCEEDED, "did not answer within 5 s"),
        (StatusCode.INTERNAL, "internal error"),
        (StatusCode.RESOURCE_EXHAUSTED, "over its quota"),
        (StatusCode.UNKNOWN, "did not name"),
        (StatusCode.CANCELLED, "cancelled the request"),
    ],
)
def test_trouble_that_may_pass_is_unavailable_and_nothing_is_sent_twice(code: StatusCode, says: str, use: str) -> None:
    error, asked = refused(code, "", use)
    assert isinstance(error, StoreUnavailableError)
    assert says in str(error)
    assert "store firestore://demo-refused/other-one" in str(error)
    assert len(asked) == 1


@pytest.mark.parametrize("use", ["commit", "create", "delete"])
@pytest.mark.parametrize(
    ("code", "details"),
    [
        (StatusCode.FAILED_PRECONDITION, "the stored version (1) does not match the required base version (2)"),
        (StatusCode.ALREADY_EXISTS, "Document already exists: projects/p/databases/d/documents/pollux/a"),
        (StatusCode.NOT_FOUND, "No document to update: projects/p/databases/d/documents/pollux/a"),
        (StatusCode.ABORTED, "Too much contention on these documents. Please try again."),
    ],
)
def test_a_failed_condition_is_a_conflict(code: StatusCode, details: str, use: str) -> None:
    error, asked = refused(code, details, use)
    assert isinstance(error, ConflictError)
    assert error.name == "a"
    assert asked == ["Commit"]


def test_a_conflict_of_several_names_one_of_them_even_if_it_cannot_be_told_which() -> None:
    error, asked = refused(StatusCode.ABORTED, "", "all")
    assert isinstance(error, ConflictError)
    assert error.name == "a"
    assert asked == ["Commit", "BatchGetDocuments"]


@pytest.mark.parametrize("use", ["commit", "read", "scan"])
@pytest.mark.parametrize(
    ("code", "details", "says"),
    [
        (
            StatusCode.PERMISSION_DENIED,
            "Missing or insufficient permissions.",
            "needs roles/datastore.user: run `gcloud projects add-iam-policy-binding demo-refused",
        ),
        (
            StatusCode.PERMISSION_DENIED,
            "Cloud Firestore API has not been used in project 1 before or it is disabled. Enable it by …",
            "run `gcloud services enable firestore.googleapis.com --project=demo-refused`",
        ),
        (StatusCode.UNAUTHENTICATED, "Request had invalid credentials.", "gcloud auth application-default login"),
        (
            StatusCode.NOT_FOUND,
            "The database other-one does not exist for project demo-refused Please visit …",
            "gcloud firestore databases create --project=demo-refused --database='other-one'",
        ),
        (StatusCode.INVALID_ARGUMENT, f"bad value {SECRET}", "check the names of project and database"),
        (StatusCode.UNIMPLEMENTED, "", "failed with UNIMPLEMENTED"),
    ],
)
def test_an_error_that_does_not_pass_says_what_to_do(code: StatusCode, details: str, says: str, use: str) -> None:
    error, _ = refused(code, details, use)
    assert type(error) is StoreError
    assert says in str(error)
    assert "\n" not in str(error)


def test_a_database_in_datastore_mode_is_no_conflict_when_it_is_read() -> None:
    details = "The Cloud Firestore API is not available for Firestore in Datastore Mode database"
    error, _ = refused(StatusCode.FAILED_PRECONDITION, details, "read")
    assert type(error) is StoreError
    assert "Native mode" in str(error)


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_no_error_holds_a_document(code: StatusCode) -> None:
    error: BaseException | None = refused(code, "", "commit")[0]
    while error is not None:
        assert SECRET not in f"{error!s} {error!r}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("code", "says"), [(StatusCode.PERMISSION_DENIED, "roles/datastore.user"), (StatusCode.UNAVAILABLE, "no emulator")]
)
def test_a_store_that_cannot_be_opened_says_why_and_can_be_tried_again(code: StatusCode, says: str) -> None:
    async def play() -> None:
        refuser = Refuser(code)
        async with refusing(refuser) as store:
            with pytest.raises(StoreError, match=says) as caught:
                await store.open()
            assert type(caught.value) is StoreError
            with pytest.raises(StoreError, match="not open"):
                await store.read(["a"])
            refuser.code = None
            await store.open()
            assert await store.read(["a"]) == {}

    asyncio.run(play())


def test_a_request_finds_its_database_as_those_of_googles_client_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        refuser = Refuser()
        async with refusing(refuser) as store:
            await store.open()
            refuser.headers.clear()
            refuser.code = StatusCode.UNIMPLEMENTED  # which Google's client does not try again
            for use in (store.read(["a"]), store.commit("a", {}, None), store.scan("")):
                with pytest.raises(StoreError):
                    await use
            ours, refuser.headers = refuser.headers, []
            monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{refuser.port}")
            client = firestore.AsyncClient(project=store.project, database=store.database)
            collection = client.collection("pollux")
            for asked in (collection.document("a").get(), collection.document("a").set({}), collection.get()):
                with pytest.raises(GoogleAPICallError):
                    await asked
            client.close()  # type: ignore[no-untyped-call]
            assert ours == refuser.headers
            assert all(set(headers) == set(ROUTING) for headers in ours)

    asyncio.run(play())


@pytest.mark.parametrize("host", ["localhost", "http://127.0.0.1:8080", "127.0.0.1:", "localhost:http"])
def test_an_emulators_address_without_sense(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", host)
    with pytest.raises(StoreError, match=f"FIRESTORE_EMULATOR_HOST={host} must be HOST:PORT"):
        asyncio.run(open_store("firestore://demo-pollux").open())


def test_an_emulator_that_is_away_says_how_to_start_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9")
    with pytest.raises(StoreError, match=r"start it there with `python -m tools\.emulator --port 9`"):
        asyncio.run(open_store("firestore://demo-pollux").open())


def test_without_credentials_it_says_how_to_get_some(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: object) -> None:
        raise DefaultCredentialsError("nothing found")  # type: ignore[no-untyped-call]

    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(google.auth, "default", none)
    with pytest.raises(StoreError, match="gcloud auth application-default login"):
        asyncio.run(FirestoreStore("demo-refused").open())


def test_without_the_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pollux.backends.store.firestore")
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(StoreError, match=r"store firestore://demo-none needs .*pip install 'pollux-gateway\[cloud\]'"):
        open_store("firestore://demo-none")
