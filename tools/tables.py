"""The tables of docs/ that come from the code: errors, causes, rules, settings, models.

python -m tools.tables

writes them into their pages. The tests fail while a page has another one.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pollux import settings
from pollux.gemini.catalog import NAMES, Catalog
from pollux.gemini.errors import TABLE
from pollux.gemini.verdict import causes, rules
from pollux.server.wiring import builtin_catalog

DOCS = Path(__file__).parents[1] / "docs"
UNITS = ((causes.DAY, "day"), (causes.HOUR, "h"), (causes.MINUTE, "min"), (1.0, "s"))


def table(head: str, rows: Iterable[Sequence[str]], *, align: str = "") -> str:
    """`head`: the names of the columns with | between them."""
    columns = head.count("|") + 1
    lines = [f"| {head} |", align or "|" + "---|" * columns]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def errors() -> str:
    rows = ((f"`{e.code}`", f"{e.http} `{e.status}`", e.when, e.remedy) for e in TABLE)
    return table("reason | status | when | what to do", rows)


def settings_table() -> str:
    rows = ((f"`{name}`", default, text) for name, default, text in settings.describe())
    return table("setting | default | what it does", rows)


def causes_table() -> str:
    rows = (
        (
            f"`{cause.name}`",
            cause.words,
            cause.blames,
            cause.action,
            _rest(cause.rest),
            cause.probe or "–",
            f"`{cause.error}`" if cause.error else "–",
        )
        for cause in causes.TABLE
    )
    return table("cause | in words | blames | then | rests | probed by | error", rows)


def rules_table() -> str:
    """In the order in which they are tried."""
    rows = []
    for rule in rules.RULES:
        of = causes.CAUSES[rule.cause]
        own = [f"blames {rule.blames}"] if rule.blames != of.blames else []
        own += [f"then {rule.action}"] if rule.action != of.action else []
        own += [f"rests {_rest(rule.rest)}"] if rule.rest != of.rest else []
        rows.append((rule.what, f"`{rule.cause}`", ", ".join(own) or "–"))
    return table("what came | cause | other than the cause's", rows)


def _rest(rest: causes.Rest | None) -> str:
    if rest is None:
        return "–"
    if callable(rest.first):
        return rest.first.__doc__ or ""
    return _span(rest.first) + (f", doubling to {_span(rest.most)}" if rest.most else "")


def _span(seconds: float) -> str:
    return next(f"{seconds / size:g} {unit}" for size, unit in UNITS if seconds >= size)


def models(catalog: Catalog) -> tuple[str, str, str]:
    """The models, their limits, and the aliases and defaults."""
    entries = catalog.models.values()
    listed = (
        (
            f"`{model.name}`",
            model.kind or "",
            f"`{model.bucket}`" if model.bucket != model.name else "",
            ", ".join(f"`{name}`" for name in catalog.chain(model.name)[1:]),
            model.note,
        )
        for model in entries
    )
    limits = (
        (
            f"`{model.name}`",
            tier,
            *(f"{found.values[name]:,}" if name in found.values else "" for name in NAMES),
            found.seen,
            found.source,
        )
        for model in entries
        for tier, found in model.limits.items()
    )
    names = [(f"`{alias}`", f"`{catalog.resolve(alias)}`") for alias in catalog.aliases]
    names += [(f"`{kind}_only`", f"`{model}`") for kind, model in catalog.defaults.items()]
    numbers = f"|---|---|{'---:|' * len(NAMES)}---|---|"
    return (
        table("model | kind | counted as | falls back to | note", listed),
        table(f"model | tier | {' | '.join(NAMES)} | seen | source", limits, align=numbers),
        table("alias, or mode when nothing of its kind is in the chain | model", names),
    )


def pages() -> dict[str, tuple[str, ...]]:
    """Page -> its tables."""
    return {
        "errors.md": (errors(),),
        "models.md": models(Catalog.parse(builtin_catalog())),
        "settings.md": (settings_table(),),
        "verdicts.md": (rules_table(), causes_table()),
    }


def main() -> None:
    for name, tables in pages().items():
        path = DOCS / name
        text = path.read_text(encoding="utf-8")
        for new in tables:
            head = re.escape(new.split("\n", 1)[0])
            text = re.sub(rf"(?m)^{head}\n(?:\|.*\n)*", lambda _, new=new: new, text, count=1)  # type: ignore[misc]
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
