"""The bytes of images on their way: from a request or a URL into the store, from there to hosts.

Everything comes into a file of its own first, hashed as it is written, so no size needs memory and
no half content is ever seen. Nothing here knows the database. All of it blocks.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from treadle.errors import TooLarge
from treadle.image import formats
from treadle.image.blobs import Blobs
from treadle.image.fetch import FetchFailed, FetchLimits, sha256_file
from treadle.image.store import Content, Image

BLOCK = 1 << 20
HOST_SUFFIX = ".host"
ENDLESS = 1 << 62
_PART = re.compile(r"[0-9a-f]{32}\.part")


def new_key(uuid: str) -> str:
    """A key for the content of an image; another one each time."""
    return f"{uuid}.{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Digests:
    """Hashes of some bytes, in hex, and how many they are."""

    size: int
    md5: str
    sha256: str
    sha512: str


class Part:
    """A file that is being written. `close` it, whatever happens: then it is gone, unless `take`n.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.path = folder / f"{secrets.token_hex(16)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._file = open(os.open(self.path, flags, 0o600), "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise FetchFailed(f"the content cannot be written: {error.strerror}") from error
        self._most = most
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._sha512 = hashlib.sha512()

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Add bytes. Errors: `TooLarge`, `FetchFailed` where the disk does not take them."""
        self.size += len(block)
        if self.size > self._most:
            raise TooLarge(f"the content is larger than the {self._most} bytes that are allowed")
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as error:
            raise FetchFailed(f"the content cannot be written: {error.strerror}") from error
        for one in (self._md5, self._sha256, self._sha512):
            one.update(block)

    def digests(self) -> Digests:
        """Of all that was written."""
        return Digests(
            self.size, self._md5.hexdigest(), self._sha256.hexdigest(), self._sha512.hexdigest()
        )

    def close(self) -> None:
        """Let the file go; what nobody has taken is deleted."""
        self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass
class _Copy:
    """A file that lies elsewhere, here for a while."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


@dataclass
class Contents:
    """The store of blobs, the folder for what is on its way, and the limits."""

    blobs: Blobs
    folder: Path
    limits: FetchLimits
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _copies: dict[str, _Copy] = field(default_factory=dict)

    def part(self, most: int | None = None) -> Part:
        """A new file to write to, of at most `most` bytes. Errors: `FetchFailed`."""
        limit = self.limits.max_bytes
        return Part(self.folder, limit if most is None else min(limit, most))

    def keep(
        self, key: str, part: Path, digests: Digests, disk_format: str, container_format: str
    ) -> Content:
        """Look at the file, convert it where hosts need that, and put it into the store.

        Errors: `ImageRefused`, `InspectFailed`, `BlobGone`, `FetchFailed`; nothing is kept then.
        """
        found = formats.examine(part, disk_format, container_format)
        if not found.convert:
            self.put(key, part)
            return Content(
                key, digests.size, digests.md5, digests.sha512, str(self.folder / key),
                digests.sha256, found.format, digests.size, found.virtual_bytes,
            )
        made = self.folder / f"{secrets.token_hex(16)}.part"
        try:
            # It may grow, by tables at least, and by what was compressed.
            shown = formats.convert(
                part, found.format, made, most=self.limits.max_bytes, seconds=self.limits.seconds
            )
            sha256 = sha256_file(made, self.limits.seconds)
            size = made.stat().st_size
            self.put(key, part)
            self.put(key + HOST_SUFFIX, made)
        except BaseException:
            self.remove(key)
            raise
        finally:
            made.unlink(missing_ok=True)
        return Content(
            key, digests.size, digests.md5, digests.sha512, str(self.folder / (key + HOST_SUFFIX)),
            sha256, shown.format, size, shown.virtual_bytes,
        )

    def put(self, key: str, part: Path) -> None:
        """Put a whole file into the store. Errors: `FetchFailed`, `BlobGone`."""
        try:
            self.blobs.put(key, part)
        except OSError as error:
            raise FetchFailed(f"the content cannot be kept: {error.strerror}") from error

    def remove(self, key: str) -> None:
        """Forget a blob and what was made of it for hosts."""
        for one in (key, key + HOST_SUFFIX):
            self.blobs.remove(one)

    def forget(self, image: Image) -> None:
        """Remove all that is here of an image; a file that is the operator's own stays."""
        if image.blob is not None:
            self.remove(image.blob)
        elif image.path is not None and Path(image.path).parent == self.folder:
            Path(image.path).unlink(missing_ok=True)

    @contextmanager
    def at_hand(self, path: Path) -> Iterator[Path]:
        """What hosts are given of an image, as a file of this machine while the block runs.

        A copy of what lies in a store elsewhere is deleted when its last user is done.
        Errors: `BlobGone`, `FetchFailed`.
        """
        if path.parent != self.folder or self.blobs.local(path.name) is not None:
            yield path
            return
        with self._lock:
            copy = self._copies.setdefault(path.name, _Copy())
            copy.users += 1
        try:
            with copy.lock:
                if not path.exists():
                    self._bring(path)
            yield path
        finally:
            with self._lock:
                copy.users -= 1
                if not copy.users:
                    del self._copies[path.name]
                    path.unlink(missing_ok=True)

    def _bring(self, path: Path) -> None:
        part = self.part()
        try:
            for block in self.blobs.read(path.name, 0, ENDLESS):
                part.write(block)
            os.replace(part.path, path)
        finally:
            part.close()

    def sweep(self) -> None:
        """Delete what processes that are gone were writing."""
        oldest = time.time() - self.limits.seconds - 3600
        for path in self.folder.iterdir():
            if _PART.fullmatch(path.name) and path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)


def digests_of(path: Path, seconds: float) -> Digests:
    """Of a file that is there. Errors: `FetchFailed`."""
    end = time.monotonic() + seconds
    hashes = (hashlib.md5(usedforsecurity=False), hashlib.sha256(), hashlib.sha512())
    size = 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                size += len(block)
                for one in hashes:
                    one.update(block)
                if time.monotonic() > end:
                    raise FetchFailed("the content could not be read in time")
    except OSError as error:
        raise FetchFailed(f"the content cannot be read: {error.strerror}") from error
    md5, sha256, sha512 = (one.hexdigest() for one in hashes)
    return Digests(size, md5, sha256, sha512)

