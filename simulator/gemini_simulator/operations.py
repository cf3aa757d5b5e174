"""Long-running operations, such as videos, and tuned models, which an operation makes."""

from collections.abc import Callable
from typing import Any

from gemini_simulator.errors import bad_request
from gemini_simulator.files import Files
from gemini_simulator.references import field
from gemini_simulator.request import Request
from gemini_simulator.resources import Resource, Resources, timestamp

LIFE = 48 * 3600.0
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1beta."
_FILM = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom simulated film of "
Outcome = Callable[[str], dict[str, Any]]
"""What an operation's response is, for the base that URIs begin with."""


class Operations:
    """`working`: seconds until one is done."""

    def __init__(self, resources: Resources, files: Files, models: dict[str, str], working: float) -> None:
        self._resources = resources
        self._files = files
        self._models = models
        self._working = working
        self.answers: dict[str, Callable[[Request], Any]] = {
            "operations.get": self._get,
            "operations.list": self._list,
            "operations.cancel": self._forget,
            "operations.delete": self._forget,
            "tunedModels.create": self._tune,
            "tunedModels.get": lambda request: self._tuned(resources.get(request.name, request.project)),
            "tunedModels.list": self._list_tuned,
            "tunedModels.patch": self._rename,
            "tunedModels.delete": self._delete,
        }

    def begin(self, parent: str, project: str, outcome: Outcome, metadata: dict[str, Any] | None = None) -> Any:
        """Begin a new operation below `parent`. Returns its first state, which is never done."""
        place = f"{parent}/operations" if parent else "operations"
        operation = self._resources.add(place, project, metadata, LIFE)
        operation.ready = operation.created + self._working
        operation.outcome = outcome
        return {"name": operation.name} | ({"metadata": metadata} if metadata else {})

    def film_file(self, project: str, prompt: str) -> str:
        """The name of a new film; its last bytes are the prompt."""
        return self._files.generate(project, "video/mp4", _FILM + prompt.encode("utf-8", "replace")).name

    def film(self, request: Request, project: str, model: str) -> Any:
        """predictLongRunning: one video for each that is asked for, downloadable once it is done."""
        instances = request.document.get("instances")
        if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
            raise bad_request("* PredictLongRunningRequest.instances: instances is not specified\n")
        parameters = request.document.get("parameters")
        count = parameters.get("sampleCount", 1) if isinstance(parameters, dict) else 1
        if not isinstance(count, int) or not 1 <= count <= 4:
            raise bad_request("sampleCount must be between 1 and 4")
        prompt = str(instances[0].get("prompt", ""))
        names: list[str] = []

        def outcome(base: str) -> dict[str, Any]:
            if not names:
                names.extend(self.film_file(project, prompt) for _ in range(count))
            samples = [{"video": {"uri": f"{base}/{name}:download?alt=media"}} for name in names]
            return {
                "@type": _TYPE + "PredictLongRunningResponse",
                "generateVideoResponse": {"generatedSamples": samples},
            }

        return self.begin(f"models/{model}", project, outcome)

    def _show(self, operation: Resource, base: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"name": operation.name}
        if operation.document:
            answer["metadata"] = operation.document
        if operation.outcome is not None and self._resources.clock() >= operation.ready:
            answer |= {"done": True, "response": operation.outcome(base)}
        return answer

    def _get(self, request: Request) -> Any:
        return self._show(self._resources.get(request.name, request.project), request.base)

    def _list(self, request: Request) -> Any:
        page, rest = self._resources.page(request.name, request.project, request.query)
        return ({"operations": [self._show(entry, request.base) for entry in page]} if page else {}) | rest

    def _forget(self, request: Request) -> Any:
        self._resources.remove(request.name, request.project)
        return {}

    def _tune(self, request: Request) -> Any:
        document = request.document
        model = field(document, "baseModel")
        if not isinstance(model, str) or model.removeprefix("models/") not in self._models:
            raise bad_request("* CreateTunedModelRequest.tuned_model.base_model: the model is missing or unknown\n")
        kept = {"baseModel": "models/" + model.removeprefix("models/"), "displayName": field(document, "displayName")}
        given = request.query.get("tunedModelId", request.query.get("tuned_model_id"))
        tuned = self._resources.add("tunedModels", request.project, kept, given=given)
        tuned.ready = tuned.created + self._working
        metadata = {"@type": _TYPE + "CreateTunedModelMetadata", "tunedModel": tuned.name}
        outcome = lambda base: {"@type": _TYPE + "TunedModel"} | self._tuned(tuned)  # noqa: E731
        return self.begin(tuned.name, request.project, outcome, metadata)

    def _tuned(self, tuned: Resource) -> dict[str, Any]:
        active = self._resources.clock() >= tuned.ready
        return {
            "name": tuned.name,
            "displayName": tuned.document["displayName"] or "",
            "baseModel": tuned.document["baseModel"],
            "state": "ACTIVE" if active else "CREATING",
            "createTime": timestamp(tuned.created),
            "updateTime": timestamp(max(tuned.created, tuned.ready) if active else tuned.created),
        }

    def _list_tuned(self, request: Request) -> Any:
        page, rest = self._resources.page("tunedModels", request.project, request.query, 10, 1000)
        return ({"tunedModels": [self._tuned(tuned) for tuned in page]} if page else {}) | rest

    def _rename(self, request: Request) -> Any:
        tuned = self._resources.get(request.name, request.project)
        tuned.document["displayName"] = field(request.document, "displayName")
        return self._tuned(tuned)

    def _delete(self, request: Request) -> Any:
        self._resources.remove(request.name, request.project)
        return {}
