"""For tests of the command line: parsing without running, and a machine without keys."""

from pathlib import Path
from typing import Any

import click
import pytest

from pollux.cli.main import root


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that these words call, and its arguments. Raises click.UsageError for words it does not take."""
    context = root.make_context("pollux", list(words), obj=None)
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    return context.command_path, context.params


def without_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in that folder, where neither it nor the environment holds a key."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    for name in (
        "GEMINI_API_KEY",
        "GEMINI_API_KEYS",
        "GOOGLE_API_KEY",
        "GOOGLE_API_KEYS",
        "POLLUX_KEYS",
        "POLLUX_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
