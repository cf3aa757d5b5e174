"""What the simulator's models answer, and how much quota that takes."""

from typing import Any

from gemini_simulator.answers import predictions, samples
from gemini_simulator.chat import chat_answer, chat_chunks
from gemini_simulator.counting import embed_prompts, native_prompt, openai_inputs, openai_prompt
from gemini_simulator.embeddings import embeddings
from gemini_simulator.errors import bad_request, error, quota_error
from gemini_simulator.exchange import Call, Clock
from gemini_simulator.fields import check_fields
from gemini_simulator.models import describe, describe_openai, methods
from gemini_simulator.native import native_answer, native_chunks
from gemini_simulator.options import chat_options, native_options
from gemini_simulator.output import generate
from gemini_simulator.quota import Enforcer
from gemini_simulator.references import field
from gemini_simulator.request import Request
from gemini_simulator.service import Service

Document = dict[str, Any]


class Generation:
    """`models`: model -> bucket. `tiers`: one for all, or project -> tier."""

    def __init__(
        self, models: dict[str, str], enforcer: Enforcer, service: Service, clock: Clock, chunks: int, tiers: Any
    ) -> None:
        self.models = models
        self.chunks = chunks
        self._enforcer = enforcer
        self._service = service
        self._clock = clock
        self._tiers = tiers
        self._serial = 0

    def bucket(self, model: str | None) -> str:
        return self.models.get(model or "", model or "")

    def tier(self, project: str) -> str:
        return self._tiers if isinstance(self._tiers, str) else self._tiers.get(project, "free")

    def answer(self, call: Call, request: Request, project: str) -> Document | list[Document]:
        verb, model = request.verb, request.model
        if verb == "models.list":
            return self._list(request)
        if request.api == "openai" and verb in ("chat/completions", "embeddings"):
            if model is None:
                raise bad_request("model is not specified")
            needed = "generateContent" if verb == "chat/completions" else "embedContent"
        else:
            needed = verb
        if model is not None and model.startswith("tunedModels/"):
            model = request.model = self._service.tuned(model, project)
        if model is None or model not in self.models or (verb != "models.get" and needed not in methods(model)):
            raise error("not-found", request.case())
        if verb == "models.get":
            return describe_openai(model) if request.api == "openai" else describe(model)
        try:
            return self._serve(call, request, project, model)
        except RecursionError:
            message = "Invalid JSON payload received. Message too deep. Max recursion depth reached."
            raise bad_request(message) from None

    def _serve(self, call: Call, request: Request, project: str, model: str) -> Document | list[Document]:
        check_fields(request.verb, request.document)
        cached = self._service.check(request, project, model) if request.names_owned else 0
        if request.verb in ("generateContent", "streamGenerateContent", "chat/completions"):
            return self._generate(call, request, project, model, cached)
        return self._rest(call, request, project, model)

    def _generate(
        self, call: Call, request: Request, project: str, model: str, cached: int
    ) -> Document | list[Document]:
        document = request.document
        openai = request.api == "openai"
        prompt = openai_prompt(document) if openai else native_prompt(document)
        options = chat_options(document, model) if openai else native_options(document, model)
        if cached:
            prompt = prompt._replace(tokens=prompt.tokens + cached)
        name = f"simulated-{self._serial + 1:x}"
        outputs = generate(model, prompt, options, name)
        self.admit(call, request, project, tokens=prompt.tokens, images=outputs.images)
        self._serial += 1
        whole = request.stream == "no"
        if not openai:
            return (
                native_answer(model, outputs, name, cached)
                if whole
                else native_chunks(model, outputs, self.chunks, name, cached)
            )
        created = int(self._clock())
        if whole:
            return chat_answer(model, outputs, name, created)
        usage = field(document.get("stream_options"), "include_usage") is True
        return chat_chunks(model, outputs, self.chunks, name, created, with_usage=usage)

    def interact(self, call: Call, request: Request) -> Document | list[Document]:
        admit = lambda tokens: self.admit(call, request, request.project, tokens=tokens)  # noqa: E731
        made: Document | list[Document] = self._service.interactions.create(request, admit)
        return made

    def _rest(self, call: Call, request: Request, project: str, model: str) -> Document:
        verb, document = request.verb, request.document
        if verb == "countTokens":
            inner = field(document, "generateContentRequest")
            whole = isinstance(inner, dict)
            prompt = native_prompt(inner if whole else document, whole=whole)
            return {"totalTokens": prompt.tokens, "promptTokensDetails": prompt.details}
        if verb == "predict":
            count = samples(document)
            self.admit(call, request, project, tokens=0, images=count)
            return predictions(count)
        if verb in ("batchGenerateContent", "asyncBatchEmbedContent", "predictLongRunning"):
            if verb == "predictLongRunning":
                self.admit(call, request, project, tokens=0)
            begun: Document = self._service.begin(request, project, model)
            return begun
        openai = request.api == "openai"
        prompts = openai_inputs(document) if openai else embed_prompts(document, verb)
        tokens = sum(prompt.tokens for prompt in prompts)
        self.admit(call, request, project, tokens=tokens, requests=len(prompts))
        return embeddings(verb, model, document, prompts)

    def admit(
        self, call: Call, request: Request, project: str, *, tokens: int, requests: int = 1, images: int = 0
    ) -> None:
        """Raises ApiError: the quota's 429."""
        bucket = self.bucket(request.model)
        call.tokens = tokens
        refusal = self._enforcer.admit(
            project, bucket, requests=requests, tokens=tokens, images=images, now=self._clock()
        )
        if refusal is not None:
            call.fault = refusal.name
            case = request.case(bucket=bucket, tier=self.tier(project))
            raise quota_error(refusal.broken, refusal.retry_s, case)

    def _list(self, request: Request) -> Document:
        names = list(self.models)
        if request.api == "openai":
            return {"object": "list", "data": [describe_openai(name) for name in names]}
        size, token = request.query.get("pageSize") or "50", request.query.get("pageToken") or "0"
        if not (size.isascii() and size.isdigit() and token.isascii() and token.isdigit()):
            raise bad_request("* ListModelsRequest.page_size or page_token: invalid value\n")
        start = int(token)
        end = start + min(int(size) or 50, 1000)
        page: Document = {"models": [describe(name) for name in names[start:end]]}
        return page | ({"nextPageToken": str(end)} if end < len(names) else {})
