"""Answers a list request: asks all projects at once and merges their lists into one.

Our page token contains Google's page token of each project. OpenAI's API has no page tokens: a list continues after an
id, whose project is known.
"""

import asyncio
import base64
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_plus

from pollux.backends.keys.entries import project_fault
from pollux.gemini.call import Call
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import CHAINED, GOOGLE, answer_names, collection, resource, resource_path
from pollux.gemini.rewrite import to_client
from pollux.pool import refusals as reasons
from pollux.pool.windows import Want
from pollux.relay.attempt import Attempts
from pollux.relay.journal import Attempt
from pollux.relay.request import Request
from pollux.relay.send import Failure
from pollux.resources.ask import Asker, JsonAnswer
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
"""Seconds. A project that takes longer is left out, and the header NOT_ASKED names it."""
NOT_ASKED = b"x-pollux-not-asked"
OPENAI_PAGE, OPENAI_MOST = 20, 100
GONE_MOST = 100
"""If more projects of a page token are not in the pool, the token is not ours."""
MOST_ROUNDS = 8
"""How many times projects are asked while a page is empty. After that the client gets an empty page with a token."""
SIZES, TOKENS = ("pageSize", "page_size"), ("pageToken", "page_token")

Tokens = dict[str, str]
"""Project -> its page token, "" for the first page. A project that is not in it has no more entries."""
Answers = dict[str, JsonAnswer | Failure | None]
"""The answers by project. None: it has no healthy key, or did not answer in time."""


def is_list(method: str, call: Call) -> bool:
    """Whether it lists what projects own. Models do not count: their list is nearly the same in all projects."""
    if method != "GET" or call.kind != "other":
        return False
    what = resource_path(call).rstrip("/")
    if call.api == "openai":
        return what in LISTED_BY_OPENAI
    return what in LISTED or (what.startswith("models/") and what.count("/") == 2 and what.endswith("/operations"))


class Page:
    """Builds one page from the answers of several projects.

    It never has more entries than the client asked for, and is empty only if it is the last: clients take an empty page
    for the end, or even for an entry.
    """

    def __init__(self, left: Tokens, most: int | None) -> None:
        self.left = left
        """The page tokens with which the next page continues."""
        self.answered = False
        self._most = most
        self._merged: dict[str, Any] = {}
        self._filled = False
        self._peeked = False

    def shares(self) -> dict[str, int | None]:
        """Returns the projects to ask next, each with a page size. Empty if the page has entries or nothing is left."""
        if self._filled:
            return {}
        if self._most is None:
            return dict.fromkeys(self.left)
        share, rest = divmod(self._most, len(self.left) or 1)
        return {project: share + (at < rest) for at, project in enumerate(self.left) if share or at < rest}

    def unseen(self) -> dict[str, int | None]:
        """Returns the projects to ask for a single entry, which shows if they have any. Empty after the first call.

        They are asked if the page is still empty, because asking in shares would take many rounds, or if no other
        project has a next page.
        """
        if self._peeked or (self._filled and any(self.left.values())):
            return {}
        self._peeked = True
        return {project: 1 for project, token in self.left.items() if not token}

    def document(self, call: Call) -> dict[str, Any]:
        """Returns the page in Google's form, with a token if there is a next page."""
        if self.left:
            token = base64.urlsafe_b64encode(json.dumps(self.left, separators=(",", ":")).encode()).rstrip(b"=")
            self._merged["next_page_token" if _is_snake(call) else "nextPageToken"] = token.decode()
        return self._merged

    def add(self, project: str, document: Mapping[str, Any] | None, *, peek: bool) -> None:
        """Add the answer of a project, or None if it gave none. `peek`: only note whether it has entries."""
        own_token = self.left.pop(project)
        if document is None:
            return
        self.answered = True
        token = document.get("nextPageToken") or document.get("next_page_token")
        lists = {field: value for field, value in document.items() if isinstance(value, list)}
        if peek:
            if token or any(lists.values()):
                self.left[project] = own_token
            return
        for field, value in lists.items():
            self._merged.setdefault(field, []).extend(value)
            self._filled = self._filled or bool(value)
        if isinstance(token, str) and token:
            self.left[project] = token


class Listing:
    def __init__(self, attempts: Attempts, asker: Asker, locator: Locator, ownership: Ownership) -> None:
        self._locator = locator
        self._attempts = attempts
        self._asker = asker
        self._ownership = ownership
        self._projects = attempts.pool.projects
        self._upstream = attempts.pool.settings.upstream

    async def run(self, request: Request) -> None:
        own_base = request.own_base()  # refuse an invalid Host before anything is asked
        await self._projects.ready()
        document, unasked = await (
            self._of_openai(request) if request.call.api == "openai" else self._of_google(request)
        )
        if document is None:
            return
        body = json.dumps(document, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")
        headers = [(b"content-type", b"application/json; charset=utf-8")]
        if unasked:
            headers.append((NOT_ASKED, ",".join(map(quote, unasked)).encode()))
        await request.reply.whole(200, headers, to_client(body, self._upstream, own_base))

    async def _of_google(self, request: Request) -> tuple[dict[str, Any] | None, list[str]]:
        """Returns (the list, or None if the client got an error; the projects that are not in it)."""
        token, size = _asked_page(request.call.query)
        tokens = _tokens_of(token) if token else dict.fromkeys(sorted(self._projects.by_name), "")
        gone = [project for project in tokens if project not in self._projects.by_name]
        if len(gone) > GONE_MOST:
            raise _foreign_token()
        page = Page({project: own for project, own in tokens.items() if project not in gone}, size)
        answers: Answers = {}
        for _ in range(MOST_ROUNDS):
            if not (shares := page.shares()):
                break
            answers |= await self._ask_page(request, page, shares)
            if unseen := page.unseen():
                answers |= await self._ask_page(request, page, unseen, peek=True)
        if not page.answered and (answers or not self._projects.by_name):
            await self._refuse(request, answers)
            return None, []
        unasked = [project for project, answer in answers.items() if not isinstance(answer, JsonAnswer)]
        return page.document(request.call), gone + unasked

    async def _ask_page(
        self, request: Request, page: Page, shares: Mapping[str, int | None], *, peek: bool = False
    ) -> Answers:
        targets = {project: _target_at(request.call, page.left[project], share) for project, share in shares.items()}
        answers = await self._ask_all(request, targets)
        for project, answer in answers.items():
            page.add(project, answer.document if isinstance(answer, JsonAnswer) else None, peek=peek)
        return answers

    async def _of_openai(self, request: Request) -> tuple[dict[str, Any] | None, list[str]]:
        """Like `_of_google`. The list goes through the projects one after the other, by name."""
        after, limit = _parameter(request.call.query, ("after",)), _parameter(request.call.query, ("limit",))
        most = min(int(limit), OPENAI_MOST) if limit.isascii() and limit.isdigit() and int(limit) else OPENAI_PAGE
        start = ""
        if after:
            kind = resource_path(request.call).rstrip("/")
            name = resource(after) or f"{kind}/{after}"
            owner = (await self._locator.owners(request, [name])).get(name)
            if owner is None or owner.project not in self._projects.by_name:
                raise GatewayError("BAD_REQUEST", "the list cannot continue after that id: its project is not known")
            start = owner.project
        asked = [project for project in sorted(self._projects.by_name) if project >= start]
        targets = {project: _target_after(request.call, after if project == start else "", most) for project in asked}
        answers = await self._ask_all(request, targets)
        good = {project: answer.document for project, answer in answers.items() if isinstance(answer, JsonAnswer)}
        if not good:
            await self._refuse(request, answers)
            return None, []
        data: list[Any] = []
        more = False
        for listed in good.values():
            if more:  # the next page continues with this project
                break
            entries = listed.get("data")
            data += entries if isinstance(entries, list) else []
            more = len(data) > most or listed.get("has_more") is True
        data = data[:most]
        document: dict[str, Any] = {"object": "list", "data": data, "has_more": more}
        ids = [entry.get("id") for entry in data if isinstance(entry, dict)]
        if ids:
            document |= {"first_id": ids[0], "last_id": ids[-1]}
        return document, [project for project in answers if project not in good]

    async def _ask_all(self, request: Request, targets: Mapping[str, str]) -> Answers:
        bearer = request.call.api == "openai"
        headers = [(name, value) for name, value in request.headers if not name.startswith("content-")]
        asked = (
            self._asker.ask(project, target, WITHIN, headers, bearer=bearer, whole=True)
            for project, target in targets.items()
        )
        answers = dict(zip(targets, await asyncio.gather(*asked), strict=True))
        request.record.sent += len(targets)
        for project, answer in answers.items():
            if isinstance(answer, JsonAnswer):
                request.record.note(Attempt("", project, answer.key.id, "ok", answer.status))
                names = answer_names(answer.document, request.call, (GOOGLE, self._upstream))
                if (pooled := self._locator.pooled) is not None:
                    hidden = await pooled.hidden(names, request.record.client)
                    names = {name: end for name, end in names.items() if name not in hidden}
                    _leave_out(answer.document, hidden)
                self._ownership.remember(names, project, request.record.client)
            elif answer is not None:
                verdict = answer.verdict
                request.record.note(Attempt("", project, answer.key.id, verdict.cause, answer.status, verdict.message))
            else:
                request.record.note(Attempt("", project, "", "not-asked", None, "no healthy key, or no answer in time"))
        return answers

    async def _refuse(self, request: Request, answers: Answers) -> None:
        """No project answered: send the client the first refusal that does not blame a key."""
        for answer in answers.values():
            if isinstance(answer, Failure) and answer.verdict.blames != "key":
                await self._attempts.give(request, answer)
                return
        now = self._attempts.pool.now()
        able, refusals = self._projects.candidates("", (), (), now)
        if able:
            raise GatewayError("UPSTREAM_TIMEOUT", f"no project answered within {WITHIN:g} s")
        raise reasons.problem("", refusals, now, want=Want())


def _leave_out(document: dict[str, Any], hidden: Collection[str]) -> None:
    """Remove the hidden entries. The page gets shorter; its token stays valid."""
    for field, value in document.items():
        if isinstance(value, list):
            document[field] = [one for one in value if not (isinstance(one, dict) and _name_of(one) in hidden)]


def _name_of(entry: Mapping[str, Any]) -> str:
    """Returns Google's name, or the one that OpenAI's id stands for."""
    name = entry.get("name", entry.get("id"))
    return resource(name) or f"files/{name}" if isinstance(name, str) else ""


def _tokens_of(token: str) -> Tokens:
    """Returns the page tokens inside our token. It is not sealed, so the client may have changed it."""
    try:
        tokens = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if isinstance(tokens, dict):
            "".join(tokens.values()).encode()
    except (ValueError, TypeError, RecursionError):  # ValueError: half a character, or no Base64
        tokens = None
    if not isinstance(tokens, dict) or any(map(project_fault, tokens)):
        raise _foreign_token()
    return tokens


def _foreign_token() -> GatewayError:
    return GatewayError("BAD_REQUEST", "the page token does not come from this gateway; list again without it")


def _is_snake(call: Call) -> bool:
    """Whether parameters are in snake_case: the newer parts of the API have no other spelling."""
    return collection(call) in CHAINED


def _asked_page(query: str) -> tuple[str, int | None]:
    """Returns (the page token, the page size or None if the client leaves it to Google)."""
    size = _parameter(query, SIZES)
    number = int(size) if size.isascii() and size.isdigit() and len(size) < 6 else 0
    return _parameter(query, TOKENS), number or None


def _parameter(query: str, names: Sequence[str]) -> str:
    return next((value for name, value in parse_qsl(query, keep_blank_values=True) if name in names), "")


def _target_at(call: Call, token: str, size: int | None) -> str:
    """Returns the target for the list from a project's page token on, with this size."""
    snake, parts = _is_snake(call), _without(call.query, TOKENS if size is None else (*TOKENS, *SIZES))
    parts += [] if size is None else [f"{SIZES[snake]}={size}"]
    parts += [f"{TOKENS[snake]}={quote(token, safe='', errors='replace')}"] if token else []
    return f"{call.path}?{'&'.join(parts)}" if parts else call.path


def _target_after(call: Call, after: str, limit: int) -> str:
    """Returns the target for OpenAI's list from an id on."""
    parts = [*_without(call.query, ("after", "limit")), f"limit={limit}"]
    parts += [f"after={quote(after, safe='', errors='replace')}"] if after else []
    return f"{call.path}?{'&'.join(parts)}"


def _without(query: str, names: Sequence[str]) -> list[str]:
    return [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) not in names]
