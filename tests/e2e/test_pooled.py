"""POLLUX_FILES=pooled with Google's SDK and gateways as processes: one upload, served by every project, kept once."""

import base64
import io
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from gemini_simulator import Fault, Owning, Simulator
from tests.backends.blobs.storage_server import BUCKET, storage
from tests.e2e.processes import FLASH, Gateway, call, environment, eventually, gateway, serving, simulated, write_keys
from tests.e2e.test_google_genai import client

ONE, TWO = "pooled-token-of-one", "pooled-token-of-two"
LIMITS = {FLASH: {"rpm": 5}}
DATA = bytes(range(251)) * 80_000  # three chunks of an SDK
NUMBERS = itertools.count()
QUICK = {"x-pollux-fallback": "off"}


def token(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"token": f"one={ONE},two={TWO}", "files": "pooled"}


@contextmanager
def pooled(folder: Path, projects: int = 8, **more: Any) -> Iterator[tuple[Simulator, Gateway]]:
    blobs = f"file://{folder / 'blobs'}"
    keys = range(1, projects + 1)
    with (
        simulated(projects, **more) as (simulator, url),
        gateway(folder, url, keys=[*keys], limits=LIMITS, **token({"blobs": blobs, "token": ""})) as started,
    ):
        yield simulator, started


def upload(made: genai.Client, data: bytes = DATA, name: str = "The data") -> types.File:
    config = types.UploadFileConfig(mime_type="text/plain", display_name=name)
    return made.files.upload(file=io.BytesIO(data), config=config)


def ask(made: genai.Client, file: types.File, **headers: str) -> str:
    config = types.GenerateContentConfig(http_options=types.HttpOptions(headers=QUICK | headers))
    answer = made.models.generate_content(model=FLASH, contents=[file, "What is it?"], config=config)
    assert answer.text
    return answer.text


def files(simulator: Simulator) -> list[dict[str, Any]]:
    return [thing for thing in simulator.owned() if thing["name"].startswith("files/")]


def served(simulator: Simulator) -> Counter[str]:
    return Counter(c.project or "" for c in simulator.calls if c.path.endswith(":generateContent") and c.status == 200)


def test_forty_requests_on_one_file_are_served_at_once_by_eight_projects(tmp_path: Path) -> None:
    with pooled(tmp_path) as (simulator, started), client(started.url, ONE) as made:
        file = upload(made)
        assert file.name is not None
        assert (file.display_name, file.size_bytes) == ("The data", len(DATA))
        assert [thing["name"] for thing in files(simulator)] == [file.name]
        began = time.monotonic()
        with ThreadPoolExecutor(40) as threads:
            list(threads.map(lambda _: ask(made, file), range(40)))
        assert time.monotonic() - began < 20
        assert served(simulator) == {f"team-{number}": 5 for number in range(1, 9)}
        assert len(files(simulator)) == 8
        assert len({thing["sha256"] for thing in files(simulator)}) == 1
        assert [one.name for one in made.files.list()] == [file.name]
        status = started.status()["pooled_files"]
        assert (status["uploaded"], status["copied"], status["blobs"]) == (1, 7, "ok")
        made.files.delete(name=file.name)
        assert not files(simulator)
        assert [path.name for path in (tmp_path / "blobs").iterdir() if path.name.startswith("u-")] == []
        assert ONE not in started.said()


def test_two_clients_have_files_of_their_own(tmp_path: Path) -> None:
    with (
        pooled(tmp_path, 2) as (simulator, started),
        client(started.url, ONE) as one,
        client(started.url, TWO) as two,
    ):
        mine, again, theirs = upload(one), upload(one), upload(two)
        assert mine.name == again.name != theirs.name
        assert len(files(simulator)) == 2
        with pytest.raises(errors.ClientError, match="do not have permission to access the File"):
            two.files.get(name=str(mine.name))
        with pytest.raises(errors.ClientError, match="do not have permission to access the File"):
            ask(two, mine)
        assert [file.name for file in two.files.list()] == [theirs.name]
        ask(one, mine)


def test_a_file_that_is_being_processed_is_copied_and_waited_for(tmp_path: Path) -> None:
    with pooled(tmp_path, 2, owning=Owning(processing=1.5)) as (simulator, started), client(started.url, ONE) as made:
        file = upload(made)
        eventually(5, lambda: made.files.get(name=str(file.name)).state == types.FileState.ACTIVE)
        for _ in range(6):
            ask(made, file)
        assert set(served(simulator)) == {"team-1", "team-2"}
        assert str(made.files.get(name=str(file.name)).uri).endswith(f"/{file.name}")


@pytest.fixture
def shared(tmp_path: Path, firestore_emulator: str) -> Iterator[tuple[Simulator, Gateway, Gateway]]:
    settings = token(
        {"store": f"firestore://pooled-{os.getpid()}-{next(NUMBERS)}", "admin_token": "pooled-admin-token"}
    )
    settings |= {"keys_file": str(write_keys(tmp_path, [1, 2, 3, 4], LIMITS)), "blobs": f"file://{tmp_path / 'blobs'}"}
    with simulated(4) as (simulator, url):
        environ = environment(**settings, upstream=url) | {"FIRESTORE_EMULATOR_HOST": firestore_emulator}
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        with serving(tmp_path / "one", environ) as one, serving(tmp_path / "two", environ) as two:
            one.admin = two.admin = "pooled-admin-token"
            yield simulator, one, two


def test_two_gateways_upload_the_same_content_once_and_copy_it_once(
    shared: tuple[Simulator, Gateway, Gateway],
) -> None:
    simulator, *both = shared
    made = [client(one.url, ONE) for one in both]
    with made[0] as first, made[1] as second, ThreadPoolExecutor(20) as threads:
        found = list(threads.map(lambda number: upload((first, second)[number % 2]), range(10)))
        assert len({file.name for file in found}) == 1
        assert len(files(simulator)) == 1
        list(threads.map(lambda number: ask((first, second)[number % 2], found[0]), range(20)))
        assert served(simulator) == {f"team-{number}": 5 for number in range(1, 5)}
        assert len(files(simulator)) == 4, "one in each project"
        for _ in range(10):
            second.files.delete(name=str(found[0].name))
        assert not files(simulator)
        with pytest.raises(errors.ClientError):
            first.files.get(name=str(found[0].name))


def test_a_gateway_that_is_killed_while_it_copies(shared: tuple[Simulator, Gateway, Gateway]) -> None:
    simulator, one, two = shared
    with client(one.url, ONE) as first, client(two.url, ONE) as second:
        file = upload(first)
        home = files(simulator)[0]["project"]
        others = sorted({f"team-{number}" for number in range(1, 5)} - {home})
        for project in others:  # the copy hangs there
            simulator.faults.append(Fault(kind="hang", project=project, verb="upload.chunk", seconds=30.0, count=1))
        for _ in range(5):
            ask(first, file)
        with ThreadPoolExecutor(1) as threads:
            lost = threads.submit(pytest.raises, Exception, ask, first, file)
            hangs = eventually(
                10, lambda: [c for c in simulator.calls if c.verb == "upload.chunk" and c.fault == "hang"]
            )
            one.signal(signal.SIGKILL)
            lost.result(20)
        simulator.faults.clear()
        began = time.monotonic()
        ask(second, file)
        assert time.monotonic() - began < 100, "the lease of the dead one ends by time, and others have no lease"
        assert hangs


def test_a_folder_that_cannot_be_used_leaves_files_with_their_projects(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("no folder")
    with pooled(tmp_path, 2) as (simulator, started), client(started.url, ONE) as made:
        file = upload(made)
        ask(made, file)
        assert len(files(simulator)) == 1
        assert "the blob store does not work" in started.said()
        assert started.status()["pooled_files"]["passed_through"] == 1
        assert call(started.url, "GET", f"/v1beta/{file.name}", headers={"x-goog-api-key": TWO}).status == 200


def memory(started: Gateway) -> int:
    """The most that it ever held, MB."""
    lines = Path(f"/proc/{started.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def test_memory_stays_where_it_is_whatever_is_taken_in_and_copied(tmp_path: Path) -> None:
    with pooled(tmp_path, 4) as (simulator, started), client(started.url, ONE) as made:
        small = upload(made, b"small")
        ask(made, small)
        before = memory(started)
        with ThreadPoolExecutor(4) as threads:
            large = list(threads.map(lambda n: upload(made, bytes([n]) * (48 << 20)), range(4)))
            list(threads.map(lambda _: ask(made, large[0]), range(19)))  # all of what four projects have left
        assert len({thing["project"] for thing in files(simulator) if thing["sha256"] == sha256_of(large[0])}) == 4
        assert memory(started) - before < 60


def sha256_of(file: types.File) -> str:
    """Google writes the digest in hexadecimal and that in Base64."""
    return base64.b64decode(file.sha256_hash or "").decode()


def test_in_a_bucket(tmp_path: Path) -> None:
    with storage() as bucket, simulated(2) as (simulator, url):
        settings = token({"store": "memory://", "admin_token": "pooled-admin-token", "data": str(tmp_path)})
        settings |= {"keys_file": str(write_keys(tmp_path, [1, 2], LIMITS)), "blobs": f"gs://{BUCKET}/pooled"}
        environ = environment(**settings, upstream=url) | {"STORAGE_EMULATOR_HOST": bucket.address}
        with serving(tmp_path, environ) as started, client(started.url, ONE) as made:
            file = upload(made)
            assert sum(len(one.data) for one in bucket.objects.values()) == len(DATA)
            for _ in range(6):
                ask(made, file)
            assert len(served(simulator)) == 2
            assert {thing["sha256"] for thing in files(simulator)} == {sha256_of(file)}
            made.files.delete(name=str(file.name))
            assert not bucket.objects
