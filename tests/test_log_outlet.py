"""The handler: it writes what it is given, and waits for nobody."""

import io
import logging
import os
import threading
from collections.abc import Iterator
from time import perf_counter
from typing import TextIO

import pytest

from pollux.log_outlet import WAITING_MOST, Outlet


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
        os.close(reader)


def say(outlet: Outlet, text: str) -> None:
    outlet.handle(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))


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
    outlet = Outlet(stream)
    say(outlet, "é\udc80")
    assert read(reader) == "é\\udc80\n".encode()
    say(outlet, "x" * 20_000)
    assert read(reader) == b"x" * 20_000 + b"\n"


def test_a_stream_in_memory_is_written_to_as_well() -> None:
    stream = io.StringIO()
    say(Outlet(stream), "hello")
    assert stream.getvalue() == "hello\n"


def test_a_reader_that_stopped_holds_nobody_up(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pollux.log_outlet.CLOSE_WITHIN", 0.0)
    reader, stream = pipe
    outlet = Outlet(stream)
    started = perf_counter()
    for number in range(30_000):
        say(outlet, f"line {number:05d} " + "x" * 88)
    assert perf_counter() - started < 5
    assert outlet.dropped > 0
    lines = []
    while got := read(reader):
        lines += got.decode().splitlines()
        outlet.flush()
    whole = [line for line in lines if line.startswith("line ")]
    assert whole == [f"line {number:05d} " + "x" * 88 for number in range(len(whole))], "in order, and none cut"
    assert len(whole) > WAITING_MOST / 110
    dropped = outlet.dropped
    say(outlet, "again")
    assert read(reader).decode() == f"{dropped} log lines were dropped: their reader was too slow\nagain\n"
    assert len(whole) + dropped == 30_000


def test_what_waits_is_written_at_the_end(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    outlet = Outlet(stream)
    for _ in range(200):
        say(outlet, "x" * 1000)
    got: list[bytes] = []

    def follow() -> None:
        while sum(map(len, got)) < 200 * 1001:
            got.append(os.read(reader, 65536))

    follower = threading.Thread(target=follow)
    follower.start()
    outlet.close()
    follower.join(5)
    assert b"".join(got) == (b"x" * 1000 + b"\n") * 200


def test_nobody_reads_any_more() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        os.close(reader)
        outlet = Outlet(stream)
        say(outlet, "hello")
        say(outlet, "hello")
        outlet.close()


def test_a_formatter_that_fails_tells_nothing_of_the_record() -> None:
    stream = io.StringIO()
    outlet = Outlet(stream)

    class Failing(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            raise ValueError(record.msg)

    outlet.setFormatter(Failing())
    say(outlet, "secret")
    assert stream.getvalue() == "a log record of x could not be written: ValueError\n"
