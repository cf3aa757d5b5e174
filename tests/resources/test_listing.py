"""Lists of what all projects own: nothing twice, nothing missing, no page longer than asked."""

import asyncio
import base64
import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.backends.upstream import UpstreamError
from pollux.gemini.names import GOOGLE
from pollux.resources.ask import ASKED_AT_ONCE
from pollux.server.app import App
from tests.gateway import HOST, FakeUpstream, Got, Says, Sent, call, gateway, play, projects, refuses, whole


class Lists(FakeUpstream):
    """Each project with things of its own, on pages of at most five."""

    def __init__(self, *counts: int) -> None:
        self.things = {f"p{n}": [f"files/p{n}x{i}" for i in range(count)] for n, count in enumerate(counts, 1)}
        self.says: dict[str, Says | UpstreamError] = {}
        super().__init__(self._answer)

    def queries(self) -> dict[str, dict[str, str]]:
        return {_project(sent): dict(parse_qsl(sent.target.partition("?")[2])) for sent in self.sent}

    def _answer(self, sent: Sent) -> Says | UpstreamError:
        project = _project(sent)
        if (said := self.says.get(project)) is not None:
            return said
        path, _, query = sent.target.partition("?")
        asked = dict(parse_qsl(query))
        things = self.things[project]
        if "/openai/" in path:
            return self._openai(things, asked)
        start = int(asked.get("pageToken", "0"))
        end = start + min(5, int(asked.get("pageSize", "5")))
        page: dict[str, Any] = {}
        if things[start:end]:
            page["files"] = [{"name": name, "uri": f"{GOOGLE}/v1beta/{name}"} for name in things[start:end]]
        if end < len(things):
            page["nextPageToken"] = str(end)
        return whole(page)

    def _openai(self, things: list[str], asked: dict[str, str]) -> Says:
        start = things.index(asked["after"]) + 1 if "after" in asked else 0
        end = start + min(4, int(asked.get("limit", "20")))
        data = [{"id": name, "object": "file"} for name in things[start:end]]
        return whole({"object": "list", "data": data, "has_more": end < len(things)})


def _project(sent: Sent) -> str:
    return sent.key.replace("k", "p")


async def all_pages(app: App, query: str = "") -> list[Got]:
    pages = []
    token = ""
    while True:
        path = "/v1beta/files?" + "&".join(part for part in (query, f"pageToken={token}" if token else "") if part)
        pages.append(await call(app, "GET", path))
        assert pages[-1].status == 200, pages[-1].body
        token = pages[-1].json.get("nextPageToken", "")
        if not token:
            return pages
        assert len(pages) < 100


def names(pages: list[Got]) -> list[str]:
    return [entry["name"] for page in pages for entry in page.json.get("files", [])]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 17), min_size=1, max_size=5), st.sampled_from([0, 1, 2, 3, 5, 7, 100]))
def test_all_pages_together_are_all_things_once(counts: list[int], size: int) -> None:
    async def scene() -> None:
        google = Lists(*counts)
        async with gateway(google, projects(len(counts))) as app:
            pages = await all_pages(app, f"pageSize={size}" if size else "")
        assert sorted(names(pages)) == sorted(name for things in google.things.values() for name in things)
        full = [len(names([page])) for page in pages]
        assert 0 not in full or full == [0], "Google's SDK for Node takes an empty page for an item"
        assert max(full) <= (size or 5 * len(counts))
        if size:
            assert all(len(page.json.get("files", [])) <= size for page in pages)
        assert all("x-pollux-not-asked" not in page.headers for page in pages)

    play(scene)


def test_all_projects_are_asked_at_once_and_addresses_are_ours() -> None:
    async def scene() -> None:
        google = Lists(1, 1, 1, 1)
        google.says["p2"] = whole({"files": [{"name": "files/slow"}]}, after=3.0)
        google.says["p3"] = whole({}, after=3.0)
        async with gateway(google, projects(4)) as app:
            began = app.pool.now()
            got = await call(app, "GET", "/v1beta/files?pageSize=9&filter=x&$alt=json")
            assert app.pool.now() - began == pytest.approx(3.0)
            assert names([got]) == ["files/p1x0", "files/slow", "files/p4x0"]
            assert got.json["files"][0]["uri"] == f"http://{HOST}/v1beta/files/p1x0"
            assert {query["pageSize"] for query in google.queries().values()} == {"2", "3"}
            assert all((query["filter"], query["$alt"]) == ("x", "json") for query in google.queries().values())
            seen = len(google.sent)
            assert (await call(app, "GET", "/v1beta/files/p4x0")).status == 200
            assert len(google.sent) == seen + 1, "the list told whose it is"
            assert app.ownership.counters.commits == 0

    play(scene)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_of_many_projects_the_last_one_alone_has_something(size: int) -> None:
    async def scene() -> None:
        google = Lists(*[0] * 49, 3)
        async with gateway(google, projects(50)) as app:
            pages = await all_pages(app, f"pageSize={size}")
            assert sorted(names(pages)) == ["files/p50x0", "files/p50x1", "files/p50x2"]
            assert all(names([page]) for page in pages)
            assert len(google.sent) < 50 + size + 1 + len(pages)

    play(scene)


def test_who_could_not_be_asked_is_named() -> None:
    async def scene() -> None:
        google = Lists(3, 3, 3)
        google.says["p2"] = UpstreamError("reset", "broke")
        google.says["p3"] = whole({}, after=60.0)
        async with gateway(google, projects(3)) as app:
            got = await call(app, "GET", "/v1beta/files")
            assert (got.status, got.headers["x-pollux-not-asked"]) == (200, "p2,p3")
            assert names([got]) == ["files/p1x0", "files/p1x1", "files/p1x2"]
            assert "nextPageToken" not in got.json

    play(scene)


def test_half_a_character_in_google_s_own_token_breaks_nothing() -> None:
    async def scene() -> None:
        empty = whole({"nextPageToken": "\ud800"})
        google = FakeUpstream(
            lambda sent: whole({"files": [{"name": "files/a"}]}) if "Token=" in sent.target else empty
        )
        async with gateway(google, projects(1)) as app:
            assert names([await call(app, "GET", "/v1beta/files")]) == ["files/a"]

    play(scene)


def test_a_long_list_of_one_project_is_not_left_out() -> None:
    """Batches that hold their answers make one of megabytes."""

    async def scene() -> None:
        google = Lists(1, 0)
        google.says["p2"] = whole({"files": [{"name": "files/long", "of": "x" * (3 << 20)}]})
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", "/v1beta/files")
            assert names([got]) == ["files/p1x0", "files/long"]

    play(scene)


def test_many_lists_of_many_projects_open_no_endless_connections() -> None:
    async def scene() -> None:
        google = Lists(*[1] * 30)
        under_way, most = 0, 0
        send = google.send

        async def counted(*request: Any) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.1)
            under_way -= 1
            return await send(*request)

        google.send = counted  # type: ignore[assignment,method-assign]
        async with gateway(google, projects(30)) as app:
            pages = await asyncio.gather(*(call(app, "GET", "/v1beta/files") for _ in range(20)))
            assert all(len(names([page])) == 30 for page in pages)
            assert most <= ASKED_AT_ONCE

    play(scene)


@pytest.mark.parametrize("path", ["/v1beta/files", "/v1beta/openai/files"])
def test_a_moment_s_trouble_of_one_project_leaves_nothing_out(path: str) -> None:
    async def scene() -> None:
        google = Lists(2, 2)
        once = iter([refuses("overloaded")])
        google._answers = lambda sent: (_project(sent) == "p2" and next(once, None)) or google._answer(sent)
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", path)
            assert len(got.json.get("files", got.json.get("data"))) == 4
            assert "x-pollux-not-asked" not in got.headers
            assert len(google.sent) == 3

    play(scene)


def test_a_key_that_is_refused_is_set_aside_and_its_project_named() -> None:
    async def scene() -> None:
        google = Lists(1, 1)
        google.says["p2"] = refuses("invalid-key", key="k2")
        async with gateway(google, projects(2)) as app:
            for _ in range(2):
                got = await call(app, "GET", "/v1beta/files")
                assert (got.status, got.headers["x-pollux-not-asked"]) == (200, "p2")
            assert set(app.projects.health.value.keys) == {"k2"}
            assert sum(_project(sent) == "p2" for sent in google.sent) == 1

    play(scene)


def test_when_all_refuse_the_first_refusal_is_the_client_s() -> None:
    async def scene() -> None:
        google = Lists(1, 1)
        said = {"error": {"code": 400, "message": "* filter: no such field", "status": "INVALID_ARGUMENT"}}
        google.says = {"p1": whole(said, 400), "p2": whole(said, 400)}
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", "/v1beta/files?filter=x")
            assert (got.status, got.json) == (400, said)
            assert not app.projects.health.value.keys

    play(scene)


def test_when_no_key_is_good_the_gateway_says_so_and_google_does_not() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda sent: refuses("invalid-key", key=sent.key))
        keys = projects(3)
        async with gateway(google, keys) as app:
            for path in ("/v1beta/files", "/v1beta/files", "/v1beta/openai/files"):
                got = await call(app, "GET", path)
                assert (got.status, got.reason) == (503, "NO_USABLE_KEY")
                assert "pollux keys check" in got.message
            assert len(google.sent) == 3
            keys.all = ()
            got = await call(app, "GET", "/v1beta/files")
            assert (got.status, got.reason) == (503, "NO_USABLE_KEY")

    play(scene)


def test_when_no_project_answers_in_time_the_error_says_so() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda _: whole({}, after=60.0))
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", "/v1beta/files")
            assert (got.status, got.reason) == (504, "UPSTREAM_TIMEOUT")

    play(scene)


def test_a_project_that_leaves_between_two_pages_is_named() -> None:
    async def scene() -> None:
        google = Lists(9, 9)
        keys = projects(2)
        async with gateway(google, keys) as app:
            first = await call(app, "GET", "/v1beta/files")
            keys.all = keys.all[:1]
            got = await call(app, "GET", f"/v1beta/files?pageToken={first.json['nextPageToken']}")
            assert got.headers["x-pollux-not-asked"] == "p2"
            assert names([got]) == [f"files/p1x{n}" for n in range(5, 9)]

    play(scene)


@pytest.mark.parametrize(
    "token", ["42", "eyJ4", "bm9wZQ", "W10", "eyJwMSI6MX0", "%FF%00", "eyJwMSI6Ilx1ZDgwMCJ9", "eyJcdWQ4MDAiOiIifQ"]
)
def test_a_token_of_somebody_else_is_refused(token: str) -> None:
    async def scene() -> None:
        google = Lists(1, 1)
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", f"/v1beta/files?pageToken={token}")
            assert (got.status, got.reason) == (400, "BAD_REQUEST")
            assert not google.sent

    play(scene)


def test_a_token_of_many_invented_projects_makes_no_endless_header() -> None:
    async def scene() -> None:
        invented = {f"{'x' * 40}{n}": "" for n in range(800)} | {"p1": ""}
        token = base64.urlsafe_b64encode(json.dumps(invented).encode()).decode()
        async with gateway(Lists(1), projects(1)) as app:
            got = await call(app, "GET", f"/v1beta/files?pageToken={token}")
            assert (got.status, got.reason) == (400, "BAD_REQUEST")

    play(scene)


def test_newer_lists_have_names_in_snake_case() -> None:
    async def scene() -> None:
        more = whole({"environments": [{"id": "e1"}], "next_page_token": "t"})
        google = FakeUpstream(lambda _: more)
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", "/v1beta/environments?page_size=3")
            assert [entry["id"] for entry in got.json["environments"]] == ["e1", "e1"]
            assert {sent.target.partition("?")[2] for sent in google.sent} == {"page_size=2", "page_size=1"}
            again = await call(app, "GET", f"/v1beta/environments?page_token={got.json['next_page_token']}")
            assert again.status == 200
            assert {sent.target.partition("?")[2] for sent in google.sent[2:]} == {"page_token=t"}

    play(scene)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from([1, 2, 3, 7, 100]))
def test_openai_s_pages_go_on_after_an_id(counts: list[int], limit: int) -> None:
    async def scene() -> None:
        google = Lists(*counts)
        found: list[str] = []
        async with gateway(google, projects(len(counts))) as app:
            after = ""
            for _ in range(60):
                got = await call(app, "GET", f"/v1beta/openai/files?limit={limit}" + after)
                page = [entry["id"] for entry in got.json["data"]]
                assert len(page) <= limit
                found += page
                if not got.json["has_more"]:
                    break
                assert got.json["last_id"] == page[-1]
                after = f"&after={page[-1]}"
            assert {sent.header("authorization") is not None for sent in google.sent} == {True}
        assert found == [name for things in google.things.values() for name in things]

    play(scene)


def test_an_openai_list_cannot_continue_after_an_id_without_an_owner() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda _: refuses("no-such-path"))
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", "/v1beta/openai/files?after=files/never")
            assert got.status == 400
            assert got.reason == "BAD_REQUEST"

    play(scene)


def test_the_operations_of_a_model_are_those_of_all_projects() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda sent: whole({"operations": [{"name": f"models/veo/operations/{sent.key}"}]}))
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", "/v1beta/models/veo/operations")
            assert [entry["name"][-2:] for entry in got.json["operations"]] == ["k1", "k2"]
            assert (await call(app, "GET", "/v1beta/models/veo/operations/k2")).status == 200
            assert google.sent[-1].key == "k2"

    play(scene)


def test_models_are_listed_as_ever() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda _: whole({"models": []}))
        async with gateway(google, projects(4)) as app:
            assert (await call(app, "GET", "/v1beta/models")).status == 200
            assert len(google.sent) == 1

    play(scene)
