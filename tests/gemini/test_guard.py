"""What must not pass, in every spelling that an attacker would think of."""

from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.call import Call, read_target
from pollux.gemini.errors import GatewayError
from pollux.gemini.guard import CREDENTIALS, GUARDS, strip_query


def target(path: str, method: str = "POST", query: str = "") -> Call:
    return read_target(method, path.encode(), query.encode())


@pytest.mark.parametrize(
    ("path", "guard"),
    [
        ("/v1alpha/auth_tokens", "auth_tokens"),
        ("/v1alpha/auth_tokens/", "auth_tokens"),
        ("//v1alpha///AUTH_TOKENS", "auth_tokens"),
        ("/v9/auth%5Ftokens", "auth_tokens"),
        ("/v9/%2561uth_tokens", "auth_tokens"),
        ("/upload/v1beta/auth_tokens", "auth_tokens"),
        ("/auth_tokens", "auth_tokens"),
        ("/v1beta/x%2fauth_tokens", "auth_tokens"),
        ("/v1beta/auth_tokens;a=b", "auth_tokens"),
        ("/v1beta/openai/auth_tokens", "auth_tokens"),
        ("/v1beta/tunedModels/t/permissions", "permissions"),
        ("/v1beta/corpora/c/permissions/p", "permissions"),
        ("/v1beta/tunedModels/t:transferOwnership", "transferOwnership"),
        ("/v1beta/tunedModels/t%3atransferownership", "transferOwnership"),
        ("/v1beta/webhooks", "webhooks"),
        ("/v1beta/webhooks/w:rotateSigningSecret", "webhooks"),
        ("/v1beta/webhooks:ping", "webhooks"),
        ("/v1beta/files:register", "files:register"),
        ("/upload/v1beta/files%3Aregister", "files:register"),
        ("/batch", "batch"),
        ("/v1beta/batch", "batch"),
        ("/$rpc/google.ai.generativelanguage.v1beta.PermissionService/CreatePermission", "$rpc"),
        ("/%24rpc/google.ai.generativelanguage.v1beta.GenerativeService/GenerateContent", "$rpc"),
        ("/google.ai.generativelanguage.v1beta.GenerativeService/GenerateContent", "$rpc"),
        ("/upload/batch", "batch"),
        ("/upload/v1beta/batch", "batch"),
        ("/v1/upload/BATCH/x", "batch"),
        ("/%75pload%2fbatch", "batch"),
        ("/%2Fbatch", "batch"),
        ("/resumable/upload/batch", "batch"),
        ("/upload;a=b/batch", "batch"),
        ("/v1beta%2F%2562atch", "batch"),
        ("/v1beta/openai/batch", "batch"),
        ("/upload/google.ai.generativelanguage.v1beta.GenerativeService/GenerateContent", "$rpc"),
        ("/upload/v1beta/google.longrunning.Operations/ListOperations", "$rpc"),
        ("/v1beta/google.ai.generativelanguage.v1beta.GenerativeService/GenerateContent", "$rpc"),
        ("/v1beta/Google%2Eai.generativelanguage.v1beta.GenerativeService/GenerateContent", "$rpc"),
        ("/v1beta/openai/google.ai.generativelanguage.v1beta.FileService/CreateFile", "$rpc"),
        ("/x/google.ai.generativelanguage.v1beta.PermissionService/CreatePermission", "$rpc"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_guarded_paths(path: str, guard: str, method: str) -> None:
    call = target(path, method)
    assert (call.kind, call.guard) == ("guarded", guard)
    assert guard in GUARDS
    assert not call.counted


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/batches", "/v1beta/batches/b:cancel", "/v1beta/files", "/v1beta/models/webhooks-1:predict",
        "/upload/v1beta/batches", "/v1beta/openai/batches", "/v1beta/models/batch:predict", "/upload/v1beta/files",
    ],
)  # fmt: skip
def test_what_only_looks_guarded(path: str) -> None:
    assert target(path).kind != "guarded"


@given(
    guard=st.sampled_from(["auth_tokens", "webhooks", "files:register", "tunedModels/t/permissions"]), data=st.data()
)
def test_no_spelling_slips_past_a_guard(guard: str, data: st.DataObject) -> None:
    """Whatever decodes to a guarded path is guarded, in any case, after any slashes."""
    spelt = ""
    for character in guard:
        character = data.draw(st.sampled_from([character, character.swapcase()]))
        for _ in range(0 if character == "/" else data.draw(st.integers(0, 2))):
            character = quote(character, safe="") if "%" in character else f"%{ord(character):02x}"
        spelt += character
    front = data.draw(st.sampled_from(["/", "//", "/v1beta/", "/v1/v1beta//", "/upload/v1beta/", "/v1beta/openai/"]))
    assert target(front + spelt + data.draw(st.sampled_from(["", "/", "/x"]))).kind == "guarded"


@pytest.mark.parametrize(
    "path",
    [
        "v1beta/models", "*", "", "http://elsewhere.test/v1beta/models", "/v1beta/../x", "/v1beta/%2e%2e/x",
        "/v1beta/.%2E", "/v1beta/%252e%252e/x", "/v1beta/models/x%2f..%2f..%2fauth", "/v1beta/./models", "/..;/x",
        "/v1beta\\models", "/v1beta/%5c..%5c", "/v1beta/%00", "/v1beta/models/a%0d%0ab", "/v1beta/a b", "/v1beta/a#b",
        "/v1beta/a?b",
        "/v1beta/\x7f", "/..",
    ],
)  # fmt: skip
def test_paths_that_would_lead_out_are_refused(path: str) -> None:
    with pytest.raises(GatewayError) as refused:
        target(path)
    assert (refused.value.status, refused.value.code) == (400, "BAD_REQUEST")


@given(st.text(st.sampled_from("/.%2eEfF5cC\\v1beta:models;\u00e9"), max_size=40))
def test_whatever_passes_stays_below_its_host(rest: str) -> None:
    try:
        call = target("/" + rest)
    except GatewayError:
        return
    path = call.path
    for _ in range(5):
        assert path.isprintable()
        assert path.startswith("/")
        assert not {".", ".."} & set(path.split("/"))
        path = unquote(path)
    assert not call.path.startswith("//")
    assert target(call.path).path == call.path, "what is normal stays so"


def test_bytes_beyond_ascii_are_encoded() -> None:
    assert read_target("GET", "/v1beta/files/é".encode(), "filter=é".encode()).path == "/v1beta/files/%C3%A9"
    assert read_target("GET", "/v1beta/files/é", "filter=é ü").query == "filter=%E9%20%FC"


@pytest.mark.parametrize(
    ("sent", "goes"),
    [
        ("", ""),
        ("key=k", ""),
        ("alt=sse&key=k", "alt=sse"),
        ("key=k&alt=sse", "alt=sse"),
        ("b=2&key=k&a=1&key=l&b=%31", "b=2&a=1&b=%31"),
        ("%6bey=k&a", "a"),
        ("%256bey=k&a", "a"),
        ("KEY=k&a", "a"),
        ("$key=k&%24key=k&a", "a"),
        ("access_token=t&access%5Ftoken=t&oauth_token=t&a=%20+b", "a=%20+b"),
        ("%24alt=json%3Benum-encoding%3Dint&key=k", "%24alt=json%3Benum-encoding%3Dint"),
        ("$httpHeaders=X-Goog-User-Project:p&$userProject=p&a=1", "a=1"),
        ("key", ""),
        ("a=1&&b=2&", "a=1&&b=2&"),
        ("keys=1&monkey=2&pageToken=key", "keys=1&monkey=2&pageToken=key"),
    ],
)
def test_the_query_loses_its_credentials_and_nothing_else(sent: str, goes: str) -> None:
    assert strip_query(sent) == goes
    assert target("/v1beta/models/m:generateContent", query=sent).query == goes


def test_the_docs_name_every_guard_and_every_parameter_that_stays_here() -> None:
    text = (Path(__file__).parents[2] / "docs/wire.md").read_text()
    assert not [guard for guard in GUARDS if f"| `{guard}` |" not in text]
    assert not [name for name in CREDENTIALS if f"`{name}`" not in text.lower()]
