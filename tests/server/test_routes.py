"""Which row of the routing table serves each request, and that docs/architecture.md shows the table."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pollux.server.app import App
from tests.gateway import ADMIN, CHAT, COUNT, FLASH, GENERATE, STREAM, FakeUpstream, call, gateway, play

ROOT = Path(__file__).parents[2]
RESUMABLE = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
BEARER = {"authorization": "Bearer any"}


async def row_of(app: App, method: str, path: str, headers: Mapping[str, str] | None = None) -> str:
    """The row that a request finds, before anything else of it is looked at."""
    found: list[str] = []

    def watched(route: Any) -> Any:
        async def serve(*_: Any) -> None:
            found.append(route.name)

        return route._replace(serve=serve)

    before = app.routes.own, app.routes.api
    app.routes.own = tuple(map(watched, app.routes.own))
    app.routes.api = tuple(map(watched, app.routes.api))
    await call(app, method, path, headers, b"", token=None)
    app.routes.own, app.routes.api = before
    (name,) = found
    return name


def found(method: str, path: str, headers: Mapping[str, str] | None = None, **settings: Any) -> str:
    async def scene() -> str:
        async with gateway(FakeUpstream([]), **settings) as app:
            return await row_of(app, method, path, headers)

    return play(scene)


@pytest.mark.parametrize(
    ("row", "method", "path", "headers"),
    [
        ("health", "GET", "/health", {}),
        ("health", "HEAD", "/health", {}),
        ("everything else", "POST", "/health", {}),
        ("everything else", "GET", "/healthy", {}),
        ("admin", "GET", "/admin", {}),
        ("admin", "GET", "/admin/status", {}),
        ("admin", "OPTIONS", "/admin/status", {}),
        ("everything else", "GET", "/administrators", {}),
        ("preflight", "OPTIONS", GENERATE, {}),
        ("preflight", "OPTIONS", "*", {}),
        ("generate", "POST", GENERATE, {}),
        ("generate", "POST", STREAM, {}),
        ("generate", "POST", CHAT, {}),
        ("generate", "POST", "/v1/chat/completions", {}),
        ("generate", "POST", f"/v1beta/models/{FLASH}:embedContent", {}),
        ("generate", "POST", "/v1beta/interactions", {}),
        ("everything else", "GET", "/v1beta/interactions/an-id", {}),
        ("everything else", "GET", GENERATE, {}),
        ("live", "GET", "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",
         {"upgrade": "WebSocket"}),
        ("live", "GET", "/v1beta/auth_tokens", {"upgrade": "websocket"}),
        ("everything else", "GET", "/v1beta/models", {"upgrade": "h2c"}),
        ("upload", "POST", "/upload/v1beta/files", RESUMABLE),
        ("upload", "POST", "/upload/v1beta/files?uploadType=multipart", {}),
        ("upload", "POST", "/v1beta/openai/files", {}),
        ("upload", "POST", "/v1/files", BEARER),
        ("upload session", "POST", "/upload/v1beta/files?upload_id=a&upload_protocol=resumable", {}),
        ("upload session", "PUT", "/upload/v1beta/files?upload_id=a", {}),
        ("guarded", "POST", "/v1alpha/auth_tokens", {}),
        ("guarded", "GET", "/v1beta/tunedModels/m/permissions", {}),
        ("list", "GET", "/v1beta/files", {}),
        ("list", "GET", "/v1beta/cachedContents?pageSize=5", {}),
        ("list", "GET", "/v1beta/openai/batches", {}),
        ("list", "GET", f"/v1beta/models/{FLASH}/operations", {}),
        ("everything else", "GET", "/v1beta/files/an-id", {}),
        ("everything else", "DELETE", "/v1beta/files/an-id", {}),
        ("everything else", "GET", "/v1beta/models", {}),
        ("everything else", "POST", COUNT, {}),
        ("everything else", "GET", "/no/such/thing", {}),
    ],
)  # fmt: skip
def test_each_request_finds_its_row(row: str, method: str, path: str, headers: Mapping[str, str]) -> None:
    assert found(method, path, headers) == row


def test_a_guarded_path_that_the_setting_names_is_like_any_other() -> None:
    assert found("POST", "/v1alpha/auth_tokens", allow_paths=("auth_tokens",)) == "everything else"


def test_a_row_is_found_below_the_path_that_the_gateway_is_mounted_under() -> None:
    url = "https://team.example/gemini"
    for path, row in (("health", "health"), ("admin/status", "admin"), ("v1beta/files", "list")):
        assert found("GET", f"/gemini/{path}", public_url=url) == row


def test_a_head_that_is_too_large_for_admin_is_refused_like_any_other() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([])) as app:
            headers = {"authorization": f"Bearer {ADMIN}", "x-padding": "a" * (1 << 16)}
            got = await call(app, "GET", "/admin/status", headers, token=None)
            assert (got.status, got.reason) == (431, "HEAD_TOO_LARGE")

    play(scene)


def test_the_page_of_the_architecture_shows_the_table_row_by_row() -> None:
    async def scene() -> list[tuple[str, str]]:
        async with gateway(FakeUpstream([])) as app:
            return [(route.name, route.requests) for route in (*app.routes.own, *app.routes.api)]

    rows = play(scene)
    text = (ROOT / "docs/architecture.md").read_text().partition("\n## Which way a request goes\n")[2]
    shown = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", text.partition("\n## ")[0], re.MULTILINE)[1:]
    assert shown == rows
    assert len({name for name, _ in rows}) == len(rows)


def test_starlette_is_not_imported_before_somebody_asks_for_admin() -> None:
    said = (
        "import sys, pollux.server.wiring, pollux.server.serve;"
        "print('starlette' in sys.modules, 'pollux.server.admin' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", said], cwd=ROOT / "function", capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["False", "False"]
