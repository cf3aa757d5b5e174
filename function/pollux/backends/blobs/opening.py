"""Opens the blob store that a URL names. Imports an implementation only if it is used."""

from collections.abc import Mapping
from pathlib import Path

from pollux.backends.blobs.contract import BlobError, Blobs
from pollux.settings import ENVIRON


def open_blobs(url: str, environ: Mapping[str, str] = ENVIRON) -> Blobs:
    """The blob store that a URL names; `await blobs.open()` then checks it. BlobError if the URL names none.

    A path is taken literally, without percent-encoding; `file:///~/blobs` lies in the home directory.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "file" and len(rest) > 1 and rest.startswith("/") and "\0" not in rest:
        from pollux.backends.blobs.folder import FolderBlobs

        try:
            return FolderBlobs(Path(rest[1:] if rest.startswith("/~") else rest).expanduser())
        except RuntimeError as error:  # what expanduser says of an unknown ~user
            raise BlobError(f"blobs {url}: {error}; write the path in full") from None
    if scheme == "gs":
        from pollux.backends.blobs.gcs import GcsBlobs

        bucket, _, prefix = rest.partition("/")
        return GcsBlobs(bucket, prefix, environ=environ)
    raise BlobError(f"blobs {url!r} are not known: use file:///PATH or gs://BUCKET[/PREFIX]")
