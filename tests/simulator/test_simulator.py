"""The simulator over a socket: with the published SDKs, with connections that break, and from the command line."""

import argparse
import asyncio
import base64
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors as genai_errors
from openai import AuthenticationError, OpenAI, RateLimitError

from gemini_simulator import MODELS, Fault, Simulator, add_arguments, demo_keys, run, running, serve
from gemini_simulator.faults import KINDS

FLASH = "gemini-3.8-flash"
GENERATE = f"/v1beta/models/{FLASH}:generateContent"
STREAM = f"/v1beta/models/{FLASH}:streamGenerateContent?alt=sse"
HELLO: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello, wörld"}]}]}
HEADERS = {"x-goog-api-key": "simulated-key-1"}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Simulator, str]]:
    simulator = Simulator(demo_keys(2), {})
    with running(simulator) as url:
        yield simulator, url


@pytest.fixture
def simulator(served: tuple[Simulator, str]) -> Simulator:
    served[0].faults.clear()
    served[0].calls.clear()
    return served[0]


@pytest.fixture
def url(served: tuple[Simulator, str]) -> str:
    return served[1]


def until(condition: Any) -> None:
    """The server's thread may be a moment behind the client's."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


# With the published SDKs


def test_google_genai(simulator: Simulator, url: str) -> None:
    with genai.Client(api_key="simulated-key-1", http_options={"base_url": url}) as client:
        answer = client.models.generate_content(model=FLASH, contents="Hello, wörld")
        assert answer.text == f"Simulated answer of {FLASH} to: Hello, wörld"
        assert answer.usage_metadata is not None
        assert answer.usage_metadata.prompt_token_count == 3
        chunks = list(client.models.generate_content_stream(model=FLASH, contents="Hello, wörld"))
        assert len(chunks) == 4
        assert "".join(chunk.text or "" for chunk in chunks) == answer.text
        assert chunks[-1].candidates is not None
        assert str(chunks[-1].candidates[0].finish_reason).endswith("STOP")
        assert client.models.count_tokens(model=FLASH, contents="x" * 40).total_tokens == 10
        embedded = client.models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
        assert embedded.embeddings is not None
        assert [len(entry.values or ()) for entry in embedded.embeddings] == [3072, 3072]
        assert {model.name for model in client.models.list()} == {f"models/{name}" for name in MODELS}
        assert client.models.get(model=FLASH).name == f"models/{FLASH}"


def test_google_genai_raises_its_usual_exceptions(simulator: Simulator, url: str) -> None:
    with genai.Client(api_key="simulated-key-1", http_options={"base_url": url}) as client:
        simulator.faults.append(Fault(kind="rpm", count=1))
        with pytest.raises(genai_errors.ClientError, match="RESOURCE_EXHAUSTED"):
            client.models.generate_content(model=FLASH, contents="Hello")
        simulator.faults.append(Fault(kind="mid-error"))
        with pytest.raises(genai_errors.ServerError, match="UNAVAILABLE"):
            list(client.models.generate_content_stream(model=FLASH, contents="Hello"))
    with (
        genai.Client(api_key="AQ.test-wrong", http_options={"base_url": url}) as client,
        pytest.raises(genai_errors.ClientError, match="API_KEY_INVALID"),
    ):
        client.models.generate_content(model=FLASH, contents="Hello")


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")  # the SDK's own
def test_google_genai_async(simulator: Simulator, url: str) -> None:
    async def ask() -> str:
        async with genai.Client(api_key="simulated-key-1", http_options={"base_url": url}).aio as client:
            text = ""
            async for chunk in await client.models.generate_content_stream(model=FLASH, contents="Hello"):
                text += chunk.text or ""
            return text

    assert asyncio.run(ask()) == f"Simulated answer of {FLASH} to: Hello"


def test_openai(simulator: Simulator, url: str) -> None:
    with OpenAI(api_key="simulated-key-1", base_url=f"{url}/v1beta/openai/", max_retries=0) as client:
        said = [{"role": "user", "content": "Hello, wörld"}]
        answer = client.chat.completions.create(model=FLASH, messages=said)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == f"Simulated answer of {FLASH} to: Hello, wörld"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 3
        chunks = list(
            client.chat.completions.create(  # type: ignore[call-overload]
                model=FLASH, messages=said, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
            answer.choices[0].message.content
        )
        assert chunks[-1].usage.prompt_tokens == 3
        embedded = client.embeddings.create(model="gemini-embedding-001", input=["one", "two"], dimensions=16)
        assert [len(entry.embedding) for entry in embedded.data] == [16, 16]
        assert f"models/{FLASH}" in [model.id for model in client.models.list()]
        assert client.models.retrieve(FLASH).id == f"models/{FLASH}"
        simulator.faults.append(Fault(kind="rpd"))
        with pytest.raises(RateLimitError):
            client.chat.completions.create(model=FLASH, messages=said)  # type: ignore[arg-type]


def test_openai_with_a_refused_key(simulator: Simulator, url: str) -> None:
    simulator.faults.append(Fault(kind="unauthenticated"))
    with (
        OpenAI(api_key="simulated-key-1", base_url=f"{url}/v1beta/openai/", max_retries=0) as client,
        pytest.raises(AuthenticationError),
    ):
        client.models.list()


# Connections


@pytest.mark.parametrize("path", [GENERATE, STREAM])
@pytest.mark.parametrize("kind", ["reset", "hang"])
def test_a_connection_is_closed_without_an_answer(simulator: Simulator, url: str, kind: str, path: str) -> None:
    simulator.faults.append(Fault(kind=kind, seconds=0.01, count=1))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        httpx.post(url + path, json=HELLO, headers=HEADERS)
    assert httpx.post(url + path, json=HELLO, headers=HEADERS).status_code == 200


@pytest.mark.parametrize(("path", "sent"), [(GENERATE, 100), (STREAM, 3)])
def test_a_connection_dies_after_what_was_sent(simulator: Simulator, url: str, path: str, sent: int) -> None:
    simulator.faults.append(Fault(kind="mid-reset", after=3))
    pieces: list[bytes] = []
    with (
        httpx.stream("POST", url + path, json=HELLO, headers=HEADERS) as answer,
        pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"),
    ):
        pieces.extend(answer.iter_raw())
    data = b"".join(pieces)
    assert (data.count(b"\r\n\r\n") if path == STREAM else len(data)) >= sent


def test_a_stream_comes_as_it_is_made(simulator: Simulator, url: str) -> None:
    simulator.faults.append(Fault(kind="drip", seconds=0.5))
    with httpx.stream("POST", url + STREAM, json=HELLO, headers=HEADERS) as answer:
        ended = [simulator.calls[-1].finished_at is not None for _ in answer.iter_raw()]
    assert len(ended) == 4
    assert not ended[0], "the first came before the last was made"


@pytest.mark.parametrize("started", [True, False])
def test_a_client_that_leaves_is_noticed_at_once(simulator: Simulator, url: str, started: bool) -> None:
    simulator.faults.append(Fault(kind="drip" if started else "slow", seconds=60))
    with httpx.Client() as client:
        request = client.build_request("POST", url + STREAM, json=HELLO, headers=HEADERS, timeout=0.2)
        if started:
            answer = client.send(request, stream=True)
            next(answer.iter_raw())
            answer.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.send(request)
    until(lambda: simulator.calls[-1].disconnected_at is not None)
    assert simulator.calls[-1].finished_at is None


def test_connections_are_kept_alive_and_paths_arrive_raw(simulator: Simulator, url: str) -> None:
    with httpx.Client(headers=HEADERS) as client:
        ports = set()
        for path in (GENERATE, "/v1beta/nothing", GENERATE.replace(":", "%3A")):
            answer = client.post(url + path, json=HELLO)
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
        assert len(ports) == 1
    assert [call.status for call in simulator.calls] == [200, 404, 200]
    assert "%3A" in simulator.calls[-1].path
    assert "server" not in answer.headers


def test_a_websocket_is_refused(simulator: Simulator, url: str) -> None:
    handshake = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(b"0" * 16).decode(),
    }
    assert httpx.get(url + "/ws/anything", headers=handshake).status_code in (403, 404)


def test_stopping_breaks_off_what_hangs_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "uvicorn.error")
    simulator = Simulator(demo_keys(1), {})
    simulator.faults.append(Fault(kind="hang"))
    with socket.socket() as client, running(simulator) as url:
        client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        body = json.dumps(HELLO).encode()
        head = f"POST {GENERATE} HTTP/1.1\r\nhost: x\r\nx-goog-api-key: simulated-key-1\r\ncontent-length: {len(body)}"
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        until(lambda: simulator.calls)
        before = time.monotonic()
    assert time.monotonic() - before < 3
    assert not caplog.records
    logging.getLogger("uvicorn.error").error("of another server")
    assert len(caplog.records) == 1


def test_serve_runs_in_this_loop_until_it_is_cancelled() -> None:
    simulator = Simulator(demo_keys(1), {})

    async def talk() -> int:
        loop = asyncio.get_running_loop()
        started: asyncio.Future[str] = loop.create_future()
        task = asyncio.ensure_future(serve(simulator, started=started.set_result))
        async with httpx.AsyncClient() as client:
            answer = await client.post(await started + GENERATE, json=HELLO, headers=HEADERS)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return answer.status_code

    assert asyncio.run(talk()) == 200


# From the command line


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pollux simulate")
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_options_are_read() -> None:
    read = options(
        "--rpm", "5", "--tpm", "off", "--fault", "overloaded:0.05", "--fault", "hang,seconds=3,key=simulated-2"
    )
    assert (read.rpm, read.tpm, read.rpd, read.port) == (5, None, 500, 3146)
    assert read.fault == [
        Fault(kind="overloaded", probability=0.05),
        Fault(kind="hang", seconds=3, key="simulated-2"),
    ]
    read = options("--processing", "2", "--working", "0.5", "--base", "https://generativelanguage.googleapis.com")
    assert (read.processing, read.working, read.base) == (2, 0.5, "https://generativelanguage.googleapis.com")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--fault", "sulking"), "'sulking' is no kind of fault"),
        (("--fault", "slow:often"), "probability: expected a number, not 'often'"),
        (("--fault", "slow,seconds"), "expected FIELD=VALUE"),
        (("--fault", "slow,sconds=3"), "no field of a fault"),
        (("--rpm", "-1"), "limit"),
        (("--latency", "nan"), "seconds"),
        (("--keys", "0"), "count"),
        (("--base", "google"), "scheme and host"),
        (("--enforce", "hourly"), "invalid choice"),
    ],
)
def test_a_typo_is_one_clear_line_and_exit_code_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        options(*arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_docs_name_every_option_and_every_fault() -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    for action in parser._actions:
        assert f"`{action.option_strings[0]}`" in text
    for kind in KINDS:
        assert f"`{kind}`" in text
    for name in Fault.__dataclass_fields__:
        assert f"`{name}`" in text


def test_a_port_that_is_taken_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(options("--port", str(port))) == 2
    assert re.fullmatch(
        rf"pollux simulate: cannot listen on 127\.0\.0\.1:{port}: .*in use.*\n", capsys.readouterr().err
    )


def test_the_command_prints_its_address_and_keys_and_stops_on_ctrl_c() -> None:
    code = (
        "import argparse; from gemini_simulator import add_arguments, run; p = argparse.ArgumentParser(); "
        "add_arguments(p); raise SystemExit(run(p.parse_args()))"
    )
    command = [sys.executable, "-c", code, "--port", "0", "--keys", "2", "--rpm", "1", "--fault", "drip"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            lines = [process.stdout.readline().strip() for _ in range(4)]
            url = lines[0].rpartition(" ")[2]
            assert [line.split()[0] for line in lines[2:]] == ["simulated-key-1", "simulated-key-2"]
            statuses = [httpx.post(url + GENERATE, json=HELLO, headers=HEADERS).status_code for _ in range(2)]
            assert statuses == [200, 429]
            assert len(httpx.get(url + "/simulator/log").json()) == 2
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
        assert process.stderr.read() == ""
