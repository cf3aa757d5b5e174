"""Key files, variables and other local sources: every format, what is refused, changes while the gateway runs."""

import asyncio
import concurrent.futures
import json
import multiprocessing
import os
import pickle
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.backends.keys.contract import Key, Keyring, KeySourceError, Secret
from pollux.backends.keys.entries import Entry, KeyFileError, id_fault, value_fault
from pollux.backends.keys.files import Variable, parse, parse_variables, recognise
from pollux.backends.keys.keys_json import KeyFile
from pollux.backends.keys.local import LocalKeyring, free_id
from pollux.cli.keys import plan

A, B, C, D = ("AIza" + letter * 35 for letter in "abcd")
NEW_FORM = "AQ.test-Zm9vYmFy_0123456789="


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Home:
    """A machine with a data folder, a working folder and an environment."""

    def __init__(self, root: Path) -> None:
        self.data, self.folder, self.home, self.root = root / "data", root / "here", root / "home", root / "pool"
        for folder in (self.data, self.folder, self.home, self.root):
            folder.mkdir()
        self.environ: dict[str, str] = {}
        self.clock = Clock()

    def ring(self, keys_file: Path | None = None) -> LocalKeyring:
        return LocalKeyring(
            keys_file, data=self.data, folder=self.folder, environ=self.environ, clock=self.clock, home=self.home
        )

    def write(self, name: str, content: str | bytes | Mapping[str, Any]) -> Path:
        path = self.data / name.removeprefix("data/") if name.startswith("data/") else self.folder / name
        if isinstance(content, Mapping):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def values(self, ring: LocalKeyring, after: float = 0.0) -> dict[str, str]:
        self.clock.now += after

        async def read() -> dict[str, str]:
            return {key.id: (await ring.value(key.id)).reveal() for key in await ring.keys()}

        return asyncio.run(read())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def document(*keys: Any) -> dict[str, Any]:
    return {"providers": {"gemini": {"keys": list(keys)}}}


def keys_of(ring: Keyring) -> tuple[Key, ...]:
    return asyncio.run(ring.keys())


def faults(text: str, file: str, variables: Mapping[str, str] | None = None) -> list[tuple[int, str]]:
    known = {name: Variable(name, value) for name, value in (variables or {}).items()}
    return [(problem.line, problem.reason) for problem in parse(text, file, known).problems]


# --- secrets


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret(A)
    assert A not in f"{secret} {secret!r} {secret.masked} {[secret]}"
    assert secret.reveal() == A
    assert secret == Secret(A) != Secret(B)
    with pytest.raises(TypeError):
        pickle.dumps(secret)


# --- what a key is


@pytest.mark.parametrize("value", [A, NEW_FORM, "test-key-1", "k3y!", "AIza" + "x" * 35])
def test_a_value_is_opaque(value: str) -> None:
    assert value_fault(value) is None


@pytest.mark.parametrize(
    "value",
    [
        *("", "abc", "two words", "tab\there", "ключ-от-gemini", "AIza\x07" + "a" * 30, "…" * 12, "a" * 2000),
        *("your-api-key", "YOUR_API_KEY", "your_gemini_api_key_here", "<key>", "xxxxxxxx", "changeme", "${KEY}"),
        *(
            f"{A},{B}",
            f"{A};{B}",
            f"{A}\n{B}",
            "AIza...",
            "replace-me",
            "pollux-test-token-of-a-client",
            "API_KEY",
            "null",
        ),
    ],
)
def test_what_cannot_be_a_key_is_refused_without_being_quoted(value: str) -> None:
    fault = value_fault(value)
    assert fault
    assert not value or value not in fault


# --- formats


@pytest.mark.parametrize(
    ("text", "name", "form"),
    [
        ('{"providers": {}}', "keys.txt", "json"),
        ("\ufeff\n [1]", "whatever", "json"),
        ("broken", "keys.json", "json"),
        (f"GEMINI_API_KEY={A}", "key.txt", "env"),
        (f"# mine\nexport GEMINI_KEY_A = {A}\n", "secrets", "env"),
        ("FOO", ".env.local", "env"),
        ("", "prod.env", "env"),
        (f"{A}\n{B}", "key.txt", "list"),
        (f"{A}\nGEMINI_API_KEY={B}", "key.txt", "list"),
        ("ABCDEFGH==", "key.txt", "list"),
        ("", "key.txt", "list"),
    ],
)
def test_a_format_is_recognised_by_content_before_name(text: str, name: str, form: str) -> None:
    assert recognise(text, name) == form


def test_a_list_has_a_key_a_line(home: Home) -> None:
    home.write("key.txt", f"\ufeff# mine\r\n\r\n  '{A}'  # of alice\r\nbob: \"{B}\"\r\n{NEW_FORM}\r\n")
    assert home.values(home.ring()) == {"key-1": A, "bob": B, "key-3": NEW_FORM}


@pytest.mark.parametrize("line", [f"alice,{A}", f"alice;{A}", f"{A},{B}", f"alice, {A}", f"alice: {A},{B}"])
def test_a_line_with_a_separator_is_refused_and_says_how_keys_are_written(line: str) -> None:
    text = f"{C}\n{line}\n"
    assert parse(text, "key.txt", {}).entries == (Entry("key-1", Secret(C), "key.txt", 1, positional=True),)
    ((number, reason),) = faults(text, "key.txt")
    assert number == 2
    assert reason.endswith("; write one key a line, as VALUE or as id: VALUE")
    assert A not in reason


@pytest.mark.parametrize("separator", [";", "; ", "\n", " "])
def test_a_list_variable_with_another_separator_is_refused_and_says_which_is_right(separator: str) -> None:
    found = parse_variables([Variable("GEMINI_API_KEYS", f"{A}{separator}{B},{C}", ".env", 3)])
    assert [entry.secret for entry in found.entries] == [Secret(C)]
    (problem,) = found.problems
    assert (problem.file, problem.line) == (".env", 3)
    assert problem.reason.startswith("GEMINI_API_KEYS: a key has no ")
    assert problem.reason.endswith("; separate keys by commas, with nothing else between them")
    assert A not in problem.reason


def test_a_variable_for_one_key_that_holds_several_is_refused_and_names_the_one_for_several() -> None:
    (problem,) = parse_variables([Variable("GEMINI_API_KEY", f"{A},{B}")]).problems
    assert problem.reason.endswith("; put several keys into GEMINI_API_KEYS, separated by commas")


def test_a_list_of_windows_in_utf_16_is_read(home: Home) -> None:
    home.write("key.txt", f"{A}\r\n{B}\r\n".encode("utf-16"))
    assert home.values(home.ring()) == {"key-1": A, "key-2": B}


def test_bad_lines_are_told_with_file_line_and_reason_and_the_rest_counts(home: Home) -> None:
    home.write("key.txt", f"not a key\n{A}\nyour-api-key\nGEMINI_API_KEY={B}\n{C}")
    ring = home.ring()
    assert home.values(ring) == {"key-2": A, "key-5": C}
    assert [str(problem) for problem in ring.problems] == [
        "key.txt:1: a key has no spaces; write one key a line, as VALUE or as id: VALUE",
        "key.txt:3: this is a placeholder, not a key",
        "key.txt:4: NAME=VALUE among plain keys; put variables into a .env file",
    ]


def test_variables_name_their_keys(home: Home) -> None:
    home.write(
        ".env",
        f"""
        # the pool
        export GEMINI_API_KEY="{A}" # quoted
        GEMINI_KEY_ALICE_2 = '{B}'
        GEMINI_KEY_1={C}   # a comment
        GEMINI_MODEL=gemini-2.5-flash
        DATABASE_URL=postgres://not a key
        GEMINI_KEY_OFF=
        """,
    )
    home.environ = {"GOOGLE_API_KEYS": f"{D}, {A},,{NEW_FORM} ", "PATH": "/bin"}
    ring = home.ring()
    assert home.values(ring) == {"gemini": A, "alice-2": B, "gemini-1": C, "google-1": D, "google-3": NEW_FORM}
    assert ring.problems == ()


def test_lists_and_numbered_variables_hold_keys_too(home: Home) -> None:
    home.environ = {
        "GEMINI_API_KEYS": f"{A}, {B},",
        "GEMINI_API_KEY_7": C,
        "POLLUX_KEYS": f"{D},{NEW_FORM}",
        "GEMINI_API_KEY_FILE": "/etc/none",
    }
    ring = home.ring()
    assert home.values(ring) == {"gemini-1": A, "gemini-2": B, "gemini-7": C, "key-1": D, "key-2": NEW_FORM}
    assert ring.problems == ring.notices == ()


def test_a_numbered_variable_gives_way_to_one_that_names_its_key(home: Home) -> None:
    home.environ = {"GEMINI_API_KEY_1": A, "GEMINI_KEY_1": B}
    ring = home.ring()
    assert home.values(ring) == {"gemini-2": A, "gemini-1": B}
    assert ring.problems == ()


def test_the_folder_of_key_pool_and_the_home_folder_are_read_in_that_order(home: Home) -> None:
    home.environ = {"GEMINI_KEY_POOL_ROOT": str(home.root), "GEMINI_KEY_ENV": D}
    keys = [{"id": "of pool", "api_key": "env:POOLED"}, {"id": "here", "api_key": C}]
    (home.root / "keys.json").write_text(json.dumps({"providers": {"gemini": {"keys": keys}}}))
    (home.root / ".env").write_text(f"POOLED={A}\nGEMINI_KEY_BOTH={B}\nGEMINI_KEY_ENV=not-this-one\n")
    (home.home / ".env").write_text(f"GEMINI_KEY_BOTH=not-this-one\nGEMINI_KEY_HOME={NEW_FORM}\nPOOLED=nor-this")
    home.write("key.txt", f"here: {C}")
    ring = home.ring()
    assert home.values(ring) == {"here": C, "of pool": A, "both": B, "home": NEW_FORM, "env": D}
    (home.home / ".env").write_text("")
    assert "home" not in home.values(ring, after=2)


def test_a_key_file_of_the_settings_is_the_only_source_but_for_variables(home: Home) -> None:
    home.environ = {"GEMINI_KEY_POOL_ROOT": str(home.root), "POLLUX_KEYS": B}
    (home.root / "keys.json").write_text(json.dumps({"providers": {"gemini": {"keys": [{"id": "x", "api_key": A}]}}}))
    (home.home / ".env").write_text(f"HERS={C}\nGEMINI_API_KEY={D}\n")
    own = home.write("own.json", {"providers": {"gemini": {"keys": [{"id": "mine", "api_key": "env:HERS"}]}}})
    assert home.values(home.ring(own)) == {"mine": C}


def test_ids_may_have_capitals_spaces_and_underscores_and_are_no_values(home: Home) -> None:
    home.write("key.txt", f"Alice of Team_A: {A}\n{B}: {C}\nalice: {D}")
    ring = home.ring()
    assert home.values(ring) == {"Alice of Team_A": A, "alice": D}
    assert len(ring.problems) == 1
    assert B not in str(ring.problems[0])


def test_a_bad_variable_is_told_by_its_name(home: Home) -> None:
    home.write(".env", "\nGEMINI_KEY_BOB=your-api-key\nGEMINI_KEY__=" + A)
    home.environ = {"GEMINI_KEY_EVE": "two words"}
    assert [str(problem) for problem in home.ring().problems] == [
        ".env:2: GEMINI_KEY_BOB: this is a placeholder, not a key",
        f".env:3: GEMINI_KEY__: {id_fault('-')}",
        "environment: GEMINI_KEY_EVE: a key has no spaces",
    ]


def test_the_environment_counts_before_a_dotenv(home: Home) -> None:
    home.write(".env", f"GEMINI_API_KEY={A}\nGEMINI_KEY_BOB={C}")
    home.environ = {"GEMINI_API_KEY": B, "GEMINI_KEY_BOB": " "}
    ring = home.ring()
    assert home.values(ring) == {"gemini": B, "bob": C}
    assert "GEMINI_API_KEY is set in the environment too" in str(ring.notices[0])


@pytest.mark.parametrize(
    ("token", "setting"), [("pollux-made-by-us", ""), ("test-token-1", "test-token-0,a=test-token-1")]
)
def test_our_own_token_in_the_sdks_variable_is_not_a_key(home: Home, token: str, setting: str) -> None:
    home.write(".env", f"GEMINI_API_KEY={A}")
    home.environ = {"GEMINI_API_KEY": token, "POLLUX_TOKEN": setting}
    ring = home.ring()
    assert home.values(ring) == {"gemini": A}
    assert ring.problems == ()
    assert "client token of Pollux" in str(ring.notices[0])


def test_a_variable_that_is_not_read_is_mentioned_when_there_is_no_key(home: Home) -> None:
    home.environ = {"GOOGLE_API_KEY": A}
    ring = home.ring()
    assert keys_of(ring) == ()
    assert "GOOGLE_API_KEY is not read" in str(ring.notices[0])
    home.write("key.txt", B)
    assert home.ring().notices == ()


def test_a_document_says_everything_about_a_key(home: Home) -> None:
    limits = {"*": {"rpm": 5}, "gemini-2.5-pro": {"rpd": 0}}
    home.write(
        "data/keys.json",
        document(
            {"id": "alice", "api_key": "env:ALICE", "project": "team-a", "tier": "free", "limits": limits},
            {"id": "bob", "api_key": f" {B} ", "tier": "Tier 1", "enabled": False, "note": "of Bob"},
            {"id": "eve", "api_key": "env:EVE"},
        ),
    )
    home.write(".env", f"EVE={C}")
    home.environ["ALICE"] = A
    ring = home.ring()
    assert keys_of(ring) == (
        Key("alice", "team-a", "free", limits),
        Key("bob", "bob", "tier1", enabled=False),
        Key("eve", "eve"),
    )
    assert home.values(ring) == {"alice": A, "bob": B, "eve": C}
    assert [(notice.line, notice.reason.split(";")[0]) for notice in ring.notices] == [(1, "unknown field 'note'")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "a", "api_key": 5}', "api_key is a text"),
        ('{"id": "a"}', "api_key is a text"),
        (f'{{"api_key": "{A}"}}', "an id is"),
        (f'{{"id": "A.b", "api_key": "{A}"}}', "an id is"),
        ('{"id": "a", "api_key": "env:NOT_SET"}', "the variable NOT_SET is not set"),
        (f'{{"id": "a", "api_key": "env:{A}"}}', "the variable that api_key names is not set"),
        ('{"id": "a", "api_key": "env:BAD"}', "the variable BAD: a key has no spaces"),
        (f'{{"id": "a", "api_key": "{A}", "tier": "{B}"}}', "a tier is free"),
        (f'{{"id": "a", "api_key": "{A}", "tier": 7}}', "a tier is free"),
        (f'{{"id": "a", "api_key": "{A}", "project": ""}}', "a project is"),
        (f'{{"id": "a", "api_key": "{A}", "enabled": "no"}}', "enabled is true or false"),
        (f'{{"id": "a", "api_key": "{A}", "enabled": null}}', "enabled is true or false"),
        (f'{{"id": "a", "api_key": "{A}", "limits": {{"*": {{"rps": 5}}}}}}', "the names of limits are"),
        (f'{{"id": "a", "api_key": "{A}", "limits": {{"*": {{"rpm": -1}}}}}}', "the limit rpm is a whole number"),
        (f'{{"id": "a", "api_key": "{A}", "limits": {{"*": {{"rpm": true}}}}}}', "the limit rpm is a whole number"),
        (f'{{"id": "a", "api_key": "{A}", "limits": {{"rpm": 5}}}}', "limits are"),
        (f'{{"id": "a", "api_key": "{A}", "limits": [5]}}', "limits are"),
        (f'{{"id": "good", "api_key": "{A}"}}', "the id 'good' is taken in this file"),
        (f'"{A}"', 'a key is {"id"'),
    ],
)
def test_a_bad_entry_costs_no_other_and_has_its_line(line: str, reason: str) -> None:
    text = f'{{"providers": {{"gemini": {{"keys": [\n{{"id": "good", "api_key": "{B}"}},\n{line}\n]}}}}}}'
    parsed = parse(text, "keys.json", {"BAD": Variable("BAD", "two words")})
    assert [entry.id for entry in parsed.entries] == ["good"]
    assert [problem.line for problem in parsed.problems] == [3]
    assert parsed.problems[0].reason.startswith(reason)
    assert not any(value in repr(parsed) for value in (A, B))


def test_the_line_is_that_of_the_field() -> None:
    text = json.dumps(document({"id": "a", "api_key": A, "no\\te": ["}", {}], "tier": "gold"}), indent=1)
    wrong = next(number for number, line in enumerate(text.splitlines(), 1) if '"tier"' in line)
    assert faults(text, "keys.json") == [(wrong, "a tier is free, tier1, tier2 or tier3")]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('{"providers": {"gemini": {"keys": [\n{"id": "a",}]}}}', "keys.json:2: not valid JSON"),
        ("", "keys.json:1: not valid JSON"),
        ("[]", "keys.json:1: expected"),
        ("{}", "keys.json:1: expected"),
        ('{"provider":\n[]}', "keys.json:1: expected"),
        ('{"providers":\n[]}', "keys.json:2: expected"),
        ('{"providers": {"gemini":\n{"keys":\n{}}}}', "keys.json:3: expected"),
        ("[" * 100_000, "keys.json: nested too deep"),
        (b"\xff\xfea", "keys.json: not UTF-8"),
        (b'{"a": "\xe9"}', "keys.json: not UTF-8"),
        (" " * 2**20 + "{}", "keys.json: larger than 1 MiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_at_the_start(home: Home, content: str | bytes, where: str) -> None:
    home.write("keys.json", content)
    with pytest.raises(KeySourceError, match=f"^{where.replace('.', '[.]')}"):
        home.ring()


def test_another_providers_keys_are_not_ours(home: Home) -> None:
    home.write("keys.json", {"providers": {"openai": {"keys": [{"id": "x"}]}}})
    ring = home.ring()
    assert (keys_of(ring), ring.problems) == ((), ())


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([A, f"env:{B}", "env:X"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from([A, "rpm", "*"]), inner),
    max_leaves=12,
)
entry_like = st.fixed_dictionaries(
    {},
    optional={
        name: json_like | st.sampled_from([A, "a", "b"])
        for name in ("id", "api_key", "project", "tier", "limits", "enabled", "other")
    },
)
texts = (
    st.text()
    | st.builds(
        lambda parts: "\n".join(parts), st.lists(st.sampled_from([A, f"x: {B}", f"K={A}", f"{A} {B}", "#", "\ufeff"]))
    )
    | st.builds(lambda keys: json.dumps(document(*keys), indent=1), st.lists(entry_like | json_like, max_size=4))
    | st.builds(json.dumps, json_like)
)


def test_a_project_that_is_a_keys_value_is_refused() -> None:
    text = json.dumps(document({"id": "a", "api_key": B, "project": A}))
    assert faults(text, "keys.json")[0][1].endswith("and is not a key's value")


@settings(max_examples=200, deadline=None)
@given(texts, st.sampled_from(["keys.json", "key.txt", ".env", "x"]))
def test_no_text_breaks_parsing_and_no_value_gets_out(text: str, file: str) -> None:
    try:
        parsed = parse(text, file, {"X": Variable("X", C)})
    except KeyFileError as error:
        told = f"{error} {error!r} {error.problem!r}"
        carried = error.__context__
    else:
        carried, told = None, f"{parsed!r} {[str(problem) for problem in parsed.problems]}"
        for problem in parsed.problems:
            assert 1 <= problem.line <= len(text.splitlines()) + 1
    assert carried is None  # an exception of the parser would hold the text
    assert not any(value in told for value in (A, B, C))


# --- sources together


def test_sources_add_up_and_the_first_names_a_key(home: Home) -> None:
    home.write("data/keys.json", document({"id": "alice", "api_key": A}))
    home.write("keys.json", document({"id": "again", "api_key": A}, {"id": "bob", "api_key": B}))
    home.write("key.txt", f"{B}\n{C}")
    home.write(".env", f"GEMINI_API_KEY={D}\nGEMINI_KEY_ALICE={NEW_FORM}")
    ring = home.ring()
    assert home.values(ring) == {"alice": A, "bob": B, "key-2": C, "gemini": D}
    assert [str(notice) for notice in ring.notices] == [
        f"keys.json:1: the same key as 'alice' of {home.data / 'keys.json'}:1, which counts",
        "key.txt:1: the same key as 'bob' of keys.json:1, which counts",
    ]
    assert [str(problem) for problem in ring.problems] == [
        f".env:2: the id 'alice' is taken by {home.data / 'keys.json'}:1"
    ]


def test_a_key_that_refers_to_its_variable_is_not_told_as_double(home: Home) -> None:
    home.write("data/keys.json", document({"id": "alice", "api_key": "env:GEMINI_KEY_ALICE", "tier": "free"}))
    home.write(".env", f"GEMINI_KEY_ALICE={A}")
    ring = home.ring()
    assert keys_of(ring) == (Key("alice", "alice", "free"),)
    assert (ring.problems, ring.notices) == ((), ())


def test_a_disabled_key_stays_so_though_another_source_has_it(home: Home) -> None:
    home.write("data/keys.json", document({"id": "alice", "api_key": A, "enabled": False}))
    home.write(".env", f"GEMINI_API_KEY={A}")
    assert keys_of(home.ring()) == (Key("alice", "alice", enabled=False),)


def test_a_keys_file_is_the_only_source(home: Home) -> None:
    home.write("key.txt", A)
    home.environ = {"GEMINI_API_KEY": B}
    assert home.values(home.ring(home.write("own.txt", C))) == {"key-1": C}
    assert home.values(home.ring(home.write("own.env", f"GEMINI_KEY_C={C}"))) == {"c": C}
    own = home.write("own", document({"id": "x", "api_key": "env:GEMINI_API_KEY"}))
    assert home.values(home.ring(own)) == {"x": B}


def test_a_keys_file_must_be_there_while_other_sources_need_not(home: Home) -> None:
    assert keys_of(home.ring()) == ()
    (home.folder / ".env").mkdir()
    (home.folder / "key.txt").mkdir()
    assert keys_of(home.ring()) == ()
    for path, reason in ((home.folder / "none.json", "no such file"), (home.folder, "not a regular file")):
        with pytest.raises(KeySourceError, match=reason):
            home.ring(path)


# --- changes while running


def test_changes_are_seen_within_two_seconds_and_not_looked_for_each_time(home: Home) -> None:
    home.write("key.txt", A)
    ring = home.ring()
    assert home.values(ring) == {"key-1": A}
    home.write(".env", f"GEMINI_API_KEY={B}")
    assert home.values(ring, after=0.5) == {"key-1": A}
    assert home.values(ring, after=1.0) == {"key-1": A, "gemini": B}
    (home.folder / "key.txt").unlink()
    (home.folder / ".env").unlink()
    assert home.values(ring, after=2.0) == {}


def test_nothing_is_read_while_nothing_changes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write("key.txt", A)
    ring = home.ring()
    before = keys_of(ring)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read again"))
    home.clock.now += 5
    assert keys_of(ring) is before


def test_the_same_keys_after_a_change_are_the_same_tuple(home: Home) -> None:
    home.write("key.txt", A)
    ring = home.ring()
    before = keys_of(ring)
    home.write("key.txt", f"# a comment\n{A}")
    home.clock.now += 2
    assert keys_of(ring) is before


def test_a_file_that_becomes_unreadable_keeps_its_keys_and_others_go_on(home: Home) -> None:
    home.write("data/keys.json", document({"id": "alice", "api_key": A}))
    ring = home.ring()
    home.write("data/keys.json", "{")
    home.write("key.txt", B)
    assert home.values(ring, after=2) == {"alice": A, "key-1": B}
    assert "not valid JSON" in str(ring.problems[0])
    assert "stay in use" in str(ring.problems[0])
    home.write("data/keys.json", document())
    assert home.values(ring, after=2) == {"key-1": B}
    assert ring.problems == ()


def test_a_keys_file_or_dotenv_that_is_broken_later_keeps_its_keys(home: Home) -> None:
    path = home.write("own.json", document({"id": "alice", "api_key": "env:X"}))
    home.write(".env", f"X={A}")
    ring = home.ring(path)
    path.unlink()
    home.write(".env", b"\xff\xff")
    assert home.values(ring, after=2) == {"alice": A}
    assert [problem.reason.split(";")[0] for problem in ring.problems] == ["not UTF-8 text", "no such file"]


def test_a_line_taken_out_does_not_rename_the_others(home: Home) -> None:
    home.write("key.txt", f"{A}\n{B}\n{C}")
    ring = home.ring()
    home.write("key.txt", f"{D}\n{B}\n{NEW_FORM}\n{C}")
    assert home.values(ring, after=2) == {"key-1": D, "key-2": B, "key-4": NEW_FORM, "key-3": C}
    home.write("key.txt", C)
    assert home.values(ring, after=2) == {"key-3": C}
    home.write("key.txt", f"{A}\n{C}")
    assert home.values(ring, after=2) == {"key-1": A, "key-3": C}


def test_a_new_value_behind_an_id_is_another_generation(home: Home) -> None:
    home.write(".env", f"GEMINI_KEY_A={A}\nGEMINI_KEY_B={B}")
    ring = home.ring()
    home.write(".env", f"GEMINI_KEY_A={C}\nGEMINI_KEY_B={B}")
    home.clock.now += 2
    assert [(key.id, key.generation) for key in keys_of(ring)] == [("a", 1), ("b", 0)]


def test_reread_looks_at_once_and_says_whether_the_value_changed(home: Home) -> None:
    home.write(".env", f"GEMINI_KEY_A={A}\nGEMINI_KEY_B={B}")
    ring = home.ring()
    assert not asyncio.run(ring.reread("a"))
    home.write(".env", f"GEMINI_KEY_A={C}")
    assert asyncio.run(ring.reread("a"))
    assert not asyncio.run(ring.reread("a"))
    assert not asyncio.run(ring.reread("b"))
    assert asyncio.run(ring.value("a")) == Secret(C)
    with pytest.raises(KeySourceError, match="'b'"):
        asyncio.run(ring.value("b"))


# --- the file that is written


def test_a_key_file_keeps_what_it_does_not_know_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    file = KeyFile(path)
    file.add("alice", Secret(A), project="team", tier="Tier 1", limits={"*": {"rpm": 5}})
    written = json.loads(path.read_text())
    written["version"] = 1
    written["providers"]["openai"] = {"keys": ["other"]}
    written["providers"]["gemini"]["keys"][0]["note"] = "mïne"
    path.write_text(json.dumps(written))
    path.chmod(0o644)

    file.edit("alice", project=None, secret=Secret(B), limits={"*": None, "m": {"rpd": 0}})
    file.edit("alice", enabled=False)
    file.add("bob", Secret(C))
    found = json.loads(path.read_text())
    alice = {
        "id": "alice",
        "api_key": B,
        "tier": "tier1",
        "limits": {"m": {"rpd": 0}},
        "note": "mïne",
        "enabled": False,
    }
    assert found["providers"]["gemini"]["keys"] == [alice, {"id": "bob", "api_key": C}]
    assert (found["version"], found["providers"]["openai"]) == (1, {"keys": ["other"]})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    file.edit("alice", enabled=None)
    file.edit("alice", limits={"m": None})
    file.remove("bob")
    del alice["enabled"], alice["limits"]
    assert json.loads(path.read_text())["providers"]["gemini"]["keys"] == [alice]
    file.remove("alice")
    assert file.ids() == ()


def test_a_change_that_is_refused_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add("alice", Secret(A))
    file.add("bob", Secret(B))
    before = file.path.read_bytes()
    refused: list[tuple[str, dict[str, Any]]] = [
        ("add", {"key_id": "alice", "secret": Secret(C)}),
        ("add", {"key_id": "eve", "secret": Secret(A)}),
        ("add", {"key_id": "Eve ", "secret": Secret(C)}),
        ("add", {"key_id": "eve", "secret": Secret("two words")}),
        ("add", {"key_id": "eve", "secret": Secret(C), "tier": "gold"}),
        ("edit", {"key_id": "eve", "tier": "free"}),
        ("edit", {"key_id": "alice", "secret": Secret(B)}),
        ("edit", {"key_id": "alice", "secret": Secret("xxxxxxx")}),
        ("edit", {"key_id": "alice", "project": "a b"}),
        ("edit", {"key_id": "alice", "limits": {"m": {"rps": 1}}}),
        ("remove", {"key_id": "eve"}),
    ]
    for verb, arguments in refused:
        with pytest.raises(KeySourceError) as caught:
            getattr(file, verb)(**arguments)
        assert not any(value in str(caught.value) for value in (A, B, C))
    assert file.path.read_bytes() == before


@pytest.mark.parametrize("content", ["{", '{"providers": []}', '{"providers": {"gemini": {"keys": ["x"]}}}'])
def test_a_broken_key_file_is_never_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(KeySourceError, match=r"keys\.json"):
        KeyFile(path).add("alice", Secret(A))
    assert path.read_text() == content


def test_an_interrupted_change_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add("alice", Secret(A))
    before = file.path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeySourceError, match="No space left"):
        file.add("bob", Secret(B))
    assert file.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = tmp_path / "keys.json"
    path.symlink_to(tmp_path / "real" / "keys.json")
    KeyFile(path).add("alice", Secret(A))
    assert path.is_symlink()
    assert KeyFile(tmp_path / "real" / "keys.json").ids() == ("alice",)


def _add_many(path: Path, writer: int) -> None:
    for number in range(10):
        KeyFile(path).add(f"key-{writer}-{number}", Secret(f"test-key-{writer}-{number}"))


def test_writers_in_several_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(_add_many, path, writer) for writer in range(3)]:
            future.result(timeout=60)
    assert len(set(KeyFile(path).ids())) == 30


# --- taking over


def test_taking_over_keeps_ids_in_use_and_never_two_of_one(home: Home) -> None:
    entries = parse(f"{A}\nbob: {B}\neve: {C}\n{C}\n{D}\n", "key.txt", {}).entries
    known = {"gemini": Secret(A), "bob": Secret(NEW_FORM), "key-5": Secret("test-other")}
    added, skipped = plan(entries, {Secret(D): "mine"}, known)
    assert [(key_id, entry.secret.reveal()) for key_id, entry in added.items()] == [
        ("gemini", A),
        ("bob-2", B),
        ("eve", C),
    ]
    assert [(entry.line, key_id) for entry, key_id in skipped] == [(4, "eve"), (5, "mine")]


def test_an_import_takes_no_id_that_is_taken_by_what_is_no_usable_key() -> None:
    assert plan([Entry("a", Secret(A), "f")], {}, {}, ["a", "a-2"])[0].keys() == {"a-3"}


@pytest.mark.parametrize(
    ("wanted", "taken", "found"),
    [("a", [], "a"), ("a", ["a"], "a-2"), ("key-1", ["key-1", "key-2"], "key-3"), ("a-b", ["a-b"], "a-b-2")],
)
def test_a_taken_id_gets_the_next_number(wanted: str, taken: list[str], found: str) -> None:
    assert free_id(wanted, taken) == found
