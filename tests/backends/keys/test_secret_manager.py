"""The keyring in Secret Manager: listing, first use, refusals, refreshes, and every error."""

import asyncio
import logging
import pickle
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from hypothesis import given
from hypothesis import strategies as st

from pollux.backends.keys.contract import Key, Keyring, KeySourceError, Secret
from pollux.backends.keys.entries import ID
from pollux.backends.keys.records import key_id_of, secret_name
from pollux.backends.keys.secret_manager import SecretManagerKeyring
from pollux.backends.keys.secrets_api import SecretError, SecretsApi
from tests.backends.keys.fake_secret_manager import PROJECT, SecretManager, serving

A, B, C = ("AIza" + letter * 35 for letter in "abc")
LIST, VERSIONS, ACCESS = "list_secrets", "list_secret_versions", "access_secret_version"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def google() -> Iterator[SecretManager]:
    with serving() as secrets:
        yield secrets


class Ring(SecretManagerKeyring):
    """The keyring of a test: its own clock, short time limits."""

    def __init__(self, google: SecretManager, project: str = PROJECT, read_s: float = 2.0) -> None:
        self.time = Clock()
        api = SecretsApi(project, environ={"SECRET_MANAGER_EMULATOR_HOST": google.host}, read_s=read_s)
        super().__init__(project, api=api, clock=self.time)

    async def later(self, seconds: float) -> tuple[Key, ...]:
        """The keys after a while, with the refresh that is due then."""
        self.time.now += seconds
        await self.keys()
        await settled(self)
        return await self.keys()


async def settled(ring: SecretManagerKeyring) -> None:
    while (task := ring._list._task) is not None:
        await asyncio.wait({task})


def run(google: SecretManager, test: Callable[[Ring], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def with_ring() -> None:
        ring = Ring(google, **options)
        try:
            await test(ring)
        finally:
            await ring.close()

    asyncio.run(with_ring())


# --- what is a key ---------------------------------------------------------------------------------------------------


def test_a_secret_made_by_hand_is_a_key(google: SecretManager) -> None:
    google.put("pollux-key-alice", A + "\n", project="team-a", tier="free")
    google.put("pollux-key-bob", B)
    google.put("another-secret", C)
    google.put("old-pollux-key-x", C)

    async def test(ring: Ring) -> None:
        assert await ring.keys() == (Key("alice", "team-a", "free"), Key("bob", "bob"))
        assert (await ring.value("alice")).reveal() == A
        assert ring.problems == ()

    run(google, test)


def test_limits_and_odd_projects_stand_in_annotations(google: SecretManager) -> None:
    annotations = {"pollux-project": "Example.com:Pool", "pollux-limits": '{"*":{"rpm":5}}'}
    google.put_described("pollux-key-a", (A,), {"tier": "tier1", "enabled": "false"}, annotations)

    async def test(ring: Ring) -> None:
        assert await ring.keys() == (Key("a", "Example.com:Pool", "tier1", {"*": {"rpm": 5}}, enabled=False),)

    run(google, test)


@pytest.mark.parametrize(
    ("name", "labels", "annotations", "reason"),
    [
        ("pollux-key-_one", {}, {}, "an id is 1 to 63"),
        ("pollux-key-a", {"tier": "gold"}, {}, "a tier is free"),
        ("pollux-key-a", {"enabled": "perhaps"}, {}, "the label enabled"),
        ("pollux-key-a", {}, {"pollux-limits": "{"}, "is not JSON"),
        ("pollux-key-a", {}, {"pollux-limits": '{"*":{"rpm":-1}}'}, "a whole number"),
        ("pollux-key-a", {}, {"pollux-project": "a b"}, "a project is"),
    ],
)
def test_a_secret_that_describes_no_key_is_a_problem_and_costs_no_other(
    google: SecretManager, name: str, labels: dict[str, str], annotations: dict[str, str], reason: str
) -> None:
    google.put_described(name, (A,), labels, annotations)
    google.put("pollux-key-good", B)

    async def test(ring: Ring) -> None:
        assert [key.id for key in await ring.keys()] == ["good"]
        assert [str(problem).partition(": ")[0] for problem in ring.problems] == [f"secret {name}"]
        assert reason in str(ring.problems[0])

    run(google, test)


def test_values_that_are_no_keys_are_told_without_showing_them(google: SecretManager) -> None:
    google.put("pollux-key-a", "two words here")
    google.put("pollux-key-b", A)
    google.secrets["pollux-key-b"].versions[0].value = b"\xff\xfe\xff"

    async def test(ring: Ring) -> None:
        await ring.keys()
        with pytest.raises(KeySourceError, match=r"^secret pollux-key-a: version 1 is not a key: a key has no spaces$"):
            await ring.value("a")
        with pytest.raises(KeySourceError, match=r"^secret pollux-key-b: version 1 is not text$"):
            await ring.value("b")

    run(google, test)


def test_two_secrets_with_one_value_are_told(google: SecretManager) -> None:
    google.put("pollux-key-a", A)
    google.put("pollux-key-b", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        assert not ring.problems
        await ring.value("a")
        await ring.value("b")
        reason = "it holds the same key as secret pollux-key-a, whose quota is counted twice; remove one"
        assert [str(problem) for problem in ring.problems] == [f"secret pollux-key-b: {reason}"]

    run(google, test)


# --- how much is asked -----------------------------------------------------------------------------------------------


def test_the_start_is_one_list_and_values_come_on_first_use(google: SecretManager) -> None:
    google.page_size = 100
    for number in range(20):
        google.put(f"pollux-key-k{number}", f"{A}{number}")

    async def test(ring: Ring) -> None:
        assert len(await ring.keys()) == 20
        assert google.calls == {LIST: 1}
        await asyncio.gather(*(ring.value("k7") for _ in range(50)))
        assert google.calls == {LIST: 1, VERSIONS: 1, ACCESS: 1}
        for _ in range(50):
            await ring.keys()
            await ring.value("k7")
        assert google.calls == {LIST: 1, VERSIONS: 1, ACCESS: 1}

    run(google, test)


def test_a_list_of_many_pages_is_read_to_its_end(google: SecretManager) -> None:
    for number in range(10):
        google.put(f"pollux-key-k{number}", f"{A}{number}")

    async def test(ring: Ring) -> None:
        assert len(await ring.keys()) == 10
        assert google.calls[LIST] == 4

    run(google, test)


def test_the_newest_enabled_version_counts_by_its_number(google: SecretManager) -> None:
    google.put("pollux-key-a", *(f"{A}{number}" for number in range(12)))
    google.disable("pollux-key-a", 12)
    google.disable("pollux-key-a", 11, "DESTROYED")

    async def test(ring: Ring) -> None:
        await ring.keys()
        assert (await ring.value("a")).reveal() == f"{A}9"

    run(google, test)


def test_a_version_that_the_list_still_calls_enabled_gives_way_to_the_next(google: SecretManager) -> None:
    google.put("pollux-key-a", A, B)
    google.fail(ACCESS, "FAILED_PRECONDITION", times=1)

    async def test(ring: Ring) -> None:
        await ring.keys()
        assert (await ring.value("a")).reveal() == A

    run(google, test)


# --- refreshes -------------------------------------------------------------------------------------------------------


def test_new_changed_and_removed_secrets_are_found_within_a_minute(google: SecretManager) -> None:
    google.put("pollux-key-a", A, tier="free")
    google.put("pollux-key-b", B)

    async def test(ring: Ring) -> None:
        before = await ring.keys()
        assert await ring.later(29) is before
        assert google.calls[LIST] == 1
        assert await ring.later(2) is before  # nothing changed: the same tuple
        assert google.calls[LIST] == 2
        google.put("pollux-key-c", C)
        google.secrets["pollux-key-a"].labels["tier"] = "tier2"
        del google.secrets["pollux-key-b"]
        assert await ring.later(31) == (Key("a", "a", "tier2"), Key("c", "c"))
        with pytest.raises(KeySourceError, match="not there any more"):
            await ring.value("b")

    run(google, test)


def test_after_half_a_minute_the_old_keys_serve_while_new_ones_are_fetched(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        google.put("pollux-key-b", B)
        google.fail(LIST, "SLOW", seconds=0.2)
        ring.time.now += 45
        assert len(await ring.keys()) == 1
        await settled(ring)
        assert len(await ring.keys()) == 2

    run(google, test)


def test_beyond_a_minute_a_request_waits_for_the_keys_and_all_share_one_list(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        google.put("pollux-key-b", B)
        ring.time.now += 3600
        found = await asyncio.gather(*(ring.keys() for _ in range(20)))
        assert {len(keys) for keys in found} == {2}
        assert google.calls[LIST] == 2

    run(google, test)


def test_a_failing_refresh_keeps_the_keys_tells_so_and_is_not_repeated_at_once(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        before = await ring.keys()
        google.fail(LIST, "DENIED")
        assert await ring.later(61) is before
        (problem,) = ring.problems
        assert str(problem).startswith("project pool: permission denied; grant roles/secretmanager.viewer on project")
        assert str(problem).endswith("; the keys known before stay in use")
        asked = google.calls[LIST]
        for _ in range(20):
            assert await ring.keys() is before
        assert google.calls[LIST] == asked
        assert await ring.later(6) is before
        assert google.calls[LIST] == asked + 1
        google.heal()
        google.put("pollux-key-b", B)
        assert len(await ring.later(6)) == 2
        assert ring.problems == ()

    run(google, test)


def test_an_outage_holds_up_no_request_more_than_once(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        google.fail("*", "SLOW", seconds=20)
        ring.time.now += 61
        await ring.keys()  # gives up after two time limits
        assert "did not answer (DEADLINE_EXCEEDED)" in str(ring.problems[0])
        ring.time.now += 6
        await ring.keys()
        assert ring._list._task is not None  # tried again, but beside the request
        assert not ring._list._task.done()
        google.heal()

    run(google, test, read_s=0.2)


def test_a_start_that_fails_says_why_and_the_next_one_succeeds(google: SecretManager) -> None:
    google.put("pollux-key-a", A)
    google.fail(LIST, "UNAVAILABLE")

    async def test(ring: Ring) -> None:
        reason = r"^project pool: Secret Manager did not answer \(UNAVAILABLE\); try again$"
        results = await asyncio.gather(*(ring.keys() for _ in range(9)), return_exceptions=True)
        assert {str(result) for result in results} == {
            "project pool: Secret Manager did not answer (UNAVAILABLE); try again"
        }
        assert google.calls[LIST] == 2  # once more, as a connection may just have died
        with pytest.raises(KeySourceError, match=reason):
            await ring.keys()
        assert google.calls[LIST] == 2
        google.heal()
        ring.time.now += 5
        assert len(await ring.keys()) == 1

    run(google, test)


def test_a_dead_connection_costs_one_retry_and_no_error(google: SecretManager) -> None:
    google.put("pollux-key-a", A)
    google.fail("*", "UNAVAILABLE", times=1)

    async def test(ring: Ring) -> None:
        assert len(await ring.keys()) == 1
        assert ring.problems == ()

    run(google, test)


def test_a_client_that_leaves_does_not_end_what_others_wait_for(google: SecretManager) -> None:
    google.put("pollux-key-a", A)
    google.fail(VERSIONS, "SLOW", seconds=0.2)

    async def test(ring: Ring) -> None:
        await ring.keys()
        first, second = (asyncio.create_task(ring.value("a")) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second).reveal() == A
        assert google.calls[ACCESS] == 1

    run(google, test)


# --- errors of one secret --------------------------------------------------------------------------------------------


def deny(google: SecretManager) -> None:
    google.fail(ACCESS, "DENIED", "pollux-key-a")


def deny_versions(google: SecretManager) -> None:
    google.fail(VERSIONS, "DENIED", "pollux-key-a")


def disable(google: SecretManager) -> None:
    google.disable("pollux-key-a", 1)


def destroy(google: SecretManager) -> None:
    google.disable("pollux-key-a", 1, "DESTROYED")


def remove(google: SecretManager) -> None:
    del google.secrets["pollux-key-a"]


def break_(google: SecretManager) -> None:
    google.fail(ACCESS, "UNAVAILABLE", "pollux-key-a")


def exhaust(google: SecretManager) -> None:
    google.fail(ACCESS, "RESOURCE_EXHAUSTED", "pollux-key-a")


def turn_off(google: SecretManager) -> None:
    google.fail(ACCESS, "API_OFF", "pollux-key-a")


def forget_credentials(google: SecretManager) -> None:
    google.fail(ACCESS, "UNAUTHENTICATED", "pollux-key-a")


def refuse(google: SecretManager) -> None:
    google.fail(ACCESS, "INVALID_ARGUMENT", "pollux-key-a")


@pytest.mark.parametrize(
    ("break_it", "kind", "words"),
    [
        (deny, "denied", "secret pollux-key-a: permission denied; grant roles/secretmanager.secretAccessor on secret "),
        (
            deny_versions,
            "denied",
            "secret pollux-key-a: permission denied; grant roles/secretmanager.viewer on secret ",
        ),
        (disable, "disabled", "it has no enabled version; add one with: pollux keys rotate a"),
        (destroy, "disabled", "it has no enabled version; add one with: pollux keys rotate a"),
        (remove, "missing", "secret pollux-key-a: no such secret, or no such version, in project pool"),
        (break_, "unavailable", "secret pollux-key-a: Secret Manager did not answer (UNAVAILABLE); try again"),
        (exhaust, "exhausted", "requests a minute to Secret Manager are used up"),
        (turn_off, "api-off", "run: gcloud services enable secretmanager.googleapis.com --project pool"),
        (forget_credentials, "credentials", "run: gcloud auth application-default login"),
        (refuse, "refused", "Secret Manager refused access_secret_version (INVALID_ARGUMENT)"),
    ],
)
def test_a_value_that_cannot_be_read_costs_only_its_key(
    google: SecretManager, break_it: Callable[[SecretManager], None], kind: str, words: str
) -> None:
    google.put("pollux-key-a", A)
    google.put("pollux-key-b", B)

    async def test(ring: Ring) -> None:
        assert len(await ring.keys()) == 2
        break_it(google)
        with pytest.raises(SecretError) as caught:
            await ring.value("a")
        assert caught.value.kind == kind
        assert caught.value.transient == (kind in ("unavailable", "exhausted", "credentials"))
        assert words in str(caught.value)
        assert [str(problem) for problem in ring.problems] == [str(caught.value)]
        assert (await ring.value("b")).reveal() == B
        asked = sum(google.calls.values())
        with pytest.raises(KeySourceError):  # from memory: who cannot be read is not asked with every request
            await ring.value("a")
        assert sum(google.calls.values()) == asked

    run(google, test)


def test_a_granted_role_is_found_after_the_rest(google: SecretManager) -> None:
    google.put("pollux-key-a", A)
    deny(google)

    async def test(ring: Ring) -> None:
        await ring.keys()
        with pytest.raises(KeySourceError):
            await ring.value("a")
        google.heal()
        ring.time.now += 61
        assert (await ring.value("a")).reveal() == A
        assert ring.problems == ()

    run(google, test)


def test_an_unknown_project_and_a_missing_server_say_so(google: SecretManager) -> None:
    async def unknown(ring: Ring) -> None:
        with pytest.raises(KeySourceError, match=r"grant roles/secretmanager.viewer on project nope .*no project nope"):
            await ring.keys()

    run(google, unknown, project="nope")
    google.host = "127.0.0.1:1"

    async def nobody(ring: Ring) -> None:
        with pytest.raises(KeySourceError, match="did not answer"):
            await ring.keys()

    run(google, nobody)


def test_outside_of_tests_it_speaks_tls_with_the_credentials_of_this_place(
    google: SecretManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def default(scopes: list[str]) -> tuple[AnonymousCredentials, None]:
        asked.append(scopes)
        return AnonymousCredentials(), None  # type: ignore[no-untyped-call]

    monkeypatch.setattr("google.auth.default", default)
    monkeypatch.setattr("pollux.backends.keys.secrets_api.HOST", google.host)

    async def test() -> None:
        api = SecretsApi(PROJECT, environ={}, read_s=2.0)
        with pytest.raises(SecretError, match="did not answer"):  # the server of the tests has no certificate
            await api.secrets("pollux-key-")
        await api.close()

    asyncio.run(test())
    assert asked == [["https://www.googleapis.com/auth/cloud-platform"]]  # once, however many connections
    assert not google.calls


def test_an_error_of_grpc_itself_is_told_without_what_was_asked(google: SecretManager) -> None:
    async def test(ring: Ring) -> None:
        await ring._api.close()
        client = await ring._api._connected()
        await client.transport.close()  # type: ignore[no-untyped-call]
        with pytest.raises(SecretError, match=r"Secret Manager did not answer \(\w+\); try again") as caught:
            await ring._api.add_version("pollux-key-a", Secret(A))
        assert A not in str(caught.value)

    run(google, test)


# --- refused by Google -----------------------------------------------------------------------------------------------


def test_after_a_refusal_the_newest_version_is_read_and_the_generation_grows(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        await ring.value("a")
        assert not await ring.reread("a")  # unchanged
        google.add("pollux-key-a", B)
        asked = google.calls[VERSIONS]
        assert not await ring.reread("a")  # looked at just now
        assert google.calls[VERSIONS] == asked
        ring.time.now += 1
        assert await ring.reread("a")
        assert (await ring.value("a")).reveal() == B
        assert (await ring.keys())[0].generation == 1
        assert not await ring.reread("unknown")

    run(google, test)


def test_a_request_under_way_with_the_old_value_learns_the_new_one(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        await ring.value("a")
        google.add("pollux-key-a", B)
        ring.time.now += 10
        assert await asyncio.gather(*(ring.reread("a") for _ in range(10))) == [True] * 10
        ring.time.now += 20
        assert await ring.reread("a")  # a slow answer to the old value
        assert google.calls[VERSIONS] == 2
        assert (await ring.keys())[0].generation == 1
        ring.time.now += 60
        assert not await ring.reread("a")  # by now it is the new value that is refused

    run(google, test)


def test_a_refused_key_that_gets_a_new_version_is_found_with_the_next_refresh(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        await ring.value("a")
        ring.time.now += 10
        assert not await ring.reread("a")
        assert (await ring.later(31))[0].generation == 0
        google.add("pollux-key-a", B)
        assert (await ring.later(31))[0].generation == 1
        assert (await ring.value("a")).reveal() == B
        asked = google.calls[VERSIONS]
        await ring.later(31)
        assert google.calls[VERSIONS] == asked  # it is no longer looked for

    run(google, test)


def test_a_rotation_that_was_announced_needs_no_refusal(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        await ring.value("a")
        google.add("pollux-key-a", B)
        google.secrets["pollux-key-a"].annotations["pollux-version"] = "2"
        assert (await ring.later(31))[0].generation == 1
        assert (await ring.value("a")).reveal() == B

    run(google, test)


def test_a_reread_that_fails_keeps_the_value_and_raises_nothing(google: SecretManager) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        await ring.value("a")
        deny(google)
        google.add("pollux-key-a", B)
        ring.time.now += 10
        assert not await ring.reread("a")
        assert "secretAccessor" in str(ring.problems[0])
        assert (await ring.value("a")).reveal() == A
        google.heal()
        assert (await ring.later(31))[0].generation == 1

    run(google, test)


@pytest.mark.parametrize("seen_gone", [True, False])
def test_a_secret_that_was_made_anew_is_another_key(google: SecretManager, seen_gone: bool) -> None:
    google.put("pollux-key-a", A)

    async def test(ring: Ring) -> None:
        await ring.keys()
        await ring.value("a")
        if seen_gone:
            del google.secrets["pollux-key-a"]
            assert await ring.later(31) == ()
        google.put("pollux-key-a", B)
        assert (await ring.later(31))[0].generation == 1
        assert (await ring.value("a")).reveal() == B

    run(google, test)


# --- secrecy ---------------------------------------------------------------------------------------------------------


def test_no_value_is_in_any_log_repr_or_error(google: SecretManager, caplog: pytest.LogCaptureFixture) -> None:
    google.put("pollux-key-a", A)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "google")
    shown: list[str] = []

    async def test(ring: Ring) -> None:
        await ring.keys()
        value = await ring.value("a")
        shown.extend((repr(value), str(value), repr(ring), repr(vars(ring)), repr(ring._known["a"].held)))
        deny(google)
        google.add("pollux-key-a", B)
        ring.time.now += 10
        await ring.reread("a")
        shown.extend(map(str, ring.problems))
        with pytest.raises(TypeError):
            pickle.dumps(value)
        google.fail("add_secret_version", "UNAVAILABLE")
        with pytest.raises(SecretError) as caught:
            await ring._api.add_version("pollux-key-a", Secret(C))
        shown.append(str(caught.value))
        assert caught.value.__context__ is None

    run(google, test)
    text = caplog.text + "".join(shown) + "".join(map(repr, caplog.records))
    assert len(shown) == 7
    assert not [value for value in (A, B, C) if value in text]


def test_it_is_a_keyring(google: SecretManager) -> None:
    async def test(ring: Ring) -> None:
        keyring: Keyring = ring
        assert await keyring.keys() == ()

    run(google, test)


# --- names ------------------------------------------------------------------------------------------------------------


@given(st.from_regex(ID, fullmatch=True), st.from_regex(ID, fullmatch=True))
def test_ids_become_names_of_secrets_and_back_without_collisions(one: str, other: str) -> None:
    name = secret_name(one)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", name)
    assert key_id_of(name) == one
    assert (secret_name(other) == name) == (one == other)


@pytest.mark.parametrize(
    ("key_id", "name"),
    [
        ("alice", "alice"),
        ("My_Key", "My_Key"),
        ("My Key", "My_20_Key"),
        ("My Key_1", "My_20_Key_5f_1"),
        ("a_20_b", "a_5f_20_5f_b"),
    ],
)
def test_only_what_must_be_is_written_otherwise(key_id: str, name: str) -> None:
    assert secret_name(key_id) == f"pollux-key-{name}"


def test_a_secret_that_was_named_by_hand_is_taken_as_it_is() -> None:
    assert key_id_of("pollux-key-a_20_b_c") == "a_20_b_c"  # half of it is escaped, so nothing is
