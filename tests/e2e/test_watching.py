"""The command line against a running gateway: status, explain, judge, keys list."""

import json
import subprocess

import pytest

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import ADMIN, FLASH, LAST, TOKEN, call, environment, key_value, pollux


class Watcher:
    """Commands with what the gateway's own environment has."""

    def __init__(self, pair: Pair, admin: str = ADMIN) -> None:
        self.folder, self.url = pair.gateway.folder, pair.gateway.url
        keys = str(self.folder / "keys.json")
        data = str(self.folder / "data")
        self.environ = environment(data=data, keys_file=keys, admin_token=admin, store="memory://")

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        url = ("--url", self.url) if arguments[0] in ("status", "explain") else ()
        ended = pollux(self.folder, self.environ, *arguments, *url)
        assert not [secret for secret in (TOKEN, ADMIN, key_value(1), key_value(2)) if secret in ended.stdout]
        return ended


@pytest.fixture
def watch(pair: Pair) -> Watcher:
    return Watcher(pair)


def test_status_as_a_table(pair: Pair, watch: Watcher) -> None:
    pair.gateway.generate(LAST)
    shown = watch("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in ("key-1", "team-4", "healthy", LAST, "RPM", "1/1"):
        assert word in shown.stdout, word


def test_status_as_json(pair: Pair, watch: Watcher) -> None:
    pair.gateway.generate()
    shown = watch("status", "--json")
    assert shown.returncode == 0
    found = json.loads(shown.stdout)
    assert {"keys", "projects", "quotas", "pool", "store"} <= set(found)
    quota = next(quota for quota in found["quotas"] if quota["model"] == FLASH)
    assert {"used", "left", "limits", "cooldown_until", "cooldown_why", "project"} <= set(quota)
    assert sum(quota["served"] for quota in found["quotas"]) >= 1


def test_explain_a_model(watch: Watcher) -> None:
    shown = watch("explain", FLASH, "--tokens", "1000")
    assert shown.returncode == 0, shown.stderr
    assert "gemini-3.8-flash -> gemini-3.6-flash" in shown.stdout
    assert "free now" in shown.stdout
    found = json.loads(watch("explain", FLASH, "--json").stdout)
    assert {candidate["project"] for candidate in found["candidates"]} == {f"team-{n}" for n in range(1, 5)}


def test_explain_what_holds_a_model_back(pair: Pair, watch: Watcher) -> None:
    for _ in range(4):
        pair.gateway.generate(LAST, x_pollux_max_wait="0")
    found = json.loads(watch("explain", LAST, "--json").stdout)
    candidates = [candidate for candidate in found["candidates"] if candidate["model"] == LAST]
    assert [candidate["why"] for candidate in candidates] == ["the requests per minute are used up"] * 4
    assert all(0 < candidate["wait_s"] <= 63 for candidate in candidates)


def test_explain_a_request(pair: Pair, watch: Watcher) -> None:
    pair.simulator.faults.append(Fault(kind="overloaded", count=1))
    answer = pair.gateway.generate()
    shown = watch("explain", answer.headers["x-pollux-request-id"])
    assert shown.returncode == 0, shown.stderr
    assert "overloaded" in shown.stdout
    assert f"key {answer.headers['x-pollux-key']}" in shown.stdout
    found = json.loads(watch("explain", answer.headers["x-pollux-request-id"], "--json").stdout)
    assert [attempt["cause"] for attempt in found["attempts"]] == ["overloaded", "ok"]
    unknown = watch("explain", "0123456789abcdef")
    assert unknown.returncode == 2
    assert unknown.stderr.count("\n") == 1


def test_without_the_admins_token(pair: Pair) -> None:
    for admin in ("test-token-of-somebody-else", TOKEN):
        shown = Watcher(pair, admin)("status")
        assert (shown.returncode, shown.stdout) == (2, "")
        assert "401" in shown.stderr
        assert admin not in shown.stderr
    for headers in ({}, {"x-goog-api-key": ADMIN}, {"authorization": f"Bearer {TOKEN}"}):
        for path in ("/admin/status", "/admin/explain?model=x", "/admin/requests/0", "/admin", "/admin/else"):
            assert call(pair.gateway.url, "GET", path, headers=headers).status == 401
    assert call(pair.gateway.url, "GET", "/v1beta/models", headers={"x-goog-api-key": ADMIN}).status == 401
    assert not pair.simulator.calls


def test_where_no_gateway_is(watch: Watcher) -> None:
    shown = pollux(watch.folder, watch.environ, "status", "--url", "http://127.0.0.1:9")
    assert shown.returncode == 2
    assert "pollux serve" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_judge(pair: Pair, watch: Watcher) -> None:
    pair.simulator.faults.append(Fault(kind="rpm", limit=7, retry_s=12.5))
    upstream = pair.gateway.status()["upstream"]
    target = f"/v1beta/models/{FLASH}:generateContent"
    body = call(upstream, "POST", target, b"{}", {"x-goog-api-key": key_value(1)}).body
    (watch.folder / "body.json").write_bytes(body)
    shown = watch("judge", "--status", "429", "body.json")
    assert shown.returncode == 0, shown.stderr
    verdict = json.loads(shown.stdout)
    assert {name: verdict[name] for name in ("cause", "blames", "action", "cooldown_s", "learned")} == {
        "cause": "rpm", "blames": "quota", "action": "next-project", "cooldown_s": 13.0, "learned": {"rpm": 7}
    }  # fmt: skip
    assert watch("judge", "no-such-file").returncode == 2


def test_keys_list(watch: Watcher) -> None:
    shown = watch("keys", "list")
    assert shown.returncode == 0, shown.stderr
    assert all(f"key-{n}" in shown.stdout and f"team-{n}" in shown.stdout for n in range(1, 5))
