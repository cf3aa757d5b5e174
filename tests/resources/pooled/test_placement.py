"""Requests that name pooled files: any project serves them, a copy is made once, others' files are not to be had."""

import asyncio
import json
from collections import Counter

import pytest

from bench.virtual import run as run_virtually
from gemini_simulator import Fault
from pollux.backends.keys.contract import Key
from pollux.backends.store.memory import MemoryStore
from pollux.cli.terminal import as_text
from pollux.cli.watch import status_view
from tests.gateway import ADMIN, CHAT, COUNT, FLASH, HELLO, NEXT, Got, Keys, call, now, play, projects
from tests.pools import FaultyStore
from tests.resources.pooled.scenes import (
    AT,
    OTHER,
    TEXT,
    MemoryBlobs,
    asks,
    chunk,
    errors,
    gateway,
    generate,
    google,
    owned,
    served_by,
    sha256,
    start,
    status,
    upload,
    uploads,
)
from tests.resources.test_ownership import owner_of


def test_one_request_goes_where_the_file_is_and_nothing_is_copied() -> None:
    async def scene() -> None:
        keys = projects(4, rpm=5)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            for _ in range(5):
                assert (await generate(app, file)).status == 200
            assert set(served_by(upstream.simulator)) == {owned(upstream.simulator)[file["name"]]}
            assert len(owned(upstream.simulator)) == 1

    play(scene)


def test_with_no_room_there_another_project_gets_a_copy_and_serves() -> None:
    async def scene() -> None:
        keys = projects(2, rpm=1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            body = json.dumps(asks(file, text=f"of {file['uri']}"), indent=1).encode()
            for _ in range(2):
                got = await call(app, "POST", path_of(FLASH), {**AT, "x-pollux-fallback": "off"}, body)
                assert got.status == 200, got.body
            first, second = [c for c in upstream.simulator.calls if c.path.endswith(":generateContent")]
            assert {first.project, second.project} == {"p1", "p2"}
            [copy] = set(owned(upstream.simulator)) - {file["name"]}
            assert copy.startswith("files/px-")
            assert len(copy) <= len("files/") + 40
            assert {one["sha256"] for one in upstream.simulator.owned()} == {sha256(TEXT)}
            at_google = file["uri"].replace("http://gateway.test", "https://generativelanguage.googleapis.com")
            sent = [json.loads(call.body)["contents"][0]["parts"] for call in (first, second)]
            assert sent[0][0]["fileData"]["fileUri"] == at_google
            assert sent[1][0]["fileData"]["fileUri"] == at_google.replace(file["name"], copy)
            assert sent[0][1] == sent[1][1] == {"text": f"of {file['uri']}"}, "a text stays as it is"
            assert second.body == first.body.replace(
                at_google.encode(), at_google.replace(file["name"], copy).encode(), 1
            )
            assert app.journal.totals()["causes"]["copied"] == 1

    play(scene)


def path_of(model: str) -> str:
    return f"/v1beta/models/{model}:generateContent"


def test_fifty_requests_over_eight_projects_are_as_fast_as_without_a_file() -> None:
    async def burst(*, file: bool) -> tuple[list[float], list[float]]:
        keys = projects(8, rpm=5)
        upstream = google(keys, processing=3.0)
        async with gateway(upstream, keys, MemoryBlobs(), max_wait=200.0) as app:
            files = [await upload(app)] if file else []
            await asyncio.sleep(100)

            async def one() -> float:
                got = await call(app, "POST", path_of(FLASH), {**AT, "x-pollux-fallback": "off"}, asks(*files))
                assert got.status == 200, got.body
                return now()

            async def all_at_once() -> list[float]:
                began = now()
                return sorted([end - began for end in await asyncio.gather(*(one() for _ in range(50)))])

            first = await all_at_once()
            await asyncio.sleep(200)
            second = await all_at_once()
            copies = Counter(owned(upstream.simulator).values())
            assert max(copies.values(), default=0) <= 1, "one copy in each project"
            return first, second

    async def scene() -> None:
        plain, _ = await burst(file=False)
        first, second = await burst(file=True)
        assert [sum(end < within for end in plain) for within in (1, 62)] == [40, 50]
        # The copies take four seconds. Meanwhile those who wait have booked a slot in a minute at each project, which
        # shares a window with all that is sent there from then on: so the fifth request of each waits too.
        assert [sum(end < within for end in first) for within in (5, 66)] == [32, 50]
        assert second == pytest.approx(plain, abs=0.1), "once they are there"

    play(scene)


def test_a_copy_is_made_once_however_many_wait_also_over_instances() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(3, rpm=10), MemoryBlobs(), MemoryStore(now)
        blobs.slow = 2.0
        upstream = google(keys, processing=2.0)
        async with (
            gateway(upstream, keys, blobs, store=store) as one,
            gateway(upstream, keys, blobs, store=store) as two,
        ):
            file = await upload(one)
            await asyncio.sleep(3)
            got = await asyncio.gather(*(generate(app, file) for app in (one, two) * 14))
            assert not errors(got)
            assert max(Counter(owned(upstream.simulator).values()).values()) == 1
            assert len(uploads(upstream.simulator)) == 3

    play(scene)


def test_while_its_slot_lies_ahead_the_copy_is_made() -> None:
    async def scene() -> None:
        keys, blobs = projects(2, rpm=1), MemoryBlobs()
        upstream = google(keys, processing=10.0)
        async with gateway(upstream, keys, blobs) as app:
            for _ in range(2):  # both minutes are used up
                assert (
                    await call(app, "POST", path_of(FLASH), {**AT, "x-pollux-fallback": "off"}, HELLO)
                ).status == 200
            file = await upload(app)
            await asyncio.sleep(11)
            began = now()
            plain = {**AT, "x-pollux-fallback": "off"}
            got = await asyncio.gather(*(call(app, "POST", path_of(FLASH), plain, asks(file)) for _ in range(2)))
            assert not errors(got)
            assert now() - began < 52, "the wait for the slot is the wait for the copy too"
            assert len(set(served_by(upstream.simulator)[2:])) == 2

    play(scene)


def test_another_clients_file_is_refused_in_googles_words() -> None:
    async def scene() -> None:
        keys = projects(4)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            path = f"/v1beta/{file['name']}"
            tried = [
                await call(app, "GET", path, AT, token=OTHER),
                await call(app, "DELETE", path, AT, token=OTHER),
                await generate(app, file, token=OTHER),
                await generate(app, file, path=COUNT, token=OTHER),
            ]
            id_ = file["name"].removeprefix("files/")
            for got in tried:
                assert got.status == 403
                said = f"You do not have permission to access the File {id_} or it may not exist."
                assert (got.message, got.json["error"]["status"]) == (said, "PERMISSION_DENIED")
            assert (await call(app, "GET", path, AT)).status == 200
            mine = await call(app, "GET", "/v1beta/files", AT)
            theirs = await call(app, "GET", "/v1beta/files", AT, token=OTHER)
            assert [one["name"] for one in mine.json["files"]] == [file["name"]]
            assert not theirs.json.get("files")

    play(scene)


def test_while_the_store_does_not_say_who_owns_a_file_it_is_refused() -> None:
    async def scene() -> None:
        keys, blobs, inner = projects(3), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=inner) as app:
            file = await upload(app)
            store = FaultyStore(inner)
            async with gateway(upstream, keys, blobs, store=store) as fresh:
                store.out_until = asyncio.get_running_loop().time() + 30
                theirs = await call(fresh, "GET", f"/v1beta/{file['name']}", AT, token=OTHER)
                assert (theirs.status, theirs.reason) == (503, "STORE_DOWN")
                listed = await call(fresh, "GET", "/v1beta/files", AT, token=OTHER)
                assert not listed.json.get("files")
                await asyncio.sleep(60)
                assert (await call(fresh, "GET", f"/v1beta/{file['name']}", AT, token=OTHER)).status == 403
                assert (await call(fresh, "GET", f"/v1beta/{file['name']}", AT)).status == 200

    play(scene)


def test_a_file_is_served_by_others_when_its_own_project_left_the_pool() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(3), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=store) as app:
            file = await upload(app)
            home = owned(upstream.simulator)[file["name"]]
            rest = Keys([key for key in keys.all if key.project != home])
            async with gateway(upstream, rest, blobs, store=store) as later:
                assert (await generate(later, file)).status == 200
                again = await upload(later)
                assert again["name"] != file["name"], "the other one can only be asked for at its project"
                assert home not in served_by(upstream.simulator)

    play(scene)


def test_a_file_stays_its_clients_also_when_its_project_gets_another_name() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(3), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=store) as app:
            file = await upload(app)
            path = f"/v1beta/{file['name']}"
            renamed = Keys([Key(f"k{number}", f"renamed-{number}") for number in (1, 2, 3)])
            async with gateway(upstream, renamed, blobs, store=store) as other:
                assert (await call(other, "GET", path, AT, token=OTHER)).status == 403
                assert (await call(other, "GET", path, AT)).status == 200
                assert (await call(other, "GET", path, AT, token=OTHER)).status == 403
                assert (await generate(other, file)).status == 200

    play(scene)


def test_copies_are_neither_shown_nor_served() -> None:
    async def scene() -> None:
        keys = projects(2, rpm=1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            for _ in range(2):
                assert (await generate(app, file)).status == 200
            (copy,) = set(owned(upstream.simulator)) - {file["name"]}
            listed = await call(app, "GET", "/v1beta/files", AT)
            assert [one["name"] for one in listed.json["files"]] == [file["name"]]
            assert (await call(app, "GET", f"/v1beta/{copy}", AT)).status == 403
            named = {"name": copy, "uri": file["uri"].replace(file["name"], copy)}
            assert (await generate(app, named)).status == 403

    play(scene)


def test_deleting_a_file_deletes_its_copies_and_its_content() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(3, rpm=1), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=store) as app:
            file = await upload(app)
            for _ in range(3):
                assert (await generate(app, file)).status == 200
            assert len(owned(upstream.simulator)) == 3
            assert (await call(app, "DELETE", f"/v1beta/{file['name']}", AT)).status == 200
            assert not owned(upstream.simulator)
            assert not blobs.all
            for prefix in ("pooled/", "content/", "bound/files"):
                assert not await store.scan(prefix), prefix
            await asyncio.sleep(70)
            assert (await generate(app, file)).status == 403

    play(scene)


def test_a_copy_that_google_has_lost_is_made_again_once() -> None:
    async def scene() -> None:
        keys = projects(2, rpm=4)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            for _ in range(5):
                assert (await generate(app, file)).status == 200
            simulator = upstream.simulator
            (copy,) = set(owned(simulator)) - {file["name"]}
            for name, project in owned(simulator).items():  # all of them
                simulator.service.resources.remove(name, project)
            got = await generate(app, file)
            assert got.status == 200, got.body
            again = owned(simulator)
            assert len(again) == 1
            assert copy not in again

    play(scene)


def test_a_file_that_cannot_be_had_any_more_is_refused_under_its_own_name() -> None:
    async def scene() -> None:
        keys, blobs = projects(2, rpm=4), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            file = await upload(app)
            blobs.all.clear()
            assert (await generate(app, file)).status == 200
            simulator = upstream.simulator
            simulator.service.resources.remove(file["name"], owned(simulator)[file["name"]])
            got = await generate(app, file)
            assert got.status in (403, 503), got.body
            assert "px-" not in got.body.decode()

    play(scene)


def test_a_file_that_is_too_old_is_not_there_any_more() -> None:
    async def scene() -> None:
        keys = projects(3)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            await asyncio.sleep(48 * 3600 + 1)
            got = await generate(app, file)
            assert (got.status, got.json["error"]["status"]) == (403, "PERMISSION_DENIED")

    run_virtually(scene())


def test_with_a_cache_beside_it_the_file_comes_to_the_caches_project() -> None:
    async def scene() -> None:
        keys = projects(3)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            long = {"contents": [{"role": "user", "parts": [{"text": "word " * 6000}]}], "model": f"models/{FLASH}"}
            cache = await call(app, "POST", "/v1beta/cachedContents", AT, long)
            assert cache.status == 200, cache.body
            owner = await owner_of(app.ownership, cache.json["name"])
            assert owner is not None
            file = await upload(app)
            while owned(upstream.simulator)[file["name"]] == owner.project:
                file = await upload(app, file["name"].encode())
            body = asks(file, cachedContent=cache.json["name"])
            got = await call(app, "POST", path_of(FLASH), AT, body)
            assert got.status == 200, got.body
            assert served_by(upstream.simulator) == [owner.project]

    play(scene)


def test_a_cache_of_a_pooled_file_is_made_where_the_file_is() -> None:
    async def scene() -> None:
        keys = projects(4)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app, b"word " * 8000)
            body = asks(file, text="word " * 6000) | {"model": f"models/{FLASH}"}
            for _ in range(4):
                cache = await call(app, "POST", "/v1beta/cachedContents", AT, body)
                assert cache.status == 200, cache.body
                owner = await owner_of(app.ownership, cache.json["name"])
                assert owner is not None
                assert owner.project == owned(upstream.simulator)[file["name"]]
                used = await call(app, "POST", path_of(FLASH), AT, HELLO | {"cachedContent": cache.json["name"]})
                assert used.status == 200, used.body

    play(scene)


def test_counting_and_openais_paths_take_pooled_files_too() -> None:
    async def scene() -> None:
        keys = projects(3, rpm=1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            for _ in range(4):
                assert (await generate(app, file, path=COUNT)).status == 200
            assert len(owned(upstream.simulator)) == 1, "what takes no quota goes where the file is"
            for _ in range(2):
                url = {"type": "image_url", "image_url": {"url": file["uri"]}}
                message = {"role": "user", "content": [url, {"type": "text", "text": "Look"}]}
                got = await call(app, "POST", CHAT, AT, {"model": NEXT, "messages": [message]})
                assert got.status == 200, got.body
            sent = [json.loads(c.body)["messages"][0]["content"] for c in upstream.simulator.calls if "chat" in c.path]
            assert len({content[0]["image_url"]["url"] for content in sent}) == 2

    play(scene)


def test_a_reference_with_odd_escapes_is_renamed_all_the_same() -> None:
    async def scene() -> None:
        keys = projects(2, rpm=1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            plain = json.dumps(asks(file))
            slashes = plain.replace(file["uri"], file["uri"].replace("/", "\\/")).encode()
            odd = plain.replace(file["uri"], file["uri"].replace("/", "\\u002f")).encode()
            for model, body in ((FLASH, slashes), (NEXT, odd)):
                for _ in range(2):
                    got = await call(app, "POST", path_of(model), {**AT, "x-pollux-fallback": "off"}, body)
                    assert got.status == 200, got.body
            assert b"\\/files\\/px-" in b"".join(c.body for c in upstream.simulator.calls)

    play(scene)


# --- troubles --------------------------------------------------------------------------------------------------------


def test_without_a_blob_store_files_stay_where_they_are_loudly(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        keys, blobs = projects(3, rpm=1), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            before = await upload(app)
            blobs.down = True
            await asyncio.sleep(60)
            pinned = await upload(app, b"something else")
            assert "an upload passes to one project" in caplog.text
            assert (await generate(app, pinned)).status == 200
            quick = {**AT, "x-pollux-max-wait": "0", "x-pollux-fallback": "off"}
            second = await call(app, "POST", path_of(FLASH), quick, asks(pinned))
            assert (second.status, second.reason) == (429, "QUOTA_BUSY")
            assert (await call(app, "POST", path_of(NEXT), quick, asks(before))).status == 200
            held = await call(app, "POST", path_of(NEXT), quick, asks(before))
            assert (held.status, held.reason) == (429, "QUOTA_BUSY")
            assert "can only go to projects that have its files" in caplog.text
            assert len(owned(upstream.simulator)) == 2
            said = app.pooled_files.as_json() if app.pooled_files else {}
            assert (said["blobs"], said["passed_through"]) == ("down", 1)
            assert said["kept_to_copies"] >= 1
            blobs.down = False
            await asyncio.sleep(60)
            for _ in range(3):
                assert (await generate(app, before)).status == 200
            assert len(owned(upstream.simulator)) > 2

    play(scene)


def test_status_tells_of_pooled_files() -> None:
    async def scene() -> None:
        keys, blobs = projects(2, rpm=1), MemoryBlobs()
        async with gateway(google(keys), keys, blobs) as app:
            file = await upload(app)
            await upload(app)
            for _ in range(2):
                assert (await generate(app, file)).status == 200
            asked = await call(app, "GET", "/admin/status", {"authorization": f"Bearer {ADMIN}"})
            said = as_text(status_view(asked.json))
            assert "pooled files: 1 uploaded, 1 known already, 1 copied" in said
            assert "BLOB STORE" not in said
            blobs.down = True
            await asyncio.sleep(60)
            await upload(app, b"more")
            asked = await call(app, "GET", "/admin/status", {"authorization": f"Bearer {ADMIN}"})
            assert "BLOB STORE TROUBLE: blobs memory: the test has taken them away" in as_text(status_view(asked.json))

    play(scene)


def test_a_blob_store_that_goes_down_within_an_upload() -> None:
    async def scene() -> None:
        keys, blobs = projects(3), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            fresh, begun = await start(app), await start(app)
            big = b"a" * 2 * 1024 * 1024
            assert status(await chunk(app, begun, "upload", big)) == (200, "active")
            blobs.down = True
            broken = await chunk(app, begun, "upload, finalize", b"b", len(big))
            assert status(broken) == (503, None), "without a status the SDKs send the chunk again"
            assert broken.reason == "BLOBS_DOWN"
            assert b"memory" not in broken.body, "where the blobs are is no client's business"
            done = await chunk(app, fresh, "upload, finalize", TEXT)
            assert status(done) == (200, "final"), "nothing of it had come: it went on at Google"
            assert (await call(app, "GET", f"/v1beta/{done.json['file']['name']}", AT, token=OTHER)).status == 200
            blobs.down = False
            await asyncio.sleep(20)
            assert status(await chunk(app, begun, "upload, finalize", b"b", len(big))) == (200, "final")

    play(scene)


def test_a_project_that_refuses_the_copy_is_left_out() -> None:
    async def scene() -> None:
        keys = projects(3, rpm=1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            home = owned(upstream.simulator)[file["name"]]
            bad, good = sorted({"p1", "p2", "p3"} - {home})
            upstream.simulator.faults.append(Fault(kind="overloaded", project=bad, verb="upload.start"))
            upstream.simulator.faults.append(Fault(kind="overloaded", project=bad, verb="upload.chunk"))
            for _ in range(2):
                got = await call(app, "POST", path_of(FLASH), {**AT, "x-pollux-fallback": "off"}, asks(file))
                assert got.status == 200, got.body
            assert set(served_by(upstream.simulator)) == {home, good}
            third = await call(app, "POST", path_of(FLASH), {**AT, "x-pollux-fallback": "off"}, asks(file))
            assert third.status == 200, "it waited for a project that has the file"

    play(scene)


def test_a_copy_that_google_cannot_process_is_given_up() -> None:
    async def scene() -> None:
        keys = projects(2, rpm=1)
        upstream = google(keys, processing=5.0)
        async with gateway(upstream, keys, MemoryBlobs(), max_wait=100.0) as app:
            file = await upload(app)
            await asyncio.sleep(6)
            plain = {**AT, "x-pollux-fallback": "off"}
            assert (await call(app, "POST", path_of(FLASH), plain, asks(file))).status == 200
            files = upstream.simulator.service.files
            shown = files.show

            def failed(resource: object, base: str) -> dict[str, object]:
                said = shown(resource, base)  # type: ignore[arg-type]
                return said | {"state": "FAILED"} if said["name"].startswith("files/px-") else said

            files.show = failed  # type: ignore[assignment,method-assign]
            began = now()
            got = await call(app, "POST", path_of(FLASH), plain, asks(file))
            assert got.status == 200, got.body
            assert now() - began > 40, "only the file's own project is left, and its minute was used"
            assert list(owned(upstream.simulator)) == [file["name"]]

    play(scene)


def test_the_requests_deadline_bounds_the_wait_for_a_copy() -> None:
    async def scene() -> None:
        keys = projects(2, rpm=1)
        upstream = google(keys, processing=120.0)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app)
            await asyncio.sleep(121)
            plain = {**AT, "x-pollux-fallback": "off", "x-pollux-max-wait": "5"}
            assert (await call(app, "POST", path_of(FLASH), plain, asks(file))).status == 200
            began = now()
            late = await call(app, "POST", path_of(FLASH), plain, asks(file))
            assert (late.status, late.reason, late.headers["retry-after"]) == (503, "COPY_PENDING", "5")
            assert 4.5 < now() - began < 6
            await asyncio.sleep(125)
            assert len(uploads(upstream.simulator)) == 2
            assert (await call(app, "POST", path_of(FLASH), plain, asks(file))).status == 200
            assert (await call(app, "POST", path_of(FLASH), plain, asks(file))).status == 200

    play(scene)


def test_a_copy_whose_waiters_all_left_ends_and_frees_its_lease() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2, rpm=1), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=store) as app:
            file = await upload(app)
            plain = {**AT, "x-pollux-fallback": "off"}
            assert (await call(app, "POST", path_of(FLASH), plain, asks(file))).status == 200
            blobs.slow = 30.0
            left = await call(app, "POST", path_of(FLASH), plain, asks(file), leaves=5.0)
            assert left.status == 0
            ((document, _),) = (await store.scan("pooled/")).values()
            assert len(document["copies"]) == 1, "no lease is left"
            await asyncio.sleep(60)
            assert len(owned(upstream.simulator)) == 1

    play(scene)


@pytest.mark.parametrize("cloud", [True, False])
def test_in_the_cloud_no_copy_outlives_the_last_request_for_it(cloud: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if cloud:
        monkeypatch.setenv("K_SERVICE", "gateway")

    async def scene() -> None:
        keys, blobs, store = projects(2, rpm=1), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=store) as app:
            file = await upload(app)
            quick = {**AT, "x-pollux-fallback": "off", "x-pollux-max-wait": "5"}
            assert (await call(app, "POST", path_of(FLASH), quick, asks(file))).status == 200
            blobs.slow = 30.0
            late = await call(app, "POST", path_of(FLASH), quick, asks(file))
            assert (late.status, late.reason) == (503, "COPY_PENDING")
            ((document, _),) = (await store.scan("pooled/")).values()
            assert len(document["copies"]) == (1 if cloud else 2), "the lease"
            await asyncio.sleep(60)
            assert len(owned(upstream.simulator)) == (1 if cloud else 2)

    play(scene)


def test_a_request_that_comes_as_the_last_waiter_leaves_gets_a_new_copy() -> None:
    async def scene() -> None:
        keys, blobs = projects(2, rpm=2), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            file = await upload(app)
            plain = {**AT, "x-pollux-fallback": "off"}
            for _ in range(2):
                assert (await call(app, "POST", path_of(FLASH), plain, asks(file))).status == 200
            blobs.slow = 10.0

            async def later() -> Got:
                await asyncio.sleep(5.0)
                return await call(app, "POST", path_of(FLASH), plain, asks(file))

            left, came = await asyncio.gather(call(app, "POST", path_of(FLASH), plain, asks(file), leaves=5.0), later())
            assert (left.status, came.status) == (0, 200)
            assert len(owned(upstream.simulator)) == 2

    play(scene)


def test_a_lease_of_an_instance_that_died_ends_by_time() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2, rpm=1), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=store) as app:
            file = await upload(app)
            plain = {**AT, "x-pollux-fallback": "off"}
            assert (await call(app, "POST", path_of(FLASH), plain, asks(file))).status == 200
            ((name, (document, version)),) = (await store.scan("pooled/")).items()
            (home,) = document["copies"]
            other = "p2" if home == "p1" else "p1"
            document["copies"][other] = {"by": "an instance that died", "until": now() + 20}
            await store.commit(name, document, version)
            began = now()
            got: Got = await call(app, "POST", path_of(FLASH), plain, asks(file))
            assert got.status == 200, got.body
            assert 20 <= now() - began < 30
            assert served_by(upstream.simulator)[-1] == other

    play(scene)
