"""How keys and tokens stand in Secret Manager: names, labels, annotations. Pure. Values are not here."""

import json
import re
from collections.abc import Mapping
from typing import Any

from pollux.backends.keys.contract import Key
from pollux.backends.keys.entries import Problem, id_fault, limits_fault, project_fault, tier_fault
from pollux.backends.keys.secrets_api import SecretInfo
from pollux.gemini.catalog import tier_name

KEY = "pollux-key-"
TOKEN = "pollux-token-"  # noqa: S105
ADMIN_TOKEN = "pollux-admin-token"  # noqa: S105
OURS = {"managed-by": "pollux"}
"""On what the command line made, for whoever looks through a project's secrets. Nothing depends on it being there."""
PROJECT, LIMITS, VERSION, ID = "pollux-project", "pollux-limits", "pollux-version", "pollux-id"
"""Annotations: a project that no label can hold, limits, the version that `rotate` made, and for people the id of a key
whose secret could not be named after it."""

TOKEN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_ESCAPED = re.compile(r"_(20|5f)_")


def secret_name(key_id: str) -> str:
    """The name of a key's secret, which holds no space: that is `_20_`, and beside it an underscore is `_5f_`."""
    if " " in key_id or _ESCAPED.search(key_id):
        key_id = key_id.replace("_", "\0").replace(" ", "_20_").replace("\0", "_5f_")
    return KEY + key_id


def key_id_of(name: str) -> str:
    """The other way round. A name that `secret_name` would not give, as of a secret made by hand, is taken as it is."""
    written = name.removeprefix(KEY)
    key_id = _ESCAPED.sub(lambda match: " " if match[1] == "20" else "_", written)
    return key_id if secret_name(key_id) == name else written


def key_of(info: SecretInfo, generation: int = 0) -> Key | Problem:
    """The key that a secret describes, or why it describes none. Without any label it is a project of its own."""
    key_id = key_id_of(info.name)
    named = info.annotations.get(PROJECT) or info.labels.get("project")
    project = named or key_id
    tier = info.labels.get("tier") or None
    limits, fault = _limits(info.annotations.get(LIMITS))
    enabled = info.labels.get("enabled", "true")
    fault = (
        id_fault(key_id) or (project_fault(named) if named else None) or (tier_fault(tier) if tier else None) or fault
    )
    if fault is None and enabled not in ("true", "false"):
        fault = "the label enabled is true or false"
    if fault is not None:
        return Problem(f"secret {info.name}", 0, fault)
    return Key(key_id, project, tier_name(tier) if tier else None, limits, enabled == "true", generation)


def token_name(info: SecretInfo) -> str | None:
    """Whose tokens a secret holds; "" is the admin. None: it is none of ours, or its name is no client's."""
    if info.name == ADMIN_TOKEN:
        return ""
    name = info.name.removeprefix(TOKEN)
    return name if info.name.startswith(TOKEN) and TOKEN_NAME.fullmatch(name) else None


def changed(info: SecretInfo | None, details: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The labels and annotations after a change of `project`, `tier`, `limits`, `enabled` or `version`, those named.

    None removes; so does None for the limits of one model. What others wrote stays.
    """
    labels = dict(info.labels) if info else dict(OURS)
    annotations = dict(info.annotations) if info else {}
    if "project" in details:
        labels.pop("project", None)
        annotations.pop(PROJECT, None)
        project = details["project"]
        if project and _LABEL.fullmatch(project):
            labels["project"] = project
        elif project:
            annotations[PROJECT] = project
    if "tier" in details:
        _put(labels, "tier", tier_name(details["tier"]) if details["tier"] else None)
    if "enabled" in details:
        _put(labels, "enabled", None if details["enabled"] else "false")
    if "limits" in details:
        merged = _limits(annotations.get(LIMITS))[0] | dict(details["limits"] or {})
        kept = {model: numbers for model, numbers in merged.items() if numbers}
        _put(annotations, LIMITS, json.dumps(kept, separators=(",", ":")) if kept else None)
    if "version" in details:
        annotations[VERSION] = str(details["version"])
    return labels, annotations


def _put(where: dict[str, str], name: str, text: str | None) -> None:
    if text is None:
        where.pop(name, None)
    else:
        where[name] = text


def _limits(text: str | None) -> tuple[dict[str, Any], str | None]:
    if not text:
        return {}, None
    try:
        limits = json.loads(text)
    except (ValueError, RecursionError):
        return {}, f"the annotation {LIMITS} is not JSON"
    fault = limits_fault(limits)
    return ({}, f"the annotation {LIMITS}: {fault}") if fault else (limits, None)


def foreign(info: SecretInfo) -> str:
    """A warning for what something else made, and may make again."""
    ours = OURS.items() <= dict(info.labels).items()
    return "" if ours else " It was not made by pollux; if Terraform declares it, remove it there too."
