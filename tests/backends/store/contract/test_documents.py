"""What every store must keep of a document: all of it, exactly, and as a copy."""

import asyncio
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollux.backends.store.contract import Document, Store, Write
from pollux.backends.store.opening import open_store
from tests.backends.store.contract.backends import in_store


def test_what_is_not_json_is_refused_and_nothing_applied(url: str) -> None:
    async def scene(store: Store) -> None:
        for value, error in ((math.nan, ValueError), (math.inf, ValueError), (object(), TypeError), ({1}, TypeError)):
            with pytest.raises(error):
                await store.commit("a", {"n": value}, None)
            with pytest.raises(error):
                await store.commit_all([Write("b", {}, None), Write("a", {"n": value}, None)])
        assert await store.scan("") == {}

    in_store(url, scene)


def test_documents_are_copies(url: str) -> None:
    async def scene(store: Store) -> None:
        document: Document = {"list": [1, {"deep": [2]}]}
        version = await store.commit("a", document, None)
        document["list"][1]["deep"].append(3)
        read, _ = (await store.read(["a"]))["a"]
        assert read == {"list": [1, {"deep": [2]}]}
        read["list"].clear()
        scanned, _ = (await store.scan("a"))["a"]
        assert scanned == {"list": [1, {"deep": [2]}]}
        await store.commit_all([Write("a", document, version)])
        document.clear()
        assert (await store.read(["a"]))["a"][0] == {"list": [1, {"deep": [2, 3]}]}

    in_store(url, scene)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def test_a_document_comes_back_exactly(url: str) -> None:
    with asyncio.Runner() as runner:
        store = open_store(url)
        runner.run(store.open())

        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.dictionaries(st.text(), JSON))
        def round_trip(document: Document) -> None:
            async def commit_and_read() -> Document:
                version = await store.commit("a", document, None)
                read, stored = (await store.read(["a"]))["a"]
                await store.delete("a", stored)
                assert stored == version
                return read

            # As text: 1, 1.0 and True are equal to each other, and -0.0 to 0.0.
            assert json.dumps(runner.run(commit_and_read())) == json.dumps(document)

        round_trip()
        runner.run(store.close())


def test_a_document_of_four_kilobytes_and_one_of_a_megabyte(url: str) -> None:
    async def scene(store: Store) -> None:
        for name, body in ("small", "é" * 4096), ("large", "x" * (1_000_000 - len('{"body":""}'))):
            await store.commit(name, {"body": body}, None)
            assert (await store.read([name]))[name][0] == {"body": body}

    in_store(url, scene)
