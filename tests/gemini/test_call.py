"""Which call a request line names, in every spelling that clients use, and in those that attackers would."""

from dataclasses import FrozenInstanceError
from time import thread_time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.call import Call, path_for, read_target
from pollux.gemini.errors import GatewayError


def target(path: str, method: str = "POST", query: str = "", *, bearer: bool = False) -> Call:
    return read_target(method, path.encode(), query.encode(), bearer=bearer)


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha", "v1beta2", "v2"])
@pytest.mark.parametrize(
    ("verb", "kind", "counted"),
    [
        ("generateContent", "generate", True),
        ("countTokens", "count", False),
        ("embedContent", "embed", True),
        ("batchEmbedContents", "embed", True),
        ("predict", "predict", True),
        ("predictLongRunning", "predict", True),
        ("batchGenerateContent", "other", False),
        ("somethingNew", "other", False),
    ],
)
def test_native_verbs(version: str, verb: str, kind: str, counted: bool) -> None:
    path = f"/{version}/models/gemini-2.5-flash:{verb}"
    call = target(path)
    assert call == Call("native", path, "", "gemini-2.5-flash", verb, "no", kind)  # type: ignore[arg-type]
    assert call.counted is counted
    with pytest.raises(FrozenInstanceError):
        call.path = "/"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("query", "stream"),
    [
        ("alt=sse", "sse"),
        ("%24alt=sse", "sse"),
        ("$alt=sse&x=1", "sse"),
        ("x=1&alt=%73se", "sse"),
        ("", "array"),
        ("alt=json", "array"),
        ("$alt=json;enum-encoding=int", "array"),
        ("%24alt=json%3Benum-encoding%3Dint", "array"),
        ("alt=proto", "no"),
    ],
)
def test_the_form_of_a_stream(query: str, stream: str) -> None:
    call = target("/v1beta/models/m:streamGenerateContent", query=query)
    assert (call.stream, call.kind, call.query) == (stream, "generate", query)


@pytest.mark.parametrize(
    ("sent", "goes"),
    [
        ("//v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("//elsewhere.test/v1beta/models/m:generateContent", "/elsewhere.test/v1beta/models/m:generateContent"),
        ("/v1beta//models/m:generateContent/", "/v1beta/models/m:generateContent"),
        ("/v1beta/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/v1/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/v1beta/v1/models/m:generateContent", "/v1/models/m:generateContent"),
        ("/v1beta/v7/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/v1beta/upload/v1beta/files", "/upload/v1beta/files"),
        ("/upload/v1beta/files", "/upload/v1beta/files"),
        ("/v1beta/files/abc", "/v1beta/files/abc"),
        ("/v1beta/cachedContents", "/v1beta/cachedContents"),
        ("/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",) * 2,
        ("/", "/"),
    ],
)
def test_what_base_urls_double_or_lack_is_forgiven(sent: str, goes: str) -> None:
    assert target(sent).path == goes


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/models/m:generateContent",
        "/v1beta/models/m%3AgenerateContent",
        "/v1beta/models/m%3agenerateContent",
        "/v1beta/models/m:%67enerateContent",
        "/v1beta/mo%64els/m:generateContent",
        "/v1beta/models/%6d:generateContent/",
    ],
)
def test_no_encoding_takes_quota_unseen(path: str) -> None:
    call = target(path)
    assert (call.kind, call.model, call.verb) == ("generate", "m", "generateContent")
    assert call.path == path.rstrip("/"), "the client's encoding stays"


def test_models_are_listed_and_shown() -> None:
    assert target("/v1beta/models", "GET", "pageSize=5").kind == "list-models"
    assert target("/v1/models", "HEAD").kind == "list-models"
    shown = target("/v1beta/models/gemini-2.5-flash", "GET")
    assert (shown.kind, shown.model, shown.verb) == ("get-model", "gemini-2.5-flash", None)
    assert target("/v1beta/models", "POST").kind == "other"
    assert target("/v1beta/models/veo-3/operations/x", "GET") == Call("native", "/v1beta/models/veo-3/operations/x")


def test_tuned_and_dynamic_models_keep_their_collection() -> None:
    assert target("/v1beta/tunedModels/t-1:generateContent").model == "tunedModels/t-1"
    assert target("/v1beta/dynamic/d:streamGenerateContent", query="alt=sse").model == "dynamic/d"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_only_post_takes_quota(method: str) -> None:
    assert not target("/v1beta/models/m:generateContent", method).counted
    assert not target("/v1beta/openai/chat/completions", method).counted


@pytest.mark.parametrize("resource", ["chat/completions", "embeddings", "images/generations"])
@pytest.mark.parametrize(
    "base", ["/v1beta/openai", "/v1beta/openai/", "/v1beta/openai/v1", "/v1beta/openai/v1beta", "/v1", "", "/v1/v1",
             "/v1beta", "/openai", "/openai/v1", "/v1/v1beta/openai", "/v1beta/openai/v1beta/openai"],
)  # fmt: skip
def test_openai_paths_and_their_aliases(base: str, resource: str) -> None:
    for bearer in (True, False):
        call = target(f"{base}/{resource}", bearer=bearer)
        assert (call.api, call.path, call.verb) == ("openai", f"/v1beta/openai/{resource}", resource)
        assert call.counted
        assert call.model is None, "it is in the body"


def test_a_version_in_front_of_openai_is_kept() -> None:
    assert target("/v1/openai/chat/completions").path == "/v1/openai/chat/completions"


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/gemini-2.5-flash", "/v1/v1/models"])
def test_only_the_credential_tells_openais_models_from_googles(path: str) -> None:
    native, openai = target(path, "GET"), target(path, "GET", bearer=True)
    assert (native.api, openai.api) == ("native", "openai")
    assert openai.path.startswith("/v1beta/openai/models")
    assert native.kind == openai.kind
    assert native.model == openai.model


@pytest.mark.parametrize("base", ["/v1", "", "/v1/v1"])
@pytest.mark.parametrize(
    ("method", "tail"),
    [("GET", "files"), ("POST", "files"), ("GET", "files/files/a-1"), ("GET", "files/a-1/content"),
     ("DELETE", "files/a-1"), ("POST", "batches"), ("GET", "batches"), ("POST", "batches/b-1/cancel")],
)  # fmt: skip
def test_only_the_credential_tells_openais_files_from_googles(base: str, method: str, tail: str) -> None:
    call = target(f"{base}/{tail}", method, bearer=True)
    assert (call.api, call.path, call.verb) == ("openai", f"/v1beta/openai/{tail}", tail)
    assert target(f"{base}/{tail}", method).api == "native"


@pytest.mark.parametrize(
    "path",
    ["/v1beta/files", "/v1/files/a:download", "/v1/batches/b%3Acancel", "/upload/v1/files", "/v1alpha/batches/b"],
)
def test_a_bearer_token_makes_no_file_of_googles_openais(path: str) -> None:
    assert target(path, "GET", bearer=True).api == "native"


def test_a_bearer_token_changes_no_path_that_only_google_has() -> None:
    assert target("/v1beta/models", "GET", bearer=True).api == "native"
    assert target("/v1/models/m:generateContent", bearer=True).api == "native"
    assert target("/v1/models/m%3AgenerateContent", bearer=True).api == "native"
    assert target("/v1beta/openai/models/models/m", "GET").model == "m"


@pytest.mark.parametrize(
    ("path", "goes"),
    [
        ("/v1beta/models/a:generateContent", "/v1beta/models/x-1:generateContent"),
        ("/v1/models/a%3AstreamGenerateContent", "/v1/models/x-1%3AstreamGenerateContent"),
        ("/v1beta/models/a:%67enerateContent", "/v1beta/models/x-1:generateContent"),
        ("/v1beta/mo%64els/a:generateContent", "/v1beta/models/x-1:generateContent"),
        ("/v1beta/tunedModels/t:generateContent", "/v1beta/models/x-1:generateContent"),
    ],
)
def test_another_model_changes_only_its_segment(path: str, goes: str) -> None:
    assert path_for(target(path), "x-1") == goes
    assert path_for(target(path), "models/x-1") == goes


def test_another_model_elsewhere() -> None:
    assert path_for(target("/v1beta/models/a", "GET"), "b") == "/v1beta/models/b"
    assert path_for(target("/v1beta/openai/models/a", "GET"), "b") == "/v1beta/openai/models/b"
    assert (
        path_for(target("/v1beta/models/a:generateContent"), "tunedModels/b") == "/v1beta/tunedModels/b:generateContent"
    )
    assert path_for(target("/v1beta/models/a:generateContent"), "../b c") == "/v1beta/models/..%2Fb%20c:generateContent"
    assert path_for(target("/v1beta/files"), "b") == "/v1beta/files"


@given(st.text("abcz-._019:@", max_size=12))
def test_a_path_with_another_model_names_that_model(model: str) -> None:
    call = target("/v1beta/models/a:generateContent")
    model = "m" + model
    assert target(path_for(call, model)).model == model


def test_a_changed_path_keeps_its_verb_and_no_question_mark() -> None:
    assert path_for(target("/v1beta/models/a:x%3Fy"), "b") == "/v1beta/models/b:x%3Fy"
    assert path_for(target("/v1beta/models/a:%67" + "o" * 80), "b") == "/v1beta/models/b:g" + "o" * 80


@pytest.mark.parametrize(
    "name",
    ["..", ".", ".a", "-a", "_a", "a b", "a?b", "a#b", "a%2e", "a%", "é", "\ud83d", "a$", "a" * 201, "a;b", ""],
)
@pytest.mark.parametrize("collection", ["models", "tunedModels"])
@pytest.mark.parametrize("verb", ["generateContent", "countTokens", "new"])
def test_what_no_model_is_called_is_refused(collection: str, name: str, verb: str) -> None:
    with pytest.raises(GatewayError) as refused:
        target(f"/v1beta/{collection}/{quote(name, safe='', errors='surrogatepass')}:{verb}")
    assert (refused.value.status, refused.value.code) == (400, "BAD_REQUEST")
    assert refused.value.message.isprintable()


@pytest.mark.parametrize("path", ["/v1beta/models/a%20b", "/v1beta/openai/models/a%3Fb", "/v1beta/openai/models/%2F"])
def test_an_invalid_model_name_is_refused_in_a_get(path: str) -> None:
    with pytest.raises(GatewayError, match="model"):
        target(path, "GET")


@pytest.mark.parametrize("segment", ["v1/", "openai/", "upload/", "a/", "%61", "v1", "models/", ":"])
@pytest.mark.parametrize("end", ["", "models/m:generateContent"])
def test_long_paths_are_refused_at_once(segment: str, end: str) -> None:
    started = thread_time()
    with pytest.raises(GatewayError) as refused:
        target("/" + segment * (60_000 // len(segment)) + end)
    assert (refused.value.status, refused.value.code) == (400, "BAD_REQUEST")
    assert thread_time() - started < 0.1


def test_many_versions_are_read_quickly() -> None:
    started = thread_time()
    assert target("/" + "v1/" * 2700 + "models/m:generateContent").path == "/v1/models/m:generateContent"
    assert thread_time() - started < 0.1


@pytest.mark.parametrize("front", ["/v1beta/models/m:", "/v1beta/models/m%3A", "/v1beta/openai/"])
def test_verbs_are_kept_short_and_paths_whole(front: str) -> None:
    call = target(front + "x" * 5000)
    assert call.path == front + "x" * 5000
    assert call.verb == "x" * 64
