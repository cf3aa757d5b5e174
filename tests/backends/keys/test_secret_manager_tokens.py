"""Client and admin tokens in Secret Manager: several valid at once, and what goes wrong."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.secret_manager import SecretManagerTokens
from pollux.backends.keys.secrets_api import SecretsApi
from pollux.backends.keys.tokens import Tokens, TokenSource
from tests.backends.keys.fake_secret_manager import PROJECT, SecretManager, serving

ONE, TWO, THREE, ADMIN, ADMIN_TWO = (f"pollux-{word}-{'0' * 16}" for word in ("one", "two", "three", "boss", "chief"))
LIST, VERSIONS, ACCESS = "list_secrets", "list_secret_versions", "access_secret_version"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def google() -> Iterator[SecretManager]:
    with serving() as secrets:
        yield secrets


class Source(SecretManagerTokens):
    def __init__(self, google: SecretManager) -> None:
        self.time = Clock()
        api = SecretsApi(PROJECT, environ={"SECRET_MANAGER_EMULATOR_HOST": google.host}, read_s=2.0)
        super().__init__(PROJECT, query_token=False, api=api, clock=self.time)

    async def later(self, seconds: float) -> Tokens:
        self.time.now += seconds
        await self.tokens()
        while (task := self._list._task) is not None:
            await asyncio.wait({task})
        return await self.tokens()


def run(google: SecretManager, test: Callable[[Source], Coroutine[Any, Any, None]]) -> None:
    async def with_source() -> None:
        source = Source(google)
        try:
            await test(source)
        finally:
            await source.close()

    asyncio.run(with_source())


def client(tokens: Tokens, token: str) -> str | None:
    return tokens.check([(b"x-goog-api-key", token.encode())])


def admin(tokens: Tokens, token: str) -> bool:
    return tokens.admin([(b"authorization", b"Bearer " + token.encode())])


def test_every_enabled_version_is_valid_and_names_its_client(google: SecretManager) -> None:
    google.put("pollux-token-web", ONE, TWO + "\n")
    google.put("pollux-token-Batch_2", THREE)
    google.put("pollux-admin-token", ADMIN, ADMIN_TWO)
    google.put("pollux-key-a", "AIza" + "a" * 35)

    async def test(source: Source) -> None:
        typed: TokenSource = source
        tokens = await typed.tokens()
        assert [client(tokens, t) for t in (ONE, TWO, THREE, ADMIN)] == ["web", "web", "Batch_2", None]
        assert [admin(tokens, t) for t in (ADMIN, ADMIN_TWO, ONE)] == [True, True, False]
        assert source.problems == ()
        assert tokens.complete
        assert google.asked.count((ACCESS, "pollux-key-a")) == 0

    run(google, test)


def test_the_first_deployment_has_none_yet(google: SecretManager) -> None:
    async def test(source: Source) -> None:
        tokens = await source.tokens()
        assert (tokens.for_clients, tokens.for_admin, tokens.complete) == (0, 0, True)
        google.put("pollux-token-web", ONE)
        assert client(await source.later(31), ONE) == "web"

    run(google, test)


def test_a_change_is_seen_within_a_minute_and_no_change_costs_no_new_object(google: SecretManager) -> None:
    google.put("pollux-token-web", ONE)

    async def test(source: Source) -> None:
        before = await source.tokens()
        assert await source.later(31) is before
        assert google.calls[ACCESS] == 1  # a version never changes: it is read once
        google.add("pollux-token-web", TWO)
        both = await source.later(31)
        assert [client(both, token) for token in (ONE, TWO)] == ["web", "web"]
        assert google.calls[ACCESS] == 2
        google.disable("pollux-token-web", 1, "DESTROYED")
        after = await source.later(31)
        assert [client(after, token) for token in (ONE, TWO)] == [None, "web"]
        del google.secrets["pollux-token-web"]
        assert client(await source.later(31), TWO) is None

    run(google, test)


def test_a_secret_that_was_made_anew_has_other_tokens(google: SecretManager) -> None:
    google.put("pollux-token-web", ONE)

    async def test(source: Source) -> None:
        await source.tokens()
        google.put("pollux-token-web", TWO)
        tokens = await source.later(31)
        assert [client(tokens, token) for token in (ONE, TWO)] == [None, "web"]

    run(google, test)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("pollux-token-9lives", ONE, "a client's name is a letter"),
        ("pollux-token-web", "abc", "version 1 is not a token: fewer than 4 characters"),
        ("pollux-token-web", "with a space", "version 1 is not a token: has characters that a header cannot carry"),
        ("pollux-token-web", ADMIN, "version 1 is not a token: a client token is the same"),
        ("pollux-token-web", "web=", "version 1 is not a token: the token is the client's name"),
        ("pollux-token-web", "$UNSET", "version 1 is not a token: a placeholder"),
        ("pollux-admin-token", "changeme", "version 1 is not a token: a placeholder"),
        ("pollux-admin-token", "abc", "version 1 is not a token: fewer than 4 characters"),
    ],
)
def test_what_is_no_token_is_a_problem_and_costs_no_other(
    google: SecretManager, name: str, value: str, reason: str
) -> None:
    google.put("pollux-admin-token", ADMIN)
    google.put("pollux-token-zoo", TWO)
    google.put(name, value)

    async def test(source: Source) -> None:
        tokens = await source.tokens()
        assert client(tokens, TWO) == "zoo"
        assert client(tokens, value) is None
        assert admin(tokens, ADMIN) == (name != "pollux-admin-token")
        (problem,) = source.problems
        assert str(problem).startswith(f"secret {name}: {reason}")
        assert value not in str(problem)

    run(google, test)


@pytest.mark.parametrize("value", ["\n", '""', "   ", "", "="])
def test_an_empty_secret_lets_nobody_in_and_is_read_once(google: SecretManager, value: str) -> None:
    google.put("pollux-token-alice", value)
    google.put("pollux-admin-token", value)
    google.put("pollux-token-bob", ONE)

    async def test(source: Source) -> None:
        for tokens in (await source.tokens(), await source.later(31)):
            assert [client(tokens, t) for t in ("alice=" + value, "alice=", "alice==", ONE)] == [
                None,
                None,
                None,
                "bob",
            ]
            assert (tokens.for_clients, tokens.for_admin) == (1, 0)
            reasons = [str(problem) for problem in source.problems]
            expected = "fewer than 4 characters" if value == "=" else "it is empty"
            assert reasons == [
                f"secret {name}: version 1 is not a token: {expected}"
                for name in ("pollux-admin-token", "pollux-token-alice")
            ]
        assert google.calls[ACCESS] == 3

    run(google, test)


def test_a_token_is_taken_as_it_stands(google: SecretManager) -> None:
    google.put("pollux-token-web", "other=" + ONE)

    async def test(source: Source) -> None:
        tokens = await source.tokens()
        assert [client(tokens, t) for t in ("other=" + ONE, "web=other=" + ONE, ONE)] == ["web", None, None]

    run(google, test)


def test_one_that_cannot_be_read_is_told_and_the_set_is_not_complete(google: SecretManager) -> None:
    google.put("pollux-token-a", ONE)
    google.put("pollux-token-b", TWO)
    google.fail(ACCESS, "DENIED", "pollux-token-a")

    async def test(source: Source) -> None:
        tokens = await source.tokens()
        assert [client(tokens, token) for token in (ONE, TWO)] == [None, "b"]
        assert not tokens.complete
        assert "grant roles/secretmanager.secretAccessor on secret pollux-token-a" in str(source.problems[0])
        google.heal()
        tokens = await source.later(31)
        assert client(tokens, ONE) == "a"
        assert tokens.complete
        assert source.problems == ()

    run(google, test)


def test_a_secret_that_fails_later_keeps_its_tokens(google: SecretManager) -> None:
    google.put("pollux-token-a", ONE)

    async def test(source: Source) -> None:
        before = await source.tokens()
        google.fail(VERSIONS, "DENIED", "pollux-token-a")
        assert await source.later(31) is before
        assert "grant roles/secretmanager.viewer on secret pollux-token-a" in str(source.problems[0])

    run(google, test)


def test_an_outage_keeps_the_tokens_and_a_start_in_it_says_why(google: SecretManager) -> None:
    google.put("pollux-token-a", ONE)
    google.fail("*", "UNAVAILABLE")

    async def test(source: Source) -> None:
        with pytest.raises(KeySourceError, match=r"^project pool: Secret Manager did not answer \(UNAVAILABLE\)"):
            await source.tokens()
        google.heal()
        before = await source.later(6)
        assert client(before, ONE) == "a"
        google.fail("*", "UNAVAILABLE")
        assert await source.later(61) is before
        assert str(source.problems[0]).endswith("the tokens known before stay valid")

    run(google, test)


def test_nothing_shows_a_token(google: SecretManager) -> None:
    google.put("pollux-token-a", ONE)

    async def test(source: Source) -> None:
        await source.tokens()
        assert repr(source) == "SecretManagerTokens(Tokens(1 for clients, 0 for the admin))"

    run(google, test)
