"""Answers about what projects own: which call belongs to which kind, and which project may name what."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gemini_simulator.batches import Batches
from gemini_simulator.caches import Caches
from gemini_simulator.content import KEEP
from gemini_simulator.errors import error, said
from gemini_simulator.files import Files
from gemini_simulator.interactions import Interactions
from gemini_simulator.operations import Operations
from gemini_simulator.plain import Plain
from gemini_simulator.references import names_in
from gemini_simulator.request import Request
from gemini_simulator.resources import Resources
from gemini_simulator.stores import Stores
from gemini_simulator.uploads import GRANULARITY, Uploaded, Uploads

Answer = Callable[[Request], Any]


@dataclass(frozen=True, kw_only=True)
class Owning:
    """How the simulator treats what projects own.

    processing: seconds until an uploaded file is active; working: until a batch, video or other operation is done.
    keep_content: bytes of an uploaded file that are kept. granularity: of the chunks of an upload. base: scheme and
    host that its URIs begin with, instead of those that the caller used.
    """

    processing: float = 0.0
    working: float = 0.0
    keep_content: int = KEEP
    granularity: int = GRANULARITY
    base: str = ""


class Service:
    def __init__(
        self, clock: Callable[[], float], models: dict[str, str], seed: int = 0, owning: Owning | None = None
    ) -> None:
        self.owning = owning = owning or Owning()
        self.resources = resources = Resources(clock, seed)
        self.files = Files(resources, owning.processing)
        self.caches = Caches(resources, models)
        self.batches = Batches(resources, self.files, owning.working)
        self.operations = Operations(resources, self.files, models, owning.working)
        self.stores = Stores(resources, self.operations)
        self.interactions = Interactions(resources, self.operations.film_file, models, self.check_names, owning.working)
        self.uploads = Uploads(resources, self._uploaded, owning.keep_content, owning.granularity)
        self._answers: Mapping[str, Answer] = {
            **self.files.answers,
            **self.caches.answers,
            **self.batches.answers,
            **self.operations.answers,
            **self.stores.answers,
            **self.interactions.answers,
            **Plain(resources).answers,
        }

    def root(self, scheme: str, host: str) -> str:
        """What addresses begin with, for a caller who came by this one."""
        root = self.owning.base.rstrip("/") or f"{scheme}://{host}"
        self.resources.roots.add(root)
        return root

    def answer(self, request: Request) -> Any:
        """A document, a list of events, or Media. Raises ApiError."""
        name = f"openai.{request.verb}" if request.api == "openai" else request.verb
        answer = self._answers.get(name)
        if answer is None:
            raise error("no-such-path", request.case())
        return answer(request)

    def check(self, request: Request, project: str, model: str) -> int:
        """Whether all that the body names is this project's, and how many tokens of it are cached. Raises ApiError."""
        return self.check_names(names_in(request.document, self.resources.roots), project, model)

    def check_names(self, names: Iterable[str], project: str, model: str) -> int:
        cached = 0
        for name in names:
            if name.startswith("cachedContents/"):
                cached += self.caches.tokens(name, project, model)
                continue
            resource = self.resources.get(name, project)
            if name.startswith("files/") and self.resources.clock() < resource.ready:
                text = f"The File {resource.id} is not in an ACTIVE state and usage is not allowed."
                raise said(400, "FAILED_PRECONDITION", text)
        return cached

    def tuned(self, name: str, project: str) -> str:
        """The model under a tuned one. Raises ApiError."""
        return str(self.resources.get(name, project).document["baseModel"]).removeprefix("models/")

    def begin(self, request: Request, project: str, model: str) -> Any:
        """A batch or a video: what it is known by until it is done. Raises ApiError."""
        if request.verb == "predictLongRunning":
            return self.operations.film(request, project, model)
        return self.batches.begin(request, project, model)

    def _uploaded(self, upload: Uploaded) -> dict[str, Any]:
        if upload.target != "files":
            return self.stores.take(upload)
        if upload.api == "openai":
            given = {"displayName": upload.file_name}
            file = self.files.create(upload.project, given, upload.kind, upload.content, "CreateFileRequest")
            file.document["purpose"] = str(upload.metadata.get("purpose", "batch"))
            return self.files.show_openai(file)
        given = upload.metadata.get("file") or {}
        file = self.files.create(upload.project, given, upload.kind, upload.content, "CreateFileRequest")
        return {"file": self.files.show(file, upload.base)}
