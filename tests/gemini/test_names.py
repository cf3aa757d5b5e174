"""Which resources a call names: structurally, in both spellings, and never by what somebody wrote."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.call import Call, read_target
from pollux.gemini.names import GOOGLE, answer_names, body_references, may_name, named_by, path_names

OWN = "https://pollux.example/gemini"
BASES = (GOOGLE, OWN)
GENERATE = read_target("POST", "/v1beta/models/gemini-3.8-flash:generateContent")
URI = f"{GOOGLE}/v1beta/files/"
VIDEO = {"generatedSamples": [{"video": {"uri": URI + "v:download?alt=media"}}]}


def post(path: str) -> Call:
    return read_target("POST", path)


def get(path: str) -> Call:
    return read_target("GET", path)


def body_names(parsed: Mapping[str, Any], call: Call, bases: Sequence[str] = (GOOGLE,)) -> set[str]:
    """The resources behind what is referred to."""
    names = (named_by(reference, bases) for reference in body_references(parsed, call))
    return {name for name in names if name is not None}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1beta/files/abc-1", "files/abc-1"),
        ("/v1/files/abc-1:download?", "files/abc-1"),
        ("/download/v1beta/files/abc:download", "files/abc"),
        ("/v1beta/cachedContents/c1", "cachedContents/c1"),
        ("/v1beta/batches/b1:cancel", "batches/b1"),
        ("/v1beta/operations/o1", "operations/o1"),
        ("/v1beta/models/veo-3.1/operations/o-1", "models/veo-3.1/operations/o-1"),
        ("/v1beta/tunedModels/t1:generateContent", "tunedModels/t1"),
        ("/v1beta/tunedModels/t1/operations/o1", "tunedModels/t1"),
        ("/v1beta/fileSearchStores/s1/documents/d1", "fileSearchStores/s1"),
        ("/v1beta/fileSearchStores/s1/upload/operations/o1", "fileSearchStores/s1"),
        ("/upload/v1beta/fileSearchStores/s1:uploadToFileSearchStore", "fileSearchStores/s1"),
        ("/v1beta/corpora/c/documents/d/chunks/k", "corpora/c"),
        ("/v1beta/interactions/v1_Chd=/cancel", "interactions/v1_Chd="),
        ("/v1beta/environments/e1/files/src/main.py", "environments/e1"),
        ("/v1beta/openai/batches/batches/b1", "batches/b1"),
        ("/v1beta/openai/batches/batches%2Fb1/cancel", "batches/b1"),
        ("/v1beta/openai/files/abc/content", "files/abc"),
        ("/v1beta/openai/videos/models/veo-3/operations/o1", "models/veo-3/operations/o1"),
        ("/v1beta/files%2Fabc", "files/abc"),
    ],
)
def test_a_path_names_what_its_project_owns(path: str, name: str) -> None:
    assert path_names(get(path.rstrip("?"))) == (name,)


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/files",
        "/v1beta/models/gemini-3.8-flash",
        "/v1beta/models/veo-3/operations",
        "/v1beta/batches/",
        "/v1beta/unheard/of",
        "/v1beta/openai/chat/completions",
        "/v1beta/openai/models/x",
        f"/v1beta/interactions/{'x' * 500}",
        "/v1beta/cachedContents/%C3%A9",
    ],
)
def test_other_paths_name_nothing(path: str) -> None:
    assert path_names(get(path)) == ()


SNAKE = re.compile(r"(?<=[a-z])([A-Z])")


def snake(value: Any) -> Any:
    """The same body as Google also accepts it."""
    if isinstance(value, dict):
        return {SNAKE.sub(lambda found: "_" + found[1].lower(), key): snake(inner) for key, inner in value.items()}
    return [snake(one) for one in value] if isinstance(value, list) else value


def file(name: str) -> dict[str, Any]:
    return {"fileData": {"fileUri": URI + name, "mimeType": "text/plain"}}


BODIES: list[tuple[str, dict[str, Any], set[str]]] = [
    ("generateContent", {"contents": [{"parts": [{"text": "hello"}, file("a"), file("b")]}]}, {"files/a", "files/b"}),
    ("generateContent", {"contents": {"parts": file("a")}}, {"files/a"}),
    ("generateContent", {"systemInstruction": {"parts": [file("s")]}}, {"files/s"}),
    ("generateContent", {"contents": [{"parts": [{"functionResponse": {"parts": [file("r")]}}]}]}, {"files/r"}),
    ("generateContent", {"cachedContent": "cachedContents/c"}, {"cachedContents/c"}),
    (
        "generateContent",
        {"tools": [{"fileSearch": {"fileSearchStoreNames": ["fileSearchStores/s", "fileSearchStores/t"]}}]},
        {"fileSearchStores/s", "fileSearchStores/t"},
    ),
    ("generateAnswer", {"semanticRetriever": {"source": "corpora/c/documents/d"}}, {"corpora/c"}),
    ("countTokens", {"generateContentRequest": {"contents": [{"parts": [file("a")]}]}}, {"files/a"}),
    ("embedContent", {"content": {"parts": [file("a")]}}, {"files/a"}),
    ("batchEmbedContents", {"requests": [{"content": {"parts": [file("a")]}}]}, {"files/a"}),
    ("batchGenerateContent", {"batch": {"inputConfig": {"fileName": "files/in"}}}, {"files/in"}),
    (
        "batchGenerateContent",
        {"batch": {"inputConfig": {"requests": {"requests": [{"request": {"contents": [{"parts": [file("a")]}]}}]}}}},
        {"files/a"},
    ),
    (
        "predictLongRunning",
        {"instances": [{"prompt": "x", "video": {"uri": f"{URI}v:download?alt=media"}}]},
        {"files/v"},
    ),
]


@pytest.mark.parametrize(("verb", "body", "names"), BODIES)
def test_a_body_names_resources_in_camel_and_snake_case(verb: str, body: dict[str, Any], names: set[str]) -> None:
    call = post(f"/v1beta/models/m:{verb}")
    assert body_names(body, call) == names
    assert body_names(snake(body), call) == names
    assert may_name(json.dumps(body).encode(), call)
    assert may_name(json.dumps(body).replace("/", "\\/").encode(), call)


INTERACTIONS: list[tuple[dict[str, Any], set[str]]] = [
    ({"previous_interaction_id": "v1_a"}, {"interactions/v1_a"}),
    ({"previousInteractionId": "interactions/v1_a"}, {"interactions/v1_a"}),
    ({"environment": "env-1"}, {"environments/env-1"}),
    ({"environment": "remote"}, set()),
    ({"environment": {"type": "remote", "environment_id": "env-1"}}, {"environments/env-1"}),
    ({"input": {"type": "video", "uri": URI + "v"}}, {"files/v"}),
    ({"input": [{"type": "text", "text": URI + "no"}, {"type": "image", "uri": URI + "i"}]}, {"files/i"}),
    ({"input": [{"type": "user_input", "content": [{"type": "document", "uri": URI + "d"}]}]}, {"files/d"}),
    ({"input": [{"type": "function_result", "result": [{"type": "image", "uri": URI + "i"}]}]}, {"files/i"}),
    ({"input": [{"type": "function_call", "arguments": {"type": "image", "uri": URI + "no"}}]}, set()),
    ({"tools": [{"type": "file_search", "file_search_store_names": ["fileSearchStores/s"]}]}, {"fileSearchStores/s"}),
    ({"agent": "my-agent"}, {"agents/my-agent"}),
    (
        {"interaction": {"previous_interaction_id": "v1_b"}, "environment_id": "e"},
        {"interactions/v1_b", "environments/e"},
    ),
]


@pytest.mark.parametrize(("body", "names"), INTERACTIONS)
def test_interactions_name_one_another_by_bare_ids(body: dict[str, Any], names: set[str]) -> None:
    assert body_names(body, post("/v1beta/interactions")) == names
    assert may_name(json.dumps(body).encode(), post("/v1beta/interactions"))


def test_other_calls_that_make_something_name_files() -> None:
    assert body_names({"fileName": "files/a"}, post("/v1beta/fileSearchStores/s:importFile")) == {"files/a"}
    cached = {"model": "models/m", "contents": [{"parts": [file("a")]}]}
    assert body_names(cached, post("/v1beta/cachedContents")) == {"files/a"}


def test_openai_bodies_name_files_and_caches() -> None:
    batch = {"input_file_id": "files/in", "endpoint": "/v1/chat/completions"}
    assert body_names(batch, post("/v1beta/openai/batches")) == {"files/in"}
    assert body_names({"input_file_id": "in"}, post("/v1beta/openai/batches")) == {"files/in"}
    chat: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": URI + "no"}]}],
    }
    call = post("/v1beta/openai/chat/completions")
    assert body_names(chat, call) == set()
    content = chat["messages"][0]["content"]
    content.append({"type": "image_url", "image_url": {"url": URI + "a"}})
    content.append({"type": "file", "file": {"file_id": "b"}})
    chat["extra_body"] = {"google": {"cached_content": "cachedContents/c"}}
    assert body_names(chat, call) == {"files/a", "files/b", "cachedContents/c"}
    del chat["extra_body"]
    assert body_names(chat | {"google": {"cached_content": "cachedContents/d"}}, call) >= {"cachedContents/d"}


@pytest.mark.parametrize(
    "uri",
    [
        "https://youtu.be/xyz",
        "gs://bucket/files/a",
        "https://cdn.example/v1beta/files/a",
        f"{GOOGLE}.evil.example/v1/files/a",
    ],
)
def test_a_uri_of_another_host_is_no_resource(uri: str) -> None:
    assert body_names({"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]}, GENERATE, BASES) == set()


def test_an_expiry_that_no_clock_reaches_counts_as_none() -> None:
    for end in (10**400, "9999-99-99T00:00:00Z", "0001-01-01T00:00:00+23:59", True, -1, [1]):
        for field in ("expires_at", "expirationTime"):
            assert answer_names({"name": "files/a", field: end}, get("/v1beta/files/a")) == {"files/a": None}


def test_megabytes_are_no_uri() -> None:
    for uri in (URI + "a" * 10_000, GOOGLE + "/v1" * 10_000, "files/" + "a" * 10_000):
        body = {"contents": [{"parts": [{"fileData": {"fileUri": uri}}, {"fileData": {"fileUri": URI + "b"}}]}]}
        assert body_references(body, GENERATE) == {URI + "b"}


@pytest.mark.parametrize(
    "uri", [f"{OWN}/v1beta/files/a", f"{GOOGLE}/v1/files/a", "files/a", f"{OWN}/v1/files/a:download?x=1"]
)
def test_both_forms_of_a_file_are_understood(uri: str) -> None:
    assert named_by(uri, BASES) == "files/a"


WRITTEN = st.recursive(
    st.sampled_from([URI + "x", "cachedContents/x", "files/x", "hello", '{"fileData":{"fileUri":"files/x"}}']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["fileData", "fileUri", "uri", "cachedContent", "parts"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(WRITTEN)
def test_no_text_argument_or_answer_of_a_function_names_anything(written: Any) -> None:
    parts = [
        {"text": written},
        {"functionCall": {"name": "f", "args": written}},
        {"functionResponse": {"name": "f", "response": written}},
        {"executableCode": {"code": written}},
    ]
    body = {"contents": [{"parts": parts}], "generationConfig": {"responseSchema": written}, "labels": written}
    assert body_names(body, GENERATE, BASES) == set()
    assert (
        body_names(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": written}]}]},
            post("/v1/chat/completions"),
        )
        == set()
    )


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "contents",
                        "parts",
                        "fileData",
                        "tools",
                        "batch",
                        "requests",
                        "request",
                        "input",
                        "environment",
                        "messages",
                        "file",
                        "instances",
                        "name",
                        "id",
                        "response",
                        "metadata",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_whatever_a_body_or_an_answer_is_it_can_be_read(body: Any) -> None:
    for call in (
        GENERATE,
        post("/v1beta/interactions"),
        post("/v1beta/openai/batches"),
        post("/v1beta/cachedContents"),
    ):
        assert isinstance(answer_names(body, call), dict)
        if isinstance(body, Mapping):
            assert isinstance(body_names(body, call), set)


END, AT = "2026-11-22T10:00:00.123456Z", 1795341600.123456


ANSWERS: list[tuple[str, Any, dict[str, float | None]]] = [
    ("/upload/v1beta/files", {"file": {"name": "files/a", "uri": URI + "a", "expirationTime": END}}, {"files/a": AT}),
    ("/v1beta/cachedContents", {"name": "cachedContents/c", "expireTime": END}, {"cachedContents/c": AT}),
    (
        "/v1beta/models/m:batchGenerateContent",
        {"name": "batches/b", "metadata": {"name": "batches/b", "output": {"responsesFile": "files/r"}}},
        {"batches/b": None, "files/r": None},
    ),
    (
        "/v1beta/models/veo:predictLongRunning",
        {
            "name": "models/veo/operations/o",
            "response": {"generateVideoResponse": VIDEO},
        },
        {"models/veo/operations/o": None, "files/v": None},
    ),
    (
        "/v1beta/interactions",
        {"id": "v1_a", "object": "interaction", "outputs": [{"text": "files/no"}]},
        {"interactions/v1_a": None},
    ),
    (
        "/v1beta/interactions",
        {"event_type": "interaction.created", "interaction": {"id": "v1_a"}},
        {"interactions/v1_a": None},
    ),
    (
        "/v1beta/interactions",
        {"id": "v1_a", "environment_id": "e"},
        {"interactions/v1_a": None, "environments/e": None},
    ),
    ("/v1beta/agents", {"id": "mine"}, {"agents/mine": None}),
    ("/v1beta/triggers/t/executions", {"id": "x", "interaction_id": "v1_b"}, {"interactions/v1_b": None}),
    (
        "/v1beta/openai/batches",
        {"id": "batches/b", "output_file_id": "files/o", "expires_at": 1795341600},
        {"batches/b": 1795341600.0, "files/o": 1795341600.0},
    ),
    (
        "/v1beta/openai/files",
        {"object": "list", "data": [{"id": "a"}, {"id": "files/b"}]},
        {"files/a": None, "files/b": None},
    ),
    ("/v1beta/files", {"files": [{"name": "files/a"}, {"name": "files/b"}]}, {"files/a": None, "files/b": None}),
    ("/v1beta/batches", {"operations": [{"name": "batches/b"}]}, {"batches/b": None}),
    (
        "/v1beta/fileSearchStores/s:importFile",
        {"name": "fileSearchStores/s/operations/o"},
        {"fileSearchStores/s": None},
    ),
    ("/v1beta/tunedModels", {"name": "tunedModels/t/operations/o"}, {"tunedModels/t": None}),
    ("/v1beta/batches/b", {"name": "batches/b", "error": {"message": "files/x"}}, {"batches/b": None}),
    ("/v1beta/files", [], {}),
]


def test_what_a_client_wrote_into_an_answer_binds_nothing() -> None:
    batch = {"id": "batches/b", "metadata": {"name": "files/of-another"}, "endpoint": "files/x"}
    assert answer_names(batch, post("/v1beta/openai/batches")) == {"batches/b": None}
    interaction = {"id": "v1_a", "metadata": {"name": "files/of-another"}, "response": {"name": "files/of-another"}}
    assert answer_names(interaction, post("/v1beta/interactions")) == {"interactions/v1_a": None}


@pytest.mark.parametrize(("path", "answer", "names"), ANSWERS)
def test_an_answer_names_what_it_made(path: str, answer: Any, names: dict[str, float | None]) -> None:
    assert answer_names(answer, post(path)) == names
