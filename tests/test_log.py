"""Log lines: the one of a request, those of libraries, for the cloud and for people."""

import asyncio
import io
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from time import perf_counter
from typing import Any, TextIO

import pytest

from pollux import log
from pollux.log import WAITING_MOST, LogHandler
from pollux.redaction import LONGEST
from pollux.relay.journal import Attempt, Record

KEY = "AIza" + "x" * 35
FIELDS: dict[str, Any] = {
    **Record(
        id="5f0c",
        client="alice",
        what="generateContent",
        asked="gemini-2.5-pro",
        used="gemini-2.5-flash",
        key="key-1",
        project="team-a",
        attempts=[
            Attempt("gemini-2.5-pro", "team-b", "key-2", "rpm", 429, "too many"),
            Attempt("gemini-2.5-flash", "team-a", "key-1", "ok", 200),
        ],
        waited=0.5,
        first_byte=0.79,
        tokens=57,
        status=200,
        total=0.812,
    ).as_json()
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Logging is one for the whole process: what a test configures, others would see."""
    names = ("", "pollux", "uvicorn", "uvicorn.error", "aiohttp.client", "asyncio")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    for logger in loggers[1:]:  # a server that an earlier test started may have silenced them
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    yield
    logging.captureWarnings(False)
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def written(kind: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    log.configure(kind, level, stream, environ={})
    return stream


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_for_the_cloud() -> None:
    stream = written("json")
    log.request_line(FIELDS)
    (entry,) = entries(stream)
    assert (entry["severity"], entry["logger"]) == ("INFO", "pollux.request")
    assert entry["message"] == "200 generateContent gemini-2.5-flash"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
    assert entry["request"] == FIELDS


def test_a_request_for_people() -> None:
    stream = written("text")
    log.request_line(FIELDS)
    line = stream.getvalue()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3}  200  generateContent         gemini-2.5-pro -> gemini-2.5-flash     812 ms"
        r"  key-1 \(team-a\)  first 790  waited 500  57 tokens  tried rpm \(key-2\), ok \(key-1\)  alice  5f0c\n",
        line,
    )


def test_attempts_that_were_left_out_are_counted_in_their_place() -> None:
    stream = written("text")
    log.request_line(FIELDS | {"attempts_left_out": {"rpm": 80, "network": 1}})
    assert "tried rpm (key-2), 80 more rpm, 1 more network, ok (key-1)" in stream.getvalue()


def test_equal_attempts_in_a_row_are_counted() -> None:
    stream = written("text")
    log.request_line(FIELDS | {"attempts": [{"cause": "rpm", "key": "k"}] + [{"cause": "no-key", "key": ""}] * 4})
    assert "tried rpm (k), 4 x no-key  " in stream.getvalue()


def test_the_columns_stand_below_each_other() -> None:
    stream = written("text")
    for model, total in (("gemini-2.5-flash", 3), ("gemini-2.5-flash-lite", 12_345)):
        log.request_line(FIELDS | {"model": model, "model_used": model, "total_ms": total})
    first, second = stream.getvalue().splitlines()
    assert first.index(" ms") == second.index(" ms")


@pytest.mark.parametrize("kind", ["json", "text"])
def test_a_request_with_few_known_fields(kind: str) -> None:
    stream = written(kind)
    log.request_line({})
    log.request_line(Record(status=401, reason="NO_TOKEN").as_json())
    assert "NO_TOKEN" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_failure_is_a_warning() -> None:
    stream = written("json", "warning")
    log.request_line(FIELDS)
    log.request_line(FIELDS | {"status": 503})
    assert [entry["severity"] for entry in entries(stream)] == ["WARNING"]


def test_any_record_for_the_cloud() -> None:
    stream = written("json")
    logging.getLogger("pollux.pool").warning("%d of %s", 3, "four", extra={"project": "team-a", "odd": {1}})
    (entry,) = entries(stream)
    assert (entry["severity"], entry["message"], entry["logger"]) == ("WARNING", "3 of four", "pollux.pool")
    assert entry["fields"] == {"project": "team-a", "odd": "{1}"}


@pytest.mark.parametrize("name", ["aiohttp.client", "uvicorn.error", "asyncio", "google.auth", "py.warnings"])
def test_libraries_speak_through_the_same_handler(name: str) -> None:
    own = io.StringIO()
    logging.getLogger(name).addHandler(logging.StreamHandler(own))
    stream = written("json")
    logging.getLogger(name).warning("key=%s", KEY)
    logging.getLogger(name).info("chatter")
    assert [entry["message"] for entry in entries(stream)] == ["key=[redacted]"]
    assert not own.getvalue(), "a handler of its own would not redact"


def test_warnings_are_logged() -> None:
    stream = written("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.configure("json", "info", stream, environ={})
        warnings.warn(f"x {KEY}", stacklevel=1)
    (entry,) = entries(stream)
    assert entry["logger"] == "py.warnings"
    assert KEY not in stream.getvalue()


def test_a_task_that_fails_unseen_shows_no_secret() -> None:
    stream = written("json")

    async def fails() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": RuntimeError(KEY)})

    asyncio.run(fails())
    (entry,) = entries(stream)
    assert "RuntimeError: [redacted]" in entry["stack_trace"]
    assert KEY not in stream.getvalue()


@pytest.mark.parametrize("kind", ["json", "text"])
def test_tracebacks_hold_no_secret_and_make_no_lines_of_their_own(kind: str) -> None:
    stream = written(kind)
    try:
        raise ValueError(f"bad {KEY}\n12:00:00.000  200  forged")
    except ValueError:
        logging.getLogger("pollux.x").exception("failed for %s", KEY)
    text = stream.getvalue()
    assert KEY not in text
    if kind == "json":
        assert "ValueError: bad [redacted]" in entries(stream)[0]["stack_trace"]
    else:
        first, *rest = text.splitlines()
        assert first.endswith("error    failed for [redacted]")
        assert all(line.startswith("    | ") for line in rest)


@pytest.mark.parametrize("kind", ["json", "text"])
def test_no_text_breaks_or_forges_a_log_line(kind: str) -> None:
    stream = written(kind)
    evil = "a\r\n12:00:00.000  200  forged\x1b[2J\x00\u2028\u202e\x85é"
    logging.getLogger("pollux.x").warning(evil)
    logging.getLogger("pollux.x").warning("%s", "b", extra={"field": evil})
    log.request_line(FIELDS | {"model": evil, "client": evil})
    text = stream.getvalue()
    assert len(text.splitlines()) == 3
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", ["json", "text"])
def test_arguments_that_do_not_fit_are_not_printed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    stream = written(kind)
    logging.getLogger("pollux.x").warning("%d", KEY)

    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError(KEY)

    logging.getLogger("pollux.x").warning("%s", Unspeakable())
    logging.getLogger("pollux.x").warning("fine", extra={"x": Unspeakable()})
    assert len(stream.getvalue().splitlines()) == 3
    assert KEY not in stream.getvalue() + "".join(capsys.readouterr())


@pytest.mark.parametrize("kind", ["json", "text"])
def test_long_values_are_cut(kind: str) -> None:
    stream = written(kind)
    logging.getLogger("pollux.x").warning("x" * 1_000_000)
    logging.getLogger("pollux.x").warning("x", extra={"deep": [{"y": "x" * 100_000}], "number": 5, "none": None})
    assert all(len(line) < 2 * LONGEST for line in stream.getvalue().splitlines())
    if kind == "json":
        assert entries(stream)[1]["fields"]["number"] == 5


@pytest.mark.parametrize(
    ("stream", "environ", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colours_are_for_terminals(stream: io.StringIO, environ: dict[str, str], coloured: bool) -> None:
    log.configure("text", "info", stream, environ=environ)
    logging.getLogger("pollux.x").error("no")
    log.request_line(FIELDS)
    assert ("\x1b[31m" in stream.getvalue()) is coloured
    assert not stream.getvalue().splitlines()[1].startswith("\x1b"), "what is well needs none"


def test_levels() -> None:
    for level, said in (("debug", 4), ("info", 3), ("warning", 2), ("error", 1)):
        stream = written("text", level)
        logger = logging.getLogger("pollux.x")
        for name in ("debug", "info", "warning", "error"):
            getattr(logger, name)("x")
        assert len(stream.getvalue().splitlines()) == said


def test_an_answer_that_was_cut_on_purpose_is_not_the_servers_failure() -> None:
    class BrokenAnswerError(Exception):
        pass

    stream = written("text")
    for error in (BrokenAnswerError(), ValueError("real")):
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    assert "ValueError: real" in stream.getvalue()
    assert "BrokenAnswerError" not in stream.getvalue()


def test_configuring_again_does_not_say_things_twice() -> None:
    written("text")
    stream = written("text")
    logging.getLogger("pollux.x").warning("once")
    assert stream.getvalue().count("once") == 1


# --- writing lines ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
        os.close(reader)


def say(handler: LogHandler, text: str) -> None:
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))


def read(reader: int) -> bytes:
    os.set_blocking(reader, False)
    pieces = []
    try:
        while piece := os.read(reader, 65536):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces)


def test_lines_come_out_at_once_and_whole(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    handler = LogHandler(stream)
    say(handler, "é\udc80")
    assert read(reader) == "é\\udc80\n".encode()
    say(handler, "x" * 20_000)
    assert read(reader) == b"x" * 20_000 + b"\n"


def test_a_stream_in_memory_is_written_to_as_well() -> None:
    stream = io.StringIO()
    say(LogHandler(stream), "hello")
    assert stream.getvalue() == "hello\n"


def test_a_log_reader_that_stopped_delays_no_request(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pollux.log.CLOSE_WITHIN", 0.0)
    reader, stream = pipe
    handler = LogHandler(stream)
    started = perf_counter()
    for number in range(30_000):
        say(handler, f"line {number:05d} " + "x" * 88)
    assert perf_counter() - started < 5
    assert handler.dropped > 0
    lines = []
    while got := read(reader):
        lines += got.decode().splitlines()
        handler.flush()
    whole = [line for line in lines if line.startswith("line ")]
    assert whole == [f"line {number:05d} " + "x" * 88 for number in range(len(whole))], "in order, and none cut"
    assert len(whole) > WAITING_MOST / 110
    dropped = handler.dropped
    say(handler, "again")
    assert read(reader).decode() == f"{dropped} log lines were dropped: their reader was too slow\nagain\n"
    assert len(whole) + dropped == 30_000


def test_what_waits_is_written_at_the_end(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    handler = LogHandler(stream)
    for _ in range(200):
        say(handler, "x" * 1000)
    got: list[bytes] = []

    def follow() -> None:
        while sum(map(len, got)) < 200 * 1001:
            got.append(os.read(reader, 65536))

    follower = threading.Thread(target=follow)
    follower.start()
    handler.close()
    follower.join(5)
    assert b"".join(got) == (b"x" * 1000 + b"\n") * 200


def test_a_log_pipe_that_is_closed() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        os.close(reader)
        handler = LogHandler(stream)
        say(handler, "hello")
        say(handler, "hello")
        handler.close()


def test_a_formatter_that_fails_tells_nothing_of_the_record() -> None:
    stream = io.StringIO()
    handler = LogHandler(stream)

    class Failing(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            raise ValueError(record.msg)

    handler.setFormatter(Failing())
    say(handler, "secret")
    assert stream.getvalue() == "a log record of x could not be written: ValueError\n"
