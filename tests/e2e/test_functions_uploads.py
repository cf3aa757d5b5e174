"""Uploads under the Functions Framework: begun at one process, continued at another, with one Firestore."""

import hashlib

from tests.e2e.conftest import Pair
from tests.e2e.test_uploads import MIB, begin, digests, send, state


def test_an_upload_begun_at_one_instance_goes_on_at_the_other(functions_pairs: list[Pair]) -> None:
    one, two = functions_pairs
    session = begin(one.gateway)
    assert state(send(two.gateway.url, session, "upload", b"a" * 8 * MIB)) == (200, "active")
    done = send(one.gateway.url, session, "upload, finalize", b"b" * MIB, 8 * MIB)
    assert state(done) == (200, "final")
    file = done.json()["file"]
    assert digests(one.simulator)[file["name"]] == hashlib.sha256(b"a" * 8 * MIB + b"b" * MIB).hexdigest()
    assert file["uri"] == f"{one.gateway.url}/v1beta/{file['name']}"
    got = two.gateway.call("GET", f"/v1beta/{file['name']}")
    assert (got.status, got.json()["name"]) == (200, file["name"]), "its owner is in the store"
    refused = send(two.gateway.url, session.replace("upload_id=", "upload_id=A"), "query")
    assert (refused.status, refused.reason) == (401, "BAD_UPLOAD_ID")
