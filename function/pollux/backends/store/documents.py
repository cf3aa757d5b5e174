"""What all stores share: a document as the JSON text that is kept, and the check of a commit. No I/O."""

import json
from collections.abc import Sequence

from pollux.backends.store.contract import Document, StoreError, Write

# json.dumps with options would build an encoder per call. ASCII, so that a lone surrogate survives and nothing has to
# be encoded on the way to the file. Documents are trees that Pollux builds: no need to look for circles.
_encode = json.JSONEncoder(check_circular=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def encode(document: Document) -> str:
    """ValueError (NaN, infinity) or TypeError for what is not JSON."""
    return _encode(document)


def decode(body: object, name: str, store: str) -> Document:
    """StoreError if another program wrote something that is not a document."""
    try:
        document = _decode(body) if isinstance(body, str) else None
    except ValueError:  # it holds the body, which no error may show
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
