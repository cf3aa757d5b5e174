"""`pollux status` and `pollux explain`: what a running gateway reports, as text or JSON."""

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import click

from pollux.cli.gateway import admin_token, ask, url_option
from pollux.cli.terminal import Table, View, for_terminal, json_option, show, show_json
from pollux.settings import Settings

WATCH_EVERY = 2.0
QUOTA_HEAD = ("PROJECT", "MODEL", "RPM", "TPM", "RPD", "NEXT SLOT", "COMMITS", "CONFLICTS", "GRANTS", "WHY")


@click.command(help="Show keys, quotas and totals of a running gateway.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@json_option
@url_option
@click.pass_obj
def status(load: Callable[[], Settings], watch: bool, as_json: bool, url: str | None) -> None:
    settings = load()
    token = admin_token(settings)

    def found() -> dict[str, Any]:
        return ask(url or settings.gateway_url, "/admin/status", token)

    if watch and not as_json and sys.stdout.isatty():
        _live(found)
    while True:
        _show(found(), status_view, as_json)
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(WATCH_EVERY)
        if not as_json:
            print()


@click.command()
@click.argument("what", metavar="MODEL|REQUEST_ID")
@click.option(
    "--tokens", type=click.IntRange(0, clamp=True), default=0, metavar="N", help="Input tokens of the request."
)
@json_option
@url_option
@click.pass_obj
def explain(load: Callable[[], Settings], what: str, tokens: int, as_json: bool, url: str | None) -> None:
    """Show where a request would go and why it would wait, or what became of one.

    With a model: the earliest slot of every candidate, and the reason for it. With the id of a recent request (the
    answer header x-pollux-request-id): what became of it.
    """
    settings = load()
    past = re.fullmatch("[0-9a-f]{16}", what)
    query = urlencode({"model": what, "tokens": tokens})
    path = f"/admin/requests/{quote(what)}" if past else f"/admin/explain?{query}"
    found = ask(url or settings.gateway_url, path, admin_token(settings))
    _show(found, request_view if past else explain_view, as_json)


def _show(found: Mapping[str, Any], view: Callable[[Mapping[str, Any]], View], as_json: bool) -> None:
    if as_json:
        show_json(found)
    else:
        show(view(found))


def _live(found: Callable[[], Mapping[str, Any]]) -> None:
    """On the terminal's alternate screen. Ctrl-C restores the terminal."""
    from rich.live import Live

    view = for_terminal(status_view(found()))
    live = Live(view, screen=True, auto_refresh=False)
    try:  # not `with`: after a Ctrl-C while it starts, the alternate screen would stay
        live.start()
        while True:
            time.sleep(WATCH_EVERY)
            live.update(for_terminal(status_view(found())), refresh=True)
    finally:
        live.stop()


def status_view(found: Mapping[str, Any]) -> View:
    now, pool = found["now"], found["pool"]
    statuses = ", ".join(f"{count} x {status}" for status, count in pool["statuses"].items()) or "none yet"
    view: View = [
        f"Pollux {found['version']} in front of {found['upstream']}, strategy {found['strategy']}, "
        f"window {found['window']}",
        f"requests: {pool['requests']} ({statuses}), {pool['under_way']} under way, {pool['waiting']} waiting",
    ]
    view += _resources(found)
    view.append(_store(found["store"], pool["requests"]))
    if found["store"]["state"] != "ok":
        since = datetime.fromtimestamp(found["store"]["since"]).strftime("%H:%M:%S")
        view.append(f"STORE TROUBLE since {since}: {found['store']['why']}")
    if pool["suspicion"]:
        view.append(f"SUSPICION: {pool['suspicion']}")
    view += [f"PROBLEM: {problem}" for problem in pool["problems"]]
    if paused := pool["paused_until"]:
        view.append(_paused(paused, now))
    projects = {project["project"]: project for project in found["projects"]}
    keys = [_key_row(key, projects[key["project"]], now) for key in found["keys"]]
    view.append(Table(("KEY", "PROJECT", "TIER", "STATE", "UNTIL", "WHY"), keys))
    aside = [
        (name, model, _until(entry["until"], now), entry["why"])
        for name, project in projects.items()
        for model, entry in (
            *([("all", project)] if project["state"] == "aside" else []),
            *project["models_aside"].items(),
        )
    ]
    tools = [
        (project["project"], tool, _until(entry["until"], now), entry["why"])
        for project in found["projects"]
        for tool, entry in project.get("tools_aside", {}).items()
    ]
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
    tables = (
        Table(("PROJECT ASIDE", "MODEL", "UNTIL", "WHY"), aside),
        Table(("PROJECT", "TOOL", "UNTIL", "WHY"), tools),
        Table(QUOTA_HEAD, quotas),
    )
    return [*view, *(table for table in tables if table.rows)]


def _key_row(key: Mapping[str, Any], project: Mapping[str, Any], now: float) -> tuple[str, ...]:
    """A healthy key is not used while its project is set aside."""
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
    per = ""
    if requests:
        per = f", {store['commits'] / requests:.2f} commits and {store['reads'] / requests:.2f} reads a request"
    took = f"; a commit takes {store['commit_ms']['median']:g} ms" if store["commit_ms"] else ""
    return (
        f"store: {store['url']} is {store['state']}, instances: {store['instances']}; "
        f"by this one {store['commits']} commits ({store['conflicts']} conflicts), "
        f"{store['reads']} reads{per}{took}"
    )


def _share(quota: Mapping[str, Any], name: str) -> str:
    limit = quota["limits"].get(name)
    return f"{quota['used'][name]}/{'?' if limit is None else limit}"


def _until(moment: float | None, now: float) -> str:
    if moment is None or moment <= now:
        return ""
    away = math.ceil(moment - now)
    return f"in {away} s" if away < 120 else datetime.fromtimestamp(moment).strftime("%d %b %H:%M")


def _resources(found: Mapping[str, Any]) -> Iterator[str]:
    if (known := found.get("resources")) and any(known.values()):
        yield (
            f"resources: {known['remembered']} with a known owner, {known['searches']} searched for, "
            f"{known['commits']} commits"
        )
    if files := found.get("pooled_files"):
        yield (
            f"pooled files: {files['uploaded']} uploaded, {files['known_again']} known already, "
            f"{files['copied']} copied"
        )
        if files["blobs"] != "ok":
            yield (
                f"BLOB STORE TROUBLE: {files['why']}; {files['passed_through']} uploads passed through to one project, "
                f"{files['kept_to_copies']} requests kept to the projects that had their files"
            )


def explain_view(found: Mapping[str, Any]) -> View:
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
    view: View = [f"{found['model']}, {found['tokens']} tokens; tried in this order: {' -> '.join(found['chain'])}"]
    if floor := found.get("floor"):
        view.append(f"the chain ends at {found['chain'][-1]}: {floor}")
    if not found["in_catalog"]:
        view.append(f"{found['model']} is not in the catalog: only Google knows whether the model exists")
    if paused := found.get("paused_until"):
        view.append(_paused(paused, found["now"]))
    if found["store"] != "ok":
        view.append(f"STORE TROUBLE: it is {found['store']}; `pollux status` says why")
    return [*view, Table(("MODEL", "PROJECT", "KEY", "EARLIEST", "WHY", "LIMITS"), rows)]


def _instead(found: Mapping[str, Any]) -> str:
    return (
        f", answered by {found['model_used']} instead" if found.get("fallback_from") and found["status"] < 400 else ""
    )


def request_view(found: Mapping[str, Any]) -> View:
    at = datetime.fromtimestamp(found["at"]).strftime("%Y-%m-%d %H:%M:%S")
    view: View = [
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
        held = f"none of the projects {owner} owns all of" if found["reason"] == "TWO_OWNERS" else held
        view.append(f"  {held} {', '.join(names)}")
    left_out = found.get("attempts_left_out", {})
    first = len(found["attempts"]) // 2
    for number, attempt in enumerate(found["attempts"], 1):
        if left_out and number == first + 1:
            view.append(f"  … {', '.join(f'{count} more: {cause}' for cause, count in left_out.items())}")
        number += sum(left_out.values()) if number > first else 0
        where = attempt["project"] or "no project"
        where += f" (key {attempt['key']})" if attempt["key"] else ""
        detail = f": {_detail(attempt)}" if attempt.get("detail") else ""
        detail += "".join(f"; {name}={value} learned" for name, value in attempt.get("learned", {}).items())
        model = attempt["model"] or "a call without a model"
        what = f"{model} on {where}" if attempt["cause"] != "located" else where
        view.append(f"  {number}. {what}: {attempt['cause']}{detail}")
    if found["reason"] or found["ended"]:
        view.append(f"  ended: {found['reason'] or found['ended']}")
    return view


def _first_byte(found: Mapping[str, Any]) -> str:
    first = found["first_byte_ms"]
    return "no answer came" if first is None else f"first byte after {first} ms"


def _reported(found: Mapping[str, Any]) -> str:
    return "not reported" if found["tokens"] is None else f"{found['tokens']} reported"


def _detail(attempt: Mapping[str, Any]) -> str:
    """Only the first sentence of a message of Google: the rest is links."""
    said: str = attempt["detail"]
    return re.split(r"(?<=[.!?])\s", said, maxsplit=1)[0].removesuffix(".") if "status" in attempt else said
