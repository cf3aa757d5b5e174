"""One call with one key: which credential travels, what becomes of the answer, and that nothing shows the key."""

import asyncio
import gzip
import logging
import pickle
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.backends.upstream import UpstreamError
from pollux.redaction import redact_known
from pollux.relay import send
from pollux.relay.send import API_KEY, BEARER, NO_CREDENTIAL, CoveredAnswer, Failure, Headers, KeyedUpstream
from tests.gateway import FakeUpstream, Keys, Says, play, value_of, whole

ONE = Key("k1", "p1")
VALUE = value_of("k1")
ODD = "Zx9 Quartz/Opaque=Value"  # written in other ways in an address, in HTML and in JSON
ECHO = {"error": {"code": 400, "message": f"no: {VALUE}", "status": "INVALID_ARGUMENT"}}


class Silent(Keys):
    async def value(self, key_id: str) -> Secret:
        raise KeySourceError("the source of k1 does not answer")


def ask(upstream: FakeUpstream, keys: Keys | None = None, **how: Any) -> CoveredAnswer | Failure:
    async def scene() -> CoveredAnswer | Failure:
        keyed = KeyedUpstream(upstream, keys or Keys([ONE]), lambda: 0.0)
        return await keyed.send(ONE, "POST", "/v1beta/x", [("accept", "*/*")], b"{}", **how)

    return play(scene)


def refused(says: Says | UpstreamError, keys: Keys | None = None, **how: Any) -> Failure:
    failure = ask(FakeUpstream([says]), keys, **how)
    assert isinstance(failure, Failure)
    return failure


@pytest.mark.parametrize(
    ("credential", "sent"),
    [
        (API_KEY, [("x-goog-api-key", VALUE)]),
        (BEARER, [("authorization", f"Bearer {VALUE}")]),
        (NO_CREDENTIAL, []),
    ],
)
def test_exactly_one_credential_travels_or_none(credential: str, sent: list[tuple[str, str]]) -> None:
    upstream = FakeUpstream([whole({})])
    ask(upstream, credential=credential)
    assert upstream.sent[0].headers == [("accept", "*/*"), *sent]


def test_the_value_is_guarded_before_it_travels() -> None:
    value = "Zx8-Opaque_Value-Of-This-Test"  # has no shape by which a log would know it

    class Own(Keys):
        async def value(self, key_id: str) -> Secret:
            return Secret(value)

    def logged(_: Any) -> Says:
        assert redact_known(f"said {value}") == "said [redacted]"
        return whole({})

    ask(FakeUpstream(logged), Own([ONE]), credential=NO_CREDENTIAL)


def test_an_answer_is_left_open_unless_it_is_read_whole() -> None:
    upstream = FakeUpstream([whole({"a": 1}), whole({"a": 1})])
    passing, read = ask(upstream), ask(upstream, whole=True)
    assert isinstance(passing, CoveredAnswer)
    assert isinstance(read, CoveredAnswer)
    assert (passing.body, read.body) == (b"", b'{"a": 1}')
    assert [answer.closed for answer in upstream.answers] == [False, True]


@pytest.mark.parametrize("status", [302, 308, 400, 404, 503, 600])
def test_what_is_not_a_success_is_judged_and_closed(status: int) -> None:
    upstream = FakeUpstream([whole(ECHO, status)])
    failure = ask(upstream)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.problem, failure.unsent) == (status, None, False)
    assert b"no: [redacted]" in failure.body
    assert VALUE not in failure.verdict.message
    assert upstream.answers[0].closed


async def _kept(headers: Headers, key: Key) -> list[tuple[bytes, bytes]]:
    return list(headers)


@pytest.mark.parametrize("status", [200, 400])
def test_only_allowed_headers_come_back_and_those_of_uploads_where_they_are_rewritten(status: int) -> None:
    headers = [(b"ETag", VALUE.encode()), (b"Range", VALUE.encode()), (b"Set-Cookie", b"a=b")]
    plain = ask(FakeUpstream([Says([b"{}"], status, headers)]))
    assert plain.headers == [(b"etag", b"[redacted]")]
    upload = ask(FakeUpstream([Says([b"{}"], status, headers)]), readdress=_kept)
    assert upload.headers == [(b"etag", b"[redacted]"), (b"range", b"[redacted]")]


def test_an_answer_whose_headers_cannot_be_rewritten_is_closed() -> None:
    async def fails(headers: Headers, key: Key) -> list[tuple[bytes, bytes]]:
        raise LookupError

    upstream = FakeUpstream([whole({})])
    with pytest.raises(LookupError):
        ask(upstream, readdress=fails)
    assert upstream.answers[0].closed


def test_an_error_is_covered_in_every_spelling() -> None:
    class Odd(Keys):
        async def value(self, key_id: str) -> Secret:
            return Secret(ODD)

    spelt = ["Zx9%20Quartz%2FOpaque%3DValue", "Zx9 Quartz\\/Opaque=Value", "Zx9 Quartz/Opaque\\u003dValue", ODD]
    body = ('{"error": {"message": "' + " ".join(spelt) + '"}}').encode()
    assert (
        refused(whole(body, 400), Odd([ONE])).body
        == b'{"error": {"message": "' + b" ".join([b"[redacted]"] * 4) + b'"}}'
    )


def test_a_compressed_error_is_covered_whichever_characters_are_escaped() -> None:
    written = "".join(f"\\u{ord(character):04X}" for character in VALUE)
    body = gzip.compress(('{"error": {"message": "no: ' + written + '"}}').encode())
    failure = refused(Says([body], 400, [(b"Content-Encoding", b"gzip")]))
    assert failure.body == b'{"error": {"message": "no: [redacted]"}}'


@pytest.mark.parametrize(
    ("kind", "reason", "unsent"),
    [
        ("unreachable", "UPSTREAM_UNREACHABLE", True),
        ("reset", "UPSTREAM_UNREACHABLE", False),
        ("malformed", "UPSTREAM_UNREACHABLE", False),
        ("timeout", "UPSTREAM_TIMEOUT", False),
    ],
)
def test_without_an_answer_the_failure_says_why(kind: str, reason: str, unsent: bool) -> None:
    failure = refused(UpstreamError(kind, f"no connection for {VALUE}"))
    assert failure.problem is not None
    assert (failure.problem.code, failure.unsent) == (reason, unsent)
    assert "no connection for [redacted]" in failure.problem.message
    assert failure.timed_out is (kind == "timeout")


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_that_breaks_while_it_is_read_is_closed(status: int) -> None:
    upstream = FakeUpstream([Says([b"{", UpstreamError("reset", VALUE)], status)])
    failure = ask(upstream, whole=True)
    assert isinstance(failure, Failure)
    assert failure.verdict.message == "[redacted]"
    assert upstream.answers[0].closed


def test_a_value_that_cannot_be_had_sends_nothing() -> None:
    upstream, begun = FakeUpstream([]), list[int]()
    failure = ask(upstream, Silent([ONE]), begins=lambda: begun.append(1))
    assert isinstance(failure, Failure)
    assert (failure.verdict.cause, failure.verdict.action, failure.unsent) == ("key-source", "next-key", True)
    assert not upstream.sent
    assert not begun


def test_what_begins_raises_keeps_the_call_back() -> None:
    upstream = FakeUpstream([])

    def late() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        ask(upstream, begins=late)
    assert not upstream.sent


@pytest.mark.parametrize("length", [None, 64])
@pytest.mark.parametrize("pieces", [[VALUE.encode()[:7], VALUE.encode()[7:] + b" end"], [b"a " + VALUE.encode()]])
def test_a_body_is_covered_wherever_it_is_cut(pieces: Sequence[bytes], length: int | None) -> None:
    async def scene() -> bytes:
        keyed = KeyedUpstream(FakeUpstream([Says(pieces, length=length)]), Keys([ONE]), lambda: 0.0)
        answer = await keyed.send(ONE, "GET", "/v1beta/x", ())
        assert isinstance(answer, CoveredAnswer)
        return b"".join([piece async for piece in _chunks(answer)])

    came, sent = play(scene), b"".join(pieces)
    assert came == sent.replace(VALUE.encode(), b"[redacted]".ljust(len(VALUE), b".") if length else b"[redacted]")


async def _chunks(answer: CoveredAnswer) -> Any:
    while piece := await answer.chunk():
        yield piece
    assert await answer.chunk() == b""


def test_who_leaves_takes_the_call_along() -> None:
    """In each of its phases: no answer yet, and an error that is still being read."""

    async def scene() -> None:
        for says in (Says([], after=60.0), Says([b"{", 60.0], 500)):
            upstream = FakeUpstream([says])
            task = asyncio.create_task(
                KeyedUpstream(upstream, Keys([ONE]), lambda: 0.0).send(ONE, "GET", "/v1beta/x", ())
            )
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert all(answer.closed for answer in upstream.answers)

    play(scene)


def test_nothing_of_it_prints_the_key(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        upstream = FakeUpstream([whole({}), whole(ECHO, 400), UpstreamError("reset", VALUE)])
        keyed = KeyedUpstream(upstream, Keys([ONE]), lambda: 0.0)
        made = [keyed, *[await keyed.send(ONE, "GET", "/v1beta/x", ()) for _ in range(3)]]
        text = repr(made) + repr(vars(keyed)["_forms"])
        failure = made[-1]
        assert isinstance(failure, Failure)
        assert failure.problem is not None
        text += "".join(traceback.format_exception(failure.problem))
        logging.getLogger("pollux").error("%s", made)
        assert VALUE not in text + caplog.text

    play(scene)
    with pytest.raises(TypeError):
        pickle.dumps(Secret(VALUE))


def test_a_value_is_read_here_and_where_keys_are_kept_and_nowhere_else() -> None:
    package = Path(send.__file__).parents[1]
    readers = {path.relative_to(package) for path in package.rglob("*.py") if ".reveal()" in path.read_text()}
    typed = Path("cli/keys.py")  # hands on what was typed
    assert {path for path in readers if "keys" not in path.parts} - {typed} == {Path("relay/send.py")}
