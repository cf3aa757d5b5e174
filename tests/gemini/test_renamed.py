"""wire.renamed: only whole strings under members that can name a file, and nothing else."""

import json

import pytest

from pollux.gemini.renamed import renamed

URI = "https://generativelanguage.googleapis.com/v1beta/files/abc"
NEW = "https://generativelanguage.googleapis.com/v1beta/files/px-1"
NAMES = {URI: NEW, "files/abc": "files/px-1", "abc": "files/px-1"}


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
def test_members_that_name_a_file(member: str, old: str, new: str) -> None:
    for form in ('{{"a":[{{"{0}":"{1}"}}]}}', '{{ "{0}" :\n "{1}" }}'):
        body = form.format(member, old).encode()
        assert renamed(body, NAMES) == (form.format(member, new).encode(), {old})


def test_slashes_keep_their_form() -> None:
    body = json.dumps({"fileUri": URI}).replace("/", "\\/").encode()
    changed, found = renamed(body, NAMES)
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
def test_what_stays_as_it_is(text: dict[str, object]) -> None:
    body = json.dumps(text).encode()
    assert renamed(body, NAMES) == (body, set())


def test_what_is_spelt_oddly_is_not_found() -> None:
    body = json.dumps({"fileUri": URI}).replace("/", "\\u002f").encode()
    assert renamed(body, NAMES) == (body, set())
