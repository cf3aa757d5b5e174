"""`pollux status` and `pollux explain`: what a running gateway says of itself, for people or as JSON for scripts."""

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pollux.settings import Settings

WATCH_EVERY = 2.0
QUOTA_HEAD = ("PROJECT", "MODEL", "RPM", "TPM", "RPD", "NEXT SLOT", "COMMITS", "CONFLICTS", "GRANTS", "WHY")


class AskError(Exception):
    """The gateway gave no answer that can be shown: what happened, and what to do."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def run(namespace: argparse.Namespace, settings: Settings) -> int:
    try:
        namespace.url = namespace.url or settings.gateway_url
        token = settings.admin_token or kept_token(settings)
        if namespace.command == "status":
            return _status(namespace, token)
        return _explain(namespace, token)
    except AskError as error:
        print(f"pollux {namespace.command}: {error}", file=sys.stderr)
        return 2


def kept_token(settings: Settings) -> str:
    path = Path(settings.data) / "tokens.json"
    try:
        return str(json.loads(path.read_text())["admin"])
    except (OSError, ValueError, KeyError, TypeError):
        raise AskError(f"no admin token: set POLLUX_ADMIN_TOKEN ({path} has none either)") from None


def ask(url: str, path: str, token: str, *, method: str = "GET") -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise AskError(f"{url} is no URL; expected one such as http://127.0.0.1:3145")
    headers = {"authorization": f"Bearer {token}"}
    request = urllib.request.Request(url.rstrip("/") + path, headers=headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        with error:  # else Python 3.14 warns of it, on the user's terminal
            try:
                message = json.load(error)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = error.reason
        raise AskError(f"{url} answers {error.code}: {message}", error.code) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise AskError(
            f"no gateway answers at {url} ({reason}); start it with `pollux serve`, or say with --url where it is"
        ) from None


def _status(namespace: argparse.Namespace, token: str) -> int:
    while True:
        found = ask(namespace.url, "/admin/status", token)
        text = json.dumps(found, indent=2) if namespace.json else status_text(found)
        if namespace.watch and not namespace.json:
            sys.stdout.write("\x1b[2J\x1b[H" if sys.stdout.isatty() else "\n")
        print(text, flush=True)
        if not namespace.watch:
            return 0
        time.sleep(WATCH_EVERY)


def _explain(namespace: argparse.Namespace, token: str) -> int:
    what = namespace.what
    if len(what) == 16 and all(c in "0123456789abcdef" for c in what):
        found = ask(namespace.url, f"/admin/requests/{quote(what, safe='')}", token)
        print(json.dumps(found, indent=2) if namespace.json else request_text(found))
    else:
        query = urlencode({"model": what, "tokens": max(0, namespace.tokens)})
        found = ask(namespace.url, f"/admin/explain?{query}", token)
        print(json.dumps(found, indent=2) if namespace.json else explain_text(found))
    return 0


def status_text(found: Mapping[str, Any]) -> str:
    now, pool = found["now"], found["pool"]
    statuses = ", ".join(f"{count} x {status}" for status, count in pool["statuses"].items()) or "none yet"
    lines = [
        f"Pollux {found['version']} in front of {found['upstream']}, strategy {found['strategy']}, "
        f"window {found['window']}",
        f"requests: {pool['requests']} ({statuses}), {pool['under_way']} under way, {pool['waiting']} waiting",
    ]
    lines += _owned(found)
    lines.append(_store(found["store"], pool["requests"]))
    if found["store"]["state"] != "ok":
        since = datetime.fromtimestamp(found["store"]["since"]).strftime("%H:%M:%S")
        lines.append(f"STORE TROUBLE since {since}: {found['store']['why']}")
    if pool["suspicion"]:
        lines.append(f"SUSPICION: {pool['suspicion']}")
    lines += [f"PROBLEM: {problem}" for problem in pool["problems"]]
    if paused := pool["paused_until"]:
        lines.append(_paused(paused, now))
    projects = {project["project"]: project for project in found["projects"]}
    keys = [_key_row(key, projects[key["project"]], now) for key in found["keys"]]
    lines += ["", *table(("KEY", "PROJECT", "TIER", "STATE", "UNTIL", "WHY"), keys)]
    aside = [
        (name, model, _until(entry["until"], now), entry["why"])
        for name, project in projects.items()
        for model, entry in (
            *([("all", project)] if project["state"] == "aside" else []),
            *project["models_aside"].items(),
        )
    ]
    if aside:
        lines += ["", *table(("PROJECT ASIDE", "MODEL", "UNTIL", "WHY"), aside)]
    tools = [
        (project["project"], tool, _until(entry["until"], now), entry["why"])
        for project in found["projects"]
        for tool, entry in project.get("tools_aside", {}).items()
    ]
    if tools:
        lines += ["", *table(("PROJECT", "TOOL", "UNTIL", "WHY"), tools)]
    quotas = [
        (
            quota["project"],
            quota["model"],
            *(_share(quota, name) for name in ("rpm", "tpm", "rpd")),
            _next_slot(quota, now),
            quota["commits"],
            quota["conflicts"],
            quota["grants"],
            quota["cooldown_why"] or quota.get("next_slot_why") or "",
        )
        for quota in found["quotas"]
    ]
    if quotas:
        lines += ["", *table(QUOTA_HEAD, quotas)]
    return "\n".join(lines)


def _key_row(key: Mapping[str, Any], project: Mapping[str, Any], now: float) -> tuple[str, ...]:
    """A key that is well serves nothing while its project is set aside."""
    state, until, why = key["state"], key["until"], key["why"] or ""
    if project["state"] == "aside" and state in ("healthy", "unchecked"):
        state, until, why = "aside", project["until"], f"its project: {project['why']}"
    return key["id"], key["project"], key["tier"] or "-", state, _until(until, now), why


def _next_slot(quota: Mapping[str, Any], now: float) -> str:
    if quota["next_slot"] is None and quota["cooldown_until"] is None:
        return "never"
    return _until(max(quota["cooldown_until"] or 0, quota["next_slot"] or 0), now) or "now"


def _paused(until: float, now: float) -> str:
    clock = datetime.fromtimestamp(until).strftime("%H:%M:%S")
    return f"POOL PAUSES until {clock} ({_until(until, now)}): nothing is sent to Google meanwhile"


def _store(store: Mapping[str, Any], requests: int) -> str:
    """What all instances share, and what this one asked of it."""
    each = max(1, requests)
    per = f", {store['commits'] / each:.2f} commits and {store['reads'] / each:.2f} reads a request"
    took = f"; a commit takes {store['commit_ms']['median']:g} ms" if store["commit_ms"] else ""
    return (
        f"store: {store['url']} is {store['state']}, instances: {store['instances']}; "
        f"by this one {store['commits']} commits ({store['conflicts']} conflicts), "
        f"{store['reads']} reads{per if requests else ''}{took}"
    )


def _share(quota: Mapping[str, Any], name: str) -> str:
    limit = quota["limits"].get(name)
    return f"{quota['used'][name]}/{'?' if limit is None else limit}"


def _until(moment: float | None, now: float) -> str:
    if moment is None or moment <= now:
        return ""
    away = math.ceil(moment - now)
    return f"in {away} s" if away < 120 else datetime.fromtimestamp(moment).strftime("%d %b %H:%M")


def _owned(found: Mapping[str, Any]) -> list[str]:
    """What projects own, and the files that are pooled."""
    lines = []
    if (known := found.get("resources")) and any(known.values()):
        lines.append(
            f"resources: {known['remembered']} remembered with their owners, {known['searches']} looked for, "
            f"{known['commits']} commits"
        )
    if files := found.get("pooled_files"):
        lines.append(
            f"pooled files: {files['uploaded']} uploaded, {files['known_again']} known again, {files['copied']} copied"
        )
        if files["blobs"] != "ok":
            lines.append(
                f"BLOB STORE TROUBLE: {files['why']}; {files['passed_through']} uploads passed through to one project, "
                f"{files['kept_to_copies']} requests kept to the projects that had their files"
            )
    return lines


def explain_text(found: Mapping[str, Any]) -> str:
    rows = []
    for candidate in found["candidates"]:
        wait = candidate["wait_s"]
        when = "never" if wait is None else "now" if wait == 0 else _until(candidate["earliest"], found["now"])
        limits = " ".join(f"{name}={value}" for name, value in candidate["limits"].items()) or "not known"
        resting = [
            f"{tool} rests, back {_until(entry['until'], found['now'])}"
            for tool, entry in candidate.get("tools_aside", {}).items()
        ]
        why = "; ".join([candidate["why"], *resting])
        rows.append((candidate["model"], candidate["project"], candidate["key"] or "-", when, why, limits))
    head = f"{found['model']}, {found['tokens']} tokens; tried in this order: {' -> '.join(found['chain'])}"
    if floor := found.get("floor"):
        head += f"\nthe chain ends at {found['chain'][-1]}: {floor}"
    if not found["in_catalog"]:
        head += f"\n{found['model']} is not in the catalog: only Google knows whether there is such a model"
    if paused := found.get("paused_until"):
        head += f"\n{_paused(paused, found['now'])}"
    if found["store"] != "ok":
        head += f"\nSTORE TROUBLE: it is {found['store']}; `pollux status` says why"
    return "\n".join([head, "", *table(("MODEL", "PROJECT", "KEY", "EARLIEST", "WHY", "LIMITS"), rows)])


def _instead(found: Mapping[str, Any]) -> str:
    return (
        f", answered by {found['model_used']} instead" if found.get("fallback_from") and found["status"] < 400 else ""
    )


def request_text(found: Mapping[str, Any]) -> str:
    at = datetime.fromtimestamp(found["at"]).strftime("%Y-%m-%d %H:%M:%S")
    lines = [
        f"request {found['id']} of {found['client'] or 'an unknown client'}, {at}: "
        f"{found['call']} {found['model']} -> {found['status']}{_instead(found)}",
        f"  waited {found['waited_ms']} ms, {_first_byte(found)}, total {found['total_ms']} ms",
        *(
            f"  waited {wait['ms'] / 1000:.1f} s for a slot of {wait['model']}: {wait['why']}"
            for wait in found.get("waits", ())
        ),
        f"  tokens: {found['tokens_estimated']} estimated, {_reported(found)}",
    ]
    if names := found.get("bound"):
        owner = found["owner"]
        held = f"only project {owner} could serve it, which owns" if owner else "no project is known to own"
        held = f"of projects {owner}, none sees all of" if found["reason"] == "TWO_OWNERS" else held
        lines.append(f"  {held} {', '.join(names)}")
    left_out = found.get("attempts_left_out", {})
    first = len(found["attempts"]) // 2
    for number, attempt in enumerate(found["attempts"], 1):
        if left_out and number == first + 1:
            lines.append(f"  … {', '.join(f'{count} more: {cause}' for cause, count in left_out.items())}")
        number += sum(left_out.values()) if number > first else 0
        where = attempt["project"] or "no project"
        where += f" (key {attempt['key']})" if attempt["key"] else ""
        detail = f": {_detail(attempt)}" if attempt.get("detail") else ""
        detail += "".join(f"; {name}={value} learned" for name, value in attempt.get("learned", {}).items())
        model = attempt["model"] or "a call without a model"
        what = f"{model} on {where}" if attempt["cause"] != "located" else where
        lines.append(f"  {number}. {what}: {attempt['cause']}{detail}")
    if found["reason"] or found["ended"]:
        lines.append(f"  ended: {found['reason'] or found['ended']}")
    return "\n".join(lines)


def _first_byte(found: Mapping[str, Any]) -> str:
    first = found["first_byte_ms"]
    return "no byte came" if first is None else f"first byte after {first} ms"


def _reported(found: Mapping[str, Any]) -> str:
    return "not reported" if found["tokens"] is None else f"{found['tokens']} reported"


def _detail(attempt: Mapping[str, Any]) -> str:
    """Of what Google said, the first sentence: more of it is links."""
    said: str = attempt["detail"]
    return re.split(r"(?<=[.!?])\s", said, maxsplit=1)[0].removesuffix(".") if "status" in attempt else said


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
