"""The commands, their exit codes, and one clear line for each mistake."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemini_simulator.errors import error
from pollux import __version__
from pollux.cli.main import load_settings, main
from pollux.settings import SettingsError, describe

COMMANDS = ("serve", "keys", "tokens", "deploy", "status", "explain", "judge", "simulate", "settings")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder and an environment that say nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLLUX_DATA", str(tmp_path / "data"))


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as end:  # the simulator's argparse ends so
        return end.code if isinstance(end.code, int) else 1


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"sage: pollux {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"pollux {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["serve", "--port", "66000"],
        ["serve", "--port", "http"],
        ["explain"],
        ["judge", "--status", "x"],
    ],
)
def test_what_cannot_be_understood_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["keys", "list"], ["status"], ["explain", "m"]])
def test_a_mistake_in_the_settings_is_one_line_and_2(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLLUX_MAX_WIAT", "5")
    assert run(*command) == 2
    assert capsys.readouterr().err == "pollux: POLLUX_MAX_WIAT is not a setting; did you mean POLLUX_MAX_WAIT?\n"


def test_settings_lists_every_one_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("settings") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(describe())
    for line, (name, default, text) in zip(lines, describe(), strict=True):
        assert line.startswith(name)
        assert text in line
        assert line.endswith(f"[{default}]" if default else text)


def test_settings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("settings", "--json") == 0
    shown = json.loads(capsys.readouterr().out)["settings"]
    assert [(row["name"], row["default"], row["text"]) for row in shown] == list(describe())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "pollux: No such command 'nope'; see: pollux --help"),
        (["--wrong"], "pollux: No such option '--wrong' (did you mean '--version'?); see: pollux --help"),
        (["key"], "pollux: No such command 'key'; see: pollux --help"),
        (["tokens", "lst"], "pollux tokens: No such command 'lst' (did you mean 'list'?); see: pollux tokens --help"),
        (["simulate", "--nope"], "pollux simulate: unrecognized arguments: --nope; see: pollux simulate --help"),
        (["serve", "--port"], "pollux serve: Option '--port' requires an argument; see: pollux serve --help"),
        (
            ["serve", "--prot", "1"],
            "pollux serve: No such option '--prot' (did you mean '--port' or '--host'?); see: pollux serve --help",
        ),
        (["keys", "edit"], "pollux keys edit: Missing argument 'ID'; see: pollux keys edit --help"),
        (["keys", "edit", "x", "--tier"], "pollux keys edit: Option '--tier' requires an argument; see:"),
        (["tokens", "revoke", "x", "--version", "1", "--all"], "pollux tokens revoke: use --version N or --all, not"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_names_the_command(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith(said)) == ("", 1, True), err


SHAPED = ("AIzaSy" + "LEAK" * 8 + "x", "AQ." + "LEAK" * 8, "pollux-" + "LEAK" * 8)
MISPLACED = [
    "VALUE", "--VALUE", "tokens VALUE", "deploy VALUE", "deploy check http://127.0.0.1:1 --timeout VALUE",
    "keys VALUE", "keys list VALUE", "status VALUE", "explain x VALUE", "judge x VALUE", "settings VALUE",
    "settings --VALUE", "settings --x=VALUE", "tokens add x VALUE", "tokens list x VALUE", "tokens revoke x VALUE",
    "tokens revoke x --version VALUE", "judge --status VALUE", "explain x --tokens VALUE", "serve VALUE",
    "serve --port VALUE", "simulate VALUE", "simulate --port VALUE", "simulate --VALUE",
]  # fmt: skip


@pytest.mark.parametrize("words", MISPLACED)
@pytest.mark.parametrize("value", [*SHAPED, "zq9leak-value-without-shape-77", "zq9leak'value\\with signs"])
def test_a_value_in_a_wrong_place_is_not_repeated(words: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*(word.replace("VALUE", value) for word in words.split())) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "leak" in err.lower()) == ("", 1, False)


@pytest.mark.parametrize(
    "words",
    [
        "judge VALUE",
        "keys import VALUE",
        "keys enable VALUE",
        "keys check VALUE",
        "serve --host VALUE",
        "simulate --host VALUE",
        "deploy check http://127.0.0.1:1 --token-file VALUE",
    ],
)
@pytest.mark.parametrize("value", SHAPED)
def test_a_key_as_the_name_of_something_is_not_repeated(
    words: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(word.replace("VALUE", value) for word in words.split())) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "LEAK" in err) == ("", 1, False)


@pytest.mark.parametrize("arguments", [[], ["keys"], ["tokens"]])
def test_without_a_command_the_help_is_shown_and_it_is_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, "Commands:\n" in err) == ("", True)


def test_the_simulator_need_not_be_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gemini_simulator", None)
    assert run("simulate", "--port", "0") == 2
    assert capsys.readouterr().err.startswith("pollux simulate: the simulator is not installed (")


# --- settings from .env ----------------------------------------------------------------------------------------------


def test_settings_come_from_env_files_and_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("POLLUX_MAX_WAIT=5\nPOLLUX_STRATEGY='round_robin' # why\nGEMINI_API_KEY=x\n")
    monkeypatch.setenv("POLLUX_MAX_WAIT", "7")
    settings = load_settings()
    assert (settings.max_wait, settings.strategy) == (7.0, "round_robin")


def test_a_misspelt_setting_in_an_env_file_is_an_error() -> None:
    Path(".env").write_text("POLLUX_MAX_WIAT=5\n")
    with pytest.raises(SettingsError, match="POLLUX_MAX_WIAT"):
        load_settings()


# --- judge -----------------------------------------------------------------------------------------------------------


def test_judge_tells_what_an_error_body_means(capsys: pytest.CaptureFixture[str]) -> None:
    Path("body.json").write_bytes(error("rpm").encode()[1])
    assert run("judge", "--status", "429", "body.json") == 0
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["cause"], verdict["blames"], verdict["action"]) == ("rpm", "quota", "next-project")
    assert (verdict["cooldown_s"], verdict["learned"]) == (43.0, {"rpm": 5})


def test_judge_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(error("invalid-key").encode()[1])))
    assert run("judge", "--status", "400") == 0
    assert json.loads(capsys.readouterr().out)["cause"] == "invalid-key"


def test_judge_of_a_missing_file_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("judge", "none.json") == 2
    assert capsys.readouterr().err == "pollux judge: none.json: No such file or directory\n"


# --- processes -------------------------------------------------------------------------------------------------------


LIGHT = [["--version"], ["--help"], ["settings"], ["judge", "body.json"], ["keys", "list"], ["tokens", "list"]]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_no_command_loads_what_it_does_not_need(arguments: list[str]) -> None:
    """Each start of the command line pays for what it imports."""
    Path("body.json").write_text("{}")
    code = f"import sys; from pollux.cli.main import main; main({arguments}); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(found.stdout.splitlines()[-1].split())
    assert "click" in loaded
    assert (
        not {"uvicorn", "httpx2", "httptools", "grpc", "google.auth", "pollux.server.app", "gemini_simulator"} & loaded
    )
    if arguments[0] == "tokens":
        assert not {"pollux.backends.store.contract", "pollux.cli.keys"} & loaded
    elif arguments[0] != "keys":
        assert not {"rich", "asyncio", "ssl", "sqlite3", "pollux.cli.keys", "pollux.cli.watch"} & loaded


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["settings"], ["settings", "--json"], ["--help"], ["--version"], ["keys", "list", "--json"]]
)
def test_a_full_disk_is_one_line(arguments: list[str], unbuffered: str) -> None:
    command = [sys.executable, "-m", "pollux", *arguments]
    environ = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environ)
    assert (done.returncode, done.stderr) == (1, "pollux: cannot write: No space left on device\n")


def test_an_error_of_the_system_that_is_not_expected_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pollux.cli.main.describe", fail)
    with pytest.raises(PermissionError):
        run("settings")


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    code = "from pollux.cli.main import main; import sys; sys.exit(main(['settings']))"
    process = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error_text = process.stderr.read()
    process.wait(10)
    process.stderr.close()
    assert b"Traceback" not in error_text
