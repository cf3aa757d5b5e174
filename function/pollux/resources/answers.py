"""Places requests that name resources in the project that owns them, and passes on answers about resources.

Before the client gets an answer, the project is stored as the owner of what the answer names, and Google's URLs in it
become ours.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from pollux.backends.upstream import UpstreamError
from pollux.gemini.body import json_of
from pollux.gemini.call import Call
from pollux.gemini.names import GOOGLE, answer_names, names_exactly, path_names
from pollux.gemini.rewrite import to_client
from pollux.gemini.verdict.causes import OF_RESOURCES
from pollux.gemini.verdict.rules import verdict_of
from pollux.relay.journal import Record
from pollux.relay.passing import TAIL, BrokenAnswerError, Settle, collect, pass_on, prompt_tokens
from pollux.relay.placement import Placement
from pollux.relay.request import Request
from pollux.relay.send import CoveredAnswer, Failure
from pollux.resources.ownership import Ownership

HELD_MOST = 1 << 16
"""A longer event is content and names nothing."""
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_NAMING = (b'"id"', b"environment_id", b"interaction_id")
SHOWN_MOST = 20


class OwnerPlacement(Placement):
    """The placement of a request that names resources: it goes to the project that owns them."""

    def __init__(self, ownership: Ownership, record: Record, names: Collection[str] = ()) -> None:
        self.names = tuple(sorted(names))
        self.one_model = any(name.startswith("cachedContents/") for name in self.names)
        self._ownership = ownership
        self._record = record
        record.bound = self.names[:SHOWN_MOST]

    def judged(self, failure: Failure) -> Failure:
        """A refusal about the resource goes to the client, and the project does not rest for it, whatever Google's
        words are."""
        if not self.names or failure.verdict.cause not in OF_RESOURCES:
            return failure
        for name in self.names:
            self._ownership.forget(name)
        if failure.verdict.cause != "model-access":
            return failure
        return replace(failure, verdict=verdict_of("resource-permission", failure.verdict.message))

    async def moved(self, failure: Failure) -> bool:
        """Another instance may have deleted the resource and made it again in another project."""
        if not self._record.owner or failure.verdict.cause not in OF_RESOURCES:
            return False
        projects = {owner.project for owner in (await self._ownership.owners(self.names)).values()}
        project = projects.pop() if len(projects) == 1 else self.only
        if project == self.only or project not in self._ownership.projects.by_name:
            return False
        self.only = self._record.owner = project
        return True


class Answers:
    def __init__(self, ownership: Ownership, upstream: str) -> None:
        self._ownership = ownership
        self._upstream = upstream

    async def pass_on(self, request: Request, answer: CoveredAnswer, project: str, settle: Settle) -> None:
        """Pass on a good answer to a call about resources. One that is neither JSON nor events, or is too long, is not
        read."""
        if request.method == "DELETE":
            for name in path_names(request.call):
                if names_exactly(request.call, name):
                    await self._ownership.unbind(name)
        kind = next((value for name, value in answer.headers if name == b"content-type"), b"").lower()
        encoded = any(name == b"content-encoding" for name, _ in answer.headers)
        if kind.startswith(b"text/event-stream") and not encoded:
            await self._pass_events(request, answer, project, settle)
            return
        body, whole = await collect(answer) if b"json" in kind and not encoded else (b"", False)
        if whole and request.method != "DELETE":
            body = await self.bound(
                request.placement.shown(body), request.call, project, request.record.client, request.own_base
            )
        await pass_on(request.reply, answer, settle, body, whole=whole)

    async def bound(self, body: bytes, call: Call, project: str, client: str, own_base: Callable[[], str]) -> bytes:
        """Bind what the answer names; return it with our addresses."""
        if (document := json_of(body)) is None:
            return body
        await self._bind(document, call, project, client)
        return to_client(body, self._upstream, own_base()) if b"://" in body or b":\\/" in body else body

    async def _bind(self, document: Any, call: Call, project: str, client: str) -> None:
        await self._ownership.bind(answer_names(document, call, (GOOGLE, self._upstream)), project, client)

    async def _pass_events(self, request: Request, answer: CoveredAnswer, project: str, settle: Settle) -> None:
        """Pass events on unchanged, each when it is complete and what it names is bound."""
        await request.reply.begin(answer.status, answer.headers)
        held, tail = b"", b""
        try:
            while data := await answer.chunk():
                held += data
                ends = [found.end() for found in _EVENT_END.finditer(held)]
                end = ends[-1] if ends else 0
                if end and any(mark in held[:end] for mark in _NAMING):
                    for event in _EVENT_END.split(held[:end]):
                        if (document := _data_of(event)) is not None:
                            await self._bind(document, request.call, project, request.record.client)
                if len(held) - end > HELD_MOST:
                    end = len(held)
                if end:
                    await request.reply.chunk(held[:end])
                    tail = (tail + held[:end])[-TAIL:]
                    held = held[end:]
        except UpstreamError as error:
            raise BrokenAnswerError(str(error)) from None
        request.reply.ending = True
        await settle(prompt_tokens(tail + held))
        await request.reply.end(held)


def _data_of(event: bytes) -> Any:
    """The JSON of an event's data; None if it is not JSON."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return json_of(b"\n".join(lines))
