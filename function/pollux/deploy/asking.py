"""One request to a gateway, bounded in time and size, and what went wrong with it in words."""

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pollux.log_safety import clean
from pollux.upstream import HttpUpstream, UpstreamError
from pollux.wire import ERRORS

MOST = 4 << 20
"""Bytes of an answer that are read."""
LONGEST = 200
CONNECT_WITHIN = 10.0


class TroubleError(Exception):
    """No usable answer came: what happened, and what to do."""

    def __init__(self, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.hint = hint


@dataclass(slots=True)
class Said:
    """An answer, with the moments at which its bytes came, in seconds since the request."""

    status: int
    headers: Mapping[str, str]
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    took: float = 0.0

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.reads)

    @property
    def json(self) -> dict[str, Any]:
        """{} if it is no object. Google's errors on the OpenAI route are lists of one."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        return found if isinstance(found, dict) else {}

    @property
    def reason(self) -> str:
        """The reason of an error that Pollux made, in either API's shape; "" if somebody else answered."""
        error = self.json.get("error")
        if not isinstance(error, dict):
            return ""
        details = error.get("details")
        reasons = [d.get("reason") for d in details if isinstance(d, dict)] if isinstance(details, list) else []
        return next((str(r) for r in (*reasons, error.get("code")) if isinstance(r, str) and r in ERRORS), "")

    @property
    def summary(self) -> str:
        """What it says, in a line."""
        error = self.json.get("error")
        message = error.get("message") if isinstance(error, dict) else None
        kind = self.headers.get("content-type", "").partition(";")[0] or "nothing"
        said = f": {clean(str(message), LONGEST)}" if message else f", {clean(kind, LONGEST)}"
        return f"{self.status}{' ' + self.reason if self.reason else ''}{said}"


class Endpoint:
    """Each request has a connection of its own: one that the server closes meanwhile would look like a fault."""

    def __init__(
        self, url: str, *, within: float, identity: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = url
        self.within = within
        self._identity = identity
        self._clock = clock

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> Said:
        """Raises TroubleError. A redirect is one: it is not followed, as tokens would travel along."""
        data = b"" if body is None else json.dumps(body).encode()
        sent = [("accept-encoding", "identity"), ("user-agent", "pollux-deploy-check"), *headers.items()]
        if data:
            sent.append(("content-type", "application/json"))
        if self._identity:
            sent.append(("x-serverless-authorization", f"Bearer {self._identity}"))
        within = min(CONNECT_WITHIN, self.within)
        http = HttpUpstream(self.url, timeout=self.within, connect_timeout=within)
        try:
            async with asyncio.timeout(self.within):
                said = await self._read(http, method, path, sent, data)
        except TimeoutError:
            raise self._late() from None
        except UpstreamError as error:
            raise self._late() if error.kind == "timeout" else _broken(error, self.url) from None
        finally:
            await http.close()
        if 300 <= said.status < 400:
            where = clean(said.headers.get("location", "nowhere"), LONGEST)
            raise TroubleError(
                f"it redirects ({said.status}) to {where}", "give the address that it redirects to, if it is yours"
            )
        return said

    async def _read(
        self, http: HttpUpstream, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> Said:
        began, size = self._clock(), 0
        answer = await http.send(method, path, headers, body)
        named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        said = Said(answer.status, named)
        try:
            while data := await answer.chunk():
                said.reads.append((self._clock() - began, data))
                size += len(data)
                if size > MOST:
                    raise TroubleError(
                        f"{said.status}, and the answer is larger than {MOST >> 20} MiB: it was not read on",
                        "is this the address of a gateway?",
                    )
        finally:
            answer.close()
        said.took = self._clock() - began
        return said

    def _late(self) -> TroubleError:
        return TroubleError(
            f"no complete answer within {self.within:g} s",
            "look at the log of the service; a slow start or a slow model may need --timeout",
        )


def _broken(error: UpstreamError, url: str) -> TroubleError:
    cause = error.__cause__
    detail = clean(str(error), LONGEST)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TroubleError(
            f"its certificate is not accepted: {clean(cause.verify_message, LONGEST)}",
            "use the name that the certificate is for; a new custom domain's takes up to a day; one of your own "
            "authority: SSL_CERT_FILE=FILE",
        )
    if isinstance(cause, ssl.SSLError):
        return TroubleError(f"{detail}: no TLS is spoken there", "is it http://, or another port?")
    if error.kind == "unreachable":
        if isinstance(cause, ConnectionRefusedError):  # its own words are the call's, not the cause
            detail = "nothing listens there"
        return TroubleError(detail, "is the address right, and does the gateway run? `pollux serve` starts one here")
    other = "; is it https://?" if url.startswith("http://") else ""
    return TroubleError(detail, f"look at the log of the service{other}")
