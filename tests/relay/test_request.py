"""request: what goes upstream for a key and a model, and by what a conversation is known again."""

import contextlib
import json
from typing import Any

import pytest

from pollux.gemini.body import with_body
from pollux.gemini.call import read_target
from pollux.gemini.errors import GatewayError
from pollux.relay.journal import Record
from pollux.relay.passing import Reply
from pollux.relay.request import Request, conversation, has_history
from tests.gateway import CHAT, FLASH, GENERATE, HELLO, NEXT, STREAM

TYPE = ("content-type", "application/json")


async def _nowhere(_: Any) -> None: ...


def request_for(path: str, body: Any = HELLO, method: str = "POST", **more: Any) -> Request:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    plain, _, query = path.partition("?")
    call = read_target(method, plain, query)
    parsed = body if isinstance(body, dict) else json.loads(more.get("readable", data) or b"null")
    if call.api == "openai" and parsed is not None:
        call = with_body(call, parsed)
    record = Record()
    given: dict[str, Any] = {"headers": [TYPE], "readable": data} | more
    return Request(
        call, method, body=data, parsed=parsed, record=record, reply=Reply(_nowhere, record), deadline=0.0,
        **given,
    )  # fmt: skip


def test_the_same_model_sends_path_query_and_body_as_they_came() -> None:
    request = request_for(STREAM)
    assert request.outgoing(FLASH) == (STREAM, [TYPE], request.body)


def test_another_model_changes_the_path_alone_natively() -> None:
    request = request_for(STREAM)
    target, _, body = request.outgoing(NEXT)
    assert target == STREAM.replace(FLASH, NEXT)
    assert body == request.body


def test_another_model_changes_the_value_alone_on_the_openai_path() -> None:
    written = b'{ "messages":[{"role":"user","content":"model"}],"model" : "models/%s" }' % FLASH.encode()
    request = request_for(CHAT, written)
    target, headers, body = request.outgoing(NEXT)
    assert (target, body) == (CHAT, written.replace(FLASH.encode(), NEXT.encode()))
    assert headers == [TYPE]


def test_a_compressed_body_whose_model_changes_travels_as_it_reads() -> None:
    readable = json.dumps({"model": FLASH, "messages": []}).encode()
    request = request_for(CHAT, b"compressed", readable=readable, headers=[TYPE, ("content-encoding", "gzip")])
    assert request.outgoing(FLASH)[2] == b"compressed"
    _, headers, body = request.outgoing(NEXT)
    assert body == readable.replace(FLASH.encode(), NEXT.encode())
    assert ("content-encoding", "gzip") not in headers


def test_the_size_is_asked_of_the_same_version_with_everything_that_counts() -> None:
    body = HELLO | {"systemInstruction": {"parts": [{"text": "Be brief"}]}, "tools": [{"googleSearch": {}}]}
    found = request_for(GENERATE, body).size_question(FLASH)
    assert found is not None
    target, question = found
    assert target == f"/v1beta/models/{FLASH}:countTokens"
    assert json.loads(question) == {"generateContentRequest": body | {"model": f"models/{FLASH}"}}


def test_the_size_of_a_tuned_model_is_asked_of_that_model() -> None:
    found = request_for(GENERATE).size_question("tunedModels/mine")
    assert found is not None
    assert found[0] == "/v1beta/tunedModels/mine:countTokens"
    assert json.loads(found[1])["generateContentRequest"]["model"] == "tunedModels/mine"


@pytest.mark.parametrize("path", ["/v1beta%2Fmodels%2Fm:generateContent", "/v1beta/mo%64els/m:generateContent"])
def test_no_encoding_of_the_path_gets_into_the_question(path: str) -> None:
    found = request_for(path).size_question(FLASH)
    assert found is not None
    assert found[0] == f"/v1beta/models/{FLASH}:countTokens"
    assert request_for(path).outgoing(NEXT)[0] == f"/v1beta/models/{NEXT}:generateContent"


ODD = [
    "../../auth_tokens?",
    "..",
    "x/../../auth_tokens",
    "x?alt=sse",
    "x#",
    "x y",
    "x\r\nhost: y",
    "x%2e%2e/\0",
    "\ud800",
]


@pytest.mark.parametrize("model", ODD)
@pytest.mark.parametrize("path", [GENERATE, CHAT])
def test_no_model_name_leads_to_another_path(path: str, model: str) -> None:
    request = request_for(path, HELLO if path == GENERATE else {"model": FLASH, "messages": [{"content": "A"}]})
    for made in (lambda: request.size_question(model), lambda: request.outgoing(model)):
        found = None
        with contextlib.suppress(GatewayError):
            found = made()
        target = found[0].removeprefix("/v1beta/models/") if found else ""
        assert target == CHAT or not set(target) & set("/?#\r\n ")


@pytest.mark.parametrize("model", ["auth_tokens", "x:transferOwnership", "x/permissions"])
def test_no_model_name_leads_to_a_guarded_path(model: str) -> None:
    request = request_for(GENERATE)
    for made in (lambda: request.size_question(model), lambda: request.outgoing(model)):
        with pytest.raises(GatewayError) as refused:
            made()
        assert (refused.value.status, refused.value.code) == (403, "FORBIDDEN_PATH")


def test_a_guarded_path_that_was_let_through_is_sent_as_it_came() -> None:
    assert request_for("/v1beta/webhooks").outgoing(None)[0] == "/v1beta/webhooks"
    assert request_for("/v1beta/webhooks").outgoing(FLASH)[0] == "/v1beta/webhooks"


def test_what_is_no_text_does_no_harm() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}],"\\udfff":"\\ud800"}'
    request = request_for(CHAT, body, readable=body)
    assert request.size_question(FLASH) is not None
    assert b'"%s"' % NEXT.encode() in request.outgoing(NEXT)[2]
    assert conversation("client", request.parsed) is not None


def test_the_size_of_a_chat_is_that_of_its_texts() -> None:
    parts = [{"type": "text", "text": "B"}, {"type": "image_url", "image_url": {"url": "data:"}}, "odd"]
    messages = [{"role": "system", "content": "A"}, {"role": "user", "content": parts}, "odd", {"role": "user"}]
    found = request_for(CHAT, {"model": FLASH, "messages": messages}).size_question(FLASH)
    assert found is not None
    contents = json.loads(found[1])["generateContentRequest"]["contents"]
    assert contents == [{"role": "user", "parts": [{"text": "A"}, {"text": "B"}]}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1beta/models/gemini-embedding-001:embedContent", {"content": {}}),
        (CHAT, {"model": FLASH, "messages": []}),
        (CHAT, {"model": FLASH}),
        (GENERATE, b"[1]"),
    ],
)
def test_where_no_question_fits_none_is_asked(path: str, body: Any) -> None:
    request = request_for(path, body)
    request.parsed = request.parsed if isinstance(request.parsed, dict) else None
    assert request.size_question(FLASH) is None


@pytest.mark.parametrize(("path", "form"), [(STREAM, "sse"), (STREAM.partition("?")[0], "array"), (GENERATE, "no")])
def test_the_form_of_a_native_stream_comes_from_its_path(path: str, form: str) -> None:
    request = request_for(path)
    request.stream = request.call.stream
    assert request.stream_form == form


# --- conversations ---------------------------------------------------------------------------------------------------


def said(*texts: str, system: str | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": text}]} for text in texts]}
    return body | ({"systemInstruction": {"parts": [{"text": system}]}} if system else {})


def chat(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in messages]}


@pytest.mark.parametrize(
    ("body", "later"),
    [
        (said("A"), said("A", "B", "C")),
        (said("A", system="S"), said("A", "B", system="S")),
        (chat(("system", "S"), ("user", "A")), chat(("system", "S"), ("user", "A"), ("assistant", "B"))),
        (chat(("user", "A" * 5000)), chat(("user", "A" * 5000), ("user", "B"))),
    ],
)
def test_a_conversation_that_goes_on_is_known_again(body: dict[str, Any], later: dict[str, Any]) -> None:
    assert conversation("client", body) == conversation("client", later) is not None


def test_other_openings_instructions_and_clients_are_other_conversations() -> None:
    found = {
        conversation("one", said("A")),
        conversation("two", said("A")),
        conversation("one", said("B")),
        conversation("one", said("A", system="S")),
        conversation("one", chat(("system", "T"), ("user", "A"))),
        conversation("one", chat(("system", "S"), ("user", "B"))),
    }
    assert len(found) == 6
    assert None not in found


@pytest.mark.parametrize("body", [None, {}, {"contents": []}, {"contents": "A"}, {"contents": [{"parts": [{}]}]}])
def test_what_says_nothing_is_no_conversation(body: dict[str, Any] | None) -> None:
    assert conversation("client", body) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (said("A"), False),
        (said("A", system="S"), False),
        (chat(("system", "S"), ("user", "A")), False),
        (chat(("user", "A"), ("assistant", "B"), ("user", "C")), True),
        ({"contents": [{"role": "user", "parts": []}, {"role": "model", "parts": []}, {"parts": []}]}, True),
        ({"contents": "text"}, False),
        ({"contents": [None, "model", {"role": ["model"]}]}, False),
        (None, False),
    ],
)
def test_a_conversation_goes_on_when_the_model_has_spoken(body: dict[str, Any] | None, expected: bool) -> None:
    assert has_history(body) is expected


def test_nothing_of_a_conversation_can_be_read_from_its_name() -> None:
    assert "private" not in str(conversation("client", said("a private word")))
