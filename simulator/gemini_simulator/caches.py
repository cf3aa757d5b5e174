"""Cached contents: made, shown, listed, extended, deleted, and used by requests for their model."""

import re
from typing import Any

from gemini_simulator.counting import native_prompt
from gemini_simulator.errors import bad_request
from gemini_simulator.references import field, names_in
from gemini_simulator.request import Request
from gemini_simulator.resources import Resource, Resources, seconds_of, timestamp

TTL = 3600.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)s")


class Caches:
    def __init__(self, resources: Resources, models: dict[str, str]) -> None:
        self._resources = resources
        self._models = models
        self.answers = {
            "cachedContents.create": self._create,
            "cachedContents.get": lambda request: self._show(resources.get(request.name, request.project)),
            "cachedContents.list": self._list,
            "cachedContents.patch": self._patch,
            "cachedContents.delete": self._delete,
        }

    def tokens(self, name: str, project: str, model: str) -> int:
        """Of a cache that a request names. Raises ApiError."""
        cache = self._resources.get(name, project)
        if cache.document["model"] != f"models/{model}":
            raise bad_request(
                f"Model used by GenerateContent request (models/{model}) and CachedContent "
                f"({cache.document['model']}) has to be the same."
            )
        return int(cache.document["tokens"])

    def _create(self, request: Request) -> Any:
        document = request.document
        model = document.get("model")
        if not isinstance(model, str) or model.removeprefix("models/") not in self._models:
            raise bad_request("* CreateCachedContentRequest.cached_content.model: the model is missing or unknown\n")
        for name in names_in(document, self._resources.roots):
            self._resources.get(name, request.project)
        if not field(document, "contents") and (instruction := field(document, "systemInstruction")):
            document = document | {"contents": instruction}
        kept = {
            "model": "models/" + model.removeprefix("models/"),
            "displayName": field(document, "displayName"),
            "tokens": native_prompt(document).tokens,
        }
        cache = self._resources.add("cachedContents", request.project, kept, TTL)
        self._end(cache, document, missing=TTL)
        return self._show(cache)

    def _end(self, cache: Resource, document: dict[str, Any], missing: float | None = None) -> None:
        now = self._resources.clock()
        ttl, end = field(document, "ttl"), field(document, "expireTime")
        if isinstance(end, str):
            cache.expires = seconds_of(end)
        elif isinstance(ttl, str) and (found := _DURATION.fullmatch(ttl)):
            cache.expires = now + float(found[1])
        elif ttl is not None:
            raise bad_request("Invalid value at 'cached_content.ttl' (type.googleapis.com/google.protobuf.Duration)")
        elif missing is not None:
            cache.expires = now + missing
        cache.document["updated"] = now

    def _show(self, cache: Resource) -> dict[str, Any]:
        kept = cache.document
        return {
            "name": cache.name,
            "model": kept["model"],
            "createTime": timestamp(cache.created),
            "updateTime": timestamp(kept["updated"]),
            "expireTime": timestamp(cache.expires or cache.created),
            "displayName": kept["displayName"] or "",
            "usageMetadata": {"totalTokenCount": kept["tokens"]},
        }

    def _list(self, request: Request) -> Any:
        page, rest = self._resources.page("cachedContents", request.project, request.query, 50, 1000)
        return ({"cachedContents": [self._show(cache) for cache in page]} if page else {}) | rest

    def _patch(self, request: Request) -> Any:
        cache = self._resources.get(request.name, request.project)
        if set(request.document) - {"ttl", "expireTime", "expire_time", "name"}:
            raise bad_request("* UpdateCachedContentRequest: only ttl and expire_time can be changed\n")
        self._end(cache, request.document)
        return self._show(cache)

    def _delete(self, request: Request) -> Any:
        self._resources.remove(request.name, request.project)
        return {}
