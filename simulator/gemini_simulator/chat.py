"""Answers of chat/completions, whole and in chunks, as Google's OpenAI-compatible path writes them. PURE."""

import json
from collections.abc import Iterator
from typing import Any

from gemini_simulator.answers import pieces
from gemini_simulator.output import Call, Output, Outputs

_THOUGHT = {"extra_content": {"google": {"thought": True}}}


def chat_answer(model: str, outputs: Outputs, response_id: str, created: int) -> dict[str, Any]:
    choices = []
    for index, output in enumerate(outputs.candidates):
        message: dict[str, Any] = {"role": "assistant"}
        if text := _thought(output) + output.text:
            message["content"] = text
        if output.calls:
            message["tool_calls"] = [_call(call) for call in output.calls]
        choices.append({"finish_reason": _finish(output), "index": index, "message": message})
    head = {"created": created, "id": response_id, "model": model, "object": "chat.completion"}
    return {"choices": choices, **head, "usage": usage(outputs)}


def chat_chunks(
    model: str, outputs: Outputs, count: int, response_id: str, created: int, *, with_usage: bool
) -> list[dict[str, Any]]:
    """A text comes in `count` pieces, a call in one."""
    head = {"created": created, "id": response_id, "model": model, "object": "chat.completion.chunk"}
    chunks: list[dict[str, Any]] = []
    for index, output in enumerate(outputs.candidates):
        for delta in _deltas(output, count):
            chunks.append({"choices": [{"delta": {"role": "assistant", **delta}, "index": index}], **head})
        chunks[-1]["choices"][0]["finish_reason"] = _finish(output)
    if with_usage:
        chunks.append({"choices": [], **head, "usage": usage(outputs)})
    return chunks


def _deltas(output: Output, count: int) -> Iterator[dict[str, Any]]:
    if thought := _thought(output):
        yield {"content": thought, **_THOUGHT}
    for place, call in enumerate(output.calls):
        yield {"tool_calls": [{"index": place, **_call(call)}]}
    if not output.calls:
        yield from ({"content": piece} for piece in pieces(output.text, count))


def _thought(output: Output) -> str:
    return f"<thought>{output.thought}</thought>" if output.show_thoughts and output.thought else ""


def _call(call: Call) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": f"function-call-{int(call.id, 16)}",
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
    }
    return made | ({"extra_content": {"google": {"thought_signature": call.signature}}} if call.signature else {})


def _finish(output: Output) -> str:
    if output.calls:
        return "tool_calls"
    return "length" if output.finish == "MAX_TOKENS" else "stop"


def usage(outputs: Outputs) -> dict[str, Any]:
    """Google counts thoughts in the total only."""
    said, thoughts = sum(output.tokens for output in outputs.candidates), outputs.thoughts
    found: dict[str, Any] = {
        "prompt_tokens": outputs.prompt.tokens,
        "completion_tokens": said,
        "total_tokens": outputs.prompt.tokens + said + thoughts,
    }
    return found | ({"completion_tokens_details": {"reasoning_tokens": thoughts}} if thoughts else {})
