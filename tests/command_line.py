"""The command line, understood but not run."""

from typing import Any

import click

from pollux.cli import root


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that these words call, and its arguments. Raises click.UsageError for words it does not take."""
    context = root.make_context("pollux", list(words), obj=None)
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    return context.command_path, context.params
