"""Takes an upload in as it comes: who sends it, which session it belongs to, and how it is broken off on demand."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from gemini_simulator.errors import ApiError, error
from gemini_simulator.exchange import Exchange, GoneError
from gemini_simulator.faults import Fault
from gemini_simulator.request import Request, find_credentials, read_upload
from gemini_simulator.streams import Reply
from gemini_simulator.uploads import Session, status_of

if TYPE_CHECKING:
    from gemini_simulator.api import Simulator


async def receive_upload(simulator: "Simulator", exchange: Exchange) -> tuple[Reply, Fault | None]:
    """The answer, and what goes wrong in sending it. Raises ApiError, as a rule after the whole body has come."""
    call = exchange.call
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in call.headers}
    request = read_upload(call.method, exchange.path, call.query, headers)
    exchange.note(request)
    session = None
    pieces = exchange.pieces()
    try:
        session = simulator.service.uploads.find(request)
        value = _identify(simulator, exchange, request, session)
        if request.verb == "other":
            raise error("no-such-path", request.case())
        simulator.refuse(call, request, value)
        simulator.place(exchange, request)
        if session is None and request.name != "files":
            simulator.service.resources.get(request.name, request.project)
        fault = simulator.fault(call, request, broken=True)
        if fault is not None and fault.kind == "mid-reset":
            return await _take(simulator, exchange, request, session, headers, _cut(exchange, pieces)), fault
        return await _take(simulator, exchange, request, session, headers, pieces), fault
    except ApiError as trouble:
        if session is not None and call.fault == "upload-terminated":
            session.state = "cancelled"
        if not trouble.early:
            async for _ in pieces:
                pass
        trouble.headers = status_of(trouble, session)
        raise


def _identify(simulator: "Simulator", exchange: Exchange, request: Request, session: Session | None) -> str:
    """The key's value. A chunk needs none, for its address is secret enough; one that is sent must be good."""
    call = exchange.call
    if session is not None:
        call.key, call.project = session.key, session.upload.project
        if not find_credentials(call.headers, {}, request.api):
            return ""
    value = simulator.find_key(call, request)
    if session is None:
        call.key, call.project = simulator.keys[value]
    return value


async def _take(
    simulator: "Simulator",
    exchange: Exchange,
    request: Request,
    session: Session | None,
    headers: dict[str, str],
    pieces: AsyncIterator[bytes],
) -> Reply:
    uploads = simulator.service.uploads
    if session is None and request.verb == "upload.whole":
        return await uploads.whole(request, headers, pieces)
    if session is not None and request.verb == "upload.chunk":
        return await uploads.take(session, headers, pieces)
    body = b"".join([piece async for piece in pieces])
    if session is None:
        return uploads.open(request, headers, body, exchange.call.key or "")
    return uploads.query(session) if request.verb == "upload.query" else uploads.cancel(session)


async def _cut(exchange: Exchange, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The first half of the body; then the connection is closed."""
    most = int(exchange.call.header("content-length") or "0") // 2
    seen = 0
    async for piece in pieces:
        if seen + len(piece) > most:
            yield piece[: most - seen]
            break
        seen += len(piece)
        yield piece
    await exchange.abort()
    raise GoneError
