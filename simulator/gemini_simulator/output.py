"""A simulated model's output before it gets an API's shape: texts, thoughts, calls, pictures, speech. PURE.

The text is deterministic: it names the model and repeats the beginning of the prompt.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gemini_simulator.answers import PNG
from gemini_simulator.counting import Prompt, tokens_of
from gemini_simulator.grounding import PAGE_TOKENS, grounding, pages, url_metadata
from gemini_simulator.models import generation_of
from gemini_simulator.options import Form, Options
from gemini_simulator.schema import instance
from gemini_simulator.tools import Function, arguments, choose, mentioned, signature

SPEECH = "audio/L16;codec=pcm;rate=24000"
_RATE = 24_000
_SPEECH_TOKENS = 25
"""A second of speech."""
_CODE = "print(6 * 7)"


class Call(NamedTuple):
    name: str
    arguments: dict[str, Any]
    id: str
    signature: str
    """Empty: it has none."""

    @property
    def tokens(self) -> int:
        return tokens_of(self.name + json.dumps(self.arguments))


class Medium(NamedTuple):
    kind: str
    data: str
    """In base64."""
    modality: str
    tokens: int


@dataclass(slots=True)
class Output:
    """One candidate."""

    thought: str = ""
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    code: tuple[str, str] | None = None
    """A program and what it printed."""
    media: list[Medium] = field(default_factory=list)
    finish: str = "STOP"
    grounding: dict[str, Any] | None = None
    urls: dict[str, Any] | None = None
    show_thoughts: bool = False

    @property
    def tokens(self) -> int:
        """Without its thoughts."""
        said = tokens_of(self.text) + sum(call.tokens for call in self.calls) + sum(one.tokens for one in self.media)
        return said + (sum(map(tokens_of, self.code)) if self.code else 0)


class Outputs(NamedTuple):
    """All candidates, and what they took: `read_tokens` of the pages that a tool read."""

    prompt: Prompt
    candidates: list[Output]
    read_tokens: int = 0

    @property
    def thoughts(self) -> int:
        return sum(tokens_of(one.thought) for one in self.candidates)

    @property
    def images(self) -> int:
        return sum(medium.modality == "IMAGE" for one in self.candidates for medium in one.media)


def text_of(model: str, prompt: Prompt) -> str:
    return f"Simulated answer of {model} to: {prompt.text[:40]}"


def generate(model: str, prompt: Prompt, options: Options, name: str) -> Outputs:
    """`name`: of the response; ids and signatures in it are made from it."""
    urls = pages(options.served, prompt.text)
    made = [_candidate(model, prompt, options, f"{name}-{number}", number, urls) for number in range(options.count)]
    return Outputs(prompt, made, len(urls) * PAGE_TOKENS)


def _candidate(model: str, prompt: Prompt, options: Options, name: str, number: int, urls: list[str]) -> Output:
    output = Output(show_thoughts=options.show_thoughts)
    left = options.most
    if options.thinking:
        output.thought = f"Simulated thought of {model} about: {prompt.text}"[: options.thinking * 4]
        if left is not None:
            output.thought = output.thought[: left * 4]
            left -= tokens_of(output.thought)
            if left <= 0:
                output.finish = "MAX_TOKENS"
                return output
    if called := choose(options.tools, options.turn, prompt.text):
        signed = generation_of(model) >= 3
        for place, function in enumerate(called):
            output.calls.append(_call(function, f"{name}-{place}", signed=signed and place == 0))
        return output
    if "codeExecution" in options.served and "code" in prompt.text.lower():
        output.code = (_CODE, "42\n")
    if "TEXT" in options.wanted:
        text = _text(model, prompt, options)
        output.text = text + (f" ({number + 1})" if number and options.form is None else "")
        _cut(output, options.stops, left)
    if output.finish == "STOP":
        if "IMAGE" in options.wanted:
            output.media.append(Medium("image/png", PNG, "IMAGE", 1290 if generation_of(model) < 3 else 1120))
        if "AUDIO" in options.wanted:
            output.media.append(_speech(prompt.text))
        output.grounding = grounding(options.served, prompt.text, output.text, urls)
        if "urlContext" in options.served and urls:
            output.urls = url_metadata(urls)
    return output


def _call(function: Function, name: str, *, signed: bool) -> Call:
    identity = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Call(function.name, arguments(function), identity, signature(function.name, name) if signed else "")


def _text(model: str, prompt: Prompt, options: Options) -> str:
    plain = text_of(model, prompt)
    if options.turn.results:
        plain = f"Simulated answer of {model}: {'; '.join(mentioned(options.turn.results))}"
    return plain if options.form is None else structured(options.form, plain)


def structured(form: Form, plain: str) -> str:
    """The answer as JSON. Without a schema: an object with the plain text in it."""
    value = {"answer": plain} if form.schema is None else instance(form.schema)
    if form.bare:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def _cut(output: Output, stops: list[str], most: int | None) -> None:
    places = [place for stop in stops if (place := output.text.find(stop)) >= 0]
    if places:
        output.text = output.text[: min(places)]
    if most is not None and tokens_of(output.text) > most:
        output.text = output.text[: most * 4]
        output.finish = "MAX_TOKENS"


def _speech(text: str) -> Medium:
    """A tone; the more text, the longer, up to a second."""
    samples = _RATE * min(len(text) + 5, 50) // 50
    wave = b"".join(level.to_bytes(2, "little", signed=True) for level in (0, 4000, 8000, 4000, 0, -4000, -8000, -4000))
    data = (wave * (samples // 8 + 1))[: samples * 2]
    tokens = max(1, samples * _SPEECH_TOKENS // _RATE)
    return Medium(SPEECH, base64.b64encode(data).decode(), "AUDIO", tokens)
