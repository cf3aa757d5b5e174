"""The ASGI app and its routing table: which requests there are, and what serves each of them.

A row is found by method and path or, for the Gemini API, by the call that a request's head names. The first match
counts. Starlette's router only serves what lies below a row: each request would pay for its matching, 5 µs instead of
0.4.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from pollux.gemini.body import makes_interaction
from pollux.gemini.call import COUNTED
from pollux.gemini.errors import GatewayError
from pollux.relay.address import inside
from pollux.relay.client import HEAD_MOST, Receive, Scope, Send, head_size, header
from pollux.relay.request import Incoming, Request
from pollux.resources.listing import is_list
from pollux.server.admission import Admission
from pollux.settings import Settings

CORS_METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
CORS_EXPOSED = (
    b"x-pollux-request-id, x-pollux-key, x-pollux-model, x-pollux-fallback, x-pollux-attempts, x-pollux-wait-ms, "
    b"x-pollux-not-asked, retry-after, x-goog-upload-url, x-goog-upload-status, x-goog-upload-chunk-granularity, "
    b"x-goog-upload-size-received"
)
READS = frozenset({"GET", "HEAD"})

Headers = Sequence[tuple[bytes, bytes]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Relayed = Callable[[Request], Awaitable[None]]
"""Serves a request that was let in."""


class Route(NamedTuple):
    """A row that is found by method and path."""

    name: str
    requests: str
    serve: Callable[[Scope, Receive, Send, Headers], Awaitable[None]]
    methods: frozenset[str] | None = None
    """None: any."""
    path: str = ""
    below: str | None = None
    """Also every path that begins with this."""


class ApiRoute(NamedTuple):
    """A row that is found by the call to the Gemini API."""

    name: str
    requests: str
    serve: Callable[[Incoming], Awaitable[None]]
    matches: Callable[[Incoming], bool]


class Routes:
    """The ASGI app of a gateway, for HTTP only."""

    def __init__(
        self,
        settings: Settings,
        admission: Admission,
        admin: Callable[[], Asgi],
        *,
        located: Relayed,
        listed: Relayed,
    ) -> None:
        """`admin` makes the admin API at its first request. `located` serves a request in the project that owns the
        resources it names; `listed` serves a list over all projects.
        """
        self._settings = settings
        self._admission = admission
        self._make_admin = admin
        self._admin: Asgi | None = None
        self.own = (
            Route("health", "GET or HEAD /health", health, READS, "/health"),
            Route("admin", "/admin and all below", self._admin_api, None, "/admin", "/admin/"),
            Route("preflight", "OPTIONS, any path", self._preflight, frozenset({"OPTIONS"}), below=""),
        )
        self.api = (
            ApiRoute(
                "generate",
                "what takes quota: `:generateContent`, `:embedContent`, `chat/completions`, `interactions`, …",
                partial(admission.let_in, serve=located),
                lambda incoming: (
                    incoming.call.kind in COUNTED or makes_interaction(incoming.scope["method"], incoming.call)
                ),
            ),
            ApiRoute("live", "GET, any path, with `Upgrade: websocket`", _no_live_api, _upgrades),
            ApiRoute(
                "upload session",
                "more of an upload, at the address that its start was answered with",
                admission.continue_upload,
                lambda incoming: incoming.upload is not None and incoming.upload.form == "session",
            ),
            ApiRoute(
                "upload",
                "POST `/upload/…`, `openai/files`: the start of an upload, or all of it",
                partial(admission.let_in, serve=located),
                lambda incoming: incoming.upload is not None,
            ),
            ApiRoute(
                "guarded",
                "paths that hand out or bypass what is guarded here, unless POLLUX_ALLOW_PATHS names them",
                admission.forbid,
                lambda incoming: incoming.call.kind == "guarded" and incoming.call.guard not in settings.allow_paths,
            ),
            ApiRoute(
                "list",
                "GET `files`, `cachedContents`, `batches`, …: what the projects own, as one list",
                partial(admission.let_in, serve=listed),
                lambda incoming: is_list(incoming.scope["method"], incoming.call),
            ),
            ApiRoute(
                "everything else",
                "`:countTokens`, `models`, one file, …: what takes no quota",
                partial(admission.let_in, serve=located),
                lambda incoming: True,
            ),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._settings
        if scope.get("root_path") or settings.public_url:
            scope = inside(scope, settings.public_url)
        cors = self._cors(scope) if settings.cors_origins else ()
        method, path = scope["method"], scope["path"]
        for route in self.own:
            if (route.methods is None or method in route.methods) and (
                path == route.path or (route.below is not None and path.startswith(route.below))
            ):
                await route.serve(scope, receive, send, cors)
                return
        await self._admission.serve(scope, receive, send, cors, self._handler)

    def _handler(self, incoming: Incoming) -> Callable[[Incoming], Awaitable[None]]:
        for route in self.api[:-1]:
            if route.matches(incoming):
                return route.serve
        return self.api[-1].serve

    async def _admin_api(self, scope: Scope, receive: Receive, send: Send, cors: Headers) -> None:
        if head_size(scope) > HEAD_MOST:
            await self._admission.serve(scope, receive, send, cors, self._handler)  # which refuses it
            return
        if self._admin is None:
            self._admin = self._make_admin()
        await self._admin(scope, receive, send)

    async def _preflight(self, scope: Scope, receive: Receive, send: Send, cors: Headers) -> None:
        headers = [(b"allow", CORS_METHODS), *cors]
        if len(cors) > 1:
            wanted = header(scope["headers"], b"access-control-request-headers") or "*"
            headers += [
                (b"access-control-allow-methods", CORS_METHODS),
                (b"access-control-allow-headers", wanted.encode("latin-1")),
                (b"access-control-max-age", b"600"),
            ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _cors(self, scope: Scope) -> Headers:
        """For pages of the origins in POLLUX_CORS_ORIGINS. Starlette's middleware would wrap each request, and answers
        `*` where a client may need its own origin.
        """
        allowed = self._settings.cors_origins
        origin = header(scope["headers"], b"origin") or ""
        if "*" not in allowed and origin not in allowed:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin.encode("latin-1") or b"*"),
            (b"access-control-expose-headers", CORS_EXPOSED),
            (b"vary", b"origin"),
        ]


def is_health(scope: Scope) -> bool:
    return scope["path"] == "/health" and scope["method"] in READS


async def health(scope: Scope, receive: Receive, send: Send, cors: Headers = ()) -> None:
    body = b'{"status":"ok"}\n'
    headers = [(b"content-type", b"application/json"), *cors, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _upgrades(incoming: Incoming) -> bool:
    return incoming.scope["method"] == "GET" and incoming.headers.get(b"upgrade", b"").lower() == b"websocket"


async def _no_live_api(incoming: Incoming) -> None:
    raise GatewayError("NO_LIVE_API", "the Live API is not served here: call it at Google itself")
