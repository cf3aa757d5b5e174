"""Files of a project: uploaded or made by the simulator, shown, listed, deleted, downloaded."""

import base64
from collections.abc import Callable
from typing import Any

from gemini_simulator.content import Content
from gemini_simulator.errors import bad_request, error
from gemini_simulator.request import Media, Request
from gemini_simulator.resources import FILE_LIFE, Resource, Resources, timestamp


class Files:
    """`processing`: seconds until an uploaded file is active."""

    def __init__(self, resources: Resources, processing: float) -> None:
        self._resources = resources
        self._processing = processing
        self.answers: dict[str, Callable[[Request], Any]] = {
            "files.get": self._get,
            "files.list": self._list,
            "files.delete": self._delete,
            "files.download": self._download,
            "openai.files.get": lambda request: self.show_openai(resources.get(request.name, request.project)),
            "openai.files.list": lambda request: resources.openai_page(
                "files", request.project, request.query, self.show_openai
            ),
            "openai.files.delete": lambda request: (
                self._delete(request) | {"id": request.name, "object": "file", "deleted": True}
            ),
            "openai.files.content": self._download,
        }

    def create(self, project: str, given: dict[str, Any], kind: str, content: Content, call: str) -> Resource:
        """An uploaded file. `given`: what the client says of it; `kind`: its MIME type. Raises ApiError."""
        name = given.get("name")
        if name is not None and (not isinstance(name, str) or not name.startswith("files/")):
            raise bad_request(f"* {call}.file.name: the name must be files/ and an id\n")
        document = {"displayName": given.get("displayName", given.get("display_name")), "mimeType": kind}
        file = self._resources.add("files", project, document, FILE_LIFE, name.removeprefix("files/") if name else None)
        file.ready = file.created + self._processing
        file.content = content
        return file

    def generate(self, project: str, kind: str, data: bytes, shown: str | None = None) -> Resource:
        """A file that came out of a batch or a video: the one sort that can be downloaded."""
        document = {"displayName": shown, "mimeType": kind, "source": "GENERATED"}
        file = self._resources.add("files", project, document, FILE_LIFE)
        file.content = Content.of(data)
        return file

    def show(self, file: Resource, base: str) -> dict[str, Any]:
        content = file.content or Content()
        active = self._resources.clock() >= file.ready
        answer: dict[str, Any] = {"name": file.name}
        if file.document["displayName"]:
            answer["displayName"] = file.document["displayName"]
        answer |= {
            "mimeType": file.document["mimeType"],
            "sizeBytes": str(content.size),
            "createTime": timestamp(file.created),
            "updateTime": timestamp(max(file.created, file.ready) if active else file.created),
            "expirationTime": timestamp(file.expires or file.created + FILE_LIFE),
            # Google writes the digest in hexadecimal and that in Base64.
            "sha256Hash": base64.b64encode(content.sha256.encode()).decode(),
            "uri": f"{base}/{file.name}",
            "state": "ACTIVE" if active else "PROCESSING",
            "source": file.document.get("source", "UPLOADED"),
        }
        if "source" in file.document:
            answer["downloadUri"] = f"{base}/{file.name}:download?alt=media"
        return answer

    def show_openai(self, file: Resource) -> dict[str, Any]:
        active = self._resources.clock() >= file.ready
        return {
            "id": file.name,
            "object": "file",
            "bytes": file.content.size if file.content else 0,
            "created_at": int(file.created),
            "expires_at": int(file.expires or 0),
            "filename": file.document["displayName"] or file.id,
            "purpose": file.document.get("purpose", "batch_output" if "source" in file.document else "batch"),
            "status": "processed" if active else "uploaded",
        }

    def _get(self, request: Request) -> Any:
        file = self._resources.get(request.name, request.project)
        if request.query.get("alt") == "media":
            return self._download(request)
        return self.show(file, request.base)

    def _list(self, request: Request) -> Any:
        page, rest = self._resources.page("files", request.project, request.query)
        return ({"files": [self.show(file, request.base) for file in page]} if page else {}) | rest

    def _delete(self, request: Request) -> Any:
        self._resources.remove(request.name, request.project)
        return {}

    def _download(self, request: Request) -> Media:
        file = self._resources.get(request.name, request.project)
        if "source" not in file.document:
            raise bad_request(f"File {file.id} was uploaded; only generated files can be downloaded.")
        if file.content is None or (data := file.content.data) is None:
            raise error("internal")
        return Media(file.document["mimeType"], data)
