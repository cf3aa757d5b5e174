"""Which request of an upload this is, and the headers that only uploads have. It reads no body.

Google's own protocol uses X-Goog-Upload-… headers; the older one `uploadType`, Content-Range and Location.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple
from urllib.parse import unquote, unquote_plus, urlsplit

from pollux.gemini.call import Call
from pollux.gemini.errors import GatewayError
from pollux.gemini.guard import safe_path, strip_query
from pollux.gemini.headers import SESSION_URLS, RawHeaders

_PATH = re.compile(r"/(?:resumable/)?upload/v\d\w*/.+")
UPLOAD_ADDRESSES = (*SESSION_URLS, b"location")
"""Answer headers that have a session's URL."""
OF_UPLOADS = (*UPLOAD_ADDRESSES, b"range")
"""Answer headers that only uploads need. `range`: how much has arrived, in the older protocol."""
_WHAT = {"upload": "chunk", "query": "query", "cancel": "cancel", "finalize": "finalize"}


class Upload(NamedTuple):
    form: Literal["start", "session", "once"]
    """start: asks for a session's URL. session: sent to such a URL. once: all in one request."""
    what: str
    """For records: start, chunk, query, cancel, finalize, whole or other."""
    token: str = ""


def read_upload(method: str, call: Call, headers: RawHeaders) -> Upload | None:
    """Which request of an upload this is; None: not of an upload."""
    if call.kind != "other":  # nearly every request, and what is guarded
        return None
    if call.api == "openai":
        return Upload("once", "whole") if method == "POST" and call.verb == "files" else None
    path = unquote(call.path) if "%" in call.path else call.path
    if _PATH.fullmatch(path) is None:
        return None
    said = {name: value.decode("latin-1").strip().lower() for name, value in headers if name.startswith(b"x-goog-upl")}
    commands = [word.strip() for word in said.get(b"x-goog-upload-command", "").split(",") if word.strip()]
    asked = {unquote_plus(name).lower(): value for name, value in _parameters(call.query)}
    if "upload_id" in asked:
        return Upload(
            "session", _WHAT.get(commands[0] if commands else "upload", "other"), unquote_plus(asked["upload_id"])
        )
    if method != "POST":
        return None
    resumable = said.get(b"x-goog-upload-protocol") == "resumable" or asked.get("uploadtype") == "resumable"
    if resumable and commands in ([], ["start"]):
        return Upload("start", "start")
    return Upload("once", "whole")


def session_target(address: bytes, upstream: str) -> str:
    """Path and query of a session's URL, relative to the upstream's own path, without credentials; "" if not valid."""
    try:
        parts = urlsplit(address.decode("latin-1"))
    except ValueError:
        return ""
    path, front = parts.path, urlsplit(upstream).path
    if front and path.startswith(front + "/"):
        path = path[len(front) :]
    if any(c.isspace() for c in address.decode("latin-1")):
        return ""
    try:
        path = safe_path(path)  # checked like a client's path: it is read again when the upload ends
    except GatewayError:
        return ""
    return f"{path}?{strip_query(parts.query)}" if parts.query else path


def _parameters(query: str) -> Sequence[tuple[str, str]]:
    parts = (part.partition("=") for part in query.split("&")) if query else ()
    return [(name, value) for name, _, value in parts]
