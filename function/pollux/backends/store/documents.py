"""What every store does alike: a document as the JSON text that is kept, the check of a commit. No I/O."""

import json
from collections.abc import Sequence

from pollux.backends.store.contract import Document, StoreError, Write

# Bound methods of instances: json.dumps with options builds an encoder per call. ASCII, because a lone surrogate then
# survives and nothing is to be encoded on the way to the file. Documents are trees of our own making: no need to look
# for circles.
_encode = json.JSONEncoder(check_circular=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def encode(document: Document) -> str:
    """ValueError (NaN, infinity) or TypeError for what is not JSON."""
    return _encode(document)


def decode(body: object, name: str, store: str) -> Document:
    """StoreError if somebody else wrote what is no document."""
    try:
        document = _decode(body) if isinstance(body, str) else None
    except ValueError:  # its `doc` is the body, which no error may hold
        document = None
    if not isinstance(document, dict):
        raise StoreError(f"{store}: document {name!r} is damaged; delete that document, or restore a copy of the store")
    return document


def check(writes: Sequence[Write]) -> None:
    """ValueError for a commit that no store could understand."""
    if len({write.name for write in writes}) != len(writes):
        raise ValueError("a commit names the same document twice")
    if any(write.document is None and write.version is None for write in writes):
        raise ValueError("a delete needs the version that it deletes")
