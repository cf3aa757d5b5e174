"""alerts: what operators hear of, once, with the fields that alerts look for."""

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from pollux.gemini.verdict.rules import Verdict, judge
from pollux.log import JsonFormatter
from pollux.pool import alerts
from pollux.pool.alerts import NEARLY
from pollux.pool.windows import day_of
from tests.pools import BEGAN, MODEL, House, house, keys_of, play

REFUSED_KEY = {"error": {"code": 400, "message": "API key not valid", "details": [{"reason": "API_KEY_INVALID"}]}}


def spoken(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of this pool as Cloud Logging gets them."""
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "pollux.pool"]
    caplog.clear()
    return lines


def invalid_key() -> Verdict:
    verdict = judge(400, json.dumps(REFUSED_KEY), now=BEGAN)
    assert verdict.cause == "invalid-key"
    return verdict


def too_many() -> Verdict:
    return judge(429, json.dumps({"error": {"code": 429, "message": "Resource exhausted"}}), now=BEGAN)


async def _served(h: House, times: int) -> None:
    for _ in range(times):
        await h.feedback.served(await h.send())


def test_a_key_that_is_set_aside_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        under_way = [await h.send(), await h.send()]
        for reservation in under_way:
            await h.feedback.failed(reservation, invalid_key())
        [line] = spoken(caplog)
        assert line["severity"] == "WARNING"
        assert line["fields"] == {"event": "set-aside", "kind": "key", "subject": "k0", "cause": "invalid-key"}
        assert line["message"].startswith("the key k0 is set aside for ")
        assert "not valid" in line["message"]

    play(scene())


def test_a_quota_that_rests_is_told_once_a_rest(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        h = await house(keys_of(2))
        for reservation in [await h.send(prefer_key="k0"), await h.send(prefer_key="k0")]:
            await h.feedback.failed(reservation, too_many())
        [line] = spoken(caplog)
        wanted = {"event": "cooldown", "project": "p0", "quota": h.projects.bucket(MODEL), "cause": "unknown-429"}
        assert line["fields"] == wanted
        await asyncio.sleep(61)  # of the test's clock
        await h.feedback.failed(await h.send(prefer_key="k0"), too_many())
        assert [line["fields"]["event"] for line in spoken(caplog)] == ["cooldown"]

    play(scene())


@pytest.mark.parametrize("limits", [{"rpd": 10}, {"rpd": 10, "rpm": 1000}])
def test_a_day_that_is_nearly_spent_is_told_once_a_day(
    caplog: pytest.LogCaptureFixture, limits: dict[str, int]
) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, **limits))
        enough = round(NEARLY * 10)
        await _served(h, enough - 1)
        assert spoken(caplog) == []
        await _served(h, 1)
        [line] = spoken(caplog)
        assert line["fields"] == {"event": "day-nearly-spent", "project": "p0", "quota": h.projects.bucket(MODEL)}
        assert line["message"].startswith("9 of 10 requests of the day are used in p0")
        await _served(h, 1)
        assert spoken(caplog) == []
        await asyncio.sleep(day_of(h.pool.now())[2] - h.pool.now() + 2)
        await _served(h, enough)
        assert [line["fields"]["event"] for line in spoken(caplog)] == ["day-nearly-spent"]

    play(scene())


def test_the_page_names_each_event_with_its_fields() -> None:
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    package = Path(alerts.__file__).parents[1]
    said = re.findall(r'extra=(\{"event".*?\})', "".join(path.read_text() for path in package.rglob("*.py")))
    events = {}
    for extra in said:
        names = re.findall(r'"(\w+)":', extra)
        events[re.findall(r'"event": "([\w-]+)"', extra)[0]] = set(names) - {"event"}
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", page.partition("| `event` |")[2], re.MULTILINE))
    assert {event: set(re.findall(r"`(\w+)`", text)) for event, text in rows.items()} == events
    assert len(events) == 6


def test_a_day_without_a_limit_is_never_nearly_spent(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await _served(h, 50)
        assert spoken(caplog) == []

    caplog.set_level(logging.INFO)
    play(scene())
