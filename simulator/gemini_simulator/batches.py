"""Batches: begun, completed after their time, shown natively and in OpenAI's shape, cancelled, deleted."""

from collections.abc import Callable, Mapping
from typing import Any

from gemini_simulator.batch_work import Entry, Work, from_lines, inlined, line_of
from gemini_simulator.errors import ApiError, bad_request
from gemini_simulator.files import Files
from gemini_simulator.references import field, file_of, names_in
from gemini_simulator.request import Request
from gemini_simulator.resources import Resource, Resources, timestamp

LIFE = 30 * 86_400.0
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
_NAMES = {"generate": "GenerateContentBatch", "embed": "EmbedContentBatch", "openai": "GenerateContentBatch"}
_OPENAI = {"SUCCEEDED": "completed"}


class Batches:
    """`working`: seconds until one is done. A batch's document has its kind, model, state, output and counts."""

    def __init__(self, resources: Resources, files: Files, working: float) -> None:
        self._resources = resources
        self._files = files
        self._working = working
        self._serial = 0
        self.answers: dict[str, Callable[[Request], Any]] = {
            "batches.get": self._get,
            "batches.list": self._list,
            "batches.cancel": self._cancel,
            "batches.delete": self._delete,
            "openai.batches.create": self._create_openai,
            "openai.batches.get": lambda request: self._openai(resources.get(request.name, request.project)),
            "openai.batches.list": self._list_openai,
            "openai.batches.cancel": self._cancel_openai,
        }

    def begin(self, request: Request, project: str, model: str) -> dict[str, Any]:
        """batchGenerateContent and asyncBatchEmbedContent. Raises ApiError."""
        batch = field(request.document, "batch")
        config = field(batch, "inputConfig")
        kind = "embed" if request.verb == "asyncBatchEmbedContent" else "generate"
        source = field(config, "fileName")
        entries = None if source is not None else inlined(config)
        for entry in entries or ():
            self._check(entry.request, project)
        shown = field(batch, "displayName")
        return self._show(self._begin(project, kind, model, source, entries, {"displayName": shown}), first=True)

    def _begin(
        self, project: str, kind: str, model: str, source: Any, entries: list[Entry] | None, more: dict[str, Any]
    ) -> Resource:
        if entries is None:
            name = file_of(source)
            if name is None:
                raise bad_request(f"* batch.input_config.file_name: {source!r} is no file\n")
            self._resources.get(name, project)
            more["input"] = name
        now = self._resources.clock()
        document = {"kind": kind, "model": model, "state": "PENDING", "updated": now, "count": len(entries or ())}
        batch = self._resources.add("batches", project, document | more, LIFE)
        self._serial += 1
        work = Work(kind, model, lambda request: self._check(request, project), self._serial)
        self._resources.later(now + self._working, lambda: self._finish(batch, work, entries))
        return batch

    def _check(self, document: Any, project: str) -> None:
        for name in names_in(document, self._resources.roots):
            self._resources.get(name, project)

    def _finish(self, batch: Resource, work: Work, entries: list[Entry] | None) -> None:
        document = batch.document
        if document["state"] != "PENDING":
            return
        document |= {"state": "SUCCEEDED", "updated": self._resources.clock()}
        try:
            todo = self._read(batch) if entries is None else entries
        except ApiError as trouble:
            error = trouble.body["error"] if isinstance(trouble.body, dict) else {}
            document |= {"state": "FAILED", "error": error}
            return
        results = [work.result(entry, place) for place, entry in enumerate(todo)]
        document |= {"count": len(todo), "failed": sum(what == "error" for what, _ in results)}
        if entries is None:
            lines = [
                line_of(work.kind, entry, result, place)
                for place, (entry, result) in enumerate(zip(todo, results, strict=True))
            ]
            file = self._files.generate(batch.project, "application/jsonl", b"".join(lines), f"{batch.id} results")
            document["output"] = {"responsesFile": file.name}
            return
        inner = [
            {what: value} | ({"metadata": entry.label} if entry.label is not None else {})
            for entry, (what, value) in zip(todo, results, strict=True)
        ]
        document["output"] = {"inlinedResponses": {"inlinedResponses": inner}}

    def _read(self, batch: Resource) -> list[Entry]:
        content = self._resources.get(batch.document["input"], batch.project).content
        data = content.data if content else None
        if data is None:
            raise bad_request("The input file is larger than what the simulator keeps of a file.")
        return from_lines(data, batch.document["kind"])

    def _show(self, batch: Resource, *, first: bool = False) -> dict[str, Any]:
        document = batch.document
        state = document["state"]
        name = _NAMES[document["kind"]]
        ended = state != "PENDING"
        failed = document.get("failed", 0)
        stats = {"requestCount": str(document["count"])}
        if state == "SUCCEEDED":
            stats |= {"successfulRequestCount": str(document["count"] - failed), "failedRequestCount": str(failed)}
        else:
            stats |= {"pendingRequestCount": str(document["count"])}
        metadata = {
            "@type": _TYPE + name,
            "model": f"models/{document['model']}",
            "displayName": document.get("displayName") or "",
            "createTime": timestamp(batch.created),
            "updateTime": timestamp(document["updated"]),
            "batchStats": stats,
            "state": f"BATCH_STATE_{state if ended or first else 'RUNNING'}",
            "name": batch.name,
        }
        if source := document.get("input"):
            metadata["inputConfig"] = {"fileName": source}
        answer: dict[str, Any] = {"name": batch.name, "metadata": metadata}
        if ended:
            metadata["endTime"] = timestamp(document["updated"])
            answer["done"] = True
        if output := document.get("output"):
            metadata["output"] = output
            answer["response"] = {"@type": f"{_TYPE}{name}Output"} | output
        if error := document.get("error"):
            answer["error"] = error
        return answer

    def _get(self, request: Request) -> Any:
        return self._show(self._resources.get(request.name, request.project))

    def _list(self, request: Request) -> Any:
        page, rest = self._resources.page("batches", request.project, request.query)
        return ({"operations": [self._show(batch) for batch in page]} if page else {}) | rest

    def _cancel(self, request: Request) -> Any:
        batch = self._resources.get(request.name, request.project)
        if batch.document["state"] == "PENDING":
            batch.document |= {"state": "CANCELLED", "updated": self._resources.clock()}
        return {}

    def _delete(self, request: Request) -> Any:
        self._cancel(request)
        self._resources.remove(request.name, request.project)
        return {}

    def _create_openai(self, request: Request) -> Any:
        document: Mapping[str, Any] = request.document
        endpoint = document.get("endpoint")
        if endpoint not in ("/v1/chat/completions", "/v1/embeddings"):
            raise bad_request(f"endpoint: {endpoint!r} is not supported for batches")
        more = {"endpoint": endpoint, "metadata": document.get("metadata")}
        batch = self._begin(request.project, "openai", "", document.get("input_file_id"), None, more)
        return self._openai(batch, first=True)

    def _openai(self, batch: Resource, *, first: bool = False) -> dict[str, Any]:
        document = batch.document
        state = document["state"]
        status = _OPENAI.get(state, state.lower())
        if state == "PENDING":
            status = "validating" if first else "in_progress"
        failed = document.get("failed", 0)
        done = document["count"] - failed if state == "SUCCEEDED" else 0
        answer = {
            "id": batch.name,
            "object": "batch",
            "endpoint": document.get("endpoint", "/v1/chat/completions"),
            "input_file_id": document.get("input", ""),
            "completion_window": "24h",
            "status": status,
            "created_at": int(batch.created),
            "request_counts": {"total": document["count"], "completed": done, "failed": failed},
            "metadata": document.get("metadata"),
        }
        if output := document.get("output", {}).get("responsesFile"):
            answer["output_file_id"] = output
        if state != "PENDING":
            answer[{"SUCCEEDED": "completed_at", "FAILED": "failed_at"}.get(state, "cancelled_at")] = int(
                document["updated"]
            )
        return answer

    def _list_openai(self, request: Request) -> Any:
        return self._resources.openai_page("batches", request.project, request.query, self._openai)

    def _cancel_openai(self, request: Request) -> Any:
        self._cancel(request)
        return self._openai(self._resources.get(request.name, request.project))
