"""Upload tokens: a sealed token is read back, and any change to it is refused."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.backends.keys.contract import Secret
from pollux.resources.upload_token import LONGEST, Session, UploadTokenError, checked, claimed, seal

VALUE = Secret("AQ.test-value-of-one")
NOW = 1_790_000_000.0
SESSION = Session("/upload/v1beta/files?upload_id=abc_DEF-1&upload_protocol=resumable", "p1", "k1", "web", NOW + 60)

words = st.text(max_size=60)
sessions = st.builds(
    Session, words, words, words, words, st.floats(NOW + 1, NOW + 1e6, allow_nan=False, allow_infinity=False)
)


@given(sessions, st.text(min_size=1, max_size=60).map(Secret))
def test_what_was_sealed_is_read_back(session: Session, value: Secret) -> None:
    token = seal(session, value)
    assert checked(token, value, NOW) == session
    assert claimed(token) == checked(token, value, NOW)
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert not token.endswith("z"), "Cloud Run keeps such paths for itself"


@given(st.data())
def test_any_changed_bit_is_refused(data: st.DataObject) -> None:
    token = seal(SESSION, VALUE).encode()
    at = data.draw(st.integers(0, 8 * len(token) - 1))
    changed = bytearray(token)
    changed[at // 8] ^= 1 << at % 8
    with pytest.raises(UploadTokenError):
        checked(changed.decode("latin-1"), VALUE, NOW)


@given(st.integers(0, 400), st.text(alphabet="Az0_-.= \n", min_size=1, max_size=3))
def test_a_token_of_another_length_is_refused(at: int, more: str) -> None:
    token = seal(SESSION, VALUE)
    at %= len(token)
    for changed in (token[:at] + more + token[at:], token[:at], token[at + 1 :], token + more, more + token):
        with pytest.raises(UploadTokenError):
            checked(changed, VALUE, NOW)


@given(st.text(max_size=60).map(Secret).filter(lambda value: value != VALUE))
def test_a_token_sealed_with_another_key_is_refused(value: Secret) -> None:
    with pytest.raises(UploadTokenError):
        checked(seal(SESSION, value), VALUE, NOW)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: base64.urlsafe_b64encode(data).decode() + ".x"))
def test_nonsense_is_refused_and_breaks_nothing(token: str) -> None:
    for read in (claimed, lambda t: checked(t, VALUE, NOW)):
        with pytest.raises(UploadTokenError) as refused:
            read(token)
        assert not token or len(token) < 4 or token not in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        [],
        "text",
        {"u": "/x"},
        {"u": 1, "p": "", "k": "", "c": "", "e": 1},
        {"u": "", "p": "", "k": "", "c": "", "e": "soon"},
        {"u": "", "p": "", "k": "", "c": "", "e": None},
        {"u": "", "p": "", "k": "", "c": "", "e": 10**400},
        {"u": "", "p": "", "k": "", "c": "", "e": 1, "x": 1},
    ],
)
def test_what_has_another_form_is_refused(said: object) -> None:
    text = base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()
    with pytest.raises(UploadTokenError):
        claimed(text + ".seal")


@pytest.mark.parametrize("later", [60.0, 1e9])
def test_it_ends_when_its_time_is_over(later: float) -> None:
    token = seal(SESSION, VALUE)
    assert checked(token, VALUE, NOW + 59.9) == SESSION
    with pytest.raises(UploadTokenError, match="anew"):
        checked(token, VALUE, NOW + later)


def test_the_key_is_not_in_it_and_an_ordinary_one_is_short() -> None:
    address = "/upload/v1beta/files?upload_id=" + "A" * 700 + "&upload_protocol=resumable"
    token = seal(Session(address, "a-project-of-thirty-characters", "a-key", "a-client", NOW), VALUE)
    assert len(token) < 2048
    readable = base64.urlsafe_b64decode(token.partition(".")[0] + "==")
    assert VALUE.reveal().encode() not in readable


def test_no_token_is_made_that_would_be_refused_for_its_length() -> None:
    with pytest.raises(UploadTokenError, match="too long"):
        seal(Session("/" + "x" * LONGEST, "p", "k", "c", NOW), VALUE)
    with pytest.raises(UploadTokenError):
        claimed("A" * (LONGEST + 1))
