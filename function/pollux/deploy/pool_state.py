"""PURE. What /admin/status says of a gateway's health, in one line."""

from collections.abc import Mapping
from typing import Any

from pollux.deploy import Verdict
from pollux.log_safety import clean

STATUS = "`pollux status --url URL` shows it"


def state(found: Mapping[str, Any]) -> tuple[Verdict, str, str]:
    """Verdict, what it says, what to do."""
    try:
        keys = [str(key["state"]) for key in found["keys"]]
        projects = {str(key["project"]) for key in found["keys"]}
        store = found["store"]
        problems = [*found["pool"]["problems"], *filter(None, [found["pool"]["suspicion"]])]
        whole = f"Pollux {found['version']}, {len(keys)} keys of {len(projects)} projects, store {store['state']}"
        trouble = "" if store["state"] == "ok" else f"{store['url']} is {store['state']}: {store['why']}"
    except (KeyError, TypeError):
        return "FAIL", "200, but no status of Pollux's", "is this the address of a gateway?"
    usable = keys.count("healthy")
    if not usable:
        why = "; ".join(sorted({str(key.get("why") or key["state"]) for key in found["keys"]}))
        return (
            "FAIL",
            clean(f"none of {len(keys)} keys is usable{f': {why}' if why else ''}", 300),
            f"`pollux keys add`; {STATUS}",
        )
    if problems or trouble:
        return "warn", clean("; ".join([*problems, *filter(None, [trouble])]), 300), STATUS
    if usable < len(keys):
        return "warn", f"{len(keys) - usable} of {len(keys)} keys are set aside or disabled", STATUS
    return "ok", clean(whole, 300), ""
