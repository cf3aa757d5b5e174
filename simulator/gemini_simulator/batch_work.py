"""The requests of a batch, and their results. PURE."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gemini_simulator.answers import encode
from gemini_simulator.chat import chat_answer
from gemini_simulator.counting import embed_prompts, native_prompt, openai_inputs, openai_prompt
from gemini_simulator.embeddings import embeddings
from gemini_simulator.errors import ApiError, bad_request
from gemini_simulator.native import native_answer
from gemini_simulator.options import chat_options, native_options
from gemini_simulator.output import generate
from gemini_simulator.references import field


class Entry(NamedTuple):
    """One request. `key`: what its result is known by. `label`: the metadata of an inlined one."""

    request: Mapping[str, Any]
    key: str | None = None
    label: Any = None


@dataclass(frozen=True, slots=True)
class Work:
    """`kind`: generate, embed or openai. `check`: raises ApiError for a request that names what is not its own."""

    kind: str
    model: str
    check: Callable[[Any], None]
    number: int = 0

    def result(self, entry: Entry, place: int) -> tuple[str, Any]:
        """("response", …) or ("error", …)."""
        try:
            self.check(entry.request)
            return "response", self._response(entry.request, f"simulated-batch-{self.number:x}-{place}")
        except ApiError as trouble:
            return "error", trouble.body["error"] if isinstance(trouble.body, dict) else {"message": trouble.body}

    def _response(self, request: Mapping[str, Any], name: str) -> Any:
        if self.kind == "embed":
            return embeddings("embedContent", self.model, request, embed_prompts(request, "embedContent"))
        if self.kind == "generate":
            prompt, options = native_prompt(request), native_options(request, self.model)
            return native_answer(self.model, generate(self.model, prompt, options, name), name)
        body = field(request, "body")
        if not isinstance(body, Mapping) or not isinstance(model := body.get("model"), str):
            raise bad_request("body.model is not specified")
        if request.get("url", "").endswith("/embeddings"):
            return embeddings("embeddings", model, body, openai_inputs(body))
        outputs = generate(model, openai_prompt(body), chat_options(body, model.removeprefix("models/")), name)
        return chat_answer(model, outputs, name, 0)


def inlined(config: Any) -> list[Entry]:
    """The requests that came with the batch. Raises ApiError."""
    entries = field(field(config, "requests"), "requests")
    if not isinstance(entries, list) or not entries:
        raise bad_request("* BatchGenerateContentRequest.batch.input_config: neither requests nor a file name\n")
    found = []
    for entry in entries:
        request = field(entry, "request")
        if not isinstance(request, Mapping):
            raise bad_request("* BatchGenerateContentRequest.batch.input_config.requests: a request is missing\n")
        found.append(Entry(request, label=field(entry, "metadata")))
    return found


def from_lines(data: bytes, kind: str) -> list[Entry]:
    """The requests of a file, one a line. Raises ApiError."""
    found = []
    for number, line in enumerate(filter(None, map(bytes.strip, data.split(b"\n"))), 1):
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        request = document if kind == "openai" else field(document, "request")
        if not isinstance(document, dict) or not isinstance(request, dict):
            raise bad_request(f"Line {number} of the input file is no request.")
        found.append(Entry(request, key=str(document.get("custom_id" if kind == "openai" else "key", ""))))
    if not found:
        raise bad_request("The input file has no requests.")
    return found


def line_of(kind: str, entry: Entry, outcome: tuple[str, Any], place: int) -> bytes:
    """A line of the result file."""
    what, value = outcome
    if kind != "openai":
        return encode({"key": entry.key, what: value}) + b"\n"
    status = 200 if what == "response" else value.get("code", 500)
    body = value if what == "response" else {"error": value}
    response = {"status_code": status, "request_id": f"simulated-{place}", "body": body}
    line = {"id": f"simulated-{place}", "custom_id": entry.key, "response": response, "error": None}
    return encode(line) + b"\n"
