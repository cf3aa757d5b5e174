"""The control API for tests in other processes, under /simulator/: faults, the log of calls, counts."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Protocol

from gemini_simulator.exchange import Call
from gemini_simulator.faults import Fault, FaultError, from_json


class Controlled(Protocol):
    faults: list[Fault]

    @property
    def calls(self) -> Iterable[Call]: ...

    def counts(self) -> dict[str, Any]: ...

    def owned(self) -> list[dict[str, Any]]: ...


def control(simulator: Controlled, method: str, path: str, body: bytes) -> tuple[int, Any]:
    """(status, answer). HEAD is GET; its body is left out where answers are sent."""
    what = path.removeprefix("/simulator/")
    method = "GET" if method == "HEAD" else method
    if what == "faults" and method == "POST":
        return _add(simulator, body)
    if what == "faults" and method == "DELETE":
        simulator.faults.clear()
        return 200, []
    if method == "GET":
        if what == "faults":
            return 200, [asdict(fault) for fault in simulator.faults]
        if what == "log":
            return 200, [call.shown() for call in simulator.calls]
        if what == "counts":
            return 200, simulator.counts()
        if what == "resources":
            return 200, simulator.owned()
    if what in ("faults", "log", "counts", "resources"):
        return 405, {"error": f"{method} is not for {path}"}
    return 404, {"error": f"{path}: expected /simulator/faults, log, counts or resources"}


def _add(simulator: Controlled, body: bytes) -> tuple[int, Any]:
    try:
        given = json.loads(body)
        faults = [from_json(entry) for entry in (given if isinstance(given, list) else [given])]
    except FaultError as wrong:
        return 400, {"error": str(wrong)}
    except (ValueError, RecursionError):
        return 400, {"error": "the body is no JSON"}
    simulator.faults.extend(faults)
    return 200, [asdict(fault) for fault in simulator.faults]
