"""File search stores and their documents: files that are imported, and uploads that go into one directly."""

from collections.abc import Callable
from typing import Any

from gemini_simulator.errors import bad_request, said
from gemini_simulator.operations import Operations
from gemini_simulator.references import field, file_of
from gemini_simulator.request import Request
from gemini_simulator.resources import Resource, Resources, timestamp
from gemini_simulator.uploads import Uploaded

_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1beta."


class Stores:
    def __init__(self, resources: Resources, operations: Operations) -> None:
        self._resources = resources
        self._operations = operations
        self.answers: dict[str, Callable[[Request], Any]] = {
            "fileSearchStores.create": self._create,
            "fileSearchStores.get": lambda request: self._show(resources.get(request.name, request.project)),
            "fileSearchStores.list": self._list,
            "fileSearchStores.delete": self._delete,
            "fileSearchStores.importFile": self._import,
            "documents.get": lambda request: self._document(resources.get(request.name, request.project)),
            "documents.list": self._documents,
            "documents.delete": self._delete_document,
        }

    def take(self, upload: Uploaded) -> dict[str, Any]:
        """An upload into a store has come whole: its operation. Raises ApiError."""
        self._resources.get(upload.target, upload.project)
        shown = field(upload.metadata, "displayName") or upload.file_name
        return self._add(
            upload.target, upload.project, f"{upload.target}/upload", str(shown), upload.kind, upload.content.size
        )

    def _add(self, store: str, project: str, parent: str, shown: str, kind: str, size: int) -> dict[str, Any]:
        document = self._resources.add(
            f"{store}/documents", project, {"displayName": shown, "mimeType": kind, "sizeBytes": str(size)}
        )

        def outcome(base: str) -> dict[str, Any]:
            name = "UploadToFileSearchStoreResponse" if parent.endswith("/upload") else "ImportFileResponse"
            return {"@type": _TYPE + name, "parent": store, "documentName": document.name}

        operation: dict[str, Any] = self._operations.begin(parent, project, outcome)
        document.ready = self._resources.get(operation["name"], project).ready
        return operation

    def _create(self, request: Request) -> Any:
        kept = {"displayName": field(request.document, "displayName") or ""}
        if model := field(request.document, "embeddingModel"):
            kept["embeddingModel"] = model
        return self._show(self._resources.add("fileSearchStores", request.project, kept))

    def _show(self, store: Resource) -> dict[str, Any]:
        documents = self._resources.of(f"{store.name}/documents", store.project)
        now = self._resources.clock()
        active = sum(now >= document.ready for document in documents)
        return {
            "name": store.name,
            **store.document,
            "createTime": timestamp(store.created),
            "updateTime": timestamp(store.created),
            "activeDocumentsCount": str(active),
            "pendingDocumentsCount": str(len(documents) - active),
            "sizeBytes": str(sum(int(document.document["sizeBytes"]) for document in documents)),
        }

    def _list(self, request: Request) -> Any:
        page, rest = self._resources.page("fileSearchStores", request.project, request.query, 10, 20)
        return ({"fileSearchStores": [self._show(store) for store in page]} if page else {}) | rest

    def _delete(self, request: Request) -> Any:
        self._resources.get(request.name, request.project)
        force = request.query.get("force", "").lower() == "true"  # Google's own SDK writes True
        if self._resources.of(f"{request.name}/documents", request.project) and not force:
            raise said(400, "FAILED_PRECONDITION", "Cannot delete non-empty FileSearchStore.")
        self._resources.remove(request.name, request.project)
        return {}

    def _import(self, request: Request) -> Any:
        self._resources.get(request.name, request.project)
        name = file_of(field(request.document, "fileName"))
        if name is None:
            raise bad_request("* ImportFileRequest.file_name: the name of a file is missing\n")
        file = self._resources.get(name, request.project)
        size = file.content.size if file.content else 0
        shown = file.document["displayName"] or file.id
        return self._add(request.name, request.project, request.name, shown, file.document["mimeType"], size)

    def _document(self, document: Resource) -> dict[str, Any]:
        active = self._resources.clock() >= document.ready
        return {
            "name": document.name,
            **{name: document.document[name] for name in ("displayName", "mimeType", "sizeBytes")},
            "state": "STATE_ACTIVE" if active else "STATE_PENDING",
            "createTime": timestamp(document.created),
            "updateTime": timestamp(document.created),
        }

    def _documents(self, request: Request) -> Any:
        self._resources.get(request.name.rpartition("/")[0], request.project)
        page, rest = self._resources.page(request.name, request.project, request.query, 10, 20)
        return ({"documents": [self._document(document) for document in page]} if page else {}) | rest

    def _delete_document(self, request: Request) -> Any:
        self._resources.remove(request.name, request.project)
        return {}
