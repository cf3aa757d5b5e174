"""Many writers of one document, as tasks and as processes: not one count is lost, also if one of them is killed."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pollux.backends.store.contract import Document
from pollux.backends.store.opening import open_store
from tests.backends.store.contract.writer import count_up

WRITER = Path(__file__).with_name("writer.py")
FOREVER = 1_000_000


@contextmanager
def writers(url: str, counts: Mapping[str, int]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    with ExitStack() as ending:
        processes = {}
        for name, count in counts.items():
            command = [sys.executable, str(WRITER), url, name, str(count)]
            processes[name] = ending.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            ending.callback(processes[name].kill)
        yield processes


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def rest(process: subprocess.Popen[str]) -> list[str]:
    # Not communicate(): it does not know what readline() has read ahead.
    assert process.stdout is not None
    return process.stdout.read().split()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def counter(url: str) -> Document:
    async def read() -> Document:
        store = open_store(url)
        await store.open()
        document, _ = (await store.read(["counter"]))["counter"]
        await store.close()
        return document

    return asyncio.run(read())


def test_eight_tasks_lose_no_count(url: str) -> None:
    async def play() -> Document:
        store = open_store(url)
        await store.open()

        async def writer(name: str) -> None:
            for _ in range(25):
                await count_up(store, name)

        await asyncio.gather(*(writer(f"task-{number}") for number in range(8)))
        document, _ = (await store.read(["counter"]))["counter"]
        await store.close()
        return document

    assert asyncio.run(play()) == {"total": 200, "by": {f"task-{number}": 25 for number in range(8)}}


def test_four_processes_open_an_empty_store_at_once_and_lose_no_count(shared_url: str) -> None:
    counts = {f"p{number}": 200 for number in range(4)}
    with writers(shared_url, counts) as processes:
        for process in processes.values():
            go(process)
        for process in processes.values():
            assert ended(process) == (0, "")
    assert counter(shared_url) == {"total": 800, "by": counts}


def test_what_a_killed_process_had_committed_is_there_and_the_others_go_on(shared_url: str) -> None:
    counts = {"p1": 300, "p2": 300, "p3": 300}
    with writers(shared_url, {"victim": FOREVER, **counts}) as processes:
        assert [said(process) for process in processes.values()] == ["ready"] * 4
        for process in processes.values():
            go(process)
        victim = processes.pop("victim")
        for number in range(1, 21):
            assert said(victim) == str(number)
        victim.kill()  # SIGKILL, in the middle of its next commits
        victim.wait()
        acknowledged = int(["20", *rest(victim)][-1])
        for process in processes.values():
            assert ended(process) == (0, "")
    end = counter(shared_url)
    # One commit may have been applied whose line was not written any more.
    assert end["by"].pop("victim") - acknowledged in (0, 1)
    assert end["by"] == counts
    assert end["total"] - acknowledged - 900 in (0, 1)
