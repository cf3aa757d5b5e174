"""`pollux status` and `pollux explain`: what they print of a running gateway, and without one."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pollux.backends.keys.contract import Key
from pollux.cli.main import main
from pollux.cli.terminal import Table, as_text
from pollux.cli.watch import explain_view, request_view, status_view
from pollux.relay.journal import Attempt, Record
from pollux.settings import Settings
from tests.gateway import (
    ADMIN,
    FLASH,
    NEXT,
    FakeUpstream,
    Got,
    Keys,
    answer,
    call,
    gateway,
    play,
    projects,
    refuses,
    whole,
)


def status_text(found: Any) -> str:
    return as_text(status_view(found))


def explain_text(found: Any) -> str:
    return as_text(explain_view(found))


def request_text(found: Any) -> str:
    return as_text(request_view(found))


BEARER = {"authorization": f"Bearer {ADMIN}"}
NO_WAIT = {"x-pollux-fallback": "off", "x-pollux-max-wait": "0"}


def seen(path: Callable[[Got], str], *says: Any, keys: Keys | None = None) -> dict[str, Any]:
    """What /admin says after as many requests as there are answers."""

    async def scene() -> dict[str, Any]:
        keys_ = keys or Keys([Key("k1", "p1", "free", {"*": {"rpm": 5, "rpd": 20}}), Key("k2", "p2")])
        got = Got()
        async with gateway(FakeUpstream(list(says)), keys_) as app:
            for _ in says:
                got = await call(app, headers=NO_WAIT | {"x-pollux-key": "k1"})
            found: dict[str, Any] = (await call(app, "GET", path(got), BEARER)).json
            return found

    return play(scene)


def of(got: Got) -> str:
    """Where that request is told of."""
    return f"/admin/requests/{got.headers['x-pollux-request-id']}"


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


# --- texts -----------------------------------------------------------------------------------------------------------


def test_status_is_a_table_of_keys_and_one_of_quotas() -> None:
    found = seen(lambda _: "/admin/status", whole(answer()), whole(answer()))
    lines = squeezed(status_text(found))
    assert "strategy earliest, window sliding" in lines[0]
    assert lines[1] == "requests: 2 (2 x 200), 0 under way, 0 waiting"
    assert " is ok, instances: 1; by this one 2 commits (0 conflicts), " in lines[2]
    assert ", 1.00 commits and " in lines[2]
    assert "KEY PROJECT TIER STATE UNTIL WHY" in lines
    assert "k1 p1 free healthy" in lines
    assert "k2 p2 - unchecked" in lines
    assert "PROJECT MODEL RPM TPM RPD NEXT SLOT COMMITS CONFLICTS GRANTS WHY" in lines
    assert f"p1 {FLASH} 2/5 4/250000 2/20 now 2 0 0" in lines


def test_status_says_until_when_and_why_something_rests() -> None:
    keys = Keys([Key("k1", "p1")])
    cooling = squeezed(status_text(seen(lambda _: "/admin/status", refuses("rpm"), keys=keys)))
    why = "resting after a refusal: the requests per minute are used up"
    assert f"p1 {FLASH} 1/5 5/? 1/? in 43 s 1 0 0 {why}" in cooling
    aside = squeezed(status_text(seen(lambda _: "/admin/status", refuses("leaked-key"), keys=keys)))
    row = next(line for line in aside if line.startswith("k1 p1"))
    assert row.startswith("k1 p1 - aside ")
    assert row.endswith("Google blocked the key as leaked")


@pytest.mark.parametrize(
    ("trouble", "why"), [("prepay", "the prepaid credit is gone"), ("spend", "the spend-based limit was reached")]
)
def test_status_shows_a_project_that_is_set_aside_and_that_its_keys_do_not_serve(trouble: str, why: str) -> None:
    found = seen(lambda _: "/admin/status", whole(answer()), refuses(trouble), keys=projects(1))
    lines = squeezed(status_text(found))
    key = next(line for line in lines if line.startswith("k1 p1"))
    assert key.startswith("k1 p1 - aside ")
    assert key.endswith(f"its project: {why}")
    at = lines.index("PROJECT ASIDE MODEL UNTIL WHY")
    assert lines[at + 1].startswith("p1 all ")
    assert lines[at + 1].endswith(why)
    quota = next(line for line in lines if line.startswith(f"p1 {FLASH} "))
    assert quota.endswith(f"set aside: {why}")
    assert " now " not in quota
    problem = f"PROBLEM: no project may serve at the moment (1 project: {why}), so requests get 503; "
    assert any(line.startswith(problem) for line in lines)


def test_status_shows_a_model_that_a_project_has_no_access_to() -> None:
    lines = squeezed(status_text(seen(lambda _: "/admin/status", refuses("model-access"), keys=projects(2))))
    at = lines.index("PROJECT ASIDE MODEL UNTIL WHY")
    assert lines[at + 1].startswith(f"p1 {FLASH} ")
    assert lines[at + 1].endswith("the project has no access to this model")
    assert not any(line.startswith("PROBLEM") for line in lines)
    assert "k1 p1 - unchecked" in lines


def test_status_says_that_a_pool_without_a_key_serves_nothing() -> None:
    lines = status_text(seen(lambda _: "/admin/status", keys=Keys([]))).splitlines()
    assert "PROBLEM: there is no usable key in the pool, so every request gets 503: add one with `pollux keys add`" in (
        lines
    )


def test_status_and_explain_say_until_when_the_pool_pauses() -> None:
    async def scene() -> tuple[Any, Any]:
        async with gateway(FakeUpstream(lambda sent: refuses("unknown-429")), projects(3)) as app:
            before = await app.admin().status()
            assert not any(line.startswith("POOL PAUSES") for line in status_text(before).splitlines())
            await call(app, headers=NO_WAIT)
            explained = await call(app, "GET", f"/admin/explain?model={FLASH}-x", BEARER)
            return await app.admin().status(), explained.json

    shown, explained = play(scene)
    until = datetime.fromtimestamp(shown["pool"]["paused_until"]).strftime("%H:%M:%S")
    pause = f"POOL PAUSES until {until} (in 10 s): nothing is sent to Google meanwhile"
    assert pause in status_text(shown).splitlines()
    lines = squeezed(explain_text(explained))
    assert pause in lines
    row = next(line for line in lines if line.startswith(f"{FLASH}-x p1 k1"))
    assert "in 10 s all projects were refused at once, so that the whole pool rests" in row
    assert not any("free now" in line for line in lines)


def test_status_of_a_gateway_that_was_never_used() -> None:
    lines = squeezed(status_text(seen(lambda _: "/admin/status")))
    assert lines[1] == "requests: 0 (none yet), 0 under way, 0 waiting"
    assert not any(line.startswith("PROJECT MODEL") for line in lines)


def test_status_shows_suspicions_and_problems_first() -> None:
    found = seen(lambda _: "/admin/status")
    found["pool"] |= {"suspicion": "Google may limit this address", "problems": ["keys.json:3: not a key"]}
    found["store"] |= {"state": "down", "why": "it does not answer", "since": found["now"]}
    lines = status_text(found).splitlines()
    assert lines[3].startswith("STORE TROUBLE since ")
    assert lines[3].endswith(": it does not answer")
    assert lines[4:6] == ["SUSPICION: Google may limit this address", "PROBLEM: keys.json:3: not a key"]


def test_explain_says_for_each_candidate_when_and_why() -> None:
    keys = Keys([Key("k1", "p1", limits={"*": {"rpm": 1}}), Key("k2", "p2", limits={"*": {"rpm": 0}})])
    found = seen(lambda _: f"/admin/explain?model={FLASH}&tokens=7", whole(answer()), keys=keys)
    lines = squeezed(explain_text(found))
    assert lines[0].startswith(f"{FLASH}, 7 tokens; tried in this order: {FLASH} -> ")
    assert f"{FLASH} p1 k1 in 62 s the requests per minute are used up rpm=1" in lines
    assert f"{FLASH} p2 k2 never the limit is 0: this model is not on the project's tier rpm=0" in lines
    assert any(line.endswith("k1 now free now rpm=1") for line in lines[3:])


@pytest.mark.parametrize(
    ("model", "known"), [("no-such", False), (FLASH, True), ("standard", True), (f"models/{FLASH}", True)]
)
def test_explain_says_whether_a_model_is_in_no_catalog(model: str, known: bool) -> None:
    """It would be asked for all the same: a new one is in no catalog yet. But it may be a slip of the pen."""
    said = explain_text(seen(lambda _: f"/admin/explain?model={model}"))
    assert (f"{model} is not in the catalog: only Google knows" in said) is not known


@pytest.mark.parametrize("never_below", [(), (NEXT,)])
def test_explain_says_what_cut_the_chain(never_below: tuple[str, ...]) -> None:
    async def scene() -> Any:
        async with gateway(FakeUpstream([]), projects(1), never_below=never_below) as app:
            return (await call(app, "GET", f"/admin/explain?model={FLASH}", BEARER)).json

    said = explain_text(play(scene)).splitlines()
    assert (f"the chain ends at {NEXT}: POLLUX_NEVER_BELOW" in said) == bool(never_below)


def test_explain_says_that_the_store_is_down() -> None:
    found = seen(lambda _: f"/admin/explain?model={FLASH}")
    assert "STORE TROUBLE" not in explain_text(found)
    found["store"] = "down"
    assert "STORE TROUBLE: it is down; `pollux status` says why" in explain_text(found)


def test_a_request_is_told_attempt_by_attempt() -> None:
    keys = Keys([Key("k1", "p1"), Key("k2", "p2")])

    async def scene() -> dict[str, Any]:
        async with gateway(FakeUpstream([refuses("overloaded"), whole(answer())]), keys) as app:
            got = await call(app)
            found: dict[str, Any] = (await call(app, "GET", of(got), BEARER)).json
            return found

    lines = request_text(play(scene)).splitlines()
    assert "of tester" in lines[0]
    assert lines[0].endswith(f"generateContent {FLASH} -> 200")
    assert lines[2] == "  tokens: 5 estimated, 2 reported"
    assert lines[3].startswith(f"  1. {FLASH} on p1 (key k1): overloaded: ")
    assert lines[4] == f"  2. {FLASH} on p2 (key k2): ok"


def test_a_request_that_found_no_slot_says_so() -> None:
    found = seen(
        of,
        whole(answer()),
        Got(),
        keys=Keys([Key("k1", "p1", limits={"*": {"rpm": 1}})]),
    )
    lines = request_text(found).splitlines()
    full = f"  1. {FLASH} on no project: full: the requests per minute are used up; the next slot is free in "
    assert lines[3].startswith(full)
    assert lines[3].endswith(" s, and the request may not wait")
    assert lines[2].endswith(", not reported")
    assert lines[-1] == "  ended: QUOTA_BUSY"


def told(keys: Keys, upstream: FakeUpstream, *waits: str, body: Any = None) -> list[str]:
    """The lines of the last of as many requests as there are waits."""

    async def scene() -> dict[str, Any]:
        got = Got()
        async with gateway(upstream, keys) as app:
            for wait in waits:
                more = {} if body is None else {"body": body}
                headers = {"x-pollux-fallback": "off", "x-pollux-max-wait": wait}
                got = await call(app, headers=headers, **more)
            found: dict[str, Any] = (await call(app, "GET", of(got), BEARER)).json
            return found

    return request_text(play(scene)).splitlines()


def test_a_wait_is_told_with_its_reason() -> None:
    lines = told(projects(1, rpm=1), FakeUpstream(lambda sent: whole(answer())), "0", "65")
    assert lines[2].startswith("  waited 6")
    assert lines[2].endswith(f" s for a slot of {FLASH}: the requests per minute are used up")


def test_a_wait_that_would_be_too_long_is_told_with_both_times() -> None:
    lines = told(projects(1, rpm=1), FakeUpstream(lambda sent: whole(answer())), "0", "10")
    said = re.search(r"the next slot is free in (\S+) s, (\S+) s later than the request may wait \(10.0 s\)$", lines[3])
    assert said is not None, lines
    assert float(said[1]) - float(said[2]) == pytest.approx(10)


def test_a_wait_for_the_end_of_a_rest_is_told_with_its_reason() -> None:
    upstream = FakeUpstream([refuses("rpm", limit=5), whole(answer())])
    lines = told(projects(1), upstream, "65")
    why = "resting after a refusal: the requests per minute are used up"
    assert f"  waited 43.0 s for a slot of {FLASH}: {why}" in lines


def test_of_a_refusal_the_first_sentence_is_told_and_what_was_learned() -> None:
    lines = told(projects(1), FakeUpstream([refuses("rpm", limit=5)]), "0")
    assert lines[3].startswith(f"  1. {FLASH} on p1 (key k1): rpm: You exceeded your current quota")
    assert lines[3].endswith("; rpm=5 learned")
    assert "https:" not in lines[3]


@pytest.mark.parametrize("keys", [Keys([]), Keys([Key("k1", "p1", enabled=False)])])
def test_a_pool_without_an_enabled_key_is_not_full(keys: Keys) -> None:
    assert told(keys, FakeUpstream([]), "0")[3:] == [
        f"  1. {FLASH} on no project: no-key: there is no enabled key in the pool",
        "  ended: NO_USABLE_KEY",
    ]


def test_a_pool_without_a_good_key_is_not_full() -> None:
    lines = told(projects(1), FakeUpstream(lambda sent: refuses("invalid-key")), "0", "0")
    assert f"  1. {FLASH} on no project: no-key: set aside: Google says that the key is not valid" in lines


def test_a_request_above_the_limit_is_told_to_be_larger() -> None:
    big = {"contents": [{"role": "user", "parts": [{"text": "word " * 5000}]}]}
    lines = told(projects(2, tpm=100), FakeUpstream(lambda sent: whole(answer())), "0", body=big)
    assert f"  1. {FLASH} on no project: too-large: the request is larger than the limit" in lines


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    table = Table(("A", "LONG"), [("wide", 1), ("x", "")])
    assert as_text(["above", table]).splitlines() == ["above", "", "A     LONG", "wide  1", "x"]


# --- asking a gateway ------------------------------------------------------------------------------------------------


@contextmanager
def serving(status: int, body: bytes, asked: list[tuple[str, str | None]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["authorization"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(settings: Settings, *arguments: str) -> int:
    return main(arguments, lambda: settings)


def asked_of(
    status: int, body: Any, settings: Settings, *arguments: str, json_: bool = True
) -> tuple[int, list[tuple[str, str | None]]]:
    asked: list[tuple[str, str | None]] = []
    with serving(status, json.dumps(body).encode(), asked) as url:
        return run(settings, *arguments, "--url", url, *["--json"] * json_), asked


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["status"], "/admin/status"),
        (["explain", "a model/x", "--tokens", "5"], "/admin/explain?model=a+model%2Fx&tokens=5"),
        (["explain", "a model/x", "--tokens", "-5"], "/admin/explain?model=a+model%2Fx&tokens=0"),
        (["explain", "0123456789abcdef"], "/admin/requests/0123456789abcdef"),
    ],
)
def test_each_command_asks_with_the_admin_token_and_prints_json(
    arguments: list[str], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, asked = asked_of(200, {"answer": 1}, Settings(admin_token=ADMIN), *arguments)
    assert (code, asked) == (0, [(path, f"Bearer {ADMIN}")])
    assert json.loads(capsys.readouterr().out) == {"answer": 1}


def test_the_token_of_this_machine_is_found_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text(json.dumps({"client": "c", "admin": "kept-admin-token"}))
    code, asked = asked_of(200, {}, Settings(data=str(tmp_path)), "status")
    assert (code, asked) == (0, [("/admin/status", "Bearer kept-admin-token")])


def test_without_a_token_it_says_where_one_is_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Settings(data=str(tmp_path)), "status", "--url", "http://127.0.0.1:1") == 2
    said = capsys.readouterr().err
    assert "POLLUX_ADMIN_TOKEN" in said
    assert str(tmp_path / "tokens.json") in said


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": {"message": "the admin token is needed"}}, "answers 401: the admin token is needed"),
        (404, "no object", "answers 404: Not Found"),
        (200, None, ""),
    ],
)
def test_an_answer_that_is_an_error_is_one_line_and_2(
    status: int, body: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = asked_of(status, body, Settings(admin_token=ADMIN), "status")
    err = capsys.readouterr().err
    assert code == (2 if said else 0)
    assert said in err
    assert err.count("\n") == bool(said)


def test_what_is_no_gateway_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, str | None]] = []
    with serving(200, b"<html>", asked) as url:
        assert run(Settings(admin_token=ADMIN), "status", "--url", url) == 2
    assert "no gateway answers at" in capsys.readouterr().err


def test_where_nothing_listens_it_says_how_to_start_a_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert run(Settings(admin_token=ADMIN), "status", "--url", url) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pollux status: no gateway answers at {url} ")
    assert "pollux serve" in said
    assert "--url" in said  # it may run on another port


@pytest.mark.parametrize("url", ["127.0.0.1:3145", "file:///etc/passwd", "ftp://x"])
def test_an_invalid_url_is_reported(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Settings(admin_token=ADMIN), "status", "--url", url) == 2
    assert "expected one such as http://127.0.0.1:3145" in capsys.readouterr().err


def test_watch_shows_it_again_until_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = seen(lambda _: "/admin/status")
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("pollux.cli.watch.time.sleep", sleep)
    code, _ = asked_of(200, found, Settings(admin_token=ADMIN), "status", "--watch", json_=False)
    assert code == 130
    assert naps == [2.0] * 3
    assert capsys.readouterr().out.count("requests: 0") == 3


def test_a_request_tells_to_which_project_it_was_held_and_why() -> None:
    record = Record(id="0123456789abcdef", client="alice", what="generateContent", asked=FLASH, status=200)
    record.owner, record.bound = "team-a", ("cachedContents/c", "files/a")
    record.attempts.append(Attempt("", "team-a", "", "located", None, "files/a was looked for and found there"))
    lines = request_text(record.as_json()).splitlines()
    assert lines[3:] == [
        "  only project team-a could serve it, which owns cachedContents/c, files/a",
        "  1. team-a: located: files/a was looked for and found there",
    ]
    record.owner, record.reason = "team-a, team-b", "TWO_OWNERS"
    assert "  none of the projects team-a, team-b owns all of cachedContents/c, files/a" in request_text(
        record.as_json()
    )
    record.owner, record.reason = "", ""
    assert "  no project is known to own cachedContents/c, files/a" in request_text(record.as_json())


def test_a_request_that_very_many_refused_tells_so_in_a_few_lines() -> None:
    record = Record(id="0123456789abcdef", client="alice", what="generateContent", asked=FLASH, status=200)
    for number in range(1, 101):
        record.note(Attempt(FLASH, f"p{number}", f"k{number}", "rpm" if number < 100 else "ok", 429))
    lines = request_text(record.as_json()).splitlines()
    at = lines.index("  … 80 more: rpm")
    assert lines[at - 1] == f"  10. {FLASH} on p10 (key k10): rpm"
    assert lines[at + 1] == f"  91. {FLASH} on p91 (key k91): rpm"
    assert lines[-1] == f"  100. {FLASH} on p100 (key k100): ok"


def test_status_tells_of_resources_once_there_are_some() -> None:
    async def scene() -> Any:
        async with gateway(FakeUpstream([]), projects(2)) as app:
            before = await app.admin().status()
            await app.ownership.bind({"files/a": None}, "p1", "tester")
            return before, await app.admin().status()

    before, after = play(scene)
    assert "resources:" not in status_text(before)
    assert "resources: 1 with a known owner, 0 searched for, 1 commits" in status_text(after)


# --- proxies and terminals -------------------------------------------------------------------------------------------


@pytest.fixture
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.usefixtures("_no_proxy")
def test_another_machine_is_asked_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    with serving(200, b"{}", asked) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.replace("//", "//user:pass-word@"))
        assert run(Settings(admin_token=ADMIN), "status", "--json", "--url", "http://gateway.invalid") == 0
    assert asked == [("http://gateway.invalid/admin/status", f"Bearer {ADMIN}")]


@pytest.mark.usefixtures("_no_proxy")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serving(200, b"{}", asked) as url:
        url = url.replace("127.0.0.1", host)
        assert run(Settings(admin_token=ADMIN), "status", "--json", "--url", url) == 0
    assert asked == [("/admin/status", f"Bearer {ADMIN}")]


@pytest.mark.usefixtures("_no_proxy")
def test_no_proxy_goes_around_the_proxy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, str | None]] = []
    with serving(200, b"{}", asked) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "gateway.invalid")
        assert run(Settings(admin_token=ADMIN), "status", "--url", "http://gateway.invalid") == 2
    assert asked == []
    assert "no gateway answers at http://gateway.invalid (" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_proxy")
@pytest.mark.parametrize("arguments", [["status", "--url"], ["deploy", "check"]])
def test_a_proxy_that_refuses_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    asked: list[tuple[str, str | None]] = []
    with serving(407, b"", asked) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.replace("//", "//user:pass-word@"))
        settings = Settings(admin_token=ADMIN, token=("client-token-of-nobody",))
        assert run(settings, *arguments, "https://gateway.invalid") in (1, 2)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert f"through the proxy {proxy}" in shown
    assert "501" in shown, "the server here knows no CONNECT"
    assert not [secret for secret in ("pass-word", ADMIN, "client-token-of-nobody") if secret in shown]


def test_watch_on_a_terminal_leaves_it_as_it_was(tmp_path: Path) -> None:
    found = seen(lambda _: "/admin/status")
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from pollux.cli.main import main; sys.exit(main())"
    controller, terminal = os.openpty()
    with serving(200, json.dumps(found).encode(), []) as url:
        child = subprocess.Popen(
            [sys.executable, "-c", program, "status", "--watch", "--url", url],
            env=os.environ | {"TERM": "xterm", "POLLUX_ADMIN_TOKEN": ADMIN, "PYTHONPATH": "function"},
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        shown = b""
        while b"requests: 0" not in shown:
            shown += os.read(controller, 1 << 16)
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # Linux says so when the last of the other end has closed it
            while data := os.read(controller, 1 << 16):
                shown += data
        os.close(controller)
        assert child.wait(20) == 130
    assert b"\x1b[?1049h" in shown, "a screen of its own"
    after = shown.rpartition(b"\x1b[?1049l")[2]
    assert b"\x1b[?25h" in after or shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l"), "the cursor is back"
    assert b"Traceback" not in shown
    assert b"requests" not in after
