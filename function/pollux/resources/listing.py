"""Lists over all projects: asked in parallel, shown as one. `listing_page` puts a page together.

A page token of Google's API becomes one of ours with a token for each project. OpenAI's API has no page tokens: a list
goes on after an id, whose owner is known.
"""

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

from pollux.gemini.call import Call
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import GOOGLE, answer_names, below, resource
from pollux.gemini.rewrite import to_client
from pollux.pool import refusals as reasons
from pollux.pool.windows import Want
from pollux.relay.attempt import Attempts
from pollux.relay.journal import Attempt
from pollux.relay.request import Exchange
from pollux.relay.send import Failure
from pollux.resources.ask import Asker, JsonAnswer
from pollux.resources.listing_page import Page, asked_page, foreign_token, parameter, places_of, target_after, target_at
from pollux.resources.locate import Locator
from pollux.resources.ownership import Ownership

LISTED = frozenset(
    {
        "agents", "batches", "cachedContents", "corpora", "environments", "fileSearchStores", "files", "generatedFiles",
        "operations", "triggers", "tunedModels", "voices",
    }
)  # fmt: skip
LISTED_BY_OPENAI = frozenset({"files", "batches"})
WITHIN = 15.0
"""A project that takes longer is left out, and the header NOT_ASKED names it."""
NOT_ASKED = b"x-pollux-not-asked"
OPENAI_PAGE, OPENAI_MOST = 20, 100
GONE_MOST = 100
"""A page token that names more projects which are not in the pool is not ours."""
MOST_ROUNDS = 8
"""How often other projects are asked while a page is empty. Then it stays empty, with a token for the next one."""


def is_list(method: str, call: Call) -> bool:
    """A list of what projects own. The list of models is nearly the same in all projects."""
    if method != "GET" or call.kind != "other":
        return False
    what = below(call).rstrip("/")
    if call.api == "openai":
        return what in LISTED_BY_OPENAI
    return what in LISTED or (what.startswith("models/") and what.count("/") == 2 and what.endswith("/operations"))


class Listing:
    def __init__(self, attempts: Attempts, asker: Asker, owners: Locator, ownership: Ownership) -> None:
        self._owners = owners
        self._attempts = attempts
        self._asker = asker
        self._ownership = ownership
        self._projects = attempts.pool.projects
        self._upstream = attempts.pool.settings.upstream

    async def run(self, x: Exchange) -> None:
        own_base = x.own_base()  # an invalid Host is refused before anything is asked
        await self._projects.ready()
        document, unasked = await (self._of_openai(x) if x.call.api == "openai" else self._of_google(x))
        if document is None:
            return
        body = json.dumps(document, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")
        headers = [(b"content-type", b"application/json; charset=utf-8")]
        if unasked:
            headers.append((NOT_ASKED, ",".join(map(quote, unasked)).encode()))
        await x.reply.whole(200, headers, to_client(body, self._upstream, own_base))

    async def _of_google(self, x: Exchange) -> tuple[dict[str, Any] | None, list[str]]:
        token, size = asked_page(x.call.query)
        places = places_of(token) if token else dict.fromkeys(sorted(self._projects.by_name), "")
        gone = [project for project in places if project not in self._projects.by_name]
        if len(gone) > GONE_MOST:
            raise foreign_token()
        page = Page({project: place for project, place in places.items() if project not in gone}, size)
        answers = await self._fill(x, page)
        if not page.told and (answers or not self._projects.by_name):
            await self._refuse(x, answers)
            return None, []
        unasked = [project for project, told in answers.items() if not isinstance(told, JsonAnswer)]
        return page.document(x.call), gone + unasked

    async def _fill(self, x: Exchange, page: Page) -> dict[str, JsonAnswer | Failure | None]:
        answers: dict[str, JsonAnswer | Failure | None] = {}
        for _ in range(MOST_ROUNDS):
            if not (shares := page.shares()):
                break
            answers |= await self._ask_page(x, page, shares)
            if unseen := page.unseen():
                answers |= await self._ask_page(x, page, unseen, peek=True)
        return answers

    async def _ask_page(
        self, x: Exchange, page: Page, shares: Mapping[str, int | None], *, peek: bool = False
    ) -> dict[str, JsonAnswer | Failure | None]:
        targets = {project: target_at(x.call, page.left[project], share) for project, share in shares.items()}
        answers = await self._ask_all(x, targets)
        for project, answer in answers.items():
            page.take(project, answer.document if isinstance(answer, JsonAnswer) else None, peek=peek)
        return answers

    async def _of_openai(self, x: Exchange) -> tuple[dict[str, Any] | None, list[str]]:
        after, limit = parameter(x.call.query, ("after",)), parameter(x.call.query, ("limit",))
        most = min(int(limit), OPENAI_MOST) if limit.isascii() and limit.isdigit() and int(limit) else OPENAI_PAGE
        start = ""
        if after:
            kind = below(x.call).rstrip("/")
            name = resource(after) or f"{kind}/{after}"
            owner = (await self._owners.of(x, [name])).get(name)
            if owner is None or owner.project not in self._projects.by_name:
                raise GatewayError(
                    "BAD_REQUEST", "the list cannot go on after that id, which no project is known to own"
                )
            start = owner.project
        asked = [project for project in sorted(self._projects.by_name) if project >= start]
        targets = {project: target_after(x.call, after if project == start else "", most) for project in asked}
        answers = await self._ask_all(x, targets)
        told = {project: answer for project, answer in answers.items() if isinstance(answer, JsonAnswer)}
        if not told:
            await self._refuse(x, answers)
            return None, []
        data: list[Any] = []
        more = False
        for answer in told.values():
            if more:  # the next page goes on with this project, before the others
                break
            data += _entries(answer)
            more = len(data) > most or answer.document.get("has_more") is True
        data = data[:most]
        document: dict[str, Any] = {"object": "list", "data": data, "has_more": more}
        ids = [entry.get("id") for entry in data if isinstance(entry, dict)]
        if ids:
            document |= {"first_id": ids[0], "last_id": ids[-1]}
        return document, [project for project in answers if project not in told]

    async def _ask_all(self, x: Exchange, targets: Mapping[str, str]) -> dict[str, JsonAnswer | Failure | None]:
        bearer = x.call.api == "openai"
        headers = [(name, value) for name, value in x.headers if not name.startswith("content-")]
        asked = (
            self._asker.ask(project, target, WITHIN, headers, bearer=bearer, whole=True)
            for project, target in targets.items()
        )
        answers = dict(zip(targets, await asyncio.gather(*asked), strict=True))
        x.record.sent += len(targets)
        for project, answer in answers.items():
            if isinstance(answer, JsonAnswer):
                x.record.note(Attempt("", project, answer.key.id, "ok", answer.status))
                names = answer_names(answer.document, x.call, (GOOGLE, self._upstream))
                if (pooled := self._owners.pooled) is not None:
                    hidden = await pooled.hidden(names, x.record.client)
                    names = {name: end for name, end in names.items() if name not in hidden}
                    _leave_out(answer.document, hidden)
                self._ownership.remember(names, project, x.record.client)
            elif answer is not None:
                verdict = answer.verdict
                x.record.note(Attempt("", project, answer.key.id, verdict.cause, answer.status, verdict.message))
            else:
                x.record.note(Attempt("", project, "", "not-asked", None, "no healthy key, or no answer in time"))
        return answers

    async def _refuse(self, x: Exchange, answers: Mapping[str, JsonAnswer | Failure | None]) -> None:
        """No project answered: the client gets the first refusal that is not about a key."""
        failures = [answer for answer in answers.values() if isinstance(answer, Failure)]
        first = next((failure for failure in failures if failure.verdict.blames != "key"), None)
        if first is not None:
            await self._attempts.give(x, first)
            return
        now = self._attempts.pool.now()
        able, refusals = self._projects.candidates("", (), (), now)
        if able:
            raise GatewayError("UPSTREAM_TIMEOUT", f"no project answered within {WITHIN:g} s")
        raise reasons.problem("", refusals, now, want=Want())


def _leave_out(document: dict[str, Any], hidden: Collection[str]) -> None:
    """The page gets shorter; its token stays valid."""
    for field, value in document.items():
        if isinstance(value, list):
            document[field] = [one for one in value if not (isinstance(one, dict) and _name_of(one) in hidden)]


def _name_of(entry: Mapping[str, Any]) -> str:
    """Google's name, or OpenAI's id."""
    name = entry.get("name", entry.get("id"))
    return resource(name) or f"files/{name}" if isinstance(name, str) else ""


def _entries(told: JsonAnswer) -> list[Any]:
    data = told.document.get("data")
    return data if isinstance(data, list) else []
