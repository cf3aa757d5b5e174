"""auth: who is let in, which credentials are removed, and the tokens of the first local run."""

import asyncio
import concurrent.futures
import json
import logging
import multiprocessing
import os
import stat
from pathlib import Path
from urllib.parse import quote

import pytest

from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.tokens import JoinedTokens, TokenError, Tokens, TokenSource, greeting, load_or_make

ALICE, BOB, ADMIN = "test-token-of-alice", "test-token-of-bob", "test-token-of-admin"
TOKENS = Tokens([f"alice={ALICE}", BOB], ADMIN, query_token=True)


@pytest.mark.parametrize(
    ("headers", "query", "client"),
    [
        ([(b"x-goog-api-key", ALICE.encode())], "", "alice"),
        ([(b"x-api-key", BOB.encode())], "", "client-2"),
        ([(b"authorization", f"Bearer {BOB}".encode())], "", "client-2"),
        ([(b"authorization", f"bearer   {ALICE} ".encode())], "", "alice"),
        ([], f"key={ALICE}", "alice"),
        ([], f"alt=sse&%6bey={quote(BOB)}".encode(), "client-2"),
        ([(b"x-goog-api-key", b"wrong"), (b"authorization", f"Bearer {ALICE}".encode())], "", "alice"),
        ([(b"x-goog-api-key", ALICE.encode()), (b"x-goog-api-key", b"wrong")], "key=wrong", "alice"),
        ([(b"x-goog-api-key", b"")], "key=", None),
        ([(b"x-goog-api-key", ADMIN.encode())], "", None),
        ([(b"x-goog-api-key", f"alice={ALICE}".encode())], "", None),
        ([(b"x-goog-api-key", ALICE[:-1].encode())], "", None),
        ([(b"authorization", f"Basic {ALICE}".encode())], "", None),
        ([(b"authorization", ALICE.encode())], "", None),
        ([(b"cookie", ALICE.encode())], f"access_token={ALICE}", None),
        ([(b"x-goog-api-key", b"\xff\xfe")], "key=%ff", None),
        ([], "", None),
    ],
)
def test_any_valid_credential_suffices(
    headers: list[tuple[bytes, bytes]], query: str | bytes, client: str | None
) -> None:
    assert TOKENS.check(headers, query) == client


def test_the_query_counts_only_where_it_is_allowed() -> None:
    assert Tokens([ALICE], None, query_token=False).check([], f"key={ALICE}") is None


def test_every_token_of_many_is_found() -> None:
    many = [f"test-token-{number:04}" for number in range(50)]
    tokens = Tokens(many, None, query_token=False)
    found = [tokens.check([(b"x-goog-api-key", token.encode())]) for token in many]
    assert found == [f"client-{place}" for place in range(1, 51)]


def test_two_tokens_of_one_client_let_it_change_them() -> None:
    tokens = Tokens(["alice=old-token-1", "alice=new-token-2"], None, query_token=False)
    assert tokens.check([(b"x-api-key", b"old-token-1")]) == tokens.check([(b"x-api-key", b"new-token-2")]) == "alice"


def test_padding_is_not_a_name() -> None:
    short, long = "dGVzdC10b2tlbg==", "dGVzdC10b2tlbi1vZi1hLXBhcnRuZXItb2Ytb3Vycw=="
    tokens = Tokens([f"alice={short}", long], None, query_token=False)
    assert [tokens.check([(b"x-api-key", t.encode())]) for t in (short, long)] == ["alice", "client-2"]


def test_a_pair_is_never_parsed() -> None:
    tokens = Tokens([("alice", "bob=test-token")], None, query_token=False)
    assert tokens.check([(b"x-api-key", b"bob=test-token")]) == "alice"
    assert tokens.check([(b"x-api-key", b"test-token")]) is None


@pytest.mark.parametrize("entry", ["alice=", "alice====", "9lives=", "a@b.c=", "dGVzdC10b2tlbg=="])
def test_a_name_without_a_token_lets_nobody_in(entry: str) -> None:
    with pytest.raises(TokenError, match=r"^POLLUX_TOKEN, entry 2: .* write name=TOKEN") as caught:
        Tokens([BOB, entry], None, query_token=False)
    assert entry not in str(caught.value)


GUESSABLE = [
    "",
    "====",
    "----",
    "$UNSET",
    "${TOKEN:-}",
    "'$UNSET'",
    "changeme",
    "YOUR_TOKEN_HERE",
    "undefined",
    "<token>",
]


@pytest.mark.parametrize("token", GUESSABLE)
def test_what_anybody_can_guess_is_no_token(token: str) -> None:
    for client, admin in (([("alice", token)], None), ([BOB], [token])):
        with pytest.raises(TokenError):
            Tokens(client, admin, query_token=False)


@pytest.mark.parametrize("token", ["alice", "Alice", "alice="])
def test_nobody_is_let_in_by_a_name(token: str) -> None:
    with pytest.raises(TokenError, match="the token is the client's name"):
        Tokens([("alice", token)], None, query_token=False)
    with pytest.raises(TokenError, match="the token is the client's name"):
        Tokens([BOB], token.replace("lice", "dmin"), query_token=False)


def test_four_different_credentials_are_looked_at_the_headers_first() -> None:
    wrong = [(b"x-api-key", f"wrong-{n}".encode()) for n in range(3)]
    mine = (b"authorization", f"Bearer {ALICE}".encode())
    assert TOKENS.check([*wrong, mine]) == "alice"
    assert TOKENS.check([*wrong, (b"x-api-key", b"wrong-3"), mine]) is None
    assert TOKENS.check([*wrong * 3, mine], f"key={BOB}") == "alice", "a repeated one counts once"
    assert TOKENS.check(wrong, f"key=&key=wrong-1&key={BOB}") == "client-2", "an empty one does not count"
    assert TOKENS.check([*wrong, (b"x-api-key", b"wrong-3")], f"key={BOB}") is None
    assert TOKENS.check([], "&".join(f"key=wrong-{n}" for n in range(4)) + f"&key={BOB}") is None
    assert TOKENS.check([], f"monkey={BOB}&keys={BOB}&a=key={BOB}") is None
    strangers = [(b"authorization", f"Bearer wrong-{n}".encode()) for n in range(4)]
    assert TOKENS.admin([*strangers[:3] * 3, *bearer(ADMIN)])
    assert not TOKENS.admin([*strangers, *bearer(ADMIN)])


def test_many_credentials_cost_no_more_than_four(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    tokens = Tokens([f"test-token-{number:04}" for number in range(50)], ADMIN, query_token=True)
    monkeypatch.setattr("pollux.backends.keys.tokens.compare_digest", compare)
    query = "&".join(f"key={n}" for n in range(5000))
    assert tokens.check([(b"x-api-key", str(n).encode()) for n in range(5000)], query) is None
    assert tokens.check([], query) is None
    assert len(compared) == 2 * 4 * 50, "every token is compared with each of four"
    compared.clear()
    assert not tokens.admin([(b"authorization", b"Bearer %d" % n) for n in range(5000)])
    assert len(compared) == 4


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ([(b"authorization", f"Bearer {ADMIN}".encode())], True),
        ([(b"authorization", f"Bearer {ALICE}".encode())], False),
        ([(b"authorization", b"Bearer ")], False),
        ([(b"x-goog-api-key", ADMIN.encode())], False),
        ([], False),
    ],
)
def test_the_admin_is_known_by_bearer_alone(headers: list[tuple[bytes, bytes]], allowed: bool) -> None:
    assert TOKENS.admin(headers) is allowed


def test_without_an_admin_token_nobody_is_the_admin() -> None:
    for admin in (None, ""):
        assert not Tokens([ALICE], admin, query_token=True).admin([(b"authorization", b"Bearer ")])


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


def test_several_admin_tokens_are_valid_at_once() -> None:
    tokens = Tokens([ALICE], ["admin-token-old", "admin-token-new"], query_token=False)
    assert [tokens.admin(bearer(t)) for t in ("admin-token-old", "admin-token-new", "admin-token-other")] == [
        True,
        True,
        False,
    ]
    assert (tokens.for_clients, tokens.for_admin) == (1, 2)
    with pytest.raises(TokenError, match="POLLUX_ADMIN_TOKEN"):
        Tokens([ALICE], ["admin-token-old", ALICE], query_token=False)


# --- where tokens come from ------------------------------------------------------------------------------------------


class Source:
    """Tokens that a test changes."""

    def __init__(self, found: Tokens | Exception) -> None:
        self.found = found

    async def tokens(self) -> Tokens:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def asked(source: TokenSource) -> Tokens:
    return asyncio.run(source.tokens())


def test_fixed_tokens_are_their_own_source() -> None:
    assert asked(TOKENS) is TOKENS
    assert TOKENS.complete


def test_the_tokens_of_the_settings_and_of_another_source_both_count() -> None:
    source = Source(Tokens([f"bob={BOB}"], "admin-token-far", query_token=False))
    joined = JoinedTokens(Tokens([f"alice={ALICE}"], ADMIN, query_token=True), source)
    tokens = asked(joined)
    assert [tokens.check([(b"x-api-key", t.encode())]) for t in (ALICE, BOB, "neither")] == ["alice", "bob", None]
    assert tokens.check([], f"key={BOB}") == "bob", "the settings say whether the query counts"
    assert tokens.admin(bearer(ADMIN))
    assert tokens.admin(bearer("admin-token-far"))
    assert asked(joined) is tokens, "made anew only when the source changes"
    source.found = Tokens([f"carol={BOB}x"], None, query_token=False)
    assert asked(joined).check([(b"x-api-key", BOB.encode())]) is None


@pytest.mark.parametrize("trouble", [KeySourceError("denied"), TokenError("empty")])
def test_while_the_other_source_fails_the_tokens_of_the_settings_are_still_good(
    trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(trouble)
    joined = JoinedTokens(Tokens([ALICE], ADMIN, query_token=False), source)
    with caplog.at_level(logging.ERROR):
        tokens = asked(joined)
        assert asked(joined) is tokens
    assert tokens.check([(b"x-api-key", ALICE.encode())]) == "client-1"
    assert not tokens.complete
    assert len(caplog.records) == 1, "said once, not with every request"
    source.found = Tokens([BOB], None, query_token=False)
    assert asked(joined).complete


def test_the_problems_of_the_other_source_are_told_and_it_is_closed() -> None:
    class Far(Source):
        problems = ("secret pollux-token-a: denied",)
        closed = False

        async def close(self) -> None:
            self.closed = True

    far = Far(Tokens([BOB], None, query_token=False))
    joined = JoinedTokens(Tokens([ALICE], None, query_token=False), JoinedTokens(TOKENS, far))
    assert joined.problems == far.problems
    asyncio.run(joined.close())
    assert far.closed
    assert JoinedTokens(TOKENS, TOKENS).problems == ()
    asyncio.run(JoinedTokens(TOKENS, TOKENS).close())


def test_a_clients_token_never_has_the_admins_rights(caplog: pytest.LogCaptureFixture) -> None:
    joined = JoinedTokens(Tokens([ALICE], None, query_token=False), Source(Tokens([BOB], ALICE, query_token=False)))
    tokens = asked(joined)
    assert tokens.check([(b"x-api-key", ALICE.encode())])
    assert not tokens.admin(bearer(ALICE))
    assert "only a client's rights" in caplog.text


# --- bad ones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "admin", "setting"),
    [
        ([""], None, "POLLUX_TOKEN, entry 1"),
        ([ALICE, "abc"], None, "POLLUX_TOKEN, entry 2"),
        (["alice=abc"], None, "POLLUX_TOKEN, entry 1"),
        (["two words-token"], None, "POLLUX_TOKEN, entry 1"),
        (["tökentökentöken"], None, "POLLUX_TOKEN, entry 1"),
        ([ALICE], "abc", "POLLUX_ADMIN_TOKEN"),
        ([f"alice={ALICE}"], ALICE, "POLLUX_ADMIN_TOKEN"),
        (["alice=$UNSET-TOKEN"], "$UNSET", "POLLUX_ADMIN_TOKEN"),
    ],
)
def test_a_bad_token_is_named_by_its_setting_and_not_shown(client: list[str], admin: str | None, setting: str) -> None:
    with pytest.raises(ValueError, match=f"^{setting}") as caught:
        Tokens(client, admin, query_token=True)
    for token in (client[-1].split("=")[-1], admin):
        assert not token or token not in str(caught.value)


def test_tokens_do_not_show_themselves() -> None:
    assert not any(token in repr(TOKENS) for token in (ALICE, BOB, ADMIN))


def test_the_first_run_makes_tokens_and_the_next_reads_them(tmp_path: Path) -> None:
    data = tmp_path / "new" / "pollux"
    first, second = load_or_make(data), load_or_make(data)
    assert (first.made, second.made) == (True, False)
    assert (first.client, first.admin) == (second.client, second.admin)
    assert first.client != first.admin
    assert first.client.startswith("pollux-")
    assert len(first.client) >= 32
    assert first.client not in repr(first)
    assert stat.S_IMODE((data / "tokens.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert Tokens([first.client], first.admin, query_token=False).check([(b"x-api-key", first.client.encode())])


def test_no_token_ends_in_z(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["test-1z", "test-2Z", "test-client", "test-3z", "test-admin"])
    monkeypatch.setattr("pollux.backends.keys.tokens.secrets.token_urlsafe", lambda _: next(drawn))
    made = load_or_make(tmp_path)
    assert (made.client, made.admin) == ("pollux-test-client", "pollux-test-admin")


def test_processes_that_start_together_agree_on_the_tokens(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as pool:
        found = list(pool.map(load_or_make, [tmp_path / "data"] * 6))
    assert len({tokens.client for tokens in found}) == 1
    assert sum(tokens.made for tokens in found) == 1


def test_a_token_file_that_others_can_read_is_closed_with_a_warning(tmp_path: Path) -> None:
    load_or_make(tmp_path)
    (tmp_path / "tokens.json").chmod(0o644)
    again = load_or_make(tmp_path)
    assert "others could read" in again.warnings[0]
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600
    assert load_or_make(tmp_path).warnings == ()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"client": 5, "admin": "x"}',
        '{"client": "secret-a"}',
        '{"client": "secret-a=", "admin": "secret-b"}',
        '{"client": "secret-a", "admin": ""}',
    ],
)
def test_a_broken_token_file_is_an_error_and_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(TokenError, match=r"tokens\.json") as caught:
        load_or_make(tmp_path)
    assert "secret-a" not in str(caught.value)
    assert path.read_text() == content


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenError, match="POLLUX_TOKEN"):
        load_or_make(tmp_path / "file")


def test_the_greeting_is_three_lines_that_the_sdks_understand(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = greeting(ALICE, "http://127.0.0.1:3145/").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("export ") for line in lines)
    for assignment in " ".join(lines).replace("export ", "").split():
        monkeypatch.setenv(*assignment.split("=", 1))
    for other in ("GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "OPENAI_ORG_ID"):
        monkeypatch.delenv(other, raising=False)
    assert os.environ["OPENAI_BASE_URL"] == "http://127.0.0.1:3145/v1beta/openai/"

    openai = pytest.importorskip("openai")
    with openai.OpenAI() as client:
        assert str(client.base_url) == "http://127.0.0.1:3145/v1beta/openai/"
        assert client.api_key == ALICE
    genai = pytest.importorskip("google.genai")
    options = genai.Client()._api_client
    assert options._http_options.base_url.rstrip("/") == "http://127.0.0.1:3145"
    assert options.api_key == ALICE


def test_the_token_file_is_plain_json(tmp_path: Path) -> None:
    made = load_or_make(tmp_path)
    assert json.loads((tmp_path / "tokens.json").read_text()) == {"client": made.client, "admin": made.admin}
