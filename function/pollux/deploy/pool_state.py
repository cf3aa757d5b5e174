"""PURE. What /admin/status says of a gateway's health, in one line."""

from collections.abc import Mapping
from typing import Any

from pollux.deploy import Verdict
from pollux.log_safety import clean

STATUS = "`pollux status --url URL` shows it"
LONGEST = 300
USABLE = ("healthy", "unchecked")


def state(found: Mapping[str, Any]) -> tuple[Verdict, str, str]:
    """Verdict, what it says, what to do."""
    try:
        verdict, detail, hint = _state(found)
    except (KeyError, TypeError, AttributeError):
        return "FAIL", "200, but no status of Pollux's", "is this the address of a gateway?"
    return verdict, clean(detail, LONGEST), hint


def _state(found: Mapping[str, Any]) -> tuple[Verdict, str, str]:
    projects = {project["project"]: project for project in found["projects"]}
    enabled = [key for key in found["keys"] if key["state"] != "disabled"]
    aside = [(key["id"], entry["why"]) for key in enabled if (entry := _aside(key, projects[key["project"]]))]
    if len(aside) == len(enabled):
        why = "; ".join(sorted({str(why) for _, why in aside}))
        return (
            "FAIL",
            f"none of {len(enabled)} keys is usable{f': {why}' if why else ''}",
            f"`pollux keys add`; {STATUS}",
        )
    pool, store = found["pool"], found["store"]
    trouble = [*pool["problems"], *filter(None, [pool["suspicion"]])]
    if store["state"] != "ok":
        trouble.append(f"{store['url']} is {store['state']}: {store['why']}")
    trouble += [f"key {name} is set aside: {why}" for name, why in aside]
    if trouble:
        return "warn", "; ".join(map(str, trouble)), STATUS
    return "ok", f"Pollux {found['version']}, {len(enabled)} keys of {len(projects)} projects, store ok", ""


def _aside(key: Mapping[str, Any], project: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What keeps a key from use: it rests itself, or its project does."""
    return next((entry for entry in (key, project) if entry["state"] not in USABLE), None)
