"""OpenAI's own SDK against a gateway, over Google's OpenAI-shaped paths and over the plain /v1 aliases."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, LAST, TOKEN

HELLO: Any = [{"role": "user", "content": "Hello there"}]
BASES = ["/v1beta/openai/", "/v1beta/openai", "/v1", "/v1/", "/v1/openai/", "/v1beta/v1beta/openai/"]


@contextmanager
def client(url: str, token: str = TOKEN, base: str = BASES[0], **options: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=token, base_url=url + base, max_retries=0, **options) as made:
        yield made


@pytest.mark.parametrize("base", BASES)
def test_plain_over_every_base(pair: Pair, base: str) -> None:
    with client(pair.gateway.url, base=base) as made:
        answer = made.chat.completions.create(model=FLASH, messages=HELLO)
    assert "Hello there" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    version = "v1" if base == "/v1/openai/" else "v1beta"
    assert [call.path for call in pair.simulator.calls] == [f"/{version}/openai/chat/completions"]


def test_streamed(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        stream = made.chat.completions.create(
            model=FLASH, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "Hello there" in "".join(texts)
    assert len(texts) >= 4
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 3


def test_async(pair: Pair) -> None:
    async def ask() -> tuple[str, int]:
        base = pair.gateway.url + BASES[0]
        async with openai.AsyncOpenAI(api_key=TOKEN, base_url=base, max_retries=0) as made:
            plain = await made.chat.completions.create(model=FLASH, messages=HELLO)
            stream = await made.chat.completions.create(model=FLASH, messages=HELLO, stream=True)
            return plain.choices[0].message.content or "", len([chunk async for chunk in stream])

    text, chunks = asyncio.run(ask())
    assert "Hello there" in text
    assert chunks >= 4


@pytest.mark.parametrize("base", ["/v1beta/openai/", "/v1"])
def test_embeddings_and_models(pair: Pair, base: str) -> None:
    with client(pair.gateway.url, base=base) as made:
        found = made.embeddings.create(model="gemini-embedding-001", input=["one", "two"], encoding_format="float")
        names = {model.id for model in made.models.list()}
    assert len(found.data) == 2
    assert found.data[0].embedding != found.data[1].embedding
    assert f"models/{FLASH}" in names
    assert names & {"production", "models/production"}


def test_only_one_credential_travels(pair: Pair) -> None:
    with client(pair.gateway.url, organization="org-of-nobody", project="project-of-nobody") as made:
        made.chat.completions.create(model=FLASH, messages=HELLO)
    call = pair.simulator.calls[-1]
    names = [name for name, _ in call.headers]
    assert names.count(b"authorization") == 1
    assert not [n for n in names if n.startswith((b"openai-", b"x-stainless", b"x-goog-api-key"))]
    assert TOKEN not in repr(call.headers) + call.query


def test_on_an_alias_only_the_value_of_model_changes(pair: Pair) -> None:
    body = b'{ "messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}],\r\n\t"model" : "production" , "n":1.0}'
    answer = pair.gateway.call("POST", "/v1/chat/completions", body, content_type="application/json")
    assert answer.status == 200, answer.body
    assert pair.simulator.calls[-1].body == body.replace(b'"production"', b'"%s"' % FLASH.encode())


def test_wrong_token(pair: Pair) -> None:
    with client(pair.gateway.url, "test-token-of-somebody-else") as made:
        with pytest.raises(openai.AuthenticationError) as caught:
            made.chat.completions.create(model=FLASH, messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            made.models.list()
    assert caught.value.code == "NO_TOKEN"
    assert not pair.simulator.calls


def test_rate_limited(pair: Pair) -> None:
    def use_up(made: openai.OpenAI) -> None:
        for _ in range(5):
            made.chat.completions.create(model=LAST, messages=HELLO)

    with (
        client(pair.gateway.url, default_headers={"x-pollux-max-wait": "0"}) as made,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        use_up(made)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 63
    assert caught.value.type == "rate_limit_error"
    assert not pair.simulator.statuses["429"]


@pytest.mark.parametrize("kind", ["mid-reset", "mid-error"])
def test_a_stream_that_breaks_raises(pair: Pair, kind: str) -> None:
    pair.simulator.faults.append(Fault(kind=kind, after=2))
    texts: list[str | None] = []
    with client(pair.gateway.url) as made, pytest.raises(openai.APIError):
        texts.extend(
            chunk.choices[0].delta.content
            for chunk in made.chat.completions.create(model=FLASH, messages=HELLO, stream=True)
        )
    assert len(texts) == 2
    assert len(pair.simulator.calls) == 1


def test_a_refusal_of_googles_arrives_as_it_is(pair: Pair) -> None:
    with client(pair.gateway.url) as made, pytest.raises(openai.BadRequestError) as caught:
        made.chat.completions.create(model=FLASH, messages=[])
    assert "empty input" in caught.value.response.text  # in a list, as Google writes it: the SDK reads no message there
    assert len(pair.simulator.calls) == 1


def test_a_model_that_nobody_has(pair: Pair) -> None:
    with client(pair.gateway.url) as made, pytest.raises(openai.NotFoundError):
        made.chat.completions.create(model="gemini-0-nothing", messages=HELLO)
    assert len(pair.simulator.calls) == 1


def test_bytes_that_are_no_json_are_googles_to_refuse(pair: Pair) -> None:
    body = json.dumps({"model": FLASH, "messages": HELLO}).encode()[:-1]
    answer = pair.gateway.call("POST", "/v1/chat/completions", body, content_type="application/json")
    assert answer.status == 400
    assert [call.body for call in pair.simulator.calls] == [body]
