"""Google's own SDK against a gateway: what it does and raises with Google, it does and raises here."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, LAST, TOKEN

# Every release of the SDK so far derives from a class of aiohttp that warns about it.
AIOHTTP = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")


@contextmanager
def client(url: str, token: str = TOKEN, **options: Any) -> Iterator[genai.Client]:
    with genai.Client(api_key=token, http_options=types.HttpOptions(base_url=url, **options)) as made:
        yield made


def test_plain(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        answer = made.models.generate_content(model=FLASH, contents="Hello there")
    assert "Hello there" in (answer.text or "")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.prompt_token_count == 3
    assert answer.sdk_http_response is not None
    assert (answer.sdk_http_response.headers or {})["x-pollux-model"] == FLASH
    assert len(pair.simulator.calls) == 1


def test_a_key_belongs_to_the_pool_not_to_the_client(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        made.models.generate_content(model=FLASH, contents="Hello")
    call = pair.simulator.calls[-1]
    assert call.key in {"key-1", "key-2", "key-3", "key-4"}
    assert TOKEN not in repr(call.headers) + call.query


def test_streamed(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        chunks = list(made.models.generate_content_stream(model=FLASH, contents="Hello there"))
    assert len(chunks) == 4
    assert "Hello there" in "".join(chunk.text or "" for chunk in chunks)
    assert chunks[-1].usage_metadata is not None
    assert chunks[-1].usage_metadata.prompt_token_count == 3
    assert pair.simulator.calls[-1].stream == "sse"


@AIOHTTP
def test_async(pair: Pair) -> None:
    async def ask() -> tuple[str, int]:
        made = genai.Client(api_key=TOKEN, http_options=types.HttpOptions(base_url=pair.gateway.url)).aio
        try:
            plain = await made.models.generate_content(model=FLASH, contents="Hello there")
            stream = await made.models.generate_content_stream(model=FLASH, contents="Hello there")
            return plain.text or "", len([chunk async for chunk in stream])
        finally:
            await made.aclose()

    text, chunks = asyncio.run(ask())
    assert "Hello there" in text
    assert chunks == 4


def test_count_tokens_and_embeddings(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        assert made.models.count_tokens(model=FLASH, contents="Hello there").total_tokens == 3
        found = made.models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
    assert found.embeddings is not None
    assert len(found.embeddings) == 2
    assert found.embeddings[0].values
    assert found.embeddings[0].values != found.embeddings[1].values


def test_models(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        names = {model.name for model in made.models.list(config={"page_size": 10})}
        one = made.models.get(model=FLASH)
    assert {f"models/{FLASH}", "models/gemini-embedding-001", "models/production"} <= names
    assert one.name == f"models/{FLASH}"
    assert one.input_token_limit == 1_048_576


def test_an_alias_is_a_model(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        answer = made.models.generate_content(model="production", contents="Hello")
    assert answer.model_version == FLASH
    assert pair.simulator.calls[-1].model == FLASH


def test_wrong_token(pair: Pair) -> None:
    with client(pair.gateway.url, "test-token-of-somebody-else") as made, pytest.raises(errors.ClientError) as caught:
        made.models.generate_content(model=FLASH, contents="Hello")
    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
    assert TOKEN not in str(caught.value)
    assert not pair.simulator.calls


@AIOHTTP
def test_wrong_token_async_and_streamed(pair: Pair) -> None:
    async def ask() -> None:
        options = types.HttpOptions(base_url=pair.gateway.url)
        made = genai.Client(api_key="test-token-of-somebody-else", http_options=options).aio
        try:
            async for _ in await made.models.generate_content_stream(model=FLASH, contents="Hello"):
                pass
        finally:
            await made.aclose()

    with pytest.raises(errors.ClientError) as caught:
        asyncio.run(ask())
    assert caught.value.code == 401


def test_rate_limited(pair: Pair) -> None:
    def use_up(made: genai.Client) -> None:
        for _ in range(5):  # four projects with one request a minute each
            made.models.generate_content(model=LAST, contents="Hello")

    with (
        client(pair.gateway.url, headers={"x-pollux-max-wait": "0"}) as made,
        pytest.raises(errors.ClientError) as caught,
    ):
        use_up(made)
    error = caught.value
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    delays = [d["retryDelay"] for d in error.details["error"]["details"] if d["@type"].endswith("RetryInfo")]
    assert len(delays) == 1
    assert 1 <= int(delays[0].removesuffix("s")) <= 63
    assert error.response is not None
    assert error.response.headers["retry-after"] == delays[0].removesuffix("s")
    assert not pair.simulator.statuses["429"]


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
def test_any_version(pair: Pair, version: str) -> None:
    with client(pair.gateway.url, api_version=version) as made:
        assert made.models.generate_content(model=FLASH, contents="Hello").text
    assert pair.simulator.calls[-1].path == f"/{version}/models/{FLASH}:generateContent"


@pytest.mark.parametrize("suffix", ["/", "/v1beta", "/v1beta/"])
def test_base_urls_as_people_write_them(pair: Pair, suffix: str) -> None:
    with client(pair.gateway.url + suffix, api_version="v1beta") as made:
        assert made.models.generate_content(model=FLASH, contents="Hello").text
        assert len(list(made.models.generate_content_stream(model=FLASH, contents="Hello"))) == 4
    assert {call.path.rpartition(":")[0] for call in pair.simulator.calls} == {f"/v1beta/models/{FLASH}"}


def test_a_stream_that_breaks_raises(pair: Pair) -> None:
    pair.simulator.faults.append(Fault(kind="mid-reset", after=2))
    texts: list[str | None] = []
    with client(pair.gateway.url) as made, pytest.raises(errors.ServerError) as caught:
        texts.extend(c.text for c in made.models.generate_content_stream(model=FLASH, contents="Hello"))
    assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")
    assert len(texts) == 2
    assert len(pair.simulator.calls) == 1


def test_a_stream_that_ends_in_an_error_raises(pair: Pair) -> None:
    pair.simulator.faults.append(Fault(kind="mid-error", after=2))
    with client(pair.gateway.url) as made, pytest.raises(errors.ServerError) as caught:
        list(made.models.generate_content_stream(model=FLASH, contents="Hello"))
    assert caught.value.code == 503
    assert len(pair.simulator.calls) == 1


def test_a_bad_request_is_googles_own(pair: Pair) -> None:
    with client(pair.gateway.url) as made, pytest.raises(errors.ClientError) as caught:
        made.models.generate_content(model=FLASH, contents=types.Content(role="user", parts=[]))
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert len(pair.simulator.calls) == 1
