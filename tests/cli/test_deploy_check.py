"""`pollux deploy check` against servers that misbehave, each in its own way; and where its tokens come from."""

import datetime
import io
import ipaddress
import json
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pollux.cli import deploy
from pollux.cli.deploy_check import CHEAP, MOST, STEPS
from pollux.cli.gateway import is_local
from pollux.cli.main import main
from pollux.gemini.catalog import Catalog
from pollux.server.wiring import builtin_catalog
from tests.cli.fake_gateway import ADMIN, EVENTS, IDENTITY, STATUS, TOKEN, Answer, Handler, Pretender, event, pretending


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("TOKEN", TOKEN), ("ADMIN_TOKEN", ADMIN), ("DATA", str(tmp_path / "data"))):
        monkeypatch.setenv(f"POLLUX_{name}", value)
    monkeypatch.setenv("IDENTITY_TOKEN", IDENTITY)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


@pytest.fixture
def gateway() -> Iterator[tuple[Pretender, str]]:
    with pretending() as found:
        yield found


class Checked:
    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.found: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(text)["checks"]}

    def __getitem__(self, name: str) -> tuple[str, str]:
        return self.found[name]["verdict"], self.found[name]["detail"]

    def hint(self, name: str) -> str:
        return str(self.found[name]["hint"])

    @property
    def failed(self) -> list[str]:
        return [name for name in STEPS if self.found[name]["verdict"] == "FAIL"]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(url: str, *arguments: str) -> Checked:
        code = main(["deploy", "check", url, "--json", *arguments])
        shown = capsys.readouterr()
        assert not [secret for secret in (TOKEN, ADMIN, IDENTITY) if secret in shown.out + shown.err]
        checked = Checked(code, shown.out)
        assert list(checked.found) == list(STEPS)
        assert all(bool(row["hint"]) or row["verdict"] in ("ok", "skipped") for row in checked.found.values())
        assert code == (1 if checked.failed else 0)
        return checked

    return run


def says(status: int, body: Any, kind: str = "application/json", **headers: str) -> Answer:
    return lambda handler: handler.say(status, body, kind, **headers)


# --- as it should be -------------------------------------------------------------------------------------------------


def test_all_is_well(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway
    server.pause = 0.1
    checked = check(url)
    assert {row["verdict"] for row in checked.found.values()} == {"ok"}, checked.found
    stream = checked.found["stream"]
    assert stream["events"] == EVENTS
    assert 0 < stream["first_byte_ms"] < stream["ms"]
    sent = [headers for _, headers in server.seen]
    assert {headers["x-serverless-authorization"] for headers in sent} == {f"Bearer {IDENTITY}"}


def test_a_token_travels_only_where_it_is_needed(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway
    check(url)
    for path, headers in server.seen:
        text = str(headers)
        assert (ADMIN in text) == (path == "/admin/status")
        if path in ("/health", "/healthz", "/v1beta/files/checkz"):
            assert TOKEN not in text
    assert all(TOKEN not in path for path, _ in server.seen)


def test_the_table_has_a_line_for_each_and_a_hint_below(
    gateway: tuple[Pretender, str], capsys: pytest.CaptureFixture[str]
) -> None:
    server, url = gateway
    server.pause = 0.1
    server.instead["/healthz"] = says(404, b"<html>none</html>", "text/html")
    assert main(["deploy", "check", url]) == 0
    shown = capsys.readouterr().out
    for name in STEPS:
        assert f"\n{name:<10}  {'warn' if name == 'path in z' else 'ok'}" in shown
    assert "-> something in front of Pollux answers; probes should ask /health" in shown
    assert "nothing failed, 1 to look at" in shown
    assert max(map(len, shown.splitlines())) <= deploy.WIDTH


def test_what_was_said_already_is_not_said_again(
    gateway: tuple[Pretender, str], capsys: pytest.CaptureFixture[str]
) -> None:
    server, url = gateway
    for name in ("stream", "/v1beta/openai/chat/completions"):
        server.instead[name] = says(503, b"<html>broken</html>", "text/html")
    assert main(["deploy", "check", url]) == 1
    shown = capsys.readouterr().out
    assert shown.count("503, text/html") == 1
    assert "as above" in next(line for line in shown.splitlines() if line.startswith("openai"))


def test_the_model_asked_by_default_is_an_alias_of_the_catalog_for_its_cheapest_kind() -> None:
    catalog = Catalog.parse(builtin_catalog())
    assert catalog.kind(catalog.resolve(CHEAP)) == "flash_lite"


# --- who is no gateway gets no token ---------------------------------------------------------------------------------


def test_nothing_listens(check: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    checked = check(url)
    assert checked["health"] == ("FAIL", "nothing listens there")
    assert {checked[name][0] for name in list(STEPS)[1:]} == {"skipped"}


@pytest.mark.parametrize(
    ("answer", "detail", "hint"),
    [
        (says(403, b"<html>Forbidden</html>", "text/html"), "403, text/html", "the ID token is refused"),
        (says(503, b"<html>Unavailable</html>", "text/html"), "503, text/html", "does not start"),
        (says(200, b"<html>welcome</html>", "text/html"), "200, text/html", "is this the address of a gateway"),
        (
            says(301, b"", location="https://elsewhere.example/x"),
            "redirects (301) to https://elsewhere.",
            "the address of your gateway",
        ),
    ],
    ids=["private", "does not start", "something else", "redirect"],
)
def test_without_health_no_token_is_sent(
    gateway: tuple[Pretender, str], check: Any, answer: Answer, detail: str, hint: str
) -> None:
    server, url = gateway
    server.instead["/health"] = answer
    checked = check(url)
    assert checked.failed == ["health"]
    assert detail in checked["health"][1]
    assert hint in checked.hint("health")
    assert [path for path, _ in server.seen] == ["/health"]


def test_a_private_service_asks_for_an_identity_token(
    gateway: tuple[Pretender, str], check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = gateway
    monkeypatch.delenv("IDENTITY_TOKEN")
    server.instead["/health"] = says(403, b"<html>Forbidden</html>", "text/html")
    assert "IDENTITY_TOKEN=$(gcloud auth print-identity-token)" in check(url).hint("health")
    assert "x-serverless-authorization" not in server.seen[0][1]


def test_a_server_that_hangs_is_left_in_time(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway

    def hang(_: Handler) -> None:
        server.ended.wait(20)

    server.instead["/health"] = hang
    began = time.monotonic()
    checked = check(url, "--timeout", "0.2")
    assert time.monotonic() - began < 3
    assert checked["health"] == ("FAIL", "no complete answer within 0.2 s")


def test_bytes_that_trickle_do_not_stretch_the_time(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway

    def trickle(handler: Handler) -> None:
        handler.begin(200, {"content-length": "1000000"})
        while not server.ended.wait(0.05):
            handler.wfile.write(b" ")

    server.instead["/health"] = trickle
    assert check(url, "--timeout", "0.3")["health"] == ("FAIL", "no complete answer within 0.3 s")


@pytest.mark.parametrize("name", ["/health", "generate", "stream", "/admin/status"])
def test_an_answer_without_end_is_not_read_on(gateway: tuple[Pretender, str], check: Any, name: str) -> None:
    server, url = gateway
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        if name in ("generate", "stream") and not handler.headers.get("x-goog-api-key"):
            handler.as_pollux(handler)
            return
        handler.begin(200, {"content-length": str(200 << 20)})
        while sent < 200 << 20:
            handler.wfile.write(b"x" * (1 << 20))
            sent += 1 << 20

    server.instead[name] = endless
    checked = check(url)
    assert checked.failed == [name.lstrip("/").removeprefix("admin/")]
    assert f"larger than {MOST >> 20} MiB" in checked[checked.failed[0]][1]
    assert sent < 100 << 20, "what the sockets hold, and no more"


# --- TLS -------------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: x509.GeneralName) -> Path:
    """A self-signed one with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(
        key.private_bytes(encoding, form, serialization.NoEncryption()) + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


HERE, OTHER = x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("other.example")


@pytest.mark.parametrize(
    ("name", "trusted", "expected"),
    [(HERE, False, "self-signed certificate"), (OTHER, True, "mismatch"), (HERE, True, "")],
    ids=["nobody's", "another name's", "good"],
)
def test_certificates(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: Any,
    name: x509.GeneralName,
    trusted: bool,
    expected: str,
) -> None:
    path = certificate(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pretending(context) as (server, url):
        checked = check(url)
    if not expected:
        assert checked.failed == []
        return
    assert checked.failed == ["health"]
    assert checked["health"][1].startswith("its certificate is not accepted")
    assert expected in checked["health"][1]
    assert "SSL_CERT_FILE" in checked.hint("health")
    assert server.seen == []


def test_https_where_no_tls_is_spoken_and_the_other_way_round(
    gateway: tuple[Pretender, str], check: Any, tmp_path: Path
) -> None:
    checked = check(gateway[1].replace("http:", "https:"))
    assert "no TLS is spoken there" in checked["health"][1]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path, HERE))
    with pretending(context) as (_, url):
        assert "is it https://?" in check(url.replace("https:", "http:")).hint("health")


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_gateway_that_asks_for_no_token(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway
    server.instead["generate"] = says(200, {"candidates": [{}]})
    checked = check(url)
    assert checked.failed == ["no token"]
    assert "anybody may spend" in checked.hint("no token")


def test_a_token_of_another_gateway(
    gateway: tuple[Pretender, str], check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = gateway
    monkeypatch.setenv("POLLUX_TOKEN", "laptop=of-another-gateway")
    monkeypatch.setenv("POLLUX_ADMIN_TOKEN", "another-admin-token")
    checked = check(url)
    assert checked.failed == ["generate", "status"]
    assert "comes from POLLUX_TOKEN" in checked.hint("generate")
    assert "comes from POLLUX_ADMIN_TOKEN" in checked.hint("status")
    assert checked["stream"] == checked["openai"] == ("skipped", "the client token is refused")
    assert any(headers.get("x-goog-api-key") == "of-another-gateway" for _, headers in server.seen)


def test_an_error_of_pollux_comes_with_its_remedy(gateway: tuple[Pretender, str], check: Any) -> None:
    from pollux.gemini.errors import ERRORS, error_body

    server, url = gateway
    body = error_body("openai", "NO_USABLE_KEY", "no key")
    server.instead["/v1beta/openai/chat/completions"] = says(503, body)
    checked = check(url)
    assert checked.failed == ["openai"]
    assert checked["openai"][1] == "503 NO_USABLE_KEY: no key"
    assert checked.hint("openai") == ERRORS["NO_USABLE_KEY"].remedy


def test_an_error_of_google_is_shown_in_its_words(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway
    error = [{"error": {"code": 404, "message": "models/x is not found"}}]
    server.instead["/v1beta/openai/chat/completions"] = says(404, error, **{"x-pollux-request-id": "0" * 16})
    checked = check(url)
    assert checked["openai"] == ("FAIL", "404: models/x is not found")
    assert "Google refused it" in checked.hint("openai")


def test_an_answer_that_echoes_tokens_shows_none(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway

    def echo(handler: Handler) -> None:
        handler.say(500, {"error": {"code": 500, "message": f"\x1b[31m{dict(handler.headers)}"}})

    for name in ("/admin/status", "/v1beta/openai/chat/completions", "stream", "/v1beta/files/checkz"):
        server.instead[name] = echo
    checked = check(url)  # which looks for them
    assert checked.failed == ["stream", "openai", "status"]
    assert "\x1b" not in str(checked.found)


GOOD, RESTS = STATUS["keys"][0], {"state": "aside", "why": "not valid"}


@pytest.mark.parametrize(
    ("found", "verdict", "detail"),
    [
        (STATUS | {"keys": []}, "FAIL", "none of 0 keys is usable"),
        (STATUS | {"keys": [GOOD | {"state": "disabled"}]}, "FAIL", "none of 0 keys is usable"),
        (STATUS | {"keys": [GOOD | RESTS]}, "FAIL", "none of 1 keys is usable: not valid"),
        (STATUS | {"projects": [{"project": "p"} | RESTS]}, "FAIL", "none of 1 keys is usable: not valid"),
        (STATUS | {"keys": [GOOD, GOOD | {"id": "b"} | RESTS]}, "warn", "key b is set aside: not valid"),
        (STATUS | {"keys": [GOOD, GOOD | {"state": "disabled"}]}, "ok", "1 keys of 1 projects"),
        (STATUS | {"store": {"state": "down", "url": "x", "why": "gone"}}, "warn", "x is down: gone"),
        (STATUS | {"pool": {"problems": ["11 instances write"], "suspicion": None}}, "warn", "11 instances"),
        ({"status": "fine"}, "FAIL", "not the status of a Pollux gateway"),
        (STATUS | {"keys": "fine"}, "FAIL", "not the status of a Pollux gateway"),
    ],
)
def test_what_the_status_tells(
    gateway: tuple[Pretender, str], check: Any, found: Any, verdict: str, detail: str
) -> None:
    server, url = gateway
    server.instead["/admin/status"] = says(200, found)
    checked = check(url)
    assert checked["status"][0] == verdict
    assert detail in checked["status"][1]


def test_a_path_in_z_that_does_not_reach_pollux(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway
    for name in ("/healthz", "/v1beta/files/checkz"):
        server.instead[name] = says(404, b"<html>Error 404 (Not Found)</html>", "text/html")
    checked = check(url)
    assert checked["path in z"] == ("warn", "/v1beta/files/checkz does not reach Pollux: 404, text/html")
    assert checked.code == 0


# --- streams ---------------------------------------------------------------------------------------------------------


def stream(*pieces: bytes | float, **headers: str) -> Answer:
    """Pieces and pauses of a stream whose end is that of the connection."""

    def send(handler: Handler) -> None:
        handler.begin(200, {"content-type": "text/event-stream", **headers})
        for piece in pieces:
            if isinstance(piece, bytes):
                handler.wfile.write(piece)
            else:
                time.sleep(piece)

    return send


WHOLE = [event(number) for number in range(1, EVENTS + 1)]


@pytest.mark.parametrize(
    ("answer", "verdict", "detail"),
    [
        (stream(0.55, b"".join(WHOLE)), "FAIL", "4 events came all at once"),
        (stream(0.55, *WHOLE), "FAIL", "4 events came all at once"),
        (stream(*WHOLE), "skipped", "too quick to tell"),
        (stream(b"".join(WHOLE[:2]), 0.05, b"".join(WHOLE[2:])), "warn", "4 events came in 2 bursts"),
        (says(200, b"".join(WHOLE), "text/event-stream"), "FAIL", "came with its length"),
        (stream(event(1, 1)), "skipped", "1 events are too few"),
    ],
    ids=["held back", "held back, then one by one", "quick", "in bursts", "with its length", "short"],
)
def test_how_a_stream_came(
    gateway: tuple[Pretender, str], check: Any, answer: Answer, verdict: str, detail: str
) -> None:
    server, url = gateway
    server.instead["stream"] = answer
    checked = check(url)
    assert checked["stream"][0] == "ok"
    assert checked["one by one"][0] == verdict
    assert detail in checked["one by one"][1]


def test_an_event_without_candidates_is_no_fault(gateway: tuple[Pretender, str], check: Any) -> None:
    server, url = gateway
    server.instead["stream"] = stream(b'data: {"candidates": null, "usageMetadata": {}}\n\n', *WHOLE)
    assert check(url)["stream"][0] == "ok"


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (stream(*WHOLE[:2]), "ended before it was complete"),
        (stream(WHOLE[0], b'{"error":{"code":503,"message":"the gateway stops"}}'), "error: the gateway stops"),
        (stream(WHOLE[0], b"data: {half", b"\n\n"), "an event that is no JSON"),
        (says(502, b"<html>Bad Gateway</html>", "text/html"), "502, text/html"),
        (stream(WHOLE[0], **{"content-length": "5000"}), "the connection broke"),
    ],
    ids=["cut", "error", "nonsense", "bad gateway", "broken"],
)
def test_an_incomplete_stream(gateway: tuple[Pretender, str], check: Any, answer: Answer, detail: str) -> None:
    server, url = gateway
    server.instead["stream"] = answer
    checked = check(url)
    assert checked.failed == ["stream"]
    assert detail in checked["stream"][1]
    assert checked["one by one"] == ("skipped", "there was no whole stream")


# --- tokens and usage ------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["deploy", "check", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


@pytest.mark.parametrize("url", ["http://gateway.example", "http://192.0.2.1:8080", "http://localhost.example"])
def test_tokens_do_not_travel_in_the_clear(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--plain-http allows it" in refused(capsys, url)


def test_unless_it_is_asked_for(gateway: tuple[Pretender, str], check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pollux.cli.deploy.is_local", lambda _: False)
    assert check(gateway[1], "--plain-http").failed == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]"])
def test_what_is_this_machine(host: str) -> None:
    assert is_local(f"http://{host}:3145")


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://x"],
        ["https://user:word@x.example"],
        ["https://x.example?key=word"],
        ["x"],
        ["https://b\u00fccher.example"],
        [],
        ["https://x.example", "--timeout", "0"],
        ["https://x.example", "--timeout", "nan"],
        ["https://x.example", "--token", "word"],
        ["https://x.example", "--token=word"],
        ["https://x.example", "--admin-token", "word"],
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "check", *arguments]) == 2
    assert "word" not in capsys.readouterr().err


def test_without_a_client_token_nothing_is_tried(
    gateway: tuple[Pretender, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLLUX_TOKEN")
    assert "data/tokens.json has none" in refused(capsys, gateway[1])
    assert refused(capsys, "https://x.example").endswith(
        "set POLLUX_TOKEN, or say --token-file FILE (- is standard input)\n"
    )
    assert gateway[0].seen == []


def test_without_an_admin_token_the_status_is_skipped(
    gateway: tuple[Pretender, str], check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLLUX_ADMIN_TOKEN")
    checked = check(gateway[1])
    assert (checked["status"], checked.failed) == (("skipped", "no admin token"), [])
    assert "--admin-token-file" in checked.hint("status")


@pytest.mark.parametrize("form", ["one a file", "tokens.json", "standard input"])
def test_tokens_from_files(
    gateway: tuple[Pretender, str], check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    monkeypatch.setenv("POLLUX_TOKEN", "a-file-comes-before-this")
    monkeypatch.setenv("POLLUX_ADMIN_TOKEN", "a-file-comes-before-this-too")
    one, other = tmp_path / "one", tmp_path / "other"
    other.write_text(f"{ADMIN}\n")
    if form == "tokens.json":
        one.write_text(json.dumps({"client": TOKEN, "admin": ADMIN}))
        arguments = ["--token-file", str(one)]
    else:
        one.write_text(f"  {TOKEN}\r\nnot this\n")
        monkeypatch.setattr(sys, "stdin", io.StringIO(one.read_text()))
        arguments = ["--token-file", "-" if "input" in form else str(one), "--admin-token-file", str(other)]
    assert check(gateway[1], *arguments).failed == []


@pytest.mark.parametrize(
    ("written", "said"),
    [(None, "No such file"), (b"\n\n", "empty"), (b"\xff\xfe", "UTF-8"), (b"{}", "expected"), (b"a b", "characters")],
)
def test_a_file_without_a_token(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, written: bytes | None, said: str
) -> None:
    path = tmp_path / "token"
    if written is not None:
        path.write_bytes(written)
    told = refused(capsys, "https://x.example", "--token-file", str(path))
    assert said in told
    assert str(path) in told


def test_a_setting_without_a_token_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLLUX_TOKEN", "laptop=")
    assert "POLLUX_TOKEN" in refused(capsys, "https://x.example")


def test_a_missing_certificate_file_is_no_fault_of_ours(
    gateway: tuple[Pretender, str], check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/certificate.pem")
    assert check(gateway[1]).failed == []


def test_a_token_in_the_place_of_a_file_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    token = "pollux-" + "a1" * 16
    assert "[redacted]: No such file" in refused(capsys, "https://x.example", "--token-file", token)


def test_this_machine_s_own_tokens_serve_for_its_own_addresses_only(
    gateway: tuple[Pretender, str], check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("POLLUX_TOKEN")
    monkeypatch.delenv("POLLUX_ADMIN_TOKEN")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/tokens.json").write_text(json.dumps({"client": TOKEN, "admin": ADMIN}))
    assert check(gateway[1]).failed == []
    assert "no client token" in refused(capsys, "https://gateway.example")


def test_on_a_terminal_they_are_asked_for_hidden(
    gateway: tuple[Pretender, str], check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLLUX_TOKEN")
    monkeypatch.delenv("POLLUX_ADMIN_TOKEN")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    asked: list[str] = []

    def getpass(prompt: str, _: Any) -> str:
        asked.append(prompt)
        return TOKEN if "Client" in prompt else ""

    monkeypatch.setattr("getpass.getpass", getpass)
    checked = check(gateway[1])
    assert (len(asked), checked.failed, checked["status"][0]) == (2, [], "skipped")


def test_the_identity_token_is_no_setting_that_a_gateway_would_refuse() -> None:
    from pollux.cli.main import load_settings

    assert load_settings().token == (TOKEN,)
