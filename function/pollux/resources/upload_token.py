"""Makes and checks the token in an upload URL. It has the session at Google, the client, the expiry and a signature.

The token's holder can continue that one upload. The holder can read the token, which contains no API key, but cannot
change it: the signing key is derived from the value of the API key that began the upload. Every instance can read that
value, and no client can.
"""

import base64
import hashlib
import hmac
import json
import logging
from typing import NamedTuple

from pollux.backends.keys.contract import Keyring, KeySourceError, Secret
from pollux.gemini.errors import GatewayError

log = logging.getLogger("pollux.request")

LIFETIME = 24 * 3600.0
LONGEST = 8192
_LABEL = b"pollux upload session 1"
_FIELDS = ("u", "p", "k", "c", "e")


class UploadTokenError(Exception):
    """The token is not ours, or has expired. Never holds the token."""


class Session(NamedTuple):
    """An upload under way at Google."""

    target: str
    """Path and query of its address there."""
    project: str
    key: str
    """The id of the key that began it."""
    client: str
    expires: float


async def sealing_value(keyring: Keyring, key_id: str) -> Secret:
    """The value of the key that began the upload: the seal is made with it."""
    try:
        return await keyring.value(key_id)
    except KeySourceError as error:
        log.error("the key of an upload cannot be read: %s", error)
        said = "the key of this upload cannot be read at the moment"
        raise GatewayError("NO_USABLE_KEY", said, retry_after=5.0) from None


def seal(session: Session, value: Secret) -> str:
    """The token. It is never longer than LONGEST, and never ends in z, which Cloud Run reserves."""
    fields = dict(zip(_FIELDS, session, strict=True))
    text = _encoded(json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))
    token = f"{text}.{_mac(text, value)}"
    if len(token) > LONGEST:
        raise UploadTokenError(f"the upload's address is too long: a token for it has {len(token)} characters")
    return token


def address_of(base: str, session: Session, value: Secret) -> bytes:
    """The address that the client gets. `base`: this gateway's, with the path at which the upload began."""
    return f"{base}?upload_id={seal(session, value)}&upload_protocol=resumable".encode("latin-1", "replace")


def claimed(token: str) -> Session:
    """What a token says. Only `checked` says whether it is true."""
    text, _, _ = token.partition(".")
    try:
        if len(token) > LONGEST or not token.isascii():
            raise ValueError
        fields = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        target, project, key, client, expires = (fields[name] for name in _FIELDS)
        if not all(isinstance(text, str) for text in (target, project, key, client)) or len(fields) != len(_FIELDS):
            raise ValueError
        return Session(target, project, key, client, float(expires))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # ValueError: also of json and base64
        raise UploadTokenError("the upload_id is not one that this gateway gave out") from None


def checked(token: str, value: Secret, now: float) -> Session:
    """The session, if the seal was made with this key value and it has not expired."""
    session = claimed(token)
    text, _, mac = token.partition(".")
    # Compared as text, since several spellings decode to the same bytes.
    if not hmac.compare_digest(mac.encode("ascii", "replace"), _mac(text, value).encode()):
        raise UploadTokenError("the upload_id is not one that this gateway gave out")
    if not now < session.expires:
        raise UploadTokenError("the upload began more than a day ago: begin it anew")
    return session


def _mac(text: str, value: Secret) -> str:
    return _encoded(hmac.digest(value.derived(_LABEL), text.encode(), hashlib.sha256))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
