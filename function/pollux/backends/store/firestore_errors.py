"""Turns gRPC's status codes into StoreErrors. Messages name the store and the remedy, never a document."""

import re
from typing import Any, NamedTuple

from grpc import StatusCode  # type: ignore[import-untyped]

from pollux.backends.store.contract import StoreError, StoreUnavailableError

ROLE = "roles/datastore.user"
CONFLICTS = frozenset(
    {StatusCode.FAILED_PRECONDITION, StatusCode.ALREADY_EXISTS, StatusCode.NOT_FOUND, StatusCode.ABORTED}
)
"""Of a commit. ABORTED is contention: Firestore dropped the commit because another one changed the same documents.
Nothing was written and what was read is probably old, as with a failed condition."""

_UNAVAILABLE = {
    StatusCode.UNAVAILABLE: "cannot be reached",
    StatusCode.INTERNAL: "had an internal error",
    StatusCode.RESOURCE_EXHAUSTED: "is over its quota; see its usage in the Google Cloud console",
    StatusCode.UNKNOWN: "failed for a reason that it did not name",
    StatusCode.CANCELLED: "cancelled the request",
    StatusCode.ABORTED: "was too busy",
}
CREDENTIALS = (
    "no valid Google credentials; run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
)
_QUOTED = 200
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}")


def is_conflict(error: Any) -> bool:
    return error.code() in CONFLICTS and not _no_database(error)


class StoreInfo(NamedTuple):
    """What a message about a store needs: where it is, and its timeout."""

    store: str
    project: str
    database: str
    emulator: str | None
    timeout: float


def trouble(info: StoreInfo, error: Any) -> StoreError:
    """The StoreError for a failed call, in one line."""
    code, (store, project, database, emulator, timeout) = error.code(), info
    if emulator and code is StatusCode.UNAVAILABLE and not _ADDRESS.fullmatch(emulator):
        return StoreUnavailableError(f"{store}: FIRESTORE_EMULATOR_HOST={emulator} must be HOST:PORT")
    if emulator and code is StatusCode.UNAVAILABLE:
        return StoreUnavailableError(
            f"{store}: no emulator answers at {emulator} (FIRESTORE_EMULATOR_HOST); start it there with "
            f"`python -m tools.emulator --port {emulator.rpartition(':')[2]}`, or unset the variable to use Firestore "
            "itself"
        )
    if code is StatusCode.DEADLINE_EXCEEDED:
        return StoreUnavailableError(f"{store} did not answer within {timeout:g} s")
    if code in _UNAVAILABLE:
        return StoreUnavailableError(f"{store} {_UNAVAILABLE[code]}{_said(error)}")
    if code is StatusCode.PERMISSION_DENIED and "has not been used" in (error.details() or ""):
        what = (
            f"Firestore is not switched on; run `gcloud services enable firestore.googleapis.com --project={project}`"
        )
    elif code is StatusCode.PERMISSION_DENIED:
        what = (
            f"access denied; the account needs {ROLE}: run `gcloud projects add-iam-policy-binding {project} "
            f"--member=serviceAccount:ACCOUNT --role={ROLE}`{_said(error)}"
        )
    elif code is StatusCode.UNAUTHENTICATED:
        what = f"{CREDENTIALS}{_said(error)}"
    elif _no_database(error):
        what = (
            f"there is no such database; run `gcloud firestore databases create --project={project} "
            f"--database='{database}' --location=LOCATION`, or correct the name"
        )
    elif code is StatusCode.INVALID_ARGUMENT:
        what = "the request was refused: check the names of project and database; a commit has at most 10 MiB"
    elif code is StatusCode.FAILED_PRECONDITION:
        what = "the request was refused: is this a database in Datastore mode? Pollux needs one in Native mode"
    else:
        what = f"the request failed with {code.name}"
    return StoreError(f"{store}: {what}")


def _no_database(error: Any) -> bool:
    """NOT_FOUND is also the code for a document that was deleted."""
    if error.code() is not StatusCode.NOT_FOUND:
        return False
    return re.search(r"\b(database|project)\b.*(does not exist|not found)", error.details() or "", re.I) is not None


def _said(error: Any) -> str:
    """The first line of the other side's message. It is about connections and permissions, not about what was sent."""
    text = (error.details() or "").strip().partition("\n")[0][:_QUOTED]
    return f" ({text})" if text else ""
