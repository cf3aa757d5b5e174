"""Opens the blob store that a URL names. Imports an implementation only if it is used."""

from collections.abc import Mapping
from pathlib import Path

from pollux.backends.blobs.contract import BlobError, Blobs
from pollux.settings import BLOBS, ENVIRON


def open_blobs(url: str, environ: Mapping[str, str] = ENVIRON) -> Blobs:
    """Raises BlobError if the URL names no blob store. `await blobs.open()` then checks it.

    A path is taken literally, without percent-encoding; `file:///~/blobs` is in the home directory.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "file" and len(rest) > 1 and rest.startswith("/") and "\0" not in rest:
        from pollux.backends.blobs.folder import FolderBlobs

        try:
            return FolderBlobs(Path(rest[1:] if rest.startswith("/~") else rest).expanduser())
        except RuntimeError as error:  # from expanduser, for an unknown ~user
            raise BlobError(f"blobs {url}: {error}; write the whole path") from None
    if scheme == "gs":
        from pollux.backends.blobs.gcs import GcsBlobs

        bucket, _, prefix = rest.partition("/")
        return GcsBlobs(bucket, prefix, environ=environ)
    raise BlobError(f"blobs {url!r} are not known: use {BLOBS}")
