"""Filters of metrics, alerts and the exclusion, run against the lines that a gateway really writes."""

import io
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from pollux import log
from tests.gateway import FakeUpstream, Keys, answer, call, gateway, play, projects, refuses, whole
from tests.infra.terraform import Plan
from tests.pool.outage import Far
from tests.pools import memory

Line = Mapping[str, Any]
TERM = re.compile(r'([\w.]+)(=~|=)"((?:[^"\\]|\\.)*)"')


def reach(value: Any, path: str) -> Iterator[Any]:
    """As Cloud Logging does: a path through a list reaches each of its items."""
    if isinstance(value, list):
        for item in value:
            yield from reach(item, path)
    elif not path:
        yield value
    elif isinstance(value, Mapping) and (name := path.partition("."))[0] in value:
        yield from reach(value[name[0]], name[2])


def matches(text: str, line: Line) -> bool:
    """The part of the query language that is used: comparisons joined by AND."""
    entry = {"jsonPayload": line, "resource": {"type": "cloud_run_revision", "labels": {"service_name": "pollux"}}}
    for term in text.split(" AND "):
        found = TERM.fullmatch(term)
        assert found, f"not understood: {term}"
        path, operator, wanted = found.groups()
        values = map(str, reach(entry, path))
        if not any(re.search(wanted, value) if operator == "=~" else value == wanted for value in values):
            return False
    return True


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    """All that a gateway says while it serves, waits, is refused, loses its keys, its day and its store."""
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("", "pollux")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    log.configure("json", "info", stream, environ={})
    try:
        play(_served_and_refused)
        play(_waited)
        play(_without_keys)
        play(_without_a_store)
    finally:
        logging.captureWarnings(False)
        for logger, handlers, level in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def _served_and_refused() -> None:
    upstream = FakeUpstream([refuses("rpm"), whole(answer()), whole(answer())])
    async with gateway(upstream, projects(2, rpd=1)) as app:
        assert (await call(app)).status == 200


async def _waited() -> None:
    async with gateway(FakeUpstream(lambda _: whole(answer())), projects(1, rpm=1), max_wait=90.0) as app:
        assert [(await call(app, headers={"x-pollux-fallback": "off"})).status for _ in range(2)] == [200, 200]


async def _without_keys() -> None:
    async with gateway(FakeUpstream(lambda _: refuses("invalid-key")), projects(1)) as app:
        assert (await call(app)).reason == "NO_USABLE_KEY"
    async with gateway(FakeUpstream([]), Keys([])) as app:
        assert (await call(app)).reason == "NO_USABLE_KEY"


async def _without_a_store() -> None:
    store = Far(await memory(), lambda: 0.0)
    async with gateway(FakeUpstream(lambda _: whole(answer())), projects(1, rpm=10), store=store) as app:
        assert (await call(app)).status == 200
        store.fail(seconds=30)
        assert (await call(app)).status == 200  # from its safe share


def metrics(plan: Plan) -> dict[str, Mapping[str, Any]]:
    return {
        found["values"]["name"].partition("/")[2]: found["values"] for found in plan.resources("google_logging_metric")
    }


def alerts(plan: Plan) -> dict[str, str]:
    found = {}
    for resource in plan.resources("google_monitoring_alert_policy"):
        for condition in resource["values"]["conditions"]:
            if condition["condition_matched_log"]:
                found[str(resource["index"])] = str(condition["condition_matched_log"][0]["filter"])
    return found


METRICS = ["commits", "cooldowns", "refused", "set_aside", "waits"]
ALERTS = ["no_usable_key", "quota_nearly_spent", "store_trouble"]


def test_these_are_all(function_plan: Plan) -> None:
    assert sorted(metrics(function_plan)) == METRICS
    assert sorted(alerts(function_plan)) == ALERTS


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_finds_its_lines_and_no_others(function_plan: Plan, lines: list[Line], name: str) -> None:
    metric = metrics(function_plan)[name]
    found = [line for line in lines if matches(metric["filter"], line)]
    assert 0 < len(found) < len(lines)
    extracted = [metric["value_extractor"]] if metric["value_extractor"] else []
    labels = {label["key"] for label in metric["metric_descriptor"][0]["labels"]}
    assert labels == set(metric["label_extractors"] or {})
    for line in found:
        for text in (*extracted, *(metric["label_extractors"] or {}).values()):
            path = re.fullmatch(r"EXTRACT\(jsonPayload\.([\w.]+)\)", text)
            assert path, text
            [value] = reach(line, path[1])
            assert isinstance(value, int | float) if text in extracted else isinstance(value, str)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_finds_its_line_and_no_other(function_plan: Plan, lines: list[Line], name: str) -> None:
    found = [line for line in lines if matches(alerts(function_plan)[name], line)]
    assert 0 < len(found) < 4
    assert all(line["severity"] in ("WARNING", "ERROR") for line in found)


def test_what_the_metrics_count_is_what_happened(function_plan: Plan, lines: list[Line]) -> None:
    def found(name: str) -> list[Line]:
        return [line for line in lines if matches(metrics(function_plan)[name]["filter"], line)]

    requests = found("waits")
    assert len(requests) == len(found("commits")) == 7
    assert max(line["request"]["waited_ms"] for line in requests) > 30_000
    assert [line["request"]["status"] for line in found("refused")] == [200]
    assert {line["fields"]["cause"] for line in found("cooldowns")} == {"rpm"}
    assert {(line["fields"]["kind"], line["fields"]["cause"]) for line in found("set_aside")} == {
        ("key", "invalid-key")
    }


def test_the_dashboard_draws_metrics_that_exist(function_plan: Plan) -> None:
    board = json.loads(function_plan.one("google_monitoring_dashboard")["dashboard_json"])
    drawn = "".join(
        data["timeSeriesQuery"]["timeSeriesFilter"]["filter"]
        for tile in board["mosaicLayout"]["tiles"]
        for data in tile["widget"]["xyChart"]["dataSets"]
    )
    assert set(re.findall(r"user/pollux/(\w+)", drawn)) == set(METRICS)
    assert {"request_count", "request_latencies"} <= set(re.findall(r"run\.googleapis\.com/([\w/]+)", drawn))
    for chart in board["mosaicLayout"]["tiles"]:
        assert chart["xPos"] + chart["width"] <= board["mosaicLayout"]["columns"]


@pytest.mark.parametrize(
    ("url", "left_out"),
    [
        ("https://pollux.example/v1beta/models/m:generateContent?key=AIza123", True),
        ("https://pollux.example/v1beta/models/m:streamGenerateContent?alt=sse&key=AIza123", True),
        ("https://pollux.example/upload/v1beta/files?upload_id=abc&upload_protocol=resumable", True),
        ("https://pollux.example/v1beta/models?access_token=ya29.abc", True),
        ("https://pollux.example/v1beta/models?pageToken=x", False),
        ("https://pollux.example/v1beta/models/monkey=1:generateContent?alt=sse", False),
    ],
)
def test_urls_with_a_credential_are_left_out_of_the_request_log(function_plan: Plan, url: str, left_out: bool) -> None:
    [exclusion] = function_plan.one("google_logging_project_sink")["exclusions"]
    sources, _, condition = exclusion["filter"].rpartition(" AND ")
    assert sources == '((resource.type="cloud_run_revision" AND resource.labels.service_name="pollux"))'
    found = TERM.fullmatch(condition)
    assert found
    assert found[1] == "httpRequest.requestUrl"
    assert (re.search(found[3], url) is not None) == left_out


def test_behind_a_domain_the_load_balancer_s_log_is_meant_too(full_plan: Plan) -> None:
    [exclusion] = full_plan.one("google_logging_project_sink")["exclusions"]
    assert 'resource.type="http_load_balancer" AND resource.labels.backend_service_name="pollux"' in exclusion["filter"]
    assert full_plan.one("google_compute_backend_service")["name"] == "pollux"
