"""What `pollux keys` and `pollux tokens` ask and show. Values are read hidden, and never shown."""

import difflib
import getpass
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pollux.health import Aside, free_quota, key_rests
from pollux.keys import Key, KeySourceError, Secret
from pollux.keys.entries import Entry, Problem, clean, id_fault, value_doubt, value_fault
from pollux.keys.probe import Finding
from pollux.keys.standing import Lifted

WIDTH = 30
UNKNOWN, UNCHECKED, HEALTHY = "not known", "unchecked", "healthy"
"""The store does not say; Google neither served nor checked the key yet; it did."""


def ask_value(others: Iterable[Entry], prompt: str = "Value of the key (not shown): ") -> Secret:
    """The value, from a hidden prompt or the first line of standard input; not one that is in use already."""
    try:
        text = getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline()
    except (EOFError, UnicodeDecodeError):
        text = ""
    if fault := value_fault(clean(text)):
        raise KeySourceError(f"not a key: {fault}")
    secret = Secret(clean(text))
    for entry in others:
        if entry.secret == secret:
            raise KeySourceError(f"this key is there already, as {entry.id!r} of {entry.place}")
    return secret


def no_such_key(key_id: str, known: Iterable[str], *, where: str = "") -> KeySourceError:
    """The id is repeated only if it cannot be the value of a key, typed in the wrong place."""
    if id_fault(key_id):
        return KeySourceError(f"there is no such key; see: pollux keys list{where}")
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(key_id.casefold(), folded, n=1)
    meant = f" (did you mean {folded[near[0]]}?)" if near else ""
    return KeySourceError(f"there is no key {key_id!r}{meant}; see: pollux keys list{where}")


def doubted(key_id: str, secret: Secret) -> None:
    if doubt := value_doubt(secret.reveal()):
        print(f"pollux keys: warning: {key_id}: {doubt}", file=sys.stderr)


def told_of_new(key_id: str, found: Finding | None, *, aside: bool, where: str = "") -> int:
    """Says what Google said of a key that was added; the exit code. `aside`: gateways know of a refusal."""
    match None if found is None else found.state:
        case None:
            print(f"not checked; to ask Google about it: pollux keys check {shlex.quote(key_id)}{where}")
        case "healthy":
            print("checked: Google takes it")
        case "no quota":
            print(f"checked: Google takes it, but its project has no quota now: {found.reason}")  # type: ignore[union-attr]
        case "invalid":
            known = (
                "gateways leave it aside, and ask about it again, until Google takes it"
                if aside
                else "gateways were not told: each leaves it aside once Google refused a request with it"
            )
            print(
                f"pollux keys: GOOGLE REFUSES {key_id}: {found.reason.rstrip('.')}. It is added, and {known}; "  # type: ignore[union-attr]
                f"give it another value with: pollux keys rotate {shlex.quote(key_id)}{where}",
                file=sys.stderr,
            )
            return 1
        case state:
            print(
                f"pollux keys: could not be checked ({state}: {found.reason}); "  # type: ignore[union-attr]
                f"ask again with: pollux keys check {shlex.quote(key_id)}{where}",
                file=sys.stderr,
            )
    return 0


def told_of_demo(lifted: Lifted, url: str) -> None:
    if lifted.simulated:
        print(f"the gateway at {url} runs as a demo: it goes on simulating until it is started again", file=sys.stderr)


def told_of_check(
    keys: Iterable[Key],
    findings: Mapping[str, Finding],
    lifted: Lifted,
    health: Mapping[str, Any] | None,
    *,
    where: str = "",
) -> None:
    """What a check ended, and which projects Google counts on the free quota."""
    if lifted.ended:
        print(f"lifted: {', '.join(lifted.ended)}")
    free = set(lifted.free) | set((health or {}).get("free", {}))
    firsts: dict[str, Key] = {}
    for key in keys:
        firsts.setdefault(key.project, key)
        if (found := findings.get(key.id)) is not None and found.tier == "free":
            free.add(key.project)
    seen = [key for project, key in firsts.items() if project in free]
    if paid := {key.project: key.tier for key in seen if key.tier not in (None, "free")}:
        print(f"note: {free_quota(paid)}", file=sys.stderr)
    if untold := [key for key in seen if key.tier is None]:
        print(
            f"note: on the free quota: {', '.join(key.project for key in untold)}; if that is meant, say so: pollux "
            f"keys edit {shlex.quote(untold[0].id)} --tier free{where}{', …' * (len(untold) > 1)}; if not, look at the "
            "plan in AI Studio",
            file=sys.stderr,
        )


def told_of_tiers(keys: Iterable[Key]) -> None:
    """Which keys name a tier that does not count, because the first key of the project names another."""
    firsts: dict[str, Key] = {}
    for key in keys:
        first = firsts.setdefault(key.project, key)
        if key.tier != first.tier:
            print(
                f"warning: {key.id} ({key.tier or 'no tier'}) and {first.id} ({first.tier or 'no tier'}) are of one "
                f"project, {key.project}: what {first.id} says counts, because it is the first",
                file=sys.stderr,
            )


def confirmed(question: str, *, yes: bool, undone: str) -> bool:
    """Whether the user says so. `undone` is what did not happen when there is nobody to ask."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise KeySourceError(f"not {undone}: nobody to ask; say --yes")
    print(f"{question} [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("kept")
    return False


class Progress:
    """A bar on standard error, if that is a terminal: `with Progress(20, "adding") as progress: … progress.step()`."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._done = total, what, 0
        self.shown = total > 1 and sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def step(self) -> None:
        self._done += 1
        self._draw()

    def _draw(self) -> None:
        if self.shown:
            full = WIDTH * self._done // self._total
            bar = "#" * full + "." * (WIDTH - full)
            print(f"\r{self._what} [{bar}] {self._done}/{self._total}", end="", file=sys.stderr, flush=True)


def row(entry: Entry, health: Mapping[str, Any] | None) -> dict[str, Any]:
    """A key as `keys list --json` shows it."""
    key = entry.key(entry.id)
    known = HEALTHY if key.id in (health or {}).get("checked", ()) else UNCHECKED
    state: dict[str, Any] = {"state": UNKNOWN if health is None else known}
    now = time.time()
    for kind, name in (("keys", key.id), ("projects", key.project)):
        aside = (health or {}).get(kind, {}).get(name)
        if aside and (aside["until"] > now or (kind == "keys" and key_rests(Aside(**aside), now))):
            state = {"state": "aside", "reason": aside["reason"], "since": aside["since"], "until": aside["until"]}
            break
    shown = {"id": key.id, "project": key.project, "tier": key.tier, "masked": entry.secret.masked}
    return shown | {"source": entry.place, "enabled": key.enabled, "health": state}


def keys_table(rows: Sequence[Mapping[str, Any]]) -> None:
    table(
        ("ID", "PROJECT", "TIER", "VALUE", "SOURCE", "HEALTH"),
        [(r["id"], r["project"], r["tier"] or "-", r["masked"], r["source"], _in_words(r)) for r in rows],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    for line in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def tell(problems: Iterable[Problem], what: str) -> None:
    for problem in problems:
        print(f"{what}{problem}", file=sys.stderr)


def listed(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [{"file": problem.file, "line": problem.line, "reason": problem.reason} for problem in problems]


def _in_words(row: Mapping[str, Any]) -> str:
    health = row["health"]
    words = str(health["state"])
    if words == "aside":
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(health["until"]))
        words = f"aside until {until}: {health['reason']}"
    return words if row["enabled"] else f"disabled ({words})" if words == UNKNOWN else f"disabled, {words}"
