"""`pollux keys … --secrets`: each command against a local Secret Manager and a simulated Gemini."""

import getpass
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gemini_simulator import Fault, Simulator, running
from pollux.backends.keys.records import LIMITS, OURS, VERSION
from pollux.backends.keys.records import PROJECT as PROJECT_NOTE
from pollux.cli import main
from pollux.settings import Settings
from tests.backends.keys.fake_secret_manager import PROJECT, SecretManager, serving
from tests.cli.command_line import without_keys
from tests.cli.test_key_health import aside, resting

A, B, C, D = ("AIza" + letter * 35 for letter in "abcd")
MASKED = "AIza…aa"
ACCESS, ADD, DISABLE = "access_secret_version", "add_secret_version", "disable_secret_version"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Shell:
    """Runs `pollux keys … --secrets pool`. What every command printed is kept, to look for values in it."""

    google: SecretManager
    simulator: Simulator
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch
    settings: Settings
    folder: Path
    printed: str = ""

    def __call__(self, *words: str, stdin: str = "", project: str = PROJECT) -> tuple[int, str, str]:
        self.patch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main.main(["keys", *words, "--secrets", project], lambda: self.settings)
        out, err = self.capture.readouterr()
        self.printed += out + err
        return code, out, err

    def terminal(self, answer: str) -> None:
        self.patch.setattr(io, "StringIO", lambda _: Terminal(answer))


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    without_keys(tmp_path, monkeypatch)
    simulator = Simulator([("a", "team-a", A), ("b", "team-b", B)], {})
    with serving() as google, running(simulator) as url:
        monkeypatch.setenv("SECRET_MANAGER_EMULATOR_HOST", google.host)
        settings = Settings(data=str(tmp_path / "data"), upstream=url)
        shell = Shell(google, simulator, capsys, monkeypatch, settings, tmp_path)
        yield shell
    assert not [value for value in (A, B, C, D) if value in shell.printed]


# --- add, edit, enable, disable, remove


def test_a_key_is_added_with_labels_and_annotations(shell: Shell) -> None:
    words = ["add", "alice", "--project", "team-a", "--tier", "paid", "--limit", "m:rpm=5"]
    code, out, err = shell(*words, stdin=f"{A}\n")
    assert (code, out.splitlines()[0], err) == (0, f"added alice ({MASKED}) to secret pollux-key-alice of pool", "")
    stored = shell.google.secrets["pollux-key-alice"]
    assert stored.labels == {"managed-by": "pollux", "project": "team-a", "tier": "tier1"}
    assert stored.annotations == {"pollux-limits": '{"m":{"rpm":5}}'}
    assert shell.google.values("pollux-key-alice") == [A]
    assert shell("add", stdin=B)[0] == 0
    assert "pollux-key-key-1" in shell.google.secrets


def test_keys_of_one_project_that_name_different_tiers_are_warned_of(shell: Shell) -> None:
    shell("add", "alice", "--project", "p", "--tier", "free", stdin=A)
    added = shell("add", "bob", "--project", "p", "--tier", "tier1", stdin=B)
    warning = "warning: bob (tier1) and alice (free) are of one project, p: what alice says counts"
    assert warning in added[2]
    assert warning in shell("edit", "bob", "--tier", "tier1")[2]
    assert warning in shell("list")[2]


def test_a_project_name_that_is_no_valid_label_becomes_an_annotation(shell: Shell) -> None:
    assert shell("add", "alice", "--project", "Example.com:Pool", stdin=A)[0] == 0
    stored = shell.google.secrets["pollux-key-alice"]
    assert (stored.labels, stored.annotations) == ({"managed-by": "pollux"}, {"pollux-project": "Example.com:Pool"})
    assert shell("edit", "alice", "--project", "team-a")[0] == 0
    assert (stored.labels["project"], stored.annotations) == ("team-a", {})


def test_on_a_terminal_the_value_is_asked_for_hidden(shell: Shell) -> None:
    shell.patch.setattr(getpass, "getpass", lambda _: A)
    shell.terminal("")
    assert shell("add", "alice")[0] == 0
    assert shell.google.values("pollux-key-alice") == [A]


def test_an_id_or_a_value_that_is_there_is_refused(shell: Shell) -> None:
    shell.google.put("pollux-key-alice", A)
    code, out, err = shell("add", "alice", stdin=B)
    assert (code, out) == (2, "")
    assert "the id 'alice' is taken, by secret pollux-key-alice of pool" in err
    code, out, err = shell("add", "bob", stdin=A)
    assert (code, out) == (2, "")
    assert "this key is there already, as 'alice' of secret pollux-key-alice of pool" in err
    assert shell("add", "bob", stdin="your-api-key")[0] == 2
    assert list(shell.google.secrets) == ["pollux-key-alice"]


def test_a_secret_whose_value_cannot_be_stored_is_not_left_behind(shell: Shell) -> None:
    shell.google.fail(ADD, "DENIED")
    code, _, err = shell("add", "alice", stdin=A)
    assert code == 2
    assert "grant roles/secretmanager.admin on project pool" in err
    assert shell.google.secrets == {}


def test_edit_changes_what_is_named_and_keeps_what_others_wrote(shell: Shell) -> None:
    annotations = {"owner": "bob", "pollux-limits": '{"m":{"rpm":5},"n":{"rpd":9}}'}
    shell.google.put_described("pollux-key-a", (A,), {"cost": "x", "tier": "free"}, annotations)
    assert shell("edit", "a", "--tier", "none", "--limit", "m:none", "--project", "p")[:2] == (
        0,
        "changed a in secret pollux-key-a of pool\n",
    )
    stored = shell.google.secrets["pollux-key-a"]
    assert stored.labels == {"cost": "x", "project": "p"}
    assert stored.annotations == {"owner": "bob", "pollux-limits": '{"n":{"rpd":9}}'}
    assert shell("disable", "a")[:2] == (0, "disabled a\n")
    assert stored.labels["enabled"] == "false"
    assert shell("enable", "a")[0] == 0
    assert "enabled" not in stored.labels


def test_edit_without_a_change_or_with_a_value_says_what_to_do(shell: Shell) -> None:
    assert "nothing to change" in shell("edit", "a")[2]
    for key_id in ("a", A):  # which may be a value, and so is not repeated
        assert "pollux keys rotate ID" in shell("edit", key_id, "--value", stdin=B)[2]


def test_two_who_change_at_once_do_not_undo_each_other(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    shell.google.fail("update_secret", "FAILED_PRECONDITION")
    code, _, err = shell("edit", "a", "--tier", "free")
    assert code == 2
    assert "somebody else changed it just now; try again" in err


def test_remove_asks_and_warns_of_what_others_made(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    code, _, err = shell("remove", "a")
    assert code == 2
    assert "there is no terminal to ask on; use --yes" in err
    shell.terminal("n\n")
    code, out, _ = shell("remove", "a")
    assert (code, out.count("kept")) == (0, 1)
    assert "with all its versions? It was not made by pollux; if Terraform" in out
    assert "pollux-key-a" in shell.google.secrets
    shell.terminal("y\n")
    assert shell("remove", "a")[0] == 0
    assert shell.google.secrets == {}
    assert "no key 'a' in project pool" in shell("remove", "a", "--yes")[2]


# --- rotate


def test_rotate_adds_a_version_and_disables_the_old_one_after_the_new_one_answered(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    code, out, err = shell("rotate", "a", stdin=B)
    assert (code, err) == (0, "")
    assert out == "rotated a (AIza…bb) in secret pollux-key-a of pool: version 2; disabled 1\n"
    assert shell.google.states("pollux-key-a") == ["DISABLED", "ENABLED"]
    assert shell.google.secrets["pollux-key-a"].annotations == {"pollux-version": "2"}
    order = [method for method, _ in shell.google.asked]
    assert order.index(ADD) < order.index(DISABLE)
    assert [call.key for call in shell.simulator.calls] == ["b"]


def test_rotate_ends_what_the_store_holds_against_the_old_value(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    url = f"sqlite:///{shell.folder / 'shared.db'}"
    aside(url, "a", "b")
    shell.settings = replace(shell.settings, store=url)
    assert shell("rotate", "a", stdin=C)[0] == 1
    assert resting(url) == ["a", "b"]
    code, _, err = shell("rotate", "a", stdin=B)
    assert (code, err, resting(url)) == (0, "", ["b"])


def test_a_store_that_fails_does_not_fail_a_rotation(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    shell.settings = replace(shell.settings, store="nosuch://store")
    code, out, err = shell("rotate", "a", stdin=B)
    assert (code, out.startswith("rotated a"), err.count("\n")) == (0, True, 1)
    assert "if a was set aside, it may stay so until it is tried again: " in err


def test_a_new_value_that_does_not_answer_is_disabled_and_the_old_one_stays(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    code, out, _ = shell("rotate", "a", stdin=C)  # the simulator does not know it
    assert code == 1
    assert out.startswith("kept the old value of a: the new one, version 2, is invalid: ")
    assert shell.google.states("pollux-key-a") == ["ENABLED", "DISABLED"]
    assert shell.google.secrets["pollux-key-a"].annotations == {}
    shell.simulator.faults.append(Fault(kind="internal"))
    assert shell("rotate", "a", stdin=B)[0] == 1
    assert shell("rotate", "a", "--no-check", stdin=C)[0] == 0
    assert shell.google.states("pollux-key-a") == ["DISABLED"] * 3 + ["ENABLED"]


def test_a_check_that_breaks_off_leaves_the_old_value(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shell.patch.setattr("pollux.cli.keys.probe", interrupt)
    assert shell("rotate", "a", stdin=B)[0] == 130
    assert shell.google.states("pollux-key-a") == ["ENABLED", "DISABLED"]


def test_who_may_not_describe_the_secret_rotates_all_the_same(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    shell.google.fail("update_secret", "DENIED")
    code, _, err = shell("rotate", "a", stdin=B)
    assert code == 0
    assert "take the new value when Google refuses the old" in err
    assert shell.google.states("pollux-key-a") == ["DISABLED", "ENABLED"]


# --- list, check


def test_list_shows_what_can_be_read_and_why_the_rest_cannot(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A, project="team-a", tier="free")
    shell.google.put("pollux-key-b", B, enabled="false")
    shell.google.fail(ACCESS, "DENIED", "pollux-key-b")
    code, out, err = shell("list")
    assert code == 0
    head, first, second = out.splitlines()
    assert head.split() == ["ID", "PROJECT", "TIER", "VALUE", "SOURCE", "HEALTH"]
    assert first.split() == ["a", "team-a", "free", MASKED, "secret", "pollux-key-a", "of", "pool", "not", "known"]
    assert "…" in second
    assert "disabled" in second
    assert "grant roles/secretmanager.secretAccessor on secret pollux-key-b" in err
    document = json.loads(shell("list", "--json")[1])
    assert [key["id"] for key in document["keys"]] == ["a", "b"]
    assert document["problems"][0]["file"] == "secret pollux-key-b"


@pytest.mark.parametrize(
    ("store", "secrets", "state"),
    [
        ("shared.db", "", "unchecked"),
        ("shared.db", PROJECT, "unchecked"),
        ("", PROJECT, "unchecked"),
        ("shared.db", "another", "not known"),
        ("", "", "not known"),
        ("memory://", PROJECT, "not known"),
    ],
)
def test_health_is_that_of_the_store_of_these_keys_and_else_not_known(
    shell: Shell, store: str, secrets: str, state: str
) -> None:
    shell.google.put("pollux-key-a", A)
    store = f"sqlite:///{shell.folder / store}" if store == "shared.db" else store
    shell.settings = replace(shell.settings, store=store, secrets=secrets)
    assert json.loads(shell("list", "--json")[1])["keys"][0]["health"] == {"state": state}
    assert shell("list")[1].rstrip().endswith(f"  {state}")


def test_the_real_command_reads_the_health_of_the_store_that_is_set(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    url = f"sqlite:///{shell.folder / 'shared.db'}"
    aside(url, "a")
    shell.patch.setenv("POLLUX_STORE", url)
    assert main.main(["keys", "list", "--secrets", PROJECT]) == 0
    assert shell.capture.readouterr().out.rstrip().endswith(": leaked-key")


def test_an_empty_project_says_how_to_add_a_key(shell: Shell) -> None:
    assert shell("list") == (0, "", "no keys; add one with: pollux keys add --secrets pool\n")
    assert shell("check")[0] == 2


def test_check_asks_google_about_each_key(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    shell.google.put("pollux-key-c", C)
    shell.google.put("pollux-key-d", D)
    shell.google.fail(ACCESS, "DENIED", "pollux-key-d")
    code, out, _ = shell("check")
    assert code == 1
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["a", MASKED, "healthy"],
        ["c", "AIza…cc", "invalid"],
        ["d", "…", "unreadable"],
    ]
    assert shell("check", "a")[0] == 0
    assert "there is no key 'nobody'; see: pollux keys list --secrets pool" in shell("check", "nobody")[2]


# --- import


def test_a_file_is_imported_line_by_line_and_again_changes_nothing(shell: Shell) -> None:
    shell.google.put("pollux-key-old", B)
    file = shell.folder / "key.txt"
    file.write_text(f"alice: {A}\nbob: {B}\n{C}\nnot a key\n")
    code, out, err = shell("import", str(file), "--dry-run")
    assert (code, len(shell.google.secrets)) == (0, 1)
    assert "2 added (dry run), 1 there already, 1 not a key; Secret Manager of pool" in out
    code, out, err = shell("import", str(file))
    assert code == 0
    assert f"added alice ({MASKED}) of {file}:1\n" in out
    assert f"skipped {file}:2: there already, as old\n" in out
    assert f"not a key: {file}:4" in err
    assert "\r" not in out + err  # no bar without a terminal
    assert sorted(shell.google.secrets) == ["pollux-key-alice", "pollux-key-key-3", "pollux-key-old"]
    assert "0 added, 3 there already" in shell("import", str(file))[1]


def test_an_import_keeps_project_tier_limits_and_whether_it_is_enabled(shell: Shell) -> None:
    keys = [{"id": "a", "api_key": A, "project": "p", "tier": "free", "limits": {"*": {"rpm": 1}}, "enabled": False}]
    file = shell.folder / "keys.json"
    file.write_text(json.dumps({"providers": {"gemini": {"keys": keys}}}))
    assert shell("import", str(file))[0] == 0
    stored = shell.google.secrets["pollux-key-a"]
    assert stored.labels == {"managed-by": "pollux", "project": "p", "tier": "free", "enabled": "false"}
    assert stored.annotations == {"pollux-limits": '{"*":{"rpm":1}}'}


def test_an_import_that_breaks_off_says_how_far_it_came_and_can_be_repeated(shell: Shell) -> None:
    file = shell.folder / "key.txt"
    file.write_text("".join(f"k{n}: AIza{n:035}\n" for n in range(1, 8)))
    shell.google.fail("create_secret", "UNAVAILABLE", "pollux-key-k5")
    code, out, err = shell("import", str(file))
    assert code == 2
    done = len(shell.google.secrets)
    assert out.count("added") == done < 7
    assert f"({done} of 7 were added; import again for the rest)" in err
    shell.google.heal()
    assert f"{7 - done} added, {done} there already" in shell("import", str(file))[1]
    assert len(shell.google.secrets) == 7


def test_on_a_terminal_an_import_shows_a_bar(shell: Shell) -> None:
    file = shell.folder / "key.txt"
    file.write_text(f"a: {A}\nb: {B}\n")
    drawn = Terminal()
    shell.patch.setattr(sys, "stderr", drawn)
    code, out, _ = shell("import", str(file))
    assert code == 0
    assert "adding keys" in drawn.getvalue()
    assert "2/2" in drawn.getvalue()
    assert out.count("added") == 3


# --- errors


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("DENIED", "grant roles/secretmanager.viewer on project pool"),
        ("API_OFF", "gcloud services enable secretmanager.googleapis.com --project pool"),
        ("UNAUTHENTICATED", "gcloud auth application-default login"),
        ("UNAVAILABLE", "Secret Manager did not answer (UNAVAILABLE); try again"),
        ("RESOURCE_EXHAUSTED", "requests a minute to Secret Manager are used up; try again"),
    ],
)
def test_each_failure_is_one_line_that_says_what_to_do(shell: Shell, kind: str, words: str) -> None:
    shell.google.fail("list_secrets", kind)
    for command in (["list"], ["add", "x"], ["check"]):
        code, out, err = shell(*command, stdin=A)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("pollux keys: ")
        assert words in err


@pytest.mark.parametrize("command", [["keys", "list"], ["tokens", "list"], ["keys", "remove", "a", "--yes"]])
@pytest.mark.parametrize("trouble", ["library", "credentials", "UNAVAILABLE"])
def test_a_failure_is_told_once_by_the_real_command(shell: Shell, command: list[str], trouble: str) -> None:
    """In a process of its own: Python prints a warning that nobody's logging takes on standard error, too."""
    start = "import sys; from pollux.cli.main import main; "
    environ = {"PATH": os.environ["PATH"], "SECRET_MANAGER_EMULATOR_HOST": shell.google.host, "HOME": str(shell.folder)}
    if trouble == "library":
        start += "sys.modules['google.cloud.secretmanager_v1'] = None; "
    elif trouble == "credentials":
        del environ["SECRET_MANAGER_EMULATOR_HOST"]
        environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(shell.folder / "none.json")
    else:
        for method in ("list_secrets", "get_secret"):
            shell.google.fail(method, trouble)
    words = [sys.executable, "-c", f"{start}sys.exit(main())", *command, "--secrets", PROJECT]
    ended = subprocess.run(words, env=environ, cwd=shell.folder, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert ended.stderr.startswith(f"pollux {command[0]}: ")


def test_a_missing_secret_and_a_missing_project_are_named(shell: Shell) -> None:
    for words in (
        ["edit", "x", "--tier", "free"],
        ["enable", "x"],
        ["disable", "x"],
        ["rotate", "x"],
        ["remove", "x", "--yes"],
    ):
        assert shell(*words, stdin=B) == (2, "", "pollux keys: no key 'x' in project pool\n")
    assert "(or there is no project nope)" in shell("list", project="nope")[2]


@pytest.mark.parametrize(
    "words", [["remove", A, "--yes"], ["rotate", A], ["disable", A], ["edit", A, "--tier", "free"]]
)
def test_a_value_given_as_an_id_is_neither_repeated_nor_sent(shell: Shell, words: list[str]) -> None:
    error = "pollux keys: no such key in project pool; see: pollux keys list --secrets pool\n"
    assert shell(*words, stdin=B) == (2, "", error)
    assert shell.google.asked == []


def test_without_credentials_it_says_how_to_get_some(shell: Shell) -> None:
    shell.patch.delenv("SECRET_MANAGER_EMULATOR_HOST")
    shell.patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(shell.folder / "none.json"))
    code, _, err = shell("list")
    assert (code, err.count("\n")) == (2, 1)
    assert "run: gcloud auth application-default login" in err


def test_without_the_library_it_says_what_to_install(shell: Shell) -> None:
    shell.patch.setitem(sys.modules, "google.cloud.secretmanager_v1", None)
    code, _, err = shell("list")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'pollux-gateway[cloud]'" in err


def test_the_setting_names_the_project_too(shell: Shell) -> None:
    shell.google.put("pollux-key-a", A)
    shell.google.secrets["pollux-key-a"].labels["enabled"] = "false"
    settings = replace(shell.settings, secrets=PROJECT)
    assert main.main(["keys", "enable", "a"], lambda: settings) == 0
    assert "enabled" not in shell.google.secrets["pollux-key-a"].labels


def test_the_docs_name_each_label_and_annotation() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
    parts = [f"label `{name}`" for name in ("project", "tier", "enabled", *OURS)]
    parts += [f"annotation `{name}`" for name in (PROJECT_NOTE, LIMITS, VERSION)]
    assert [part for part in parts if part not in docs] == []
