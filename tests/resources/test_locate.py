"""Requests that name what a project owns: where they go, what they cost, and how they fail."""

import asyncio
import gzip
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.backends.keys.contract import Key
from pollux.backends.store.contract import StoreUnavailableError
from pollux.backends.store.memory import MemoryStore
from pollux.backends.upstream import UpstreamError
from pollux.gemini.names import GOOGLE
from pollux.resources.locate import AT_ONCE, SEARCHES_AT_ONCE, home_of
from tests.gateway import (
    ADMIN,
    BEGAN,
    COUNT,
    FLASH,
    GENERATE,
    HOST,
    STREAM,
    FakeUpstream,
    Keys,
    Says,
    Sent,
    answer,
    call,
    gateway,
    now,
    play,
    projects,
    refuses,
    whole,
)
from tests.resources.test_ownership import owner_of

OURS = f"http://{HOST}/v1beta/files/"
NOT_YOURS = {
    "error": {
        "code": 403,
        "message": "You do not have permission to access the File x or it may not exist.",
        "status": "PERMISSION_DENIED",
    }
}
NO_SUCH = {"error": {"code": 404, "message": "Requested entity was not found.", "status": "NOT_FOUND"}}
VAGUE = {"error": {"code": 403, "message": "The caller does not have permission", "status": "PERMISSION_DENIED"}}


class Google(FakeUpstream):
    """Projects that own things, each for itself, as at Google. `says` comes first: what a test wants to differ."""

    def __init__(self, owned: dict[str, str] | None = None) -> None:
        self.owned = dict(owned or {})
        self.refusal: Any = NOT_YOURS
        self.says: dict[str, Sequence[Says | UpstreamError]] = {}
        self.made = 0
        super().__init__(self._answer)

    def asked(self, since: int = 0) -> list[tuple[str, str, str]]:
        """(method, path, project) of what went upstream."""
        return [(sent.method, sent.target.partition("?")[0], _project(sent)) for sent in self.sent[since:]]

    def _answer(self, sent: Sent) -> Says | UpstreamError:
        project = _project(sent)
        if said := self.says.get(project):
            first, *self.says[project] = said
            return first
        path = sent.target.partition("?")[0].removeprefix("/v1beta/")
        text = sent.body.decode()
        named = {
            f"{kind}/{given}" for kind, given in re.findall(r"(files|cachedContents|fileSearchStores)\\?/(\w+)", text)
        }
        named |= {f"interactions/{given}" for given in re.findall(r'"previous_interaction_id": ?"(\w+)"', text)}
        if any(self.owned.get(name) != project for name in named):
            return whole(self.refusal, self.refusal["error"]["code"])
        if sent.method == "POST" and (kind := _KINDS.get(path.rpartition(":")[2] if ":" in path else path)):
            self.made += 1
            name = kind.format(self.made)
            self.owned[name] = project
            return whole({"id": name.partition("/")[2]} if name.startswith("inter") else {"name": name})
        if ":" in path and path.startswith("models/"):
            return whole(answer(text=project))
        name = "/".join(path.partition(":")[0].split("/")[: 4 if path.startswith("models/") else 2])
        if self.owned.get(name) != project:
            return whole(self.refusal, self.refusal["error"]["code"])
        if sent.method == "DELETE":
            del self.owned[name]
            return whole({})
        return whole({"name": name, "uri": f"{GOOGLE}/v1beta/{name}", "of": project})


_KINDS = {
    "cachedContents": "cachedContents/c{}",
    "fileSearchStores": "fileSearchStores/s{}",
    "batchGenerateContent": "batches/b{}",
    "predictLongRunning": "models/veo-3.1/operations/o{}",
    "interactions": "interactions/i{}",
}


def _project(sent: Sent) -> str:
    return f"p{sent.key.removeprefix('k')[0]}"


def about(*names: str, **more: Any) -> dict[str, Any]:
    files = [{"fileData": {"fileUri": f"{GOOGLE}/v1beta/{name}", "mimeType": "text/plain"}} for name in names]
    return {"contents": [{"role": "user", "parts": [*files, {"text": "What is in it?"}]}]} | more


# --- where they go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "body", "name"),
    [
        ("/v1beta/cachedContents", {"model": f"models/{FLASH}"}, "cachedContents/c1"),
        ("/v1beta/fileSearchStores", {"displayName": "s"}, "fileSearchStores/s1"),
        (f"/v1beta/models/{FLASH}:batchGenerateContent", {"batch": {}}, "batches/b1"),
        ("/v1beta/models/veo-3.1:predictLongRunning", {"instances": [{"prompt": "x"}]}, "models/veo-3.1/operations/o1"),
        ("/v1beta/interactions", {"model": FLASH, "input": "hello"}, "interactions/i1"),
    ],
)
def test_what_a_call_makes_is_asked_for_where_it_was_made(make: str, body: Any, name: str) -> None:
    async def scene() -> None:
        google = Google()
        store = MemoryStore(now)
        await store.open()
        async with gateway(google, projects(4), store=store) as app:
            made = await call(app, path=make, body=body)
            assert made.status == 200, made.body
            owner = google.owned[name]
            for _ in range(4):
                got = await call(app, "GET", f"/v1beta/{name}")
                assert got.status == 200
            assert {where for _, _, where in google.asked(1)} == {owner}
            assert len(google.sent) == 5
            kept = await store.read([f"bound/{name}"])
            assert kept[f"bound/{name}"][0]["project"] == owner
            assert kept[f"bound/{name}"][0]["client"] == "tester"

    play(scene)


def test_a_request_goes_to_the_owner_of_what_its_body_names_and_waits_for_its_quota() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p3"})
        async with gateway(google, projects(4, rpm=2), max_wait=100.0) as app:
            await app.ownership.bind({"files/a": None}, "p3", "tester")
            times = []
            for _ in range(3):
                got = await call(app, body=about("files/a"))
                assert got.status == 200, got.body
                times.append(now())
            assert {where for _, _, where in google.asked()} == {"p3"}
            assert times[1] - BEGAN < 1
            assert times[2] - times[0] > 60, "the others have room, but do not know the file"

    play(scene)


def test_it_fails_by_its_owner_s_quota_and_says_so() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p3"})
        async with gateway(google, projects(4, rpm=1), max_wait=5.0) as app:
            await app.ownership.bind({"files/a": None}, "p3", "tester")
            assert (await call(app, body=about("files/a"))).status == 200
            got = await call(app, body=about("files/a"), headers={"x-pollux-fallback": "off"})
            assert (got.status, got.reason) == (429, "QUOTA_BUSY")
            assert "only project p3 can serve the request, which owns files/a" in got.message
            assert 50 < int(got.headers["retry-after"]) <= 62
            assert (await call(app)).status == 200, "others are not held back"

    play(scene)


def test_a_fallback_to_another_model_stays_with_the_owner() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p3", "cachedContents/c": "p3"})
        async with gateway(google, projects(4, rpm=1), max_wait=1.0) as app:
            await app.ownership.bind({"files/a": None, "cachedContents/c": None}, "p3", "tester")
            for _ in range(2):
                assert (await call(app, body=about("files/a"))).status == 200
            assert [where for _, _, where in google.asked()] == ["p3", "p3"]
            first, second = google.models
            assert first == FLASH
            assert second != FLASH
            got = await call(app, body=about(cachedContent="cachedContents/c"))
            assert got.status == 429, "a cache belongs to its model"
            assert len(google.sent) == 2

    play(scene)


def test_another_key_of_the_owner_serves_when_one_is_refused() -> None:
    async def scene() -> None:
        keys = Keys([Key("k1", "p1"), Key("k2", "p2"), Key("k2b", "p2")])
        google = Google({"files/a": "p2"})
        async with gateway(google, keys) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            google.says["p2"] = [refuses("invalid-key", key="k2")]
            assert (await call(app, body=about("files/a"))).status == 200
            assert (await call(app, "GET", "/v1beta/files/a")).status == 200
            assert len(app.projects.health.value.keys) == 1
            assert {where for _, _, where in google.asked()} == {"p2"}
            assert len({sent.key for sent in google.sent}) == 2

    play(scene)


@pytest.mark.parametrize("trouble", ["overloaded", "rpm"])
def test_trouble_of_the_owner_is_outlived_there(trouble: str) -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        async with gateway(google, projects(3)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            more: dict[str, Any] = {"limit": 5, "retry_s": 20.0} if trouble == "rpm" else {}
            google.says["p2"] = [refuses(trouble, key="k2", **more)]
            got = await call(app, body=about("files/a"))
            assert got.status == 200, got.body
            assert [where for _, _, where in google.asked()] == ["p2", "p2"]

    play(scene)


def test_a_poll_is_tried_again_and_what_creates_is_not() -> None:
    async def scene() -> None:
        keys = Keys([Key("k1", "p1"), Key("k2", "p2"), Key("k2b", "p2")])
        google = Google({"batches/b": "p2", "files/in": "p2"})
        unwell = whole({"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}, 503)
        async with gateway(google, keys) as app:
            await app.ownership.bind({"batches/b": None, "files/in": None}, "p2", "tester")
            google.says["p2"] = [unwell]
            assert (await call(app, "GET", "/v1beta/batches/b")).status == 200
            assert [sent.key[:2] for sent in google.sent] == ["k2", "k2"]
            google.says["p2"] = [unwell]
            body = {"batch": {"inputConfig": {"fileName": "files/in"}}}
            got = await call(app, path=f"/v1beta/models/{FLASH}:batchGenerateContent", body=body)
            assert got.status == 503
            assert len(google.sent) == 3

    play(scene)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1beta/models/veo-3.1:predictLongRunning", {"instances": [{"prompt": "x"}]}),
        ("/v1beta/interactions", {"model": FLASH, "input": "x"}),
        ("/v1beta/cachedContents", {"model": f"models/{FLASH}"}),
    ],
)
def test_what_makes_something_is_sent_once_unless_it_was_surely_refused(path: str, body: Any) -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(1)) as app:
            google.says["p1"] = [UpstreamError("reset", "broke")]
            assert (await call(app, path=path, body=body)).status == 502
            assert len(google.sent) == 1
        async with gateway(google, projects(2)) as app:
            first = 1 if path.endswith(("predictLongRunning", "interactions")) else 2  # a client's own comes first
            google.says[f"p{first}"] = [refuses("rpm", key=f"k{first}", limit=5, retry_s=20.0)]
            assert [(await call(app, path=path, body=body)).status for _ in range(2)] == [200, 200]
            assert not google.says[f"p{first}"], "another project had its turn after that refusal"

    play(scene)


def test_what_may_have_been_made_by_a_fallback_model_is_not_made_again_by_the_next() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(1)) as app:
            google.says["p1"] = [refuses("rpd"), UpstreamError("reset", "broke")]
            got = await call(app, path="/v1beta/interactions", body={"model": FLASH, "input": "x"})
            assert (got.status, len(google.sent)) == (502, 2)
            assert google.sent[0].body != google.sent[1].body, "another model"

    play(scene)


@given(st.text(max_size=20), st.sets(st.integers(0, 30), min_size=1, max_size=8))
def test_a_client_s_own_project_moves_only_if_it_is_the_one_that_leaves(client: str, numbers: set[int]) -> None:
    names = sorted(f"p{number}" for number in numbers)
    home = home_of(client, names)
    assert home in names
    assert home == home_of(client, list(reversed(names))), "whichever instance asks"
    for gone in names:
        rest = [name for name in names if name != gone]
        assert gone == home or home_of(client, rest) == home
    assert home_of(client, []) is None


def test_a_client_s_things_are_made_in_one_project_and_elsewhere_while_that_has_no_key() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(4)) as app:
            for _ in range(3):
                assert (await call(app, path="/v1beta/cachedContents", body={"model": FLASH})).status == 200
            (home,) = {project for _, _, project in google.asked()}
            assert home == home_of("tester", ["p1", "p2", "p3", "p4"])
            google.says[home] = [refuses("invalid-key", key=home.replace("p", "k"))]
            assert (await call(app, path="/v1beta/cachedContents", body={"model": FLASH})).status == 200
            assert google.asked()[-1][2] != home

    play(scene)


def test_a_tuned_model_is_used_where_it_was_tuned() -> None:
    async def scene() -> None:
        google = Google({"tunedModels/t": "p4"})
        google.says["p4"] = [whole(answer())]
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"tunedModels/t": None}, "p4", "tester")
            got = await call(
                app, path="/v1beta/tunedModels/t:generateContent", body={"contents": [{"parts": [{"text": "x"}]}]}
            )
            assert got.status == 200, got.body
            assert google.asked() == [("POST", "/v1beta/tunedModels/t:generateContent", "p4")]

    play(scene)


def test_a_chain_of_interactions_stays_on_its_project() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(4)) as app:
            first = await call(app, path="/v1beta/interactions", body={"model": FLASH, "input": "one"})
            owner = google.owned["interactions/i1"]
            assert first.json["id"] == "i1"
            for number in range(1, 4):
                body = {"model": FLASH, "input": "more", "previous_interaction_id": f"i{number}"}
                assert (await call(app, path="/v1beta/interactions", body=body)).status == 200
            assert {where for _, _, where in google.asked()} == {owner}

    play(scene)


def test_an_event_with_an_id_passes_when_that_is_bound() -> None:
    async def scene() -> None:
        created = (
            b'event: interaction.created\ndata: {"event_type":"interaction.created","interaction":{"id":"v1_x"}}\n\n'
        )
        more = [b'data: {"delta":', b'"a"}\n\ndata: {"delta"', b':"b"}\n\n', b"data: [DONE]\n\n"]
        headers = ((b"content-type", b"text/event-stream"),)
        google = FakeUpstream([Says([created[:30], 1.0, created[30:], *more], headers=headers)])
        store = MemoryStore(now)
        await store.open()
        async with gateway(google, projects(4), store=store) as app:
            bound_at: list[bool] = []
            remember = app.ownership.bind

            async def bind(*args: Any) -> None:
                await remember(*args)
                bound_at.append(bool(await store.read(["bound/interactions/v1_x"])))

            app.ownership.bind = bind  # type: ignore[method-assign, assignment]
            got = await call(app, path="/v1beta/interactions", body={"model": FLASH, "input": "x", "stream": True})
            assert got.body == created + b"".join(more)
            assert bound_at == [True]
            assert got.chunks[0] == created, "not in parts: nobody may see the id before"
            assert app.ownership.remembered("interactions/v1_x") is not None

    play(scene)


def test_an_interaction_takes_a_place_in_the_quota_of_its_model() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(2, rpm=1), max_wait=100.0) as app:
            body = {"model": FLASH, "input": "hello"}
            for _ in range(2):
                assert (await call(app, path="/v1beta/interactions", body=body)).status == 200
            assert len({where for _, _, where in google.asked()}) == 2
            more = body | {"previous_interaction_id": "i1"}
            assert (await call(app, path="/v1beta/interactions", body=more)).status == 200
            assert google.asked()[2][2] == google.owned["interactions/i1"]
            assert google.sent[2].at - google.sent[0].at > 60, "it waited for its own project"
            assert json.loads(google.sent[2].body) == more
            short = {"x-pollux-max-wait": "1"}
            got = await call(app, path="/v1beta/interactions", body=more, headers=short)
            assert got.status == 200
            assert json.loads(google.sent[3].body) == more | {"model": got.headers["x-pollux-model"]}
            assert got.headers["x-pollux-model"] != FLASH, "another model of the chain, at the same project"
            assert google.asked()[3][2] == google.owned["interactions/i1"]

    play(scene)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_tokens_of_an_interaction_are_settled(streamed: bool) -> None:
    async def scene() -> None:
        said: dict[str, Any] = {"id": "v1_x", "usage": {"total_input_tokens": 4000, "total_tokens": 4100}}
        if streamed:
            created = {"event_type": "interaction.created", "interaction": {"id": "v1_x"}}
            events = [
                created,
                {"event_type": "step.delta"},
                {"event_type": "interaction.completed", "interaction": said},
            ]
            data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
            google = FakeUpstream([Says([data], headers=((b"content-type", b"text/event-stream"),))])
        else:
            google = FakeUpstream([whole(said)])
        async with gateway(google, projects(1, tpm=100_000)) as app:
            body = {"model": FLASH, "input": "hello", "stream": streamed}
            got = await call(app, path="/v1beta/interactions", body=body)
            assert got.status == 200
            admin = {"authorization": f"Bearer {ADMIN}"}
            record = (await call(app, "GET", f"/admin/requests/{got.headers['x-pollux-request-id']}", admin)).json
            assert (record["tokens"], record["call"], record["model_used"]) == (4000, "interactions", FLASH)
            (quota,) = (await call(app, "GET", "/admin/status", admin)).json["quotas"]
            assert quota["used"]["tpm"] == 4000

    play(scene)


def test_what_an_agent_does_takes_no_quota_of_a_model() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(1, rpm=1), max_wait=1.0) as app:
            for _ in range(3):
                body = {"agent": "deep-research-preview-04-2026", "input": "x"}
                assert (await call(app, path="/v1beta/interactions", body=body)).status == 200

    play(scene)


# --- what they cost --------------------------------------------------------------------------------------------------


def test_a_remembered_resource_costs_the_store_nothing() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            assert (await call(app, body=about("files/a"))).status == 200
            counters = app.projects.store_health.counters
            reads, commits = counters.reads, counters.commits
            assert (await call(app, body=about("files/a"))).status == 200
            assert counters.reads == reads
            with_file, counters.commits = counters.commits - commits, commits
            assert (await call(app)).status == 200
            assert with_file == counters.commits - commits, "no more than any request"

    play(scene)


def test_two_gateways_on_one_store_know_what_either_made() -> None:
    async def scene() -> None:
        google = Google()
        store = MemoryStore(now)
        await store.open()
        async with gateway(google, projects(4), store=store) as one:
            await call(one, path="/v1beta/cachedContents", body={"model": f"models/{FLASH}"})
            async with gateway(google, projects(4), store=store) as other:
                reads = other.projects.store_health.counters.reads
                got = await call(other, body=about(cachedContent="cachedContents/c1"))
                assert got.status == 200
                assert len(google.sent) == 2, "nobody was asked where it is"
                assert other.projects.store_health.counters.reads - reads >= 1
                await call(other, "DELETE", "/v1beta/cachedContents/c1")
                assert other.ownership.remembered("cachedContents/c1") is None
                assert not await store.read(["bound/cachedContents/c1"])
                store_close, store.close = store.close, _nothing  # type: ignore[method-assign]
        store.close = store_close  # type: ignore[method-assign]

    play(scene)


async def _nothing() -> None:
    return None


# --- names that nobody remembers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [NOT_YOURS, NO_SUCH, VAGUE])
def test_an_unknown_name_is_looked_for_once_and_then_remembered(refusal: Any) -> None:
    async def scene() -> None:
        google = Google({"files/old": "p3"})
        google.refusal = refusal
        async with gateway(google, projects(4)) as app:
            got = await call(app, body=about("files/old"))
            assert got.status == 200
            assert {("GET", "/v1beta/files/old", f"p{n}") for n in (1, 2, 3, 4)} >= set(google.asked()[:-1])
            assert google.asked()[-1] == ("POST", GENERATE, "p3")
            seen = len(google.sent)
            assert (await call(app, "GET", "/v1beta/files/old")).status == 200
            assert google.asked(seen) == [("GET", "/v1beta/files/old", "p3")]
            assert not app.projects.health.value.keys
            assert not app.projects.health.value.models

    play(scene)


@pytest.mark.parametrize("refusal", [NOT_YOURS, NO_SUCH, VAGUE])
def test_what_is_nowhere_gets_google_s_own_refusal_once(refusal: Any) -> None:
    async def scene() -> None:
        google = Google()
        google.refusal = refusal
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"files/mine": None}, "p2", "tester")
            got = await call(app, body=about("files/never"))
            assert (got.status, got.json) == (refusal["error"]["code"], refusal)
            assert len(google.sent) == 5
            got = await call(app, "GET", "/v1beta/files/never")
            assert (got.status, got.json) == (refusal["error"]["code"], refusal)
            assert google.asked(5) == [("GET", "/v1beta/files/never", "p2")], "where this client made something last"
            await call(app, "GET", "/v1beta/files/never2")
            assert google.asked(6)[0] == ("GET", "/v1beta/files/never2", "p2"), "and there it is looked for first"
            assert not app.projects.health.value.keys, "a file is no reason to set a key aside"
            assert not app.projects.health.value.models
            assert not app.projects.health.value.projects

    play(scene)


def test_a_search_that_not_all_answered_is_not_remembered() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        async with gateway(google, projects(2)) as app:
            google.says["p2"] = [UpstreamError("reset", "broke")]
            assert (await call(app, "GET", "/v1beta/files/a")).status in (200, 403)
            assert (await call(app, "GET", "/v1beta/files/a")).status == 200

    play(scene)


@pytest.mark.parametrize(
    ("version", "asked"), [("v1", "v1beta"), ("v1beta", "v1beta"), ("v1alpha", "v1alpha"), ("v1nonsense", "v1beta")]
)
def test_a_name_is_looked_for_in_a_version_that_has_such_things(version: str, asked: str) -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda sent: whole(answer() if sent.method == "POST" else {"name": "files/a"}))
        async with gateway(google, projects(2)) as app:
            got = await call(app, path=f"/{version}/models/{FLASH}:generateContent", body=about("files/a"))
            assert got.status == 200
            looked = {sent.target for sent in google.sent if sent.method == "GET"}
            assert looked == {f"/{asked}/files/a"}
            assert google.sent[-1].target == f"/{version}/models/{FLASH}:generateContent"

    play(scene)


def test_many_requests_for_one_unknown_name_look_for_it_once() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p3"})
        async with gateway(google, projects(4)) as app:
            got = await asyncio.gather(*(call(app, body=about("files/a")) for _ in range(5)))
            assert {one.status for one in got} == {200}
            assert sum(method == "GET" for method, _, _ in google.asked()) <= 4

    play(scene)


def test_a_request_with_many_unknown_names_does_not_become_a_flood() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(3)) as app:
            got = await call(app, body=about(*(f"files/f{n}" for n in range(200))))
            assert got.status == 403
            assert len(google.sent) == 16 * 3 + 1
            admin = {"authorization": f"Bearer {ADMIN}"}
            record = (await call(app, "GET", f"/admin/requests/{got.headers['x-pollux-request-id']}", admin)).json
            assert len(record["bound"]) == 20

    play(scene)


def test_many_requests_with_unknown_names_do_not_become_a_flood_either() -> None:
    async def scene() -> None:
        google = Google()
        under_way, most = 0, 0
        send = google.send

        async def counted(*request: Any) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                await asyncio.sleep(1.0)
                return await send(*request)
            finally:
                under_way -= 1

        google.send = counted  # type: ignore[assignment,method-assign]
        async with gateway(google, projects(9)) as app:
            names = [[f"files/x{number}y{one}" for one in range(16)] for number in range(10)]
            asked = [asyncio.create_task(call(app, path=COUNT, body=about(*some))) for some in names]
            await asyncio.gather(*asked)
            assert most <= SEARCHES_AT_ONCE * AT_ONCE + len(asked)

    play(scene)


def test_a_search_that_finds_no_room_in_time_is_not_remembered() -> None:
    async def scene() -> None:
        google = Google({"files/here": "p2"})
        google.says = {"p1": [whole({}, after=20.0)] * 40, "p2": [whole({}, after=20.0)] * 40}
        async with gateway(google, projects(2)) as app:
            slow = [asyncio.create_task(call(app, "GET", f"/v1beta/files/s{n}")) for n in range(SEARCHES_AT_ONCE)]
            await asyncio.sleep(0.1)
            got = asyncio.create_task(call(app, "GET", "/v1beta/files/here"))
            await asyncio.sleep(60.0)
            google.says.clear()
            await asyncio.gather(*slow, got)
            assert (await call(app, "GET", "/v1beta/files/here")).json["of"] == "p2"

    play(scene)


def test_what_was_deleted_here_is_not_looked_for() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            assert (await call(app, "DELETE", "/v1beta/files/a")).status == 200
            assert (await call(app, "GET", "/v1beta/files/a")).status == 403
            assert [where for _, _, where in google.asked()] == ["p2", "p2"]

    play(scene)


def test_one_project_alone_is_not_asked_where_a_thing_is() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p1"})
        async with gateway(google, projects(1)) as app:
            assert (await call(app, body=about("files/a"))).status == 200
            assert len(google.sent) == 1

    play(scene)


def test_an_agent_of_google_s_own_is_not_looked_for() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(4)) as app:
            body = {"agent": "deep-research-preview-04-2026", "input": "x", "environment": "remote"}
            assert (await call(app, path="/v1beta/interactions", body=body)).status == 200
            assert len(google.sent) == 1

    play(scene)


# --- what cannot be served -------------------------------------------------------------------------------------------


def test_two_owners_cannot_be_served_and_both_are_named() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"files/a": None}, "p1", "tester")
            await app.ownership.bind({"files/b": None}, "p4", "tester")
            got = await call(app, body=about("files/a", "files/b"))
            assert (got.status, got.reason) == (400, "TWO_OWNERS")
            for said in ("files/a to project p1", "files/b to project p4"):
                assert said in got.message
            assert not google.sent

    play(scene)


def test_an_owner_that_left_the_pool_is_named() -> None:
    async def scene() -> None:
        google = Google()
        keys = projects(4)
        async with gateway(google, keys) as app:
            await app.ownership.bind({"files/a": None}, "p4", "tester")
            keys.all = keys.all[:3]
            for got in (await call(app, body=about("files/a")), await call(app, "GET", "/v1beta/files/a")):
                assert (got.status, got.reason) == (409, "OWNER_GONE")
                assert "files/a belongs to project p4" in got.message
            assert len(google.sent) == 3, "looked for once, in case the project has another name by now"

    play(scene)


def test_an_owner_that_got_another_name_is_found_again() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p3"})
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"files/a": None}, "the-old-name", "tester")
            for _ in range(2):
                assert (await call(app, body=about("files/a"))).status == 200
            assert google.asked()[-2:] == [("POST", GENERATE, "p3")] * 2
            kept = await app.store.read(["bound/files/a"])
            assert kept["bound/files/a"][0]["project"] == "p3"

    play(scene)


def test_what_lies_below_a_thing_does_not_take_its_owner_along() -> None:
    async def scene() -> None:
        google = Google({"fileSearchStores/s": "p2"})
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"fileSearchStores/s": None}, "p2", "tester")
            google.says["p2"] = [whole({})]
            assert (await call(app, "DELETE", "/v1beta/fileSearchStores/s/documents/d")).status == 200
            assert app.ownership.remembered("fileSearchStores/s") is not None
            assert (await call(app, "DELETE", "/v1beta/fileSearchStores/s?force=true")).status == 200
            assert await owner_of(app.ownership, "fileSearchStores/s") is None
            assert {where for _, _, where in google.asked()} == {"p2"}

    play(scene)


def test_a_refused_delete_forgets_nothing() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            google.says["p2"] = [whole({"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}, 503)]
            assert (await call(app, "DELETE", "/v1beta/files/a")).status == 503
            assert app.ownership.remembered("files/a") is not None

    play(scene)


def test_a_poll_of_a_project_with_one_key_is_tried_there_again() -> None:
    async def scene() -> None:
        google = Google({"batches/b": "p2"})
        unwell = whole({"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}, 503)
        async with gateway(google, projects(3)) as app:
            await app.ownership.bind({"batches/b": None}, "p2", "tester")
            google.says["p2"] = [unwell, UpstreamError("reset", "broke")]
            assert (await call(app, "GET", "/v1beta/batches/b")).status == 200
            google.says["p2"] = [unwell] * 4
            assert (await call(app, "GET", "/v1beta/batches/b")).status == 503
            assert [where for _, _, where in google.asked()] == ["p2"] * 7

    play(scene)


def test_an_owner_without_a_usable_key_is_named() -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(2)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            google.says["p2"] = [refuses("invalid-key", key="k2")] * 9
            for body in (about("files/a"), about("files/a")):
                got = await call(app, body=body)
                assert (got.status, got.reason) == (503, "NO_USABLE_KEY"), got.body
                assert "only project p2 can serve the request, which owns files/a" in got.message
            got = await call(app, "GET", "/v1beta/files/a")
            assert (got.status, got.reason) == (503, "NO_USABLE_KEY"), got.body
            assert [sent.verb for sent in google.sent if sent.verb != "countTokens"] == ["generateContent"]

    play(scene)


def test_a_thing_that_its_owner_does_not_know_any_more() -> None:
    async def scene() -> None:
        google = Google()
        google.refusal = VAGUE
        async with gateway(google, projects(2)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            got = await call(app, body=about("files/a"))
            assert (got.status, got.json) == (403, VAGUE)
            assert len(google.sent) == 1
            assert not app.projects.health.value.models, "the model is well"

    play(scene)


def _get(name: str) -> tuple[str, str, Any]:
    return "GET", f"/v1beta/{name}", None


def _use(name: str) -> tuple[str, str, Any]:
    return "POST", GENERATE, about(name)


@pytest.mark.parametrize("request_of", [_get, _use])
@pytest.mark.parametrize("refusal", [NOT_YOURS, NO_SUCH, VAGUE])
def test_a_name_deleted_and_made_again_in_another_project_is_used_there(request_of: Any, refusal: Any) -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        google.refusal = refusal
        async with gateway(google, projects(3)) as app:
            method, path, body = request_of("files/a")
            assert (await call(app, method, path, body=body)).status == 200
            google.owned["files/a"] = "p3"  # and another instance, which made it, wrote that down
            document = {"v": 1, "project": "p3", "client": "other", "expires": int(now()) + 1000}
            (_, version) = (await app.projects.store.read(["bound/files/a"]))["bound/files/a"]
            await app.projects.store.commit("bound/files/a", document, version)
            seen = len(google.sent)
            got = await call(app, method, path, body=body)
            assert got.status == 200, got.body
            assert [_project(sent) for sent in google.sent[seen:]] == ["p2", "p3"]
            seen = len(google.sent)
            assert (await call(app, method, path, body=body)).status == 200
            assert [_project(sent) for sent in google.sent[seen:]] == ["p3"]
            google.owned["files/a"] = "p1"  # and nobody wrote it down
            seen = len(google.sent)
            got = await call(app, method, path, body=body)
            assert (got.status, got.json) == (refusal["error"]["code"], refusal)
            assert [_project(sent) for sent in google.sent[seen:]] == ["p3"], "what the store says was tried"

    play(scene)


def test_the_store_in_trouble_turns_no_success_into_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        google = Google()
        async with gateway(google, projects(4)) as app:

            async def refuse(*_: Any) -> Any:
                raise StoreUnavailableError("the store does not answer")

            app.store.commit = refuse  # type: ignore[method-assign, assignment]
            got = await call(app, path="/v1beta/cachedContents", body={"model": f"models/{FLASH}"})
            assert got.status == 200
            assert (await call(app, "GET", "/v1beta/cachedContents/c1")).status == 200
            assert len(google.sent) == 2

    play(scene)
    assert any("cachedContents/c1" in record.message for record in caplog.records if record.levelno == logging.ERROR)


# --- addresses -------------------------------------------------------------------------------------------------------


def test_addresses_are_ours_in_answers_and_google_s_again_in_requests() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        async with gateway(google, projects(4)) as app:
            got = await call(app, "GET", "/v1beta/files/a")
            assert got.json == {"name": "files/a", "uri": OURS + "a", "of": "p2"}
            assert got.headers["content-length"] == str(len(got.body))
            body = about("files/a")
            part = body["contents"][0]["parts"][0]["fileData"]
            part["fileUri"] = got.json["uri"]
            body["contents"][0]["parts"][1]["text"] = f'It is {OURS}a, or "fileUri": "{OURS}a"'
            raw = json.dumps(body, indent=3).encode()
            assert (await call(app, body=raw)).status == 200
            assert google.sent[-1].body == raw.replace(OURS.encode(), f"{GOOGLE}/v1beta/files/".encode(), 1)
            plain = json.dumps(about("files/a"), indent=3).encode()
            assert (await call(app, body=plain)).status == 200
            assert google.sent[-1].body == plain

    play(scene)


def test_a_compressed_body_travels_as_it_is_unless_an_address_in_it_changes() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda _: whole(answer()))
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            plain = json.dumps(about("files/a")).encode()
            packed = gzip.compress(plain)
            encoded = {"content-encoding": "gzip"}
            assert (await call(app, body=packed, headers=encoded)).status == 200
            assert google.sent[-1].body == packed
            ours = gzip.compress(plain.replace(f"{GOOGLE}/v1beta/files/".encode(), OURS.encode()))
            assert (await call(app, body=ours, headers=encoded)).status == 200
            assert google.sent[-1].body == plain
            assert google.sent[-1].header("content-encoding") is None
            assert {sent.key for sent in google.sent} == {"k2"}

    play(scene)


def test_an_answer_of_a_model_stays_as_it_is() -> None:
    async def scene() -> None:
        said = json.dumps(answer() | {"uri": f"{GOOGLE}/v1beta/files/a"}).encode()
        async with gateway(FakeUpstream([whole(said)]), projects(2)) as app:
            assert (await call(app)).body == said

    play(scene)


def test_with_an_invalid_host_no_upload_address_is_given() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p1"})
        async with gateway(google, projects(2)) as app:
            got = await call(app, "GET", "/v1beta/files/a", {"host": 'evil"/x'})
            assert (got.status, got.reason) == (400, "BAD_REQUEST")
            assert not google.sent
            assert (await call(app, headers={"host": 'evil"/x'})).status == 200, "there no address is needed"

    play(scene)


def test_a_gateway_has_several_names_but_only_files_that_are_known_are_its() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda _: whole(answer()))
        async with gateway(google, projects(2)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            for base in ("http://localhost:3145", "https://other.example/prefix"):
                for name in ("files/a", "files/unknown"):
                    raw = json.dumps(about(name)).replace(GOOGLE, base).encode()
                    assert (await call(app, body=raw)).status == 200
                    sent = google.sent.pop()
                    if name == "files/a":
                        assert (json.loads(sent.body), sent.key) == (about(name), "k2")
                    else:
                        assert sent.body == raw
            assert not google.sent, "nobody was asked for what lies elsewhere"

    play(scene)


def test_a_public_address_of_its_own_is_used_and_understood() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        async with gateway(google, projects(2), public_url="https://pollux.example/gemini") as app:
            got = await call(app, "GET", "/gemini/v1beta/files/a")
            assert got.json["uri"] == "https://pollux.example/gemini/v1beta/files/a"
            body = json.dumps(about("files/a")).replace(GOOGLE, "https://pollux.example/gemini")
            assert (await call(app, body=body.encode())).status == 200
            assert json.loads(google.sent[-1].body) == about("files/a")

    play(scene)


def test_what_stands_in_for_google_gets_its_own_address() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda _: whole(answer()))
        async with gateway(google, projects(2)) as app:
            app.pool.settings = replace(app.settings, upstream="http://127.0.0.1:9/mirror")
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            for base in (GOOGLE, f"http://{HOST}", "http://127.0.0.1:9/mirror"):
                body = json.dumps(about("files/a")).replace(GOOGLE, base)
                assert (await call(app, body=body.encode())).status == 200
                assert (
                    google.sent[-1].body
                    == json.dumps(about("files/a")).replace(GOOGLE, "http://127.0.0.1:9/mirror").encode()
                )
                assert google.sent[-1].key == "k2"

    play(scene)


# --- told ------------------------------------------------------------------------------------------------------------


def test_explain_says_why_a_request_was_held_to_a_project() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        admin = {"authorization": f"Bearer {ADMIN}"}
        async with gateway(google, projects(4)) as app:
            got = await call(app, body=about("files/a"))
            record = (await call(app, "GET", f"/admin/requests/{got.headers['x-pollux-request-id']}", admin)).json
            assert (record["owner"], record["bound"]) == ("p2", ["files/a"])
            plain = await call(app)
            record = (await call(app, "GET", f"/admin/requests/{plain.headers['x-pollux-request-id']}", admin)).json
            assert "owner" not in record
            await app.ownership.bind({"files/b": None}, "p3", "tester")
            await app.ownership.bind({"files/c": None}, "p9", "tester")
            for names, owner in ((("files/a", "files/b"), "p2, p3"), (("files/c",), "p9")):
                refused = await call(app, body=about(*names))
                record = (
                    await call(app, "GET", f"/admin/requests/{refused.headers['x-pollux-request-id']}", admin)
                ).json
                assert (record["owner"], record["bound"]) == (owner, list(names)), refused.body
            status = (await call(app, "GET", "/admin/status", admin)).json
            assert status["resources"] == {"remembered": 3, "searches": 2, "commits": 3}

    play(scene)


def test_streams_with_a_file_go_to_its_owner_too() -> None:
    async def scene() -> None:
        google = Google({"files/a": "p2"})
        event = b"data: " + json.dumps(answer()).encode() + b"\n\n"
        google.says["p2"] = [Says([event], headers=((b"content-type", b"text/event-stream"),))]
        async with gateway(google, projects(4)) as app:
            await app.ownership.bind({"files/a": None}, "p2", "tester")
            got = await call(app, path=STREAM, body=about("files/a"))
            assert got.body == event
            assert google.asked() == [("POST", STREAM.partition("?")[0], "p2")]

    play(scene)
