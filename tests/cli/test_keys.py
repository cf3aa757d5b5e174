"""`pollux keys`: each command, its exit code, and that no value is read from the command line or printed."""

import contextlib
import getpass
import http.server
import io
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pollux.backends.keys.entries import LIMITS
from pollux.backends.keys.keys_json import FIELDS
from pollux.backends.keys.probe import MODEL
from pollux.cli.keys import keys
from pollux.cli.main import main
from pollux.pool import health
from pollux.pool.health import Aside
from pollux.settings import Settings
from tests.cli.command_line import without_keys
from tests.cli.test_key_health import aside, resting, write

A, B, C, D = ("AIza" + letter * 35 for letter in "abcd")
MASKED = "AIza…aa"
LINES = "write one key a line, as VALUE or as id: VALUE"


@dataclass
class Shell:
    """Runs `pollux keys …` in a folder of its own. What every command printed is kept, to look for values in it."""

    home: Path
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch
    settings: Settings
    printed: str = ""
    checks: bool = False
    """Whether `add` asks Google."""

    def keep_health(self, **parts: Any) -> None:
        """In the store, as gateways write it."""
        write(self.settings.store_url, health.pack(health.Health(**parts)))

    def __call__(self, *words: str, stdin: str = "") -> tuple[int, str, str]:
        self.patch.setattr(sys, "stdin", io.StringIO(stdin))
        if words[0] == "add" and not self.checks and "--help" not in words:
            words = (*words, "--no-check")
        code = main(["keys", *words], lambda: self.settings)
        out, err = self.capture.readouterr()
        self.printed += out + err
        return code, out, err

    @property
    def path(self) -> Path:
        return self.home / "data" / "keys.json"

    @property
    def keys(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.path.read_text())["providers"]["gemini"]["keys"]
        return found


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    without_keys(tmp_path, monkeypatch)
    shell = Shell(tmp_path, capsys, monkeypatch, Settings(data=str(tmp_path / "data")))
    yield shell
    assert not [value for value in (A, B, C, D) if value in shell.printed]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# --- add, edit, remove


def test_a_key_is_added_from_standard_input(shell: Shell) -> None:
    details = ["--project", "team", "--tier", "paid", "--limit", "m:rpm=5,tpm=250000", "--limit", "rpd=20"]
    code, out, _ = shell("add", "alice", *details, stdin=f" '{A}'\nrest\n")
    assert (code, out.splitlines()[0]) == (0, f"added alice ({MASKED}) to {shell.path}")
    assert shell.keys == [
        {
            "id": "alice",
            "api_key": A,
            "project": "team",
            "tier": "tier1",
            "limits": {"m": {"rpm": 5, "tpm": 250000}, "*": {"rpd": 20}},
        }
    ]
    assert shell("add", stdin=B)[0] == shell("add", stdin=C)[0] == 0
    assert [key["id"] for key in shell.keys] == ["alice", "key-1", "key-2"]


def test_on_a_terminal_the_value_is_asked_for_hidden(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return A

    monkeypatch.setattr(getpass, "getpass", answer)
    monkeypatch.setattr(io, "StringIO", Terminal)
    assert shell("add", "alice")[0] == 0
    assert (len(asked), shell.keys[0]["api_key"]) == (1, A)


@pytest.mark.parametrize("words", [["add", "x"], ["edit", "x"]])
@pytest.mark.parametrize(
    "given", [["--value", A], [f"--value={A}"], [f"--val={A}"], ["--api-key", A], [A], ["--tier", A]]
)
def test_a_value_on_the_command_line_is_refused_and_not_repeated(
    shell: Shell, words: list[str], given: list[str]
) -> None:
    code, out, err = shell(*words, *given, stdin=B)
    assert (code, out) == (2, "")
    assert "--tier" in given or "history" in err
    assert not shell.path.exists()


@pytest.mark.parametrize(
    "words", [[A], [f"--{A}"], [f"-{A}"], [f"--secrets={A}", "list"], ["list", A], ["list", f"--x={A}"]]
)
def test_what_is_not_understood_is_not_repeated(shell: Shell, words: list[str]) -> None:
    code, out, err = shell(*words)
    assert (code, out, err.count("\n"), "AIza" in err) == (2, "", 1, False)


def test_ctrl_c_at_the_hidden_prompt_ends_the_command(shell: Shell) -> None:
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    shell.patch.setattr(getpass, "getpass", interrupt)
    shell.patch.setattr(io, "StringIO", Terminal)
    assert shell("add", "alice")[0] == 130
    assert not shell.path.exists()


@pytest.mark.parametrize(
    ("words", "stdin", "why"),
    [
        (["add", "alice:"], A, "an id is"),
        (["add", A], A, "an id is"),
        (["add", "alice"], "", "the value is empty"),
        (["add", "alice"], "your-api-key", "placeholder"),
        (["add", "alice", "--tier", "gold"], A, "a tier is"),
        (["add", "alice", "--limit", "m:rps=5"], A, "the names of limits"),
        (["add", "alice", "--limit", "m:rpm=-5"], A, "expected MODEL:rpm=5"),
        (["add", "alice", "--limit", "m"], A, "expected MODEL:rpm=5"),
        (["add", "env"], A, "the id 'env' is taken, by .env:1"),
        (["add", "alice"], D, "this key is there already, as 'env' of .env:1"),
        (["edit", "env", "--tier", "free"], "", "'env' comes from .env:1"),
        (["remove", "env", "--yes"], "", "'env' comes from .env:1"),
        (["disable", "env"], "", "'env' comes from .env:1"),
        (["edit", "nobody", "--tier", "free"], "", "there is no key 'nobody'; see: pollux keys list"),
        (["edit", "ENV", "--tier", "free"], "", "there is no key 'ENV' (did you mean env?); see: pollux keys list"),
        (["remove", "enw"], "", "there is no key 'enw' (did you mean env?)"),
        (["remove", A], "", "there is no such key; see: pollux keys list"),
        (["edit", "env"], "", "nothing to change"),
        (["check", "nobody"], "", "there is no key 'nobody';"),
        (["check", "env", "Env"], "", "there is no key 'Env' (did you mean env?)"),
        (["import", "none.txt"], "", "none.txt: cannot be read: No such file"),
        (["unknown"], "", "no such command"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(shell: Shell, words: list[str], stdin: str, why: str) -> None:
    (shell.home / ".env").write_text(f"GEMINI_KEY_ENV={D}")
    code, out, err = shell(*words, stdin=stdin)
    assert (code, out) == (2, "")
    assert why in err
    assert not shell.path.exists()


def test_edit_changes_what_is_named_and_none_removes(shell: Shell) -> None:
    shell("add", "alice", "--tier", "free", "--limit", "m:rpm=5", "--limit", "n:rpm=6", stdin=A)
    shell("add", "bob", stdin=C)
    assert shell("edit", "--value", "alice", "--project", "team", stdin=B)[0] == 0
    assert shell("edit", "alice", "--tier", "none", "--limit", "m:none", "--limit", "*:rpd=0")[0] == 0
    changed = {"id": "alice", "api_key": B, "limits": {"n": {"rpm": 6}, "*": {"rpd": 0}}, "project": "team"}
    assert shell.keys[0] == changed
    code, _, err = shell("edit", "alice", "--value", stdin=C)
    assert (code, "as 'bob'" in err) == (2, True)


def test_a_key_is_disabled_enabled_and_removed_even_the_last(shell: Shell) -> None:
    shell("add", "alice", stdin=A)
    assert shell("disable", "alice")[0] == 0
    assert shell.keys[0]["enabled"] is False
    assert shell("enable", "alice")[0] == 0
    assert "enabled" not in shell.keys[0]
    assert shell("remove", "alice")[0] == 2  # nobody to ask
    assert shell("remove", "alice", "--yes")[0] == 0
    assert shell.keys == []


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_removing_asks_on_a_terminal(shell: Shell, monkeypatch: pytest.MonkeyPatch, answer: str, left: int) -> None:
    shell("add", "alice", stdin=A)
    monkeypatch.setattr(io, "StringIO", Terminal)
    assert shell("remove", "alice", stdin=answer)[0] == 0
    assert len(shell.keys) == left


def test_an_entry_that_cannot_be_used_can_be_mended_here(shell: Shell) -> None:
    shell("add", "alice", stdin=A)
    shell.path.write_text(shell.path.read_text().replace('"id"', '"tier": "gold", "id"'))
    assert "a tier is" in shell("list")[2]
    assert shell("edit", "alice", "--tier", "free")[0] == 0
    assert shell("list")[2] == ""


def test_a_keys_file_of_the_settings_is_written_if_it_is_json(shell: Shell) -> None:
    own = shell.home / "own.json"
    shell.settings = Settings(data=str(shell.home / "data"), keys_file=str(own))
    assert shell("add", "alice", stdin=A)[0] == 0
    assert '"alice"' in own.read_text()
    for name in ("own.env", "key.txt"):
        shell.settings = Settings(data=str(shell.home / "data"), keys_file=str(shell.home / name))
        code, _, err = shell("add", "alice", stdin=A)
        assert code == 2
        assert f"pollux keys import {shell.home / name}" in err
        assert not (shell.home / name).exists()
    assert not shell.path.exists()


# --- list


def test_the_list_is_aligned_and_masked(shell: Shell) -> None:
    shell.settings = replace(shell.settings, store="memory://")
    shell("add", "alice", "--project", "a-long-project", stdin=A)
    (shell.home / "key.txt").write_text(f"{B}\nnot a key\n")
    code, out, err = shell("list")
    head, first, second = out.splitlines()
    assert code == 0
    assert [head.index(word) for word in ("PROJECT", "TIER", "VALUE")] == [
        first.index("a-long-project"),
        first.index("-", first.index("a-long-project") + 14),
        first.index("AIza…"),
    ]
    assert second.split() == ["key-1", "key-1", "-", "AIza…bb", "key.txt:1", "not", "known"]
    assert err.startswith("not used: key.txt:2: a key has no spaces; write one key a line")


def test_on_a_terminal_long_cells_take_several_lines(shell: Shell) -> None:
    project = "p" * 60
    shell("add", "alice", "--project", project, stdin=A)
    shown = Terminal()
    shell.patch.setenv("COLUMNS", "70")
    shell.patch.setenv("TERM", "xterm")
    shell.patch.setattr(sys, "stdout", shown)
    assert shell("list")[0] == 0
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in shown.getvalue().splitlines()]
    assert max(map(len, lines)) <= 70
    assert "".join(lines).count("p") >= len(project)
    assert MASKED in shown.getvalue()


def test_the_list_as_json(shell: Shell) -> None:
    shell("add", "alice", "--tier", "free", stdin=A)
    shell("disable", "alice")
    (shell.home / "key.txt").write_text(f"two words\n{A}")
    found = json.loads(shell("list", "--json")[1])
    key = {"id": "alice", "project": "alice", "tier": "free", "masked": MASKED, "source": f"{shell.path}:6"}
    assert found["keys"] == [key | {"enabled": False, "health": {"state": "unchecked"}}]
    assert found["problems"] == [{"file": "key.txt", "line": 1, "reason": f"a key has no spaces; {LINES}"}]
    assert found["notices"][0]["reason"].startswith("the same key as 'alice'")


def test_health_comes_from_the_stores_document(shell: Shell) -> None:
    for key_id, value in (("alice", A), ("bob", B), ("carol", C), ("dave", D)):
        shell("add", key_id, "--project", f"of-{key_id}", stdin=value)
    shell("disable", "dave")
    shell.keep_health(
        keys={"alice": Aside(4e9, "leaked-key", 1.0), "bob": Aside(5.0, "key-source", 1.0)},
        projects={"of-carol": Aside(4e9, "prepay", 1.0)},
        checked=frozenset(("bob", "carol")),
    )
    lines = {line.split()[0]: line for line in shell("list")[1].splitlines()[1:]}
    assert re.search(r"aside until 2096-\d\d-\d\d \d\d:\d\d: leaked-key$", lines["alice"])
    assert lines["bob"].endswith(" healthy")
    assert lines["carol"].endswith(": prepay")
    assert lines["dave"].endswith(" disabled, unchecked")
    found = json.loads(shell("list", "--json")[1])["keys"][0]["health"]
    assert found == {"state": "aside", "until": 4e9, "reason": "leaked-key", "since": 1.0}


def test_a_store_that_fails_does_not_fail_the_list(shell: Shell) -> None:
    shell("add", "alice", stdin=A)

    shell.settings = replace(shell.settings, store="nosuch://store")
    code, out, err = shell("list")
    assert code == 0
    assert out.rstrip().endswith("not known")
    assert err.startswith("pollux keys: health is not known: ")


@pytest.mark.parametrize("words", [["rotate", "alice", "--no-check"], ["edit", "alice", "--value"]])
def test_a_new_value_ends_what_the_store_holds_against_the_old_one(shell: Shell, words: list[str]) -> None:
    shell("add", "alice", stdin=A)
    aside(shell.settings.store_url, "alice", "bob")
    assert shell("edit", "alice", "--tier", "free")[0] == 0
    assert resting(shell.settings.store_url) == ["alice", "bob"]
    code, _, err = shell(*words, stdin=B)
    assert (code, err, resting(shell.settings.store_url)) == (0, "", ["bob"])


def test_without_keys_the_list_says_how_to_add_one(shell: Shell) -> None:
    code, out, err = shell("list")
    assert (code, out) == (0, "")
    assert "pollux keys add" in err


def test_a_source_that_cannot_be_read_is_exit_code_2(shell: Shell) -> None:
    (shell.home / "keys.json").write_text('{\n"providers": }')
    assert shell("list") == (2, "", "pollux keys: keys.json:2: not valid JSON: Expecting value (column 14)\n")


# --- import


def test_import_tells_what_was_added_skipped_and_refused(shell: Shell) -> None:
    shell("add", "alice", stdin=A)
    (shell.home / "team.txt").write_text(f"{A}\n# ours\nalice: {B}\nnot a key\n{C}\n{C}\n")
    dry = shell("import", "--dry-run", "team.txt")
    assert len(shell.keys) == 1
    code, out, err = shell("import", "team.txt")
    assert code == 0
    assert out.splitlines() == [
        "added alice-2 (AIza…bb) of team.txt:3, where it is alice",
        "added key-4 (AIza…cc) of team.txt:5",
        "skipped team.txt:1: there already, as alice",
        "skipped team.txt:6: there already, as key-4",
        f"2 added, 2 there already, 1 not a key; file {shell.path}",
    ]
    assert err == dry[2] == f"not a key: team.txt:4: a key has no spaces; {LINES}\n"
    assert dry[1].startswith("would add alice-2 (AIza…bb)")
    assert [(key["id"], key["api_key"]) for key in shell.keys] == [("alice", A), ("alice-2", B), ("key-4", C)]
    assert shell("import", "team.txt")[1].endswith(f"0 added, 4 there already, 1 not a key; file {shell.path}\n")


def test_import_of_a_file_that_is_read_says_that_it_should_be_deleted(shell: Shell) -> None:
    (shell.home / "key.txt").write_text(f"{A}\n")
    (shell.home / ".env").write_text(f"GEMINI_API_KEY={B}\n")
    (shell.home / "team.txt").write_text(f"{C}\n")
    assert shell("import", "--dry-run", "key.txt")[2] == ""
    told = shell("import", "key.txt")[2]
    assert told.startswith("pollux keys: key.txt is still read: a key that you remove or rotate")
    assert told.endswith("DELETE key.txt\n")
    assert shell("import", str(shell.home / "key.txt"))[2].endswith(f"DELETE {shell.home / 'key.txt'}\n")
    assert shell("import", ".env")[2].endswith("DELETE the keys in .env\n")
    assert shell("import", "team.txt")[2] == ""
    shell.settings = Settings(data=str(shell.home / "data"), keys_file=str(shell.path))
    assert shell("import", "key.txt")[2] == ""  # nothing else is read


def test_a_value_that_another_source_still_serves_is_reported_with_exit_code_1(shell: Shell) -> None:
    (shell.home / "key.txt").write_text(f"# ours\n{A}\n{B}\n{C}\n")
    shell("import", "key.txt")
    code, out, err = shell("remove", "key-1", "--yes")
    assert (code, out) == (1, f"removed key-1 from {shell.path}\n")
    assert err == (
        "pollux keys: its value is still in key.txt:2, where it GOES ON SERVING, as 'key-1': delete that line\n"
    )
    code, out, err = shell("rotate", "key-2", "--no-check", stdin=D)
    assert (code, out.startswith("rotated key-2 ")) == (1, True)
    assert "the old value is still in key.txt:3, where it GOES ON SERVING, as 'key-4': delete that line" in err
    (shell.home / ".env").write_text(f"GEMINI_API_KEY={C}\n")
    code, _, err = shell("edit", "key-3", "--value", stdin="test-key-new")
    assert code == 1
    assert "the old value is still in key.txt:4 and .env:1, where it GOES ON SERVING" in err
    (shell.home / "key.txt").unlink()
    (shell.home / ".env").unlink()
    assert shell("remove", "key-2", "--yes")[::2] == (0, "")
    assert shell("edit", "key-3", "--tier", "free")[::2] == (0, "")


def test_a_value_that_another_source_holds_but_does_not_serve_is_told_of(shell: Shell) -> None:
    (shell.home / "key.txt").write_text(f"alice: {A}\n")
    shell("import", "key.txt")
    code, _, err = shell("rotate", "alice", "--no-check", stdin=B)  # the id in key.txt is taken
    assert code == 0
    assert "the old value is still in key.txt:1, where it does not serve now: delete that line" in err


def test_what_cannot_be_looked_through_for_a_value_that_was_removed_is_exit_code_1(shell: Shell) -> None:
    shell("add", "alice", stdin=A)
    (shell.home / "keys.json").write_text("{")
    code, out, err = shell("remove", "alice", "--yes")
    assert (code, out) == (1, f"removed alice from {shell.path}\n")
    assert "its value may still be in another source, which cannot be read: keys.json:1: not valid JSON" in err


def test_import_of_a_document_keeps_everything_and_references(shell: Shell) -> None:
    key = {"api_key": "env:TEAM", "project": "p", "tier": "free", "limits": {"*": {"rpm": 1}}, "enabled": False}
    shell.patch.setenv("TEAM", A)
    (shell.home / "team.json").write_text(json.dumps({"providers": {"gemini": {"keys": [{"id": "x"} | key]}}}))
    assert shell("import", "team.json")[0] == 0
    assert shell.keys == [{"id": "x"} | key]


def test_a_key_of_a_dotenv_keeps_its_id_when_it_is_taken_over(shell: Shell) -> None:
    (shell.home / ".env").write_text(f"GEMINI_API_KEY={A}\nGOOGLE_API_KEYS={B},{C}\n")
    assert shell("import", ".env")[0] == 0
    assert [key["id"] for key in shell.keys] == ["gemini", "google-1", "google-2"]
    assert shell("edit", "gemini", "--tier", "free")[0] == 0


# --- check


class Gemini(http.server.BaseHTTPRequestHandler):
    """Answers countTokens as the key deserves."""

    asked: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append((self.path, body))
        key = self.headers["x-goog-api-key"]
        status, answer = self.answers[key]
        self.send_response(status)
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    answers: Mapping[str, tuple[int, Any]] = {
        A: (200, {"totalTokens": 1}),
        B: (400, {"error": {"code": 400, "message": f"API key not valid: {B}.", "status": "INVALID_ARGUMENT"}}),
        C: (429, {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}),
        D: (307, {}),
        "test-key-hello": (200, {"hello": "world"}),
        "test-key-down": (503, {"error": {"code": 503, "message": "down", "status": "UNAVAILABLE"}}),
    }

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def gemini() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    class Own(Gemini):
        asked: list[tuple[str, bytes]] = []  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", Own.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_rotate_takes_a_new_value_only_after_it_answered(shell: Shell) -> None:
    shell("add", "alice", "--tier", "free", stdin=D)
    with gemini() as (url, asked):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        code, out, _ = shell("rotate", "alice", stdin=B)
        assert code == 1
        assert out.startswith("kept the old value of alice: the new one is invalid: invalid-key")
        assert shell("rotate", "alice", stdin="test-key-down")[0] == 1
        assert shell.keys[0]["api_key"] == D
        assert shell("rotate", "alice", stdin=A)[:2] == (0, f"rotated alice ({MASKED}) in {shell.path}\n")
        assert (shell.keys[0]["api_key"], shell.keys[0]["tier"]) == (A, "free")
        assert shell("rotate", "alice", stdin=C)[0] == 0  # without quota, but it is a key
        assert shell("rotate", "alice", "--no-check", stdin=B)[0] == 0
        assert (shell.keys[0]["api_key"], len(asked)) == (B, 4)


def test_the_same_value_again_is_kept_also_if_google_refuses_it(shell: Shell) -> None:
    shell("add", "alice", stdin=B)
    with gemini() as (url, _):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        code, out, _ = shell("rotate", "alice", stdin=B)
    assert (code, out.startswith("kept alice, which is the same value; it is invalid: invalid-key")) == (1, True)


@pytest.mark.parametrize(
    ("words", "stdin", "why"),
    [
        (["rotate", "alice"], B, "this key is there already, as 'bob'"),
        (["rotate", "alice"], "", "the value is empty"),
        (["rotate", "nobody"], C, "there is no key 'nobody'"),
        (["rotate", "alice", B], "", "history"),
    ],
)
def test_rotate_refuses_what_makes_no_sense(shell: Shell, words: list[str], stdin: str, why: str) -> None:
    shell("add", "alice", stdin=A)
    shell("add", "bob", stdin=B)
    code, out, err = shell(*words, stdin=stdin)
    assert (code, out) == (2, "")
    assert why in err
    assert shell.keys[0]["api_key"] == A


def test_check_asks_for_each_key_and_says_what_it_is_worth(shell: Shell) -> None:
    lines = ["good: " + A, "bad: " + B, "spent: " + C, "moved: " + D, "hello: test-key-hello", "down: test-key-down"]
    (shell.home / "key.txt").write_text("\n".join(lines))
    with gemini() as (url, asked):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        code, out, _ = shell("check")
        assert (code, len(asked)) == (1, 6)
        states = {line.split()[0]: line[line.index("…") + 1 :].strip("abcd ") for line in out.splitlines()[1:]}
        assert states["good"].startswith("healthy")
        assert states["bad"].startswith("invalid  ")
        assert "invalid-key" in states["bad"]
        assert states["spent"].startswith("no quota")
        assert states["moved"].startswith("unclear")
        assert states["hello"].startswith("unclear")
        assert "not one of the Gemini API" in states["hello"]
        assert "unreachable" in out.splitlines()[-1]

        assert shell("check", "good", "--model", "models/gemini-x")[0] == 0
        assert asked[-1][0] == "/v1beta/models/gemini-x:countTokens"
        assert json.loads(asked[-1][1])["contents"]


def test_the_findings_as_json(shell: Shell) -> None:
    (shell.home / "key.txt").write_text(f"good: {A}\nbad: {B}\n")
    with gemini() as (url, _):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        code, out, _ = shell("check", "--json")
    good, bad = json.loads(out)["keys"]
    assert code == 1
    assert good == {"id": "good", "masked": MASKED, "state": "healthy", "reason": ""}
    assert (bad["id"], bad["state"], bad["reason"][:11]) == ("bad", "invalid", "invalid-key")


def test_on_a_terminal_a_bar_shows_how_many_keys_were_checked(shell: Shell) -> None:
    (shell.home / "key.txt").write_text("\n".join(f"k{n}: {A[:-2]}{n:02}" for n in range(50)))
    drawn = Terminal()
    shell.patch.setenv("TERM", "xterm")
    shell.patch.setattr(sys, "stderr", drawn)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shell.settings = Settings(data=str(shell.home / "data"), upstream=f"http://127.0.0.1:{free.getsockname()[1]}")
        code, out, _ = shell("check")
    assert (code, len(out.splitlines())) == (1, 51)
    assert "checking keys" in drawn.getvalue()
    assert "50/50" in drawn.getvalue()
    assert "AIza" not in drawn.getvalue()


def test_a_check_goes_through_the_proxy_of_the_environment(shell: Shell) -> None:
    shell("add", "alice", stdin=A)
    shell.settings = Settings(data=str(shell.home / "data"), upstream="http://gemini.example")
    with gemini() as (url, asked):
        shell.patch.setenv("HTTP_PROXY", url)
        code, out, _ = shell("check")
    assert (code, "healthy" in out) == (0, True)
    assert [path for path, _ in asked] == [f"http://gemini.example/v1beta/models/{MODEL}:countTokens"]


def test_a_disabled_key_is_checked_only_by_name(shell: Shell) -> None:
    shell("add", "alice", stdin=A)
    shell("disable", "alice")
    with gemini() as (url, asked):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        assert shell("check")[0] == 2
        assert (shell("check", "alice")[0], len(asked)) == (0, 1)


def test_an_address_where_nothing_listens_is_unreachable(shell: Shell) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shell.settings = Settings(data=str(shell.home / "data"), upstream=f"http://127.0.0.1:{free.getsockname()[1]}")
        shell("add", "alice", stdin=A)
        code, out, _ = shell("check")
    assert (code, "unreachable  Connection refused" in out) == (1, True)


# --- add asks Google at once


def test_add_asks_google_at_once_and_says_what_it_said(shell: Shell) -> None:
    shell.checks = True
    with gemini() as (url, asked):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        code, out, err = shell("add", "good", stdin=A)
        assert (code, out.splitlines()[1], err) == (0, "checked: Google takes it", "")
        code, _, err = shell("add", "bad key", stdin=B)
        assert code == 1
        assert "GOOGLE REFUSES bad key: invalid-key" in err
        assert ". It is added, and gateways leave it aside, and ask about it again, until Google takes it; give" in err
        assert ".." not in err
        assert {row["id"]: row["health"]["state"] for row in json.loads(shell("list", "--json")[1])["keys"]} == {
            "good": "healthy",
            "bad key": "aside",
        }
        assert "pollux keys rotate 'bad key'" in err
        code, out, _ = shell("add", "spent", stdin=C)
        assert (code, "Google takes it, but its project has no quota now" in out) == (0, True)
        code, _, err = shell("add", "down", stdin="test-key-down")
        assert (code, "could not be checked (unreachable: overloaded" in err) == (0, True)
        assert len(asked) == 4
        code, out, _ = shell("add", "quiet", "--no-check", stdin="test-key-hello")
        assert (code, len(asked)) == (0, 4)
        assert "not checked" in out
    assert [key["id"] for key in shell.keys] == ["good", "bad key", "spent", "down", "quiet"]


def test_a_key_is_unchecked_until_a_check_found_it_well(shell: Shell) -> None:
    def states() -> dict[str, str]:
        return {key["id"]: key["health"]["state"] for key in json.loads(shell("list", "--json")[1])["keys"]}

    shell("add", "bad", stdin=B)
    shell("add", "good", stdin=A)
    with gemini() as (url, _):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        assert states() == {"bad": "unchecked", "good": "unchecked"}
        shell("check")
        assert states() == {"bad": "aside", "good": "healthy"}
        shell("edit", "good", "--value", stdin="test-key-hello")
        assert states()["good"] == "unchecked"
        assert shell("rotate", "good", stdin=A)[0] == 0
        assert states()["good"] == "healthy"
        shell("remove", "good", "--yes")
        shell("add", "good", stdin=D)
        assert states()["good"] == "unchecked"
        shell.checks = True
        shell("add", "new", stdin=C)
        assert states()["new"] == "healthy"


@pytest.mark.parametrize(("value", "doubted"), [(A, False), ("AQ." + "Ab8-_x" * 6, False), ("test-key-hello", True)])
def test_a_value_that_does_not_look_like_a_key_is_added_with_a_warning(shell: Shell, value: str, doubted: bool) -> None:
    code, _, err = shell("add", "alice", stdin=value)
    assert (code, "warning: alice: it does not look like a Gemini key" in err) == (0, doubted)
    assert value not in err


@pytest.mark.parametrize("words", [["check"], ["rotate", "alice"], ["enable", "alice"]])
def test_check_enable_and_rotate_to_the_same_value_end_what_the_store_holds(shell: Shell, words: list[str]) -> None:
    shell("add", "alice", stdin=A)
    with gemini() as (url, _):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        aside(shell.settings.store_url, "alice", "bob")
        code, out, err = shell(*words, stdin=A)
        assert (code, err, resting(shell.settings.store_url)) == (0, "", ["bob"])
        assert "same value" in out or words[0] != "rotate"
        assert "lifted: key alice" in out or words[0] != "check"


def test_a_check_that_finds_a_key_refused_lifts_nothing(shell: Shell) -> None:
    shell("add", "alice", stdin=B)
    with gemini() as (url, _):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        aside(shell.settings.store_url, "alice")
        assert shell("check")[0] == 1
        assert resting(shell.settings.store_url) == ["alice"]


# --- a gateway that runs


@contextlib.contextmanager
def running_gateway(**says: Any) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """One that answers /admin/keys/lift."""
    asked: list[tuple[str, str, str]] = []

    class Gateway(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.command, self.path, self.headers["authorization"]))
            body = json.dumps({"lifted": [], "unknown": [], "simulated": False, "free": {}} | says).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_check_tells_a_running_gateway_which_keys_are_well(shell: Shell) -> None:
    shell("add", "alice b", "--project", "p", "--tier", "tier1", stdin=A)
    shell("add", "bad", stdin=B)
    with gemini() as (upstream, _), running_gateway(lifted=["key alice b"], free={"p": 1.0, "q": 1.0}) as (url, asked):
        shell.settings = Settings(
            data=str(shell.home / "data"), store="memory://", upstream=upstream, url=url, admin_token="test-admin-token"
        )
        code, out, err = shell("check")
    assert (code, out.splitlines()[-1]) == (1, "lifted: key alice b")
    assert asked == [
        ("POST", "/admin/keys/lift?well=1&all=1&id=alice+b", "Bearer test-admin-token"),
        ("POST", "/admin/keys/aside?cause=invalid-key&id=bad", "Bearer test-admin-token"),
    ]
    assert "note: project p is still on the free quota, though its keys say tier1" in err
    assert "project q" not in err


def test_add_beside_a_running_demo_says_that_it_goes_on_simulating(shell: Shell) -> None:
    with running_gateway(simulated=True) as (url, asked):
        shell.settings = Settings(data=str(shell.home / "data"), url=url, admin_token="test-admin-token")
        code, _, err = shell("add", "alice", stdin=A)
        assert (code, len(asked)) == (0, 1)
        assert f"the gateway at {url} runs as a demo: it goes on simulating until it is started again" in err


def test_add_says_whether_gateways_know_that_google_refuses_the_key(shell: Shell) -> None:
    shell.checks = True
    with gemini() as (upstream, _), running_gateway() as (url, asked):
        data, token = str(shell.home / "data"), "test-admin-token"
        shell.settings = Settings(data=data, store="memory://", upstream=upstream, url=url, admin_token=token)
        code, _, err = shell("add", "a", stdin=B)
        assert (code, "gateways leave it aside" in err) == (1, True)
        assert [path for _, path, _ in asked] == ["/admin/keys/lift?id=a", "/admin/keys/aside?cause=invalid-key&id=a"]
        shell("remove", "a", "--yes")
    with gemini() as (upstream, _), socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        shell.settings = Settings(data=data, store="memory://", upstream=upstream, url=url, admin_token=token)
        err = shell("add", "a", stdin=B)[2]
        assert "gateways were not told: each leaves it aside once Google refused a request with it" in err


def test_a_gateway_that_was_named_and_does_not_answer_is_told_of(shell: Shell) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        shell.settings = Settings(data=str(shell.home / "data"), url=url, admin_token="test-admin-token")
        code, _, err = shell("add", "alice", stdin=A)
    assert (code, f"the gateway was not told: no gateway answers at {url}" in err) == (0, True)


def test_check_says_when_a_refusal_names_a_free_quota(shell: Shell) -> None:
    shell("add", "alice", "--project", "p", stdin=A)
    shell("add", "carl", "--project", "q", "--tier", "free", stdin=C)
    shell.keep_health(free={"p": 1.0, "q": 1.0})
    with gemini() as (url, _):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        err = shell("check")[2]
    assert err == (
        "note: on the free quota: p; if that is right, run: pollux keys edit alice --tier free; if not, look at the "
        "plan in AI Studio\n"
    )  # of q its key says so


def test_check_names_all_projects_on_the_free_quota_in_one_line_for_each_thing_to_do(shell: Shell) -> None:
    (shell.home / "key.txt").write_text(f"a b: {A}\nb: test-key-2\n")
    shell("add", "c", "--tier", "tier1", stdin=B)
    shell("add", "d", "--tier", "tier2", stdin=D)
    shell.keep_health(free=dict.fromkeys(("a b", "b", "c", "d"), 1.0))
    with gemini() as (url, _):
        shell.settings = Settings(data=str(shell.home / "data"), upstream=url)
        paid, untold = shell("check", "a b", "c", "d")[2], shell("check", "a b")[2]
    assert paid.startswith("note: projects c (tier1), d (tier2) are still on the free quota, though their keys name")
    assert len(paid.splitlines()) == 2
    assert paid.splitlines()[1] + "\n" == untold
    assert "pollux keys edit 'a b' --tier free;" in untold


def test_keys_of_one_project_that_name_different_tiers_are_warned_of_and_the_first_counts(shell: Shell) -> None:
    shell("add", "alice", "--project", "p", "--tier", "free", stdin=A)
    assert shell("add", "other", "--tier", "tier1", stdin=C)[2] == ""
    warning = "warning: bob (tier1) and alice (free) are of one project, p: what alice says counts"
    assert warning in shell("add", "bob", "--project", "p", "--tier", "tier1", stdin=B)[2]
    assert warning in shell("list")[2]
    assert warning.replace("tier1", "no tier") in shell("edit", "bob", "--tier", "none")[2]
    assert shell("edit", "other", "--tier", "tier2")[2] == ""
    assert shell("edit", "bob", "--tier", "free")[2] == ""
    assert shell("list")[2] == ""


def test_each_command_has_help(shell: Shell) -> None:
    for command in keys.commands:
        code, out, _ = shell(command, "--help")
        assert (code, f"Usage: pollux keys {command}" in out) == (0, True)


def test_the_docs_name_each_command_field_and_finding() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
    words = [*(f"pollux keys {name}" for name in keys.commands), *(f"| `{name}` |" for name in FIELDS)]
    words += [*(f"`{name}`" for name in LIMITS), "`healthy`", "`invalid`", "`no quota`", "`unreachable`", "`unclear`"]
    assert [word for word in words if word not in docs] == []
