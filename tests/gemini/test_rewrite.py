"""Names and URIs are replaced where they are whole strings under a name that can name a file; no other byte changes."""

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pollux.gemini.names import GOOGLE
from pollux.gemini.rewrite import renamed, to_client, to_upstream

OWN = "http://127.0.0.1:3145/gemini"
NAMES = st.sampled_from(["uri", "fileUri", "file_uri", "downloadUri", "url", "text", "name", "video"])
URIS = st.builds(
    "{}{}{}".format,
    st.just(GOOGLE),
    st.sampled_from(["/v1beta/files/", "/v1/files/", "/download/v1beta/files/", "/v1beta/models/m/", "/"]),
    st.text('ab-z09:?=&%é"\\/', max_size=8),
)
DOCUMENTS = st.recursive(
    URIS | st.text(max_size=8) | st.none() | st.sampled_from([f'"uri": "{GOOGLE}/v1beta/files/a"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def written(document: Any, escaped: bool, ascii_only: bool, spaced: bool) -> bytes:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=1 if spaced else None)
    return (text.replace("/", "\\/") if escaped else text).encode("utf-8", "surrogatepass")


@given(DOCUMENTS, st.booleans(), st.booleans(), st.booleans())
def test_there_and_back_is_the_same_byte_for_byte(document: Any, escaped: bool, ascii_only: bool, spaced: bool) -> None:
    body = written(document, escaped, ascii_only, spaced)
    there = to_client(body, GOOGLE, OWN)
    assert to_upstream(there, (OWN,), GOOGLE) == body


@given(DOCUMENTS, st.booleans(), st.booleans())
def test_only_addresses_under_a_uri_s_name_change(document: Any, escaped: bool, spaced: bool) -> None:
    def expected(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: expected(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [expected(inner) for inner in value]
        begins = isinstance(value, str) and any(
            value.startswith(GOOGLE + front) for front in ("/v1beta/files/", "/v1/files/", "/download/v1beta/files/")
        )
        is_uri = name.endswith(("uri", "Uri", "url"))
        return value.replace(GOOGLE, OWN, 1) if begins and is_uri else value

    assume("\\" not in json.dumps(document))  # a URI with a quote or a backslash in it is none, and may be left alone
    body = written(document, escaped, True, spaced)
    assert json.loads(to_client(body, GOOGLE, OWN)) == expected(document)


def test_both_spellings_of_slashes() -> None:
    plain = b'{"file": {"uri": "https://generativelanguage.googleapis.com/v1beta/files/a", "name": "files/a"}}'
    there = to_client(plain, GOOGLE, OWN)
    assert there == b'{"file": {"uri": "http://127.0.0.1:3145/gemini/v1beta/files/a", "name": "files/a"}}'
    escaped = plain.replace(b"/", b"\\/")
    assert to_client(escaped, GOOGLE, OWN) == there.replace(b"/", b"\\/")


def test_texts_keep_addresses_also_where_they_look_like_members() -> None:
    text = f'see "uri": "{GOOGLE}/v1beta/files/a", or'
    for document in ({"text": text}, {"text": f"{GOOGLE}/v1beta/files/a"}, {"parts": [text]}):
        body = json.dumps(document).encode()
        assert to_client(body, GOOGLE, OWN) == body
    body = json.dumps({"text": f'"fileUri": "{OWN}/v1beta/files/a"'}).encode()
    assert to_upstream(body, (OWN,), GOOGLE) == body


def test_an_upstream_of_its_own_is_exchanged_like_google_s_address() -> None:
    upstream = "http://127.0.0.1:9999"
    body = json.dumps([{"uri": f"{upstream}/v1beta/files/a"}, {"uri": f"{GOOGLE}/v1beta/files/b"}]).encode()
    there = to_client(body, upstream, OWN)
    assert json.loads(there) == [{"uri": f"{OWN}/v1beta/files/a"}, {"uri": f"{OWN}/v1beta/files/b"}]
    assert json.loads(to_upstream(there, (OWN,), upstream)) == [
        {"uri": f"{upstream}/v1beta/files/a"},
        {"uri": f"{upstream}/v1beta/files/b"},
    ]


def test_only_the_given_values_are_turned_back() -> None:
    one, other = f"{OWN}/v1beta/files/a", f"{OWN}/v1beta/files/b"
    body = json.dumps({"fileUri": one, "args": {"url": other}}).encode()
    assert json.loads(to_upstream(body, (OWN,), GOOGLE, {one})) == {
        "fileUri": f"{GOOGLE}/v1beta/files/a",
        "args": {"url": other},
    }


def test_another_of_our_names_is_understood() -> None:
    body = b'{"fileUri": "https://pollux.example/v1beta/files/a"}'
    back = to_upstream(body, (OWN, "https://pollux.example/"), GOOGLE)
    assert back == b'{"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/a"}'


# --- copies of files -------------------------------------------------------------------------------------------------

URI = "https://generativelanguage.googleapis.com/v1beta/files/abc"
NEW = "https://generativelanguage.googleapis.com/v1beta/files/px-1"
COPIES = {URI: NEW, "files/abc": "files/px-1", "abc": "files/px-1"}


@pytest.mark.parametrize(
    ("member", "old", "new"),
    [
        ("fileUri", URI, NEW),
        ("file_uri", URI, NEW),
        ("uri", URI, NEW),
        ("url", URI, NEW),
        ("fileName", "files/abc", "files/px-1"),
        ("file_name", "files/abc", "files/px-1"),
        ("file_id", "abc", "files/px-1"),
        ("input_file_id", "files/abc", "files/px-1"),
        ("inputFileId", "files/abc", "files/px-1"),
    ],
)
def test_the_names_of_files_are_replaced(member: str, old: str, new: str) -> None:
    for form in ('{{"a":[{{"{0}":"{1}"}}]}}', '{{ "{0}" :\n "{1}" }}'):
        body = form.format(member, old).encode()
        assert renamed(body, COPIES) == (form.format(member, new).encode(), {old})


def test_escaped_slashes_stay_escaped() -> None:
    body = json.dumps({"fileUri": URI}).replace("/", "\\/").encode()
    changed, found = renamed(body, COPIES)
    assert changed == json.dumps({"fileUri": NEW}).replace("/", "\\/").encode()
    assert found == {URI}


@pytest.mark.parametrize(
    "text",
    [
        {"text": URI},
        {"text": f'{{"fileUri": "{URI}"}}'},
        {"fileUri": URI + "d"},
        {"fileUri": f"x {URI}"},
        {"displayName": "files/abc"},
        {"data": "abc"},
        {"fileUri": [URI]},
    ],
)
def test_other_strings_keep_the_names_of_files(text: dict[str, object]) -> None:
    body = json.dumps(text).encode()
    assert renamed(body, COPIES) == (body, set())


def test_a_name_with_unicode_escapes_is_not_found() -> None:
    body = json.dumps({"fileUri": URI}).replace("/", "\\u002f").encode()
    assert renamed(body, COPIES) == (body, set())
