"""The token in an upload's address: which session at Google it goes on with, for whom, until when; and its seal.

Whoever holds the token may go on with that one upload and nothing else. What it says can be read
by its holder (no key is in it) and by nobody changed: the seal is made with a key that is derived from the value of the
API key which began the upload. Every instance has that value, no client does.
"""

import base64
import binascii
import hashlib
import hmac
import json
import logging
from dataclasses import dataclass

from pollux.backends.keys.contract import Keyring, KeySourceError, Secret
from pollux.gemini.errors import GatewayError

log = logging.getLogger("pollux.request")

LIFETIME = 24 * 3600.0
"""An upload that takes longer begins anew."""
LONGEST = 8192
_LABEL = b"pollux upload session 1"
_FIELDS = ("u", "p", "k", "c", "e")


class UploadTokenError(Exception):
    """It is none of ours, or is past its time. Never holds the token."""


@dataclass(frozen=True, slots=True)
class Session:
    """An upload under way at Google."""

    target: str
    """Path and query of its address there."""
    project: str
    key: str
    """The id of the key that began it."""
    client: str
    expires: float


async def sealing_value(keyring: Keyring, key_id: str) -> Secret:
    """The value of the key that begins, or began, an upload: the seal is made with it."""
    try:
        return await keyring.value(key_id)
    except KeySourceError as error:
        log.error("an upload needs a key that cannot be read: %s", error)
        raise GatewayError(
            "NO_USABLE_KEY", "the key of this upload cannot be read at the moment", retry_after=5
        ) from None


def seal(session: Session, value: Secret) -> str:
    """The token. Never longer than LONGEST; never ends in z, which Cloud Run keeps for itself."""
    said = dict(
        zip(_FIELDS, (session.target, session.project, session.key, session.client, session.expires), strict=True)
    )
    text = _encoded(json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))
    token = f"{text}.{_mac(text, value)}"
    if len(token) > LONGEST:
        raise UploadTokenError(f"the upload's address is too long: a token for it has {len(token)} characters")
    return token


def address_of(base: str, session: Session, value: Secret) -> bytes:
    """The address that a client gets for this upload. `base`: of this gateway, with the path of the upload's start."""
    return f"{base}?upload_id={seal(session, value)}&upload_protocol=resumable".encode("latin-1", "replace")


def claimed(token: str) -> Session:
    """What a token says of itself, which may be a lie until `checked` has looked at its seal."""
    text, _, _ = token.partition(".")
    try:
        if len(token) > LONGEST or not token.isascii():
            raise ValueError
        said = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        target, project, key, client, expires = (said[name] for name in _FIELDS)
        if not all(isinstance(word, str) for word in (target, project, key, client)) or len(said) != len(_FIELDS):
            raise ValueError
        return Session(target, project, key, client, float(expires))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise UploadTokenError("the upload_id is not one that this gateway gave out") from None


def checked(token: str, value: Secret, now: float) -> Session:
    """The session, if the seal was made with this key value and its time is not over."""
    session = claimed(token)
    text, _, mac = token.partition(".")
    # The characters are compared, not what they decode to: several spellings decode alike.
    if not hmac.compare_digest(mac.encode("ascii", "replace"), _mac(text, value).encode()):
        raise UploadTokenError("the upload_id is not one that this gateway gave out")
    if not now < session.expires:
        raise UploadTokenError("the upload began more than a day ago: begin it anew")
    return session


def _mac(text: str, value: Secret) -> str:
    return _encoded(hmac.digest(value.derived(_LABEL), text.encode(), hashlib.sha256))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
