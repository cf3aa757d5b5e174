"""What the simulator's models answer, and what that takes of their quotas. Faults and sending are not its business."""

from typing import Any

from pollux.simulator import answers
from pollux.simulator.errors import bad_request, error, quota_error
from pollux.simulator.exchange import Call, Clock
from pollux.simulator.models import describe, describe_openai, makes_images, methods
from pollux.simulator.quota import Enforcer
from pollux.simulator.request import Request
from pollux.simulator.service import Service

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
        cached = self._service.check(request, project, model) if request.names_owned else 0
        if verb in ("generateContent", "streamGenerateContent", "chat/completions"):
            return self._generate(call, request, project, model, cached)
        return self._rest(call, request, project, model)

    def _generate(
        self, call: Call, request: Request, project: str, model: str, cached: int
    ) -> Document | list[Document]:
        document = request.document
        openai = request.api == "openai"
        prompt = answers.openai_prompt(document) if openai else answers.native_prompt(document)
        if cached:
            prompt = prompt._replace(tokens=prompt.tokens + cached)
        image = makes_images(model)
        self.admit(call, request, project, tokens=prompt.tokens, images=int(image))
        self._serial += 1
        name = f"simulated-{self._serial:x}"
        if openai:
            created = int(self._clock())
            if request.stream == "no":
                return answers.openai_answer(model, prompt, name, created)
            options = document.get("stream_options")
            usage = isinstance(options, dict) and bool(options.get("include_usage"))
            return answers.openai_chunks(model, prompt, self.chunks, name, created, usage=usage)
        count = 1 if request.stream == "no" else self.chunks
        chunks = answers.native_chunks(model, prompt, count, name, image=image)
        if cached:
            for chunk in chunks:
                chunk["usageMetadata"]["cachedContentTokenCount"] = cached
        return chunks[0] if request.stream == "no" else chunks

    def interact(self, call: Call, request: Request) -> Document | list[Document]:
        admit = lambda tokens: self.admit(call, request, request.project, tokens=tokens)  # noqa: E731
        made: Document | list[Document] = self._service.interactions.create(request, admit)
        return made

    def _rest(self, call: Call, request: Request, project: str, model: str) -> Document:
        verb, document = request.verb, request.document
        if verb == "countTokens":
            inner = document.get("generateContentRequest", document.get("generate_content_request"))
            whole = isinstance(inner, dict)
            prompt = answers.native_prompt(inner if whole else document, whole=whole)
            details = [{"modality": "TEXT", "tokenCount": prompt.tokens}]
            return {"totalTokens": prompt.tokens, "promptTokensDetails": details}
        if verb == "predict":
            count = answers.samples(document)
            self.admit(call, request, project, tokens=0, images=count)
            return answers.predictions(count)
        if verb in ("batchGenerateContent", "asyncBatchEmbedContent", "predictLongRunning"):
            if verb == "predictLongRunning":
                self.admit(call, request, project, tokens=0)
            begun: Document = self._service.begin(request, project, model)
            return begun
        openai = request.api == "openai"
        prompts = answers.openai_inputs(document) if openai else answers.embed_prompts(document, verb)
        tokens = sum(prompt.tokens for prompt in prompts)
        self.admit(call, request, project, tokens=tokens, requests=len(prompts))
        return answers.embeddings(verb, model, document, prompts)

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
