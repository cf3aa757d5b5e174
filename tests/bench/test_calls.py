"""A plain request passes no more modules and calls of Pollux than `bench.calls` aims at."""

import asyncio

from bench.calls import CALLS_MOST, MODULES_MOST, count


def test_a_plain_request_stays_within_the_aims() -> None:
    calls = asyncio.run(count())
    assert len({module for module, _ in calls}) <= MODULES_MOST
    assert calls.total() <= CALLS_MOST, "python -m bench.calls --functions shows where they are"
