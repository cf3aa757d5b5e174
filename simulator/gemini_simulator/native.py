"""Answers of generateContent, whole and in chunks. PURE."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from gemini_simulator.answers import pieces
from gemini_simulator.counting import tokens_of
from gemini_simulator.models import generation_of
from gemini_simulator.output import Call, Output, Outputs

Parts = list[dict[str, Any]]


def native_answer(model: str, outputs: Outputs, response_id: str, cached: int = 0) -> dict[str, Any]:
    """In one piece. `cached`: how many of the input tokens were."""
    candidates = []
    for index, output in enumerate(outputs.candidates):
        parts = [part for step, _ in _steps(model, output, 1) for part in step]
        if output.calls:
            parts.pop()  # the empty text that ends a stream
        candidates.append(_candidate(index, parts, output, last=True))
    said = [output.tokens for output in outputs.candidates]
    return _document(model, outputs, candidates, said, response_id, cached)


def native_chunks(model: str, outputs: Outputs, count: int, response_id: str, cached: int = 0) -> list[dict[str, Any]]:
    """Text comes in `count` pieces, everything else in one piece each; usage is cumulative."""
    said = [0] * len(outputs.candidates)
    chunks = []
    rows = list(zip_longest(*(list(_steps(model, output, count)) for output in outputs.candidates)))
    ends = [max(place for place, row in enumerate(rows) if row[index]) for index in range(len(said))]
    for place, row in enumerate(rows):
        candidates = []
        for index, step in enumerate(row):
            if step is not None:
                parts, said[index] = step
                candidates.append(_candidate(index, parts, outputs.candidates[index], last=place == ends[index]))
        chunks.append(_document(model, outputs, candidates, said, response_id, cached))
    return chunks


def _steps(model: str, output: Output, count: int) -> Iterator[tuple[Parts, int]]:
    """The parts of each chunk, and the tokens up to it. The last chunk also has what is not text."""
    if output.show_thoughts and output.thought:
        yield [{"text": output.thought, "thought": True}], 0
    for place, call in enumerate(output.calls, 1):
        yield [_call(model, call)], sum(one.tokens for one in output.calls[:place])
    if output.calls:
        yield [{"text": ""}], output.tokens
        return
    before = 0
    if output.code:
        code, printed = output.code
        before = tokens_of(code) + tokens_of(printed)
        yield [{"executableCode": {"language": "PYTHON", "code": code}}], tokens_of(code)
        yield [{"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": printed}}], before
    media = [{"inlineData": {"mimeType": medium.kind, "data": medium.data}} for medium in output.media]
    texts = pieces(output.text, count) if output.text else []
    length = 0
    for text in texts[:-1]:
        length += len(text)
        yield [{"text": text}], before + -(-length // 4)
    yield [*({"text": text} for text in texts[-1:]), *media], output.tokens


def _call(model: str, call: Call) -> dict[str, Any]:
    made: dict[str, Any] = {"name": call.name, "args": call.arguments}
    part: dict[str, Any] = {"functionCall": made | ({"id": call.id} if generation_of(model) >= 3 else {})}
    return part | ({"thoughtSignature": call.signature} if call.signature else {})


def _candidate(index: int, parts: Parts, output: Output, *, last: bool) -> dict[str, Any]:
    content = {"parts": parts, "role": "model"} if parts else {"role": "model"}
    candidate: dict[str, Any] = {"content": content, "index": index}
    if last:
        candidate["finishReason"] = output.finish
        if output.grounding:
            candidate["groundingMetadata"] = output.grounding
        if output.urls:
            candidate["urlContextMetadata"] = output.urls
    return candidate


def _document(
    model: str, outputs: Outputs, candidates: list[dict[str, Any]], said: list[int], response_id: str, cached: int
) -> dict[str, Any]:
    prompt, read, thoughts = outputs.prompt, outputs.read_tokens, outputs.thoughts
    usage: dict[str, Any] = {
        "promptTokenCount": prompt.tokens,
        "candidatesTokenCount": sum(said),
        "totalTokenCount": prompt.tokens + sum(said) + thoughts + read,
        "promptTokensDetails": prompt.details,
    }
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    if read:
        usage["toolUsePromptTokenCount"] = read
        usage["toolUsePromptTokensDetails"] = [{"modality": "TEXT", "tokenCount": read}]
    if media := [medium for output in outputs.candidates for medium in output.media]:
        counts = {one.modality: sum(m.tokens for m in media if m.modality == one.modality) for one in media}
        usage["candidatesTokensDetails"] = [{"modality": name, "tokenCount": n} for name, n in counts.items()]
    if cached:
        usage["cachedContentTokenCount"] = cached
    return {"candidates": candidates, "usageMetadata": usage, "modelVersion": model, "responseId": response_id}
