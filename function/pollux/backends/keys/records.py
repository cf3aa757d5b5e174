"""How keys and tokens are written in Secret Manager: names, labels, annotations. Their values are not handled here."""

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
"""A label for people, on secrets that a command made. A secret without it works the same."""
PROJECT, LIMITS, VERSION, ID = "pollux-project", "pollux-limits", "pollux-version", "pollux-id"
"""Annotations: a project that does not fit into a label, limits, the version that `rotate` made, and for people the id
of a key whose secret has another name."""

TOKEN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
NAME_RULE = "a client's name is a letter and at most 31 letters, digits, _ and -"
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_ESCAPED = re.compile(r"_(20|5f)_")


def secret_name(key_id: str) -> str:
    """The name of a key's secret. It cannot hold a space, which becomes `_20_`; then an underscore becomes `_5f_`."""
    if " " in key_id or _ESCAPED.search(key_id):
        key_id = key_id.replace("_", "\0").replace(" ", "_20_").replace("\0", "_5f_")
    return KEY + key_id


def key_id_of(name: str) -> str:
    """The reverse of `secret_name`. A name that it cannot have made, as of a secret made by hand, is taken as it is."""
    written = name.removeprefix(KEY)
    key_id = _ESCAPED.sub(lambda match: " " if match[1] == "20" else "_", written)
    return key_id if secret_name(key_id) == name else written


def key_of(info: SecretInfo, generation: int = 0) -> Key | Problem:
    """The key that a secret describes, or why it does not describe one. All labels are optional."""
    key_id = key_id_of(info.name)
    named = info.annotations.get(PROJECT) or info.labels.get("project")
    tier = info.labels.get("tier") or None
    enabled = info.labels.get("enabled", "true")
    limits, limits_wrong = _limits(info.annotations.get(LIMITS))
    fault = (
        id_fault(key_id)
        or (project_fault(named) if named else None)
        or (tier_fault(tier) if tier else None)
        or limits_wrong
        or (None if enabled in ("true", "false") else "the label enabled is true or false")
    )
    if fault:
        return Problem(f"secret {info.name}", 0, fault)
    return Key(key_id, named or key_id, tier_name(tier) if tier else None, limits, enabled == "true", generation)


def token_name(info: SecretInfo) -> str | None:
    """Whose tokens a secret holds; "" is the admin. None: it does not hold tokens, or its name is not allowed."""
    if info.name == ADMIN_TOKEN:
        return ""
    name = info.name.removeprefix(TOKEN)
    return name if info.name.startswith(TOKEN) and TOKEN_NAME.fullmatch(name) else None


def changed(info: SecretInfo | None, details: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The labels and annotations after a change of the given `project`, `tier`, `limits`, `enabled` or `version`.

    None removes; None for the limits of one model removes those. Other labels and annotations stay.
    """
    labels = dict(info.labels) if info else dict(OURS)
    annotations = dict(info.annotations) if info else {}
    if "project" in details:
        project = details["project"] or None
        fits = project is not None and _LABEL.fullmatch(project) is not None
        _put(labels, "project", project if fits else None)
        _put(annotations, PROJECT, None if fits else project)
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


def is_ours(info: SecretInfo) -> bool:
    return OURS.items() <= dict(info.labels).items()


def foreign(info: SecretInfo) -> str:
    """A warning before a secret is removed that another program made, and may make again."""
    return "" if is_ours(info) else " It was not made by pollux; if Terraform declares it, remove it there too."
