"""Interactions: whole, as events or in the background; kept with their predecessors; read, cancelled, deleted."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gemini_simulator.answers import pieces
from gemini_simulator.counting import Prompt, native_prompt
from gemini_simulator.errors import bad_request, error, said
from gemini_simulator.output import text_of
from gemini_simulator.references import file_of
from gemini_simulator.request import Request
from gemini_simulator.resources import Resource, Resources, timestamp

LIFE = 55 * 86_400.0
CHUNKS = 4
Check = Callable[[Iterable[str], str, str], int]
"""Raises ApiError for a name that is not that project's; else how many tokens are cached."""
Admit = Callable[[int], None]
Films = Callable[[str, str], str]
"""(project, prompt) -> the name of a file that can be downloaded."""


def _items(value: Any) -> Iterator[dict[str, Any]]:
    """The contents of an input: a text, a list of contents, or of steps that hold such."""
    if isinstance(value, str):
        yield {"type": "text", "text": value}
    elif isinstance(value, dict):
        if "content" in value:
            yield from _items(value["content"])
        else:
            yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _items(entry)


class Interactions:
    """`working`: seconds until one in the background is completed."""

    def __init__(
        self, resources: Resources, films: Films, models: dict[str, str], check: Check, working: float
    ) -> None:
        self._resources = resources
        self._films = films
        self._models = models
        self._check = check
        self._working = working
        self.answers: dict[str, Callable[[Request], Any]] = {
            "interactions.get": self._get,
            "interactions.delete": self._delete,
            "interactions.cancel": self._cancel,
        }

    def create(self, request: Request, admit: Admit) -> Any:
        """The interaction, or its events. `admit` is told the input tokens. Raises ApiError, as `admit` may."""
        document, project = request.document, request.project
        model = request.model or ""
        if model not in self._models and document.get("agent") != model:
            raise error("not-found", request.case())
        names = list(self._names(document))
        before = self._before(document, project)
        cached = self._check(names, project, model)
        parts = [
            {"text": item["text"]} if isinstance(item.get("text"), str) else {"fileData": item}
            for item in _items(document.get("input"))
        ]
        if not parts:
            raise bad_request("input is not specified")
        prompt = native_prompt({"contents": [{"parts": parts}]})
        admit(prompt.tokens + before + cached)
        text = text_of(model, prompt)
        kept = self._kept(request, prompt, text, before + cached)
        if model.startswith("veo"):
            film = {"type": "video", "mime_type": "video/mp4", "uri": self._films(project, prompt.text)}
            kept["steps"][0]["content"].append(film)
        if environment := self._environment(document, project):
            kept["environment_id"] = environment
        interaction = self._resources.add("interactions", project, kept, LIFE)
        if document.get("background") is True:
            interaction.ready = interaction.created + self._working
        shown = self._show(interaction, request.base, first=True)
        events = list(self._events(interaction, request.base)) if request.stream == "sse" else None
        if document.get("store") is False:
            self._resources.remove(interaction.name, project)
        return shown if events is None else events

    def _names(self, document: dict[str, Any]) -> Iterator[str]:
        for item in _items(document.get("input")):
            if name := file_of(item.get("uri"), self._resources.roots):
                yield name
        if isinstance(cache := document.get("cached_content"), str):
            yield cache
        tools = document.get("tools")
        for tool in tools if isinstance(tools, list) else ():
            stores = tool.get("file_search_store_names") if isinstance(tool, dict) else None
            yield from stores if isinstance(stores, list) else ()

    def _before(self, document: dict[str, Any], project: str) -> int:
        """How many tokens the interactions hold that this one goes on from. Raises ApiError."""
        previous = document.get("previous_interaction_id")
        if previous is None:
            return 0
        return int(self._resources.get(f"interactions/{previous}", project).document["usage"]["total_tokens"])

    def _environment(self, document: dict[str, Any], project: str) -> str | None:
        """The id of the one that is named, or of a new one. Raises ApiError."""
        given = document.get("environment", document.get("environment_id"))
        if isinstance(given, str) and given != "remote":
            return self._resources.get(f"environments/{given.removeprefix('environments/')}", project).id
        return self._resources.add("environments", project).id if given else None

    def _kept(self, request: Request, prompt: Prompt, text: str, more: int) -> dict[str, Any]:
        said_tokens, tokens = -(-len(text) // 4), prompt.tokens + more
        names = ("model", "agent", "previous_interaction_id")
        return {
            **{name: request.document[name] for name in names if name in request.document},
            "steps": [{"type": "model_output", "content": [{"type": "text", "text": text}]}],
            "usage": {
                "total_input_tokens": tokens,
                "total_output_tokens": said_tokens,
                "total_tokens": tokens + said_tokens,
            },
        }

    def _content(self, interaction: Resource, base: str) -> list[dict[str, Any]]:
        """Addresses begin as the request spells them."""
        kept: list[dict[str, Any]] = interaction.document["steps"][0]["content"]
        return [item | {"uri": f"{base}/{item['uri']}:download?alt=media"} if "uri" in item else item for item in kept]

    def _show(self, interaction: Resource, base: str, *, first: bool = False) -> dict[str, Any]:
        kept = interaction.document
        running = self._resources.clock() < interaction.ready or (first and interaction.ready > 0)
        status = kept.get("status") or ("in_progress" if running else "completed")
        moment = timestamp(interaction.created)
        answer = {"id": interaction.id, "object": "interaction", "status": status, "created": moment, "updated": moment}
        rest = {name: value for name, value in kept.items() if name != "status"}
        if status != "completed":
            return answer | {name: value for name, value in rest.items() if name not in ("steps", "usage")}
        rest["steps"] = [{"type": "model_output", "content": self._content(interaction, base)}]
        return answer | rest

    def _events(self, interaction: Resource, base: str) -> Iterator[dict[str, Any]]:
        whole = self._show(interaction, base)
        content = self._content(interaction, base)
        head = {name: whole[name] for name in ("id", "object", "model", "agent", "created") if name in whole}
        events: list[dict[str, Any]] = [
            {"event_type": "interaction.created", "interaction": head | {"status": "in_progress"}},
            {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
        ]
        deltas = [{"type": "text", "text": piece} for piece in pieces(content[0]["text"], CHUNKS)] + content[1:]
        events += [{"event_type": "step.delta", "index": 0, "delta": delta} for delta in deltas]
        events.append({"event_type": "step.stop", "index": 0})
        end = head | {"status": "completed", "updated": whole["updated"], "usage": interaction.document["usage"]}
        events.append({"event_type": "interaction.completed", "interaction": end})
        for number, event in enumerate(events, 1):
            yield event | {"event_id": f"event-{number}"}

    def _get(self, request: Request) -> Any:
        interaction = self._resources.get(request.name, request.project)
        if request.stream == "no":
            return self._show(interaction, request.base)
        events = list(self._events(interaction, request.base))
        last = request.query.get("last_event_id")
        seen = [place for place, event in enumerate(events, 1) if event["event_id"] == last]
        if last and not seen:
            raise bad_request(f"last_event_id: {last!r} is not known")
        return events[seen[0] if seen else 0 :]

    def _delete(self, request: Request) -> Any:
        self._resources.remove(request.name, request.project)
        return {}

    def _cancel(self, request: Request) -> Any:
        interaction = self._resources.get(request.name, request.project)
        if self._resources.clock() >= interaction.ready:
            raise said(400, "FAILED_PRECONDITION", "Only an interaction in progress can be cancelled.")
        interaction.document["status"] = "cancelled"
        return self._show(interaction, request.base)
