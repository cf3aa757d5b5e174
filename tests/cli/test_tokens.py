"""`pollux tokens`: tokens made, listed and revoked in a local Secret Manager, and the errors without one."""

import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pollux.backends.keys.tokens import Tokens
from pollux.cli import main
from pollux.cli.tokens import tokens
from pollux.settings import Settings
from tests.backends.keys.fake_secret_manager import PROJECT, SecretManager, serving

ONE, TWO = (f"pollux-{word}-{'0' * 20}" for word in ("one", "two"))
WEB, ADMIN = "pollux-token-web", "pollux-admin-token"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Shell:
    google: SecretManager
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch
    settings: Settings

    def __call__(self, *words: str, answer: str | None = None, secrets: bool = True) -> tuple[int, str, str]:
        self.patch.setattr(sys, "stdin", io.StringIO("") if answer is None else Terminal(answer))
        code = main.main(["tokens", *words, *(["--secrets", PROJECT] if secrets else [])], lambda: self.settings)
        out, err = self.capture.readouterr()
        return code, out, err


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with serving() as google:
        monkeypatch.setenv("SECRET_MANAGER_EMULATOR_HOST", google.host)
        yield Shell(google, capsys, monkeypatch, Settings(data=str(tmp_path)))


def test_each_command_has_help(shell: Shell) -> None:
    for command in tokens.commands:
        code, out, _ = shell(command, "--help", secrets=False)
        assert (code, f"Usage: pollux tokens {command}" in out) == (0, True)


# --- add


def test_a_token_is_made_and_shown_once_with_the_lines_for_the_sdks(shell: Shell) -> None:
    code, out, err = shell("add", "web", "--url", "https://gate.example/")
    (token,) = shell.google.values(WEB)
    assert (code, re.fullmatch(r"pollux-[\w-]{32}", token) is not None) == (0, True)
    assert not token.lower().endswith("z")
    assert out.splitlines() == [
        "export GOOGLE_GEMINI_BASE_URL=https://gate.example",
        f"export GEMINI_API_KEY={token}",
        f"export OPENAI_BASE_URL=https://gate.example/v1beta/openai/ OPENAI_API_KEY={token}",
    ]
    assert "version 1 of secret pollux-token-web of pool; it is shown only now" in err
    assert token not in err
    assert shell.google.secrets[WEB].labels == {"managed-by": "pollux"}
    assert Tokens([f"web={token}"], None, query_token=False).check([(b"x-goog-api-key", token.encode())]) == "web"


@pytest.mark.parametrize(("whose", "name"), [("web", WEB), ("--admin", ADMIN)])
def test_the_token_alone_can_be_piped(shell: Shell, whose: str, name: str) -> None:
    code, out, err = shell("add", whose, "--raw")
    assert (code, out) == (0, f"{shell.google.values(name)[0]}\n")
    assert "it is shown only now" in err


def test_for_a_name_that_is_there_another_becomes_valid_beside_it(shell: Shell) -> None:
    shell.google.put(WEB, ONE)
    code, out, err = shell("add", "web")
    assert code == 0
    assert shell.google.states(WEB) == ["ENABLED", "ENABLED"]
    assert shell.google.values(WEB)[1] in out
    assert "valid beside it: version 1, until: pollux tokens revoke web --version N --secrets pool" in err


def test_the_admin_token_is_one_too(shell: Shell) -> None:
    shell.google.put(ADMIN)  # as Terraform declares it: without a version
    code, out, _ = shell("add", "--admin")
    assert (code, out) == (0, f"export POLLUX_ADMIN_TOKEN={shell.google.values(ADMIN)[0]}\n")


def test_a_token_that_cannot_be_stored_is_not_shown_and_leaves_nothing(shell: Shell) -> None:
    shell.google.fail("add_secret_version", "DENIED")
    code, out, err = shell("add", "web")
    assert (code, out, shell.google.secrets) == (2, "", {})
    assert err.startswith("pollux tokens: secret pollux-token-web: permission denied; grant roles/secretmanager.admin")
    shell.google.heal()
    shell.google.fail("create_secret", "DENIED")
    assert "grant roles/secretmanager.admin on project pool" in shell("add", "web")[2]


@pytest.mark.parametrize("words", [["add"], ["revoke"], ["add", "9lives"], ["add", "a.b"], ["revoke", "x" * 33]])
def test_a_name_is_needed_and_has_a_form(shell: Shell, words: list[str]) -> None:
    code, out, err = shell(*words)
    assert (code, out) == (2, "")
    assert "whose token?" in err or "a client's name is a letter" in err


# --- list


def test_list_shows_names_and_versions_and_reads_no_token(shell: Shell) -> None:
    shell.google.put(WEB, ONE, TWO)
    shell.google.put(ADMIN, TWO)
    shell.google.put("pollux-token-gone", ONE)
    shell.google.disable("pollux-token-gone", 1)
    shell.google.put("pollux-key-a", ONE)
    code, out, err = shell("list")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["NAME", "FOR", "VERSION"],
        ["admin", "/admin", "1"],
        ["web", "clients", "1"],
        ["web", "clients", "2"],
    ]
    assert err == "note: secret pollux-token-gone has no valid version\n"
    assert shell.google.calls["access_secret_version"] == 0
    document = json.loads(shell("list", "--json")[1])
    assert [(t["name"], t["admin"], t["version"]) for t in document["tokens"]] == [
        ("admin", True, 1),
        ("web", False, 1),
        ("web", False, 2),
    ]


def test_an_empty_list_says_how_to_make_one(shell: Shell) -> None:
    assert shell("list") == (0, "", "no tokens; make one with: pollux tokens add NAME --secrets pool\n")


# --- revoke


def test_a_version_is_destroyed_and_the_other_stays_valid(shell: Shell) -> None:
    shell.google.put(WEB, ONE, TWO)
    code, _, err = shell("revoke", "web", "--yes")
    assert code == 2
    assert "has the valid versions 1, 2: use --version N, or --all" in err
    code, out, _ = shell("revoke", "web", "--version", "1", "--yes")
    assert (code, out) == (0, "revoked version 1 of secret pollux-token-web; gateways refuse it within a minute\n")
    assert shell.google.states(WEB) == ["DESTROYED", "ENABLED"]
    assert "version 1 of secret pollux-token-web is not valid" in shell("revoke", "web", "--version", "1")[2]


def test_the_last_one_is_asked_for_with_its_consequence(shell: Shell) -> None:
    shell.google.put(WEB, ONE)
    assert "there is no terminal to ask on; use --yes" in shell("revoke", "web")[2]
    code, out, _ = shell("revoke", "web", answer="n\n")
    assert (code, shell.google.states(WEB)) == (0, ["ENABLED"])
    assert "It is the only one: web cannot call any more. It was not made by pollux" in out
    assert shell("revoke", "web", answer="y\n")[0] == 0
    assert shell.google.states(WEB) == ["DESTROYED"]  # the secret is its maker's
    assert "has no valid version" in shell("revoke", "web", "--yes")[2]


def test_what_add_made_goes_with_its_last_version(shell: Shell) -> None:
    shell("add", "web")
    shell("add", "web")
    assert shell("revoke", "web", "--all", "--yes")[0] == 0
    assert shell.google.secrets == {}
    assert shell("revoke", "web", "--all", "--yes") == (2, "", "pollux tokens: no token 'web' in project pool\n")
    assert shell("revoke", "--admin") == (2, "", "pollux tokens: no admin token in project pool\n")


@pytest.mark.parametrize("valid", [1, 0])
def test_a_token_made_while_the_question_stands_is_kept(shell: Shell, valid: int) -> None:
    shell("add", "web")
    if not valid:
        shell.google.disable(WEB, 1)

    def meanwhile(*_: object, **__: object) -> bool:
        shell.google.add(WEB, TWO)
        return True

    shell.patch.setattr("pollux.cli.tokens.confirmed", meanwhile)
    code, out, err = shell("revoke", "web")
    assert (code, shell.google.states(WEB)) == (0, ["DESTROYED" if valid else "DISABLED", "ENABLED"])
    assert ("revoked version 1 of secret pollux-token-web;" in out) == bool(valid)
    assert "removed" not in out
    assert err == "secret pollux-token-web stays: version 2 became valid meanwhile\n"


def test_the_admin_token_is_rotated_without_a_pause(shell: Shell) -> None:
    shell.google.put(ADMIN, ONE)
    assert shell("add", "--admin")[0] == 0
    assert shell("revoke", "--admin", "--version", "1", "--yes")[0] == 0
    assert shell.google.states(ADMIN) == ["DESTROYED", "ENABLED"]


# --- without Secret Manager


def test_on_one_machine_tokens_are_settings_or_a_file(shell: Shell) -> None:
    for words in (["add", "web"], ["revoke", "web"]):
        code, out, err = shell(*words, secrets=False)
        assert (code, out) == (2, "")
        assert "without --secrets PROJECT (or POLLUX_SECRETS) tokens come from POLLUX_TOKEN" in err
    assert "tokens.json, made at the next start" in shell("list", secrets=False)[1]
    (Path(shell.settings.data) / "tokens.json").write_text("{}")
    assert shell("list", secrets=False)[1].rstrip().endswith("tokens.json")
    shell.settings = Settings(data=shell.settings.data, token=(f"web={ONE}", TWO), admin_token=ONE + TWO)
    out = shell("list", secrets=False)[1]
    assert "POLLUX_TOKEN (2: web, client-2)" in out
    assert "POLLUX_ADMIN_TOKEN" in out
    assert json.loads(shell("list", "--json", secrets=False)[1])["tokens"][0] == {
        "name": "client",
        "source": "POLLUX_TOKEN",
    }
    assert not [value for value in (ONE, TWO) if value in out]


def test_it_is_a_command(shell: Shell, tmp_path: Path) -> None:
    shell.patch.chdir(tmp_path)
    shell.patch.setenv("POLLUX_SECRETS", PROJECT)
    shell.google.put(WEB, ONE)
    assert main.main(["tokens", "list"]) == 0
    assert "web" in shell.capture.readouterr().out


def test_the_docs_name_each_command_and_option() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
    words = [
        *(f"pollux tokens {name}" for name in tokens.commands),
        "--admin",
        "--url",
        "--raw",
        "--version",
        "--all",
        "--yes",
        "--json",
    ]
    assert [word for word in words if word not in docs] == []
