"""What travels between client and Gemini: bytes as they are, headers by allow-list, exactly one credential."""

import json

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, TOKEN, call, key_value, prompt

TARGET = f"/v1beta/models/{FLASH}:generateContent"
BODIES = [
    b'{"contents":[{"parts":[{"text":"hello"}]}]}',
    b' {\n\t"contents" : [ {"parts":[{"text":"\\u00e9\\ud83d\\ude00 \xc3\xa9"}]} ] ,'
    b'"store":1.0e3, "store":12345678901 }\r\n',
    b'\xef\xbb\xbf{"contents":[{"parts":[{"text":"a byte order mark"}]}]}',
]


@pytest.mark.parametrize("body", BODIES, ids=["compact", "odd", "marked"])
def test_bodies_travel_byte_for_byte(pair: Pair, body: bytes) -> None:
    pair.gateway.call("POST", TARGET, body, content_type="application/json; charset=utf-8")
    assert [seen.body for seen in pair.simulator.calls] == [body]
    assert pair.simulator.calls[-1].header("content-type") == "application/json; charset=utf-8"


def test_answers_travel_byte_for_byte(pair: Pair) -> None:
    body = b'{"content":{"parts":[{"text":"hello"}]}}'
    target = "/v1beta/models/gemini-embedding-001:embedContent"
    through = pair.gateway.call("POST", target, body)
    upstream = pair.gateway.status()["upstream"]
    direct = call(upstream, "POST", target, body, {"x-goog-api-key": key_value(1)})
    assert (through.status, through.body) == (direct.status, direct.body)
    assert through.headers["content-type"] == direct.headers["content-type"]


def test_a_stream_travels_as_it_is_framed(pair: Pair) -> None:
    answer = pair.gateway.generate(verb="streamGenerateContent")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.count(b"data: ") == answer.body.count(b"\r\n\r\n") == 4
    array = pair.gateway.call("POST", f"/v1beta/models/{FLASH}:streamGenerateContent", prompt())
    assert array.headers["content-type"].startswith("application/json")
    assert len(array.json()) == 4


def test_queries_keep_order_and_encoding(pair: Pair) -> None:
    query = "b=2&%24alt=json%3Benum-encoding%3Dint&fields=a%2Cb(c)&a=%7e&prettyPrint=false"
    answer = pair.gateway.call("POST", f"{TARGET}?b=2&key={TOKEN}&{query.partition('&')[2]}", prompt())
    assert answer.status == 200, answer.body
    assert pair.simulator.calls[-1].query == query


def test_an_encoded_path_stays_encoded(pair: Pair) -> None:
    pair.gateway.call("GET", "/v1beta/files/a%20b%2Fc")
    assert pair.simulator.calls[-1].path == "/v1beta/files/a%20b%2Fc"


def test_headers_travel_by_allow_list(pair: Pair) -> None:
    wanted = {
        "accept": "application/json",
        "content-type": "application/json",
        "user-agent": "GeminiCLI/9 (test)",
        "x-goog-api-client": "google-genai-sdk/3 gl-python/3.11",
        "x-server-timeout": "60",
    }
    unwanted = {
        "accept-encoding": "gzip, br",
        "api-key": "secret-of-nobody",
        "cookie": "session=secret-of-nobody",
        "forwarded": "for=10.0.0.1",
        "openai-organization": "org-of-nobody",
        "openai-project": "project-of-nobody",
        "origin": "https://page.example",
        "proxy-authorization": "Basic secret-of-nobody",
        "referer": "https://page.example/",
        "x-api-key": TOKEN,
        "x-forwarded-for": "10.0.0.1",
        "x-goog-user-project": "project-of-nobody",
        "x-pollux-max-wait": "5",
        "x-stainless-lang": "python",
        "authorization": f"Bearer {TOKEN}",
    }
    answer = call(pair.gateway.url, "POST", TARGET, prompt(), wanted | unwanted)
    assert answer.status == 200, answer.body
    seen = pair.simulator.calls[-1]
    sent = {name.decode(): value.decode() for name, value in seen.headers}
    key = key_value(int((seen.key or "").removeprefix("key-")))
    own = {"x-goog-api-key": key, "accept-encoding": "identity", "content-length": str(len(prompt()))}
    assert sent.pop("host") in pair.gateway.status()["upstream"]
    assert sent == wanted | own
    assert len(seen.headers) == len(sent) + 1


CREDENTIALS = {
    "x-goog-api-key": ({"x-goog-api-key": TOKEN}, ""),
    "bearer": ({"authorization": f"Bearer {TOKEN}"}, ""),
    "x-api-key": ({"x-api-key": TOKEN}, ""),
    "key": ({}, f"?key={TOKEN}"),
    "all of them": (
        {"x-goog-api-key": "else", "authorization": f"bearer {TOKEN}", "x-api-key": TOKEN},
        f"?key={TOKEN}",
    ),
}


@pytest.mark.parametrize("target", [TARGET, "/v1beta/openai/chat/completions"])
@pytest.mark.parametrize("way", CREDENTIALS)
def test_any_credential_in_exactly_one_out(pair: Pair, way: str, target: str) -> None:
    headers, query = CREDENTIALS[way]
    body = prompt() if target == TARGET else json.dumps({"model": FLASH, "messages": [{"content": "hi"}]}).encode()
    answer = call(pair.gateway.url, "POST", target + query, body, headers)
    assert answer.status == 200, answer.body
    seen = pair.simulator.calls[-1]
    names = [name for name, _ in seen.headers if name in (b"x-goog-api-key", b"authorization", b"x-api-key")]
    assert names == [b"x-goog-api-key" if target == TARGET else b"authorization"]
    assert seen.query == ""
    assert TOKEN.encode() not in b"".join(value for _, value in seen.headers)


@pytest.mark.parametrize(
    "headers", [{}, {"x-goog-api-key": key_value(1)}, {"authorization": "Bearer "}, {"authorization": f"Basic {TOKEN}"}]
)
def test_without_a_token_nothing_goes_upstream(pair: Pair, headers: dict[str, str]) -> None:
    answer = call(pair.gateway.url, "POST", TARGET, prompt(), headers)
    assert (answer.status, answer.reason) == (401, "NO_TOKEN")
    assert TOKEN.encode() not in answer.body
    assert key_value(1).encode() not in answer.body
    assert not pair.simulator.calls


@pytest.mark.parametrize(
    "target",
    [
        "//elsewhere.example/v1beta/models",
        "/\\elsewhere.example/v1beta/models",
        "http://elsewhere.example/v1beta/models",
        "/@elsewhere.example/v1beta/models",
        "/..//elsewhere.example/",
        "/v1beta/..%2f..%2f/models",
        "/v1beta/%2e%2e/simulator/log",
    ],
)
def test_no_path_leads_elsewhere(pair: Pair, target: str) -> None:
    answer = pair.gateway.call("GET", target)
    assert answer.status in (200, 400, 404), answer.body
    assert b"elsewhere" not in b"".join(v for seen in pair.simulator.calls for n, v in seen.headers if n == b"host")
    assert all(seen.path.startswith("/") and ".." not in seen.path for seen in pair.simulator.calls)


def test_an_alias_changes_only_its_place_in_the_path(pair: Pair) -> None:
    answer = pair.gateway.call("POST", "/v1alpha/models/production:generateContent?fields=x%2Cy", BODIES[1])
    assert answer.status == 200, answer.body
    assert answer.headers["x-pollux-model"] == FLASH
    seen = pair.simulator.calls[-1]
    assert (seen.path, seen.query) == (f"/v1alpha/models/{FLASH}:generateContent", "fields=x%2Cy")
    assert seen.body == BODIES[1]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_any_path_and_method(pair: Pair, method: str) -> None:
    answer = pair.gateway.call(method, "/v1beta/simulator:echo?x=%2f", None if method == "GET" else b"\x00\xff")
    assert answer.status == 200, answer.body
    seen = pair.simulator.calls[-1]
    assert (seen.method, seen.path, seen.query) == (method, "/v1beta/simulator:echo", "x=%2f")
    assert seen.body == (b"" if method == "GET" else b"\x00\xff")
