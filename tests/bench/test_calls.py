"""A request passes no more modules and calls of Pollux than before."""

import asyncio

from bench.calls import count

MODULES_MOST, CALLS_MOST = 43, 440
"""As it was. The aims are bench.calls' own, and lower."""


def test_a_request_passes_no_more_than_it_did() -> None:
    calls = asyncio.run(count())
    assert len({module for module, _ in calls}) <= MODULES_MOST
    assert calls.total() <= CALLS_MOST, "python -m bench.calls --functions shows where they are"
