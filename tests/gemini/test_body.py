"""Bodies: read without being changed, changed in one place only, and never larger than allowed."""

import gzip
import json
import zlib
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.body import (
    VALUES_MOST,
    inflate,
    read,
    read_strictly,
    replace_model,
    total_tokens,
    with_aliases,
    with_body,
)
from pollux.gemini.call import Call, read_target
from pollux.gemini.errors import GatewayError

TEXT = b'{"contents": "' + b"hello " * 500 + b'"}'
MARK = "where the model stands"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("model") | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["model", "a", "mo", 'q"', "\\", "é", "😀"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


def packed(data: bytes) -> bytes:
    """Without the time, so that these bytes, which name tests, are the same in all processes that run them."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (None, TEXT),
        ("", TEXT),
        ("identity", TEXT),
        ("gzip", packed(TEXT)),
        ("X-GZIP", packed(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
        ("gzip, gzip", packed(packed(TEXT))),
        ("deflate , identity, gzip", packed(zlib.compress(TEXT))),
        ("gzip", packed(TEXT[:100]) + packed(TEXT[100:])),
        ("gzip", packed(TEXT) + b"\0\0\0"),
    ],
)
def test_compressed_bodies_are_read(encoding: str | None, body: bytes) -> None:
    assert inflate(body, encoding, len(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        ("gzip", TEXT, 400, "BAD_REQUEST"),
        ("gzip", b"", 400, "BAD_REQUEST"),
        ("gzip", packed(TEXT)[:-9], 400, "BAD_REQUEST"),
        ("gzip", packed(TEXT) + b"more", 400, "BAD_REQUEST"),
        ("deflate", b"\x01\x02\x03", 400, "BAD_REQUEST"),
        ("gzip, gzip", packed(TEXT), 400, "BAD_REQUEST"),
        ("br", TEXT, 415, "UNREADABLE_ENCODING"),
        ("zstd", TEXT, 415, "UNREADABLE_ENCODING"),
        ("gzip\r\nx: y", TEXT, 415, "UNREADABLE_ENCODING"),
        (", ".join(["gzip"] * 9), TEXT, 415, "UNREADABLE_ENCODING"),
        ("gzip", packed(TEXT + b"x"), 413, "BODY_TOO_LARGE"),
        ("gzip", packed(TEXT) * 2, 413, "BODY_TOO_LARGE"),
    ],
)
def test_bodies_that_cannot_be_read(encoding: str, body: bytes, status: int, code: str) -> None:
    with pytest.raises(GatewayError) as refused:
        inflate(body, encoding, len(TEXT))
    assert (refused.value.status, refused.value.code) == (status, code)
    assert refused.value.message.isprintable()


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * 200_000_000, 9), 9)
    started = perf_counter()
    with pytest.raises(GatewayError, match="more than 1000000 bytes"):
        inflate(bomb, "gzip, gzip", 1_000_000)
    assert perf_counter() - started < 10  # unpacked, it would take minutes


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "gzip, deflate"]))
def test_anything_that_claims_to_be_compressed(body: bytes, encoding: str) -> None:
    try:
        text = inflate(body, encoding, 1000)
    except GatewayError:
        return
    assert len(text) <= 1000


@pytest.mark.parametrize(
    ("body", "becomes"),
    [
        (b'{"model":"a"}', b'{"model":"b"}'),
        (b' {\n "model" : "a" , "x":1}', b' {\n "model" : "b" , "x":1}'),
        (b'{"x":{"model":"n"},"model":"a"}\n', b'{"x":{"model":"n"},"model":"b"}\n'),
        (b'{"messages":[{"role":"model"}],"model":"a","n":1}', b'{"messages":[{"role":"model"}],"model":"b","n":1}'),
        (b'{"model":"a","model":"c"}', b'{"model":"b","model":"b"}'),
        (b'{"m\\u006fdel":"a","x":{"model":"n"}}', b'{"m\\u006fdel":"b","x":{"model":"n"}}'),
        (b'{"model":"models/a"}', b'{"model":"models/b"}'),
        (b'{"model":"a\\"\\\\","x":"\\u00e9"}', b'{"model":"b","x":"\\u00e9"}'),
        (
            '{"é":"😀 \\"model\\": \\"n\\"","model":"a"}'.encode(),
            '{"é":"😀 \\"model\\": \\"n\\"","model":"b"}'.encode(),
        ),
        (b'\xef\xbb\xbf{"model":"a"}', b'\xef\xbb\xbf{"model":"b"}'),
        (b'{"model":5}', b'{"model":"b"}'),
        (b'{"model":null}', b'{"model":"b"}'),
        (b"[" * 100_000, b"[" * 100_000),
        (b'{"x":{"model":"n"}}', b'{"x":{"model":"n"}}'),
        (b'{"a":"model"}', b'{"a":"model"}'),
        (b'["model","a"]', b'["model","a"]'),
        (b"{}", b"{}"),
        (b"", b""),
        (b"\xff\xfe{", b"\xff\xfe{"),
    ],
)
def test_the_model_changes_and_nothing_else(body: bytes, becomes: bytes) -> None:
    assert replace_model(body, "b") == becomes


@given(
    before=st.lists(st.tuples(st.sampled_from(["a", "modeler", "Model", "x\ny"]), VALUES), max_size=3),
    after=st.lists(st.tuples(st.sampled_from(["b", "mode", "😀"]), VALUES), max_size=3),
    old=st.text(max_size=10),
    new=st.text(min_size=1, max_size=10),
    pretty=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_any_body_keeps_all_but_its_model(
    before: list[tuple[str, Any]],
    after: list[tuple[str, Any]],
    old: str,
    new: str,
    pretty: int | None,
    ascii_only: bool,
) -> None:
    members = dict(before) | {"model": old} | dict(after)
    text = json.dumps(members, indent=pretty, ensure_ascii=ascii_only)
    body = text.encode("utf-8", "replace")
    members = json.loads(body)
    changed = replace_model(body, new)
    wanted = "models/" + new if old.startswith("models/") and not new.startswith("models/") else new
    assert json.loads(changed) == members | {"model": wanted}
    named = json.dumps(old, ensure_ascii=ascii_only).encode("utf-8", "replace")
    around = json.dumps(members | {"model": MARK}, indent=pretty, ensure_ascii=ascii_only).encode()
    start, end = around.split(json.dumps(MARK).encode())
    assert body == start + named + end
    assert changed == start + json.dumps(wanted).encode() + end


@given(VALUES)
def test_any_json_at_all_survives(value: Any) -> None:
    body = json.dumps(value).encode()
    changed = json.loads(replace_model(body, "new"))
    assert changed == (value | {"model": changed["model"]} if isinstance(value, dict) and "model" in value else value)


def test_large_bodies_are_not_read_byte_by_byte() -> None:
    image = {"image_url": {"url": "data:image/png;base64," + "A" * 20_000_000}}
    messages = [{"role": "model", "content": [image]}]
    body = json.dumps({"messages": messages, "model": "a", "n": 1}).encode()
    started = perf_counter()
    assert replace_model(body, "b").endswith(b'"model": "b", "n": 1}')
    assert perf_counter() - started < 20  # byte by byte, it would be minutes


def openai(resource: str = "chat/completions") -> Call:
    return read_target("POST", f"/v1beta/openai/{resource}".encode(), b"")


def native(resource: str = "models/a:generateContent") -> Call:
    return read_target("POST", f"/v1beta/{resource}".encode(), b"")


def test_a_body_that_matters_is_read() -> None:
    assert read(native(), b'{"contents": []}', {}, 100) == (b'{"contents": []}', {"contents": []})
    assert read(native(), gzip.compress(TEXT), {b"content-encoding": b"gzip"}, 10_000)[0] == TEXT
    files = native("files")
    assert read(files, b'{"displayName": "x"}', {}, 100)[1] is None
    assert read(files, b'{"fileName": "files/x"}', {}, 100)[1] == {"fileName": "files/x"}


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"[" * 100_000, b"[" + b"1," * VALUES_MOST + b"1]"])
def test_a_native_body_that_cannot_be_read_passes_as_it_is(body: bytes) -> None:
    assert read(native(), body, {}, 10**7) == (body, None)
    assert read(native(), body, {b"content-encoding": b"br"}, 10**7) == (body, None)


def test_a_body_that_may_name_a_pooled_file_is_read_in_one_way_or_refused() -> None:
    assert read_strictly(native(), b'{"contents": []}', {}, 100)[1] == {"contents": []}
    refused = {b'{"a": 1, "a": 2}': "BAD_REQUEST", b"[1]": "BAD_REQUEST", b"{": "BAD_REQUEST"}
    refused |= {b"[" + b"1," * VALUES_MOST + b"1]": "BODY_TOO_LARGE"}
    for body, code in refused.items():
        with pytest.raises(GatewayError) as raised:
            read_strictly(native(), body, {}, 10**7)
        assert raised.value.code == code
    with pytest.raises(GatewayError):
        read_strictly(native(), b"{}", {b"content-encoding": b"br"}, 100)
    picture = read_strictly(openai("images/edits"), b"--x", {b"content-type": b"multipart/form-data; boundary=x"}, 100)
    assert picture == (b"--x", None)


def test_an_openai_body_names_model_and_stream() -> None:
    call = with_body(openai(), {"model": "models/gemini-2.5-flash", "stream": True})
    assert (call.model, call.stream, call.counted) == ("gemini-2.5-flash", "sse", True)
    assert with_body(openai(), {"model": "m"}).stream == "no"
    assert with_body(openai(), {"model": "m", "stream": 1}).stream == "no"
    assert with_body(openai("embeddings"), {"model": "m", "stream": True}).stream == "no"
    for nothing in ({}, {"model": 5}, {"model": ""}, {"model": None}):
        assert with_body(openai(), nothing).model is None


BAD_NAMES = [
    "../../auth_tokens?", "..", ".", "a/../b", "a/./b", "a/..", ".hidden", "-a", "_a", "/a", "a b", "a?b", "a#b",
    "a%2e", "a\r\nb", "a\n", "a\0", "a\\b", "\ud800", "a\udfff", "é", "a\x7f", "a" * 201, "a" * 1_000_000,
    "models/models/../a",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("prefix", ["", "models/"])
def test_what_no_model_is_called_is_refused(prefix: str, name: str) -> None:
    with pytest.raises(GatewayError, match="model") as refused:
        with_body(openai(), json.loads(json.dumps({"model": prefix + name})))
    assert (refused.value.status, refused.value.code) == (400, "BAD_REQUEST")
    assert refused.value.message.isprintable()
    assert refused.value.message.isascii()
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    "name", ["m", "gemini-2.5-flash", "google/gemini-3:free", "tunedModels/t-1", "a@001", "a" * 200, "gpt-4o", "a..b"]
)
def test_what_models_are_called(name: str) -> None:
    assert with_body(openai(), {"model": name}).model == name


def test_a_native_body_changes_nothing() -> None:
    call = read_target("POST", b"/v1beta/models/a:generateContent", b"")
    assert with_body(call, {"model": "b", "stream": True}) is call


def test_counted_tokens() -> None:
    assert total_tokens(b'{\n  "totalTokens": 31,\n "promptTokensDetails": []}') == 31
    assert total_tokens(b'{"error": {}}') is None


ALIASES = {"draft": "gemini-a", "research": "gemini-z", "gemini-b": "gemini-a"}


def test_aliases_stand_on_the_page_of_their_model() -> None:
    call = read_target("GET", b"/v1beta/models", b"")
    listing = {
        "models": [{"name": "models/gemini-a", "displayName": "A", "inputTokenLimit": 5}, {"name": "models/gemini-b"}]
    }
    found = json.loads(with_aliases(json.dumps(listing | {"nextPageToken": "t"}).encode(), call, ALIASES))
    assert found["nextPageToken"] == "t"
    assert found["models"][:2] == listing["models"]
    assert found["models"][2:] == [{"name": "models/draft", "displayName": "draft (A)", "inputTokenLimit": 5}]
    with_z = {"models": [{"name": "models/gemini-z"}]}
    assert json.loads(with_aliases(json.dumps(with_z).encode(), call, ALIASES))["models"][1] == {
        "name": "models/research"
    }


def test_aliases_in_openais_list() -> None:
    call = read_target("GET", b"/v1beta/openai/models", b"")
    listing = {"object": "list", "data": [{"id": "models/gemini-a", "object": "model", "owned_by": "google"}]}
    found = json.loads(with_aliases(json.dumps(listing).encode(), call, {"draft": "gemini-a"}))
    assert found["data"][1] == {"id": "models/draft", "object": "model", "owned_by": "google"}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"models": 5}', b'{"models": [1]}', b'{"models":[{"name":"models/other"}]}']
)
def test_lists_without_a_known_model_stay_as_they_are(body: bytes) -> None:
    assert with_aliases(body, read_target("GET", b"/v1beta/models", b""), ALIASES) == body
