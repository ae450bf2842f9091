"""Where the bytes of images lie: a folder, or an object store that speaks S3.

A blob is written once, under a key of ours, and never changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from treadle.errors import NotAvailable, RetryLater

BLOCK = 1 << 20
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")


class BlobGone(RetryLater):
    """The bytes are not there, or the store does not give them."""


class Blobs(Protocol):
    """A store of blobs. All verbs block; what is already so is success."""

    kind: str

    def put(self, key: str, content: Path) -> None:
        """Keep the file, durably, and take it from where it is."""

    def local(self, key: str) -> Path | None:
        """The file on this machine that is the blob; None where the store is elsewhere."""

    def read(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, in blocks. Errors: `BlobGone`."""

    def remove(self, key: str) -> None:
        """Forget it."""


def checked(key: str) -> str:
    """The key. Errors: `ValueError` for one that could name something else."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of a blob")
    return key


def sync(path: Path) -> None:
    """Have the file, or the folder's names, on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderBlobs:
    """Files in one folder, named by their keys."""

    kind = "file"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, content: Path) -> None:
        """Move the file, which must be of the same file system."""
        sync(content)
        os.replace(content, self._folder / checked(key))
        sync(self._folder)

    def local(self, key: str) -> Path | None:
        """The file itself."""
        return self._folder / checked(key)

    def read(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """Blocks of the file."""
        try:
            with (self._folder / checked(key)).open("rb") as file:
                file.seek(start)
                while start < stop and (block := file.read(min(BLOCK, stop - start))):
                    start += len(block)
                    yield block
        except OSError as error:
            raise BlobGone(f"the content cannot be read: {error.strerror}") from error

    def remove(self, key: str) -> None:
        """Delete the file."""
        (self._folder / checked(key)).unlink(missing_ok=True)


class ObjectBlobs:
    """Objects in a store of obstore's, each under `prefix`."""

    kind = "s3"

    def __init__(self, store: Any, prefix: str = "") -> None:
        self._store = store
        self._prefix = prefix

    def put(self, key: str, content: Path) -> None:
        """Send it, in parts where it is large, and delete the file."""
        import obstore

        name = self._name(key)
        try:
            obstore.put(self._store, name, content)
        except Exception as error:
            raise _trouble(error) from error
        content.unlink(missing_ok=True)

    def local(self, key: str) -> Path | None:
        """It is not on this machine."""
        del key
        return None

    def read(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """Blocks as they arrive."""
        import obstore

        name = self._name(key)
        if start >= stop:
            return
        try:
            found = obstore.get(self._store, name, options={"range": (start, stop)})
            for block in found.stream(min_chunk_size=BLOCK):
                yield bytes(block)
        except Exception as error:
            raise _trouble(error) from error

    def remove(self, key: str) -> None:
        """Delete the object."""
        import obstore

        name = self._name(key)
        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            return
        except Exception as error:
            raise _trouble(error) from error

    def _name(self, key: str) -> str:
        return self._prefix + checked(key)


def _trouble(error: Exception) -> BlobGone:
    # What the library says names keys, buckets and addresses: that is for the log, not for callers.
    return BlobGone(f"the object store did not do it ({type(error).__name__})")


def open_blobs(
    url: str, folder: Path, *, endpoint: str = "", region: str = "", access_key: str = "",
    secret_key: str = "",
) -> Blobs:
    """The store that the settings name; empty `url`: the folder. `s3://BUCKET/PREFIX` otherwise.

    Errors: `NotAvailable` where the extra is not installed.
    """
    if not url:
        return FolderBlobs(folder)
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise NotAvailable("image.blobs needs obstore: pip install treadle[s3]") from error
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    options: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        options |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if access_key:
        options |= {"access_key_id": access_key, "secret_access_key": secret_key}
    client: Any = {"allow_http": endpoint.startswith("http://"), "timeout": "1h"}
    store = S3Store(bucket, client_options=client, **options)
    return ObjectBlobs(store, prefix.strip("/") + "/" if prefix.strip("/") else "")
