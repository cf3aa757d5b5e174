"""What the simulator only keeps for a project: corpora, agents, environments, triggers and their executions."""

from collections.abc import Callable
from typing import Any

from gemini_simulator.request import Request
from gemini_simulator.resources import Resource, Resources, timestamp

KINDS = ("corpora", "agents", "environments", "triggers")


class Plain:
    """Shown as given, with a name (corpora) or an id (the others)."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self.answers: dict[str, Callable[[Request], Any]] = {"executions.create": self._execute}
        for kind in KINDS:
            self.answers |= {
                f"{kind}.create": self._create,
                f"{kind}.get": lambda request: show(resources.get(request.name, request.project)),
                f"{kind}.list": self._list,
                f"{kind}.patch": self._patch,
                f"{kind}.delete": self._delete,
            }
        self.answers["executions.get"] = lambda request: show(resources.get(request.name, request.project))
        self.answers["executions.list"] = self._list

    def _create(self, request: Request) -> Any:
        given = request.document.get("id") if request.name == "agents" else None
        kept = {name: value for name, value in request.document.items() if name not in ("id", "name")}
        return show(self._resources.add(request.name, request.project, kept, given=given))

    def _list(self, request: Request) -> Any:
        if request.name.count("/"):
            self._resources.get(request.name.rpartition("/")[0], request.project)
        page, rest = self._resources.page(request.name, request.project, request.query)
        collection = request.name.rpartition("/")[2]
        if collection == "executions":
            collection = "trigger_executions"
        if collection != "corpora" and rest:
            rest = {"next_page_token": rest["nextPageToken"]}
        return ({collection: [show(resource) for resource in page]} if page else {}) | rest

    def _patch(self, request: Request) -> Any:
        resource = self._resources.get(request.name, request.project)
        resource.document |= {name: value for name, value in request.document.items() if name not in ("id", "name")}
        return show(resource)

    def _delete(self, request: Request) -> Any:
        self._resources.remove(request.name, request.project)
        return {}

    def _execute(self, request: Request) -> Any:
        trigger = self._resources.get(request.name.rpartition("/")[0], request.project)
        return show(self._resources.add(request.name, request.project, {"trigger_id": trigger.id}))


def show(resource: Resource) -> dict[str, Any]:
    moment = timestamp(resource.created)
    kind = resource.name.split("/")[-2]
    if kind == "corpora":
        return {"name": resource.name, **resource.document, "createTime": moment, "updateTime": moment}
    status = {"executions": "completed", "agents": ""}.get(kind, "active")
    times = {"created": moment} if kind == "environments" else {"create_time": moment} if kind == "triggers" else {}
    return {"id": resource.id, **resource.document, **times} | ({"status": status} if status else {})
