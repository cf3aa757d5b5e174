"""Options, prompts, tables and progress that several commands share. Results go to stdout, the rest to stderr."""

import getpass
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pollux.backends.keys.contract import KeySourceError, Secret
from pollux.redaction import redact_values

if TYPE_CHECKING:
    import rich.table

    from pollux.backends.keys.entries import Entry


class Commands(click.Group):
    """A group whose commands report a KeySourceError as one line on stderr, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeySourceError as error:
            note(f"{ctx.command_path}: {error}")
            return 2

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _checked_project(ctx: click.Context, param: click.Parameter, project: str | None) -> str | None:
    from pollux.backends.keys.entries import project_fault

    if project is not None and (fault := project_fault(project)):
        raise click.BadParameter(fault)
    return project


secrets_option = click.option(
    "--secrets",
    metavar="PROJECT",
    callback=_checked_project,
    help="The Google Cloud project whose Secret Manager is used (default: POLLUX_SECRETS).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, for scripts.")


def note(text: object) -> None:
    """Prints a line on stderr. A key or token in it is replaced: it may have been typed in a wrong place."""
    print(redact_values(str(text)), file=sys.stderr)


def tell(what: str, found: Iterable[object]) -> None:
    for one in found:
        note(f"{what}{one}")


def ask_value(others: Iterable["Entry"], prompt: str = "Value of the key (not shown): ") -> Secret:
    """The value, from a hidden prompt or the first line of standard input. Raises if one of `others` has it."""
    from pollux.backends.keys.entries import clean, value_fault

    try:
        text = getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline()
    except (EOFError, UnicodeDecodeError):
        text = ""
    if fault := value_fault(clean(text)):
        raise KeySourceError(f"not a key: {fault}")
    secret = Secret(clean(text))
    for entry in others:
        if entry.secret == secret:
            raise KeySourceError(f"this key is there already, as {entry.id!r} of {entry.where}")
    return secret


def confirmed(question: str, *, yes: bool, undone: str) -> bool:
    """Whether the user agrees. `undone`: what was not done if there is no terminal to ask on."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise KeySourceError(f"not {undone}: there is no terminal to ask on; use --yes")
    print(f"{question} [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("kept")
    return False


def show_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


@dataclass(frozen=True, slots=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def lines(self) -> list[str]:
        """Aligned columns; each row is one line."""
        cells = [self.head, *([str(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]

    def for_terminal(self) -> "rich.table.Table":
        """As wide as the terminal: long cells take several lines."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in self.head:
            table.add_column(name, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        return table


View = list[str | Table]
"""What a command shows: lines and tables, from top to bottom."""


def show(view: View) -> None:
    if not sys.stdout.isatty():
        print(as_text(view))
        return
    from rich.console import Console

    Console(highlight=False).print(for_terminal(view))


def as_text(view: View) -> str:
    lines: list[str] = []
    for part in view:
        lines += [part] if isinstance(part, str) else [*([""] if lines else []), *part.lines()]
    return "\n".join(lines)


def for_terminal(view: View) -> Any:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for part in view:
        if isinstance(part, str):
            parts.append(Text(part, style="bold red" if re.match("[A-Z]{2}", part) else ""))
        else:
            parts += [*([""] if parts else []), part.for_terminal()]
    return Group(*parts)


def show_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        show([Table(head, rows)])


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A bar on stderr, if that is a terminal. Call the function after each of the `total` things."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
