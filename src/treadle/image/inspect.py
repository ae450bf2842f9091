"""What an image file is, found out without trusting it.

Our own look at the header comes first and decides the format; `qemu-img` is then told that format,
so that nothing in a raw image can make it be read as something else. It runs with limits on time,
memory and output, because a header can be made to cost a lot of each. Whatever names another file
(a backing file, an external data file) is refused: on a host it could name any file there.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import subprocess
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from treadle.errors import RetryLater
from treadle.hypervisor.base import ImageBroken

MAX_VIRTUAL = 64 << 40
MIN_RAW = 1 << 20
SECTOR = 512

_MEMORY_LIMIT = 1 << 30
_OUTPUT_LIMIT = 4 << 20
_HEAD = 64 << 10
_MAX_L1 = 32 << 20
_MAX_SNAPSHOTS = 1000
_L2_BUDGET = 16 << 20

_ONLY = "only qcow2 and raw images can be used; convert it with qemu-img convert -O qcow2"

# What stands where at the start of files that are not disk images of ours.
_MAGICS = (
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc (VHD)"),
    (0, b"QED\x00", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (0, b"SKUL\xba\xbe", "LUKS (encrypted)"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"(\xb5/\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"\x7fELF", "ELF (a program)"),
    (0, b"%PDF", "PDF"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (257, b"ustar", "tar (an OVA, perhaps)"),
)
_TAIL_MAGICS = ((b"conectix", "vpc (VHD)"), (b"koly", "dmg"))

_QCOW2 = b"QFI\xfb"
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_BITS = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_LUKS = 0x0537BE77
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ALL_ZERO = 1

_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<!--")


class ImageRefused(ImageBroken):
    """The content is not an image that can be used; another try gives the same."""


class ImageGone(ImageRefused):
    """There is no image there (any more)."""


class InspectFailed(RetryLater):
    """The image could not be looked at now; nothing is known about it."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """`format` is "qcow2" or "raw"; `virtual_bytes` is what a guest sees, `size_bytes` the file.

    `root_file_system`: a raw ext2, ext3 or ext4 file system without a boot sector, so no machine
    boots from it and a container can run in it.
    """

    format: str
    virtual_bytes: int
    size_bytes: int
    root_file_system: bool = False


def inspect(path: Path, deadline_s: float = 30) -> ImageInfo:
    """Format and sizes of an image file that is safe to give to a host.

    Takes at most about `deadline_s` seconds. Nothing is written. Errors: `ImageRefused` where the
    file cannot be used, `InspectFailed` where there was no time or qemu-img is not installed.
    """
    end = time.monotonic() + deadline_s
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            head = file.read(_HEAD)
            if head.startswith(_QCOW2) and head[4:8] != b"\0\0\0\1":
                image_format = "qcow2"
                virtual = _Qcow2(path, file, head, size).check(end)
            else:
                image_format = "raw"
                virtual = _check_raw(path, file, head, size)
        except OSError as error:
            raise InspectFailed(f"{path} cannot be read: {error.strerror}") from error
        _confirm(path, file, ImageInfo(image_format, virtual, size), end)
    bare = image_format == "raw" and _is_file_system(head)
    return ImageInfo(image_format, virtual, size, bare)


def _is_file_system(head: bytes) -> bool:
    """The magic number of ext4's superblock, and no signature of a boot sector."""
    return head[0x438:0x43A] == b"\x53\xef" and head[510:512] != b"\x55\xaa"


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a link to one is followed.

    Nothing else is opened, so no device is touched and no FIFO waited for.
    Errors: `ImageRefused`; where it is not there, its subclass `ImageGone`.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ImageRefused(f"{path} is {_kind(mode)}: name an image file")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "a link to nothing" if os.path.islink(path) else "not there"
        raise ImageGone(f"{path} is {what}: name an image file") from error
    except PermissionError as error:
        raise ImageRefused(f"{path} may not be read: let this user read it") from error
    except (OSError, ValueError) as error:
        raise ImageRefused(f"{path} cannot be opened ({error}): name an image file") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ImageRefused(f"{path} is not a regular file: name an image file")
    return open(handle, "rb")


def looks_like_html(head: bytes) -> bool:
    """Whether a file that starts so is a web page: what a server says instead of an image."""
    start = head[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith(_HTML)


def known_as(head: bytes, tail: bytes) -> str | None:
    """What a file is that begins and ends so; None where nothing says that it is not raw.

    `tail` is its last sector.
    """
    if head.startswith(_QCOW2):
        return "qcow2" if head[4:8] != b"\0\0\0\1" else "qcow (version 1)"
    for offset, magic, name in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    return next((name for magic, name in _TAIL_MAGICS if tail.startswith(magic)), None)


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return name
    return "not a regular file"


def _is_text(head: bytes) -> bool:
    try:
        text = head[:4096].decode()
    except UnicodeDecodeError as error:
        # A letter may be cut in two by the end of what was read.
        if error.start < len(head[:4096]) - 3:
            return False
        text = head[: error.start].decode()
    return all(c.isprintable() or c in "\t\r\n\f" for c in text)


def _check_raw(path: Path, file: BinaryIO, head: bytes, size: int) -> int:
    """The size of a raw image. Errors: `ImageRefused`, with what it is instead where known."""
    if size == 0:
        raise ImageRefused(f"{path} is empty: fetch or copy it again")
    name = known_as(head, b"")
    if name is not None:
        raise ImageRefused(f"{path} is {name}: {_ONLY}")
    if looks_like_html(head):
        raise ImageRefused(f"{path} is a web page (HTML), not an image: check where it comes from")
    if _is_text(head):
        raise ImageRefused(f"{path} is text, not an image: check where it comes from")
    if size >= SECTOR:
        file.seek(size - SECTOR)
        name = known_as(b"", file.read(SECTOR))
        if name is not None:
            raise ImageRefused(f"{path} is {name}: {_ONLY}")
    if size < MIN_RAW or size % SECTOR:
        raise ImageRefused(
            f"{path} has {size} bytes and is not qcow2: a raw image has at least 1 MiB and is a "
            "multiple of 512 bytes; fetch or copy it again"
        )
    if size > MAX_VIRTUAL:
        raise ImageRefused(f"{path} has {size} bytes: at most 64 TiB can be used")
    return size


class _Qcow2:
    """The header and tables of one qcow2 file of `size` bytes."""

    def __init__(self, path: Path, file: BinaryIO, head: bytes, size: int) -> None:
        self.path = path
        self.file = file
        self.head = head
        self.size = size

    def refuse(self, wrong: str, mend: str) -> ImageRefused:
        return ImageRefused(f"{self.path} {wrong}: {mend}")

    def damaged(self, wrong: str) -> ImageRefused:
        return self.refuse(f"is damaged or not whole ({wrong})", "fetch or copy it again")

    def check(self, end: float) -> int:
        """The virtual size, after everything that can be refused was looked at."""
        if len(self.head) < 72:
            raise self.damaged("its header is cut off")
        (version, backing, backing_size, cluster_bits, virtual, crypt, l1_size, l1_offset) = (
            struct.unpack_from(">IQIIQIIQ", self.head, 4)
        )
        refcounts, refcount_clusters, snapshots = struct.unpack_from(">QII", self.head, 48)
        if version not in (2, 3):
            raise self.refuse(f"is qcow2 of version {version}", "only versions 2 and 3 are known")
        features, header_length = 0, 72
        if version == 3:
            if len(self.head) < 104:
                raise self.damaged("its header is cut off")
            features, _, _, _, header_length = struct.unpack_from(">QQQII", self.head, 72)
        self._check_features(features)
        if backing or backing_size:
            raise self.refuse(
                "has a backing file",
                "an image must be whole in itself; make it so with qemu-img convert -O qcow2",
            )
        if crypt:
            raise self.refuse("is encrypted", "decrypt it with qemu-img convert first")
        if not 9 <= cluster_bits <= 21:
            raise self.damaged(f"clusters of 2^{cluster_bits} bytes")
        if header_length < 72 or header_length % 8 or (version == 3 and header_length < 104):
            raise self.damaged(f"a header of {header_length} bytes")
        self._check_extensions(header_length, 1 << cluster_bits)
        if virtual == 0:
            raise self.refuse("has a virtual size of 0", "make it anew with a size")
        if virtual > MAX_VIRTUAL:
            raise self.refuse(f"has a virtual size of {virtual} bytes", "at most 64 TiB is taken")
        if snapshots > _MAX_SNAPSHOTS:
            raise self.refuse(f"has {snapshots} snapshots", "remove them with qemu-img snapshot")
        self._check_tables(cluster_bits, virtual, l1_size, l1_offset)
        if not refcount_clusters or not refcounts or refcounts % (1 << cluster_bits):
            raise self.damaged("it has no table of references")
        if refcounts + (refcount_clusters << cluster_bits) > self.size:
            raise self.damaged("its table of references is beyond its end")
        self._check_content(features, cluster_bits, l1_size, l1_offset, end)
        return int(virtual)

    def _check_features(self, features: int) -> None:
        if features & _DATA_FILE:
            raise self.refuse(
                "keeps its data in another file",
                "an image must be whole in itself; make it so with qemu-img convert -O qcow2",
            )
        if features & _CORRUPT:
            raise self.refuse("is marked as corrupt", "mend it with qemu-img check -r all")
        unknown = features & ~_KNOWN_BITS
        if unknown:
            raise self.refuse(
                f"needs features that are not known here (bits {unknown:#x})",
                "convert it with qemu-img convert -O qcow2",
            )

    def _check_extensions(self, place: int, cluster: int) -> None:
        """The header's extensions lie one after the other in the first cluster."""
        area = self.head[: min(cluster, _HEAD)]
        while place + 8 <= len(area):
            kind, length = struct.unpack_from(">II", area, place)
            if kind == 0:
                return
            if kind == _EXTENSION_DATA_FILE:
                raise self.refuse(
                    "names another file for its data", "make it anew with qemu-img convert"
                )
            if kind == _EXTENSION_LUKS:
                raise self.refuse("is encrypted", "decrypt it with qemu-img convert first")
            place += 8 + (length + 7) // 8 * 8
        # No end mark: what was not read could hold more of them.
        if place > len(area) or len(area) < cluster:
            raise self.damaged("an extension of its header is longer than the header")

    def _check_tables(self, cluster_bits: int, virtual: int, l1_size: int, l1_offset: int) -> None:
        # An L2 table fills one cluster; its entries have 8 bytes, or 16 with extended ones, and
        # one entry stands for one cluster. With 8 this is the least that must be there.
        needed = math.ceil(virtual / (1 << (2 * cluster_bits - 3)))
        if l1_size < needed or l1_size * 8 > _MAX_L1:
            raise self.damaged(f"a first table of {l1_size} entries")
        if l1_offset == 0 or l1_offset % (1 << cluster_bits):
            raise self.damaged("its first table is out of place")
        if l1_offset + l1_size * 8 > self.size:
            raise self.damaged("its first table is beyond its end")

    def _check_content(
        self, features: int, cluster_bits: int, l1_size: int, l1_offset: int, end: float
    ) -> None:
        """That what the tables point to is in the file; of the second ones only so many."""
        cluster = 1 << cluster_bits
        tables = set()
        for entry in self._entries(l1_offset, l1_size):
            offset = entry & _OFFSET
            if offset % cluster or offset + cluster > self.size:
                if offset:
                    raise self.damaged("it ends before its tables do")
            elif offset:
                tables.add(offset)
        step = 2 if features & _EXTENDED_L2 else 1
        compressed_mask = (1 << (62 - (cluster_bits - 8))) - 1
        for offset in sorted(tables)[-(_L2_BUDGET // cluster) :]:
            if time.monotonic() > end:
                raise InspectFailed(f"{self.path} could not be looked at in time")
            for number, entry in enumerate(self._entries(offset, cluster // 8)):
                if number % step or not entry:
                    continue
                if entry & _COMPRESSED:
                    start = entry & compressed_mask
                elif entry & _ALL_ZERO and step == 1:
                    continue
                else:
                    start = entry & _OFFSET
                if start >= self.size:
                    raise self.damaged("it ends before its data does")

    def _entries(self, offset: int, count: int) -> Iterator[int]:
        self.file.seek(offset)
        content = self.file.read(count * 8)
        if len(content) < count * 8:
            raise self.damaged("it ends within a table")
        entries = array("Q", content)
        if memoryview(b"\1\0\0\0\0\0\0\0").cast("Q")[0] == 1:
            entries.byteswap()
        return iter(entries)


def _confirm(path: Path, file: BinaryIO, ours: ImageInfo, end: float) -> None:
    """Let `qemu-img` read it in the format that we found, and compare.

    It gets the file that is open already, so a path that is changed meanwhile means nothing.
    """
    number = file.fileno()
    code, said, fault = qemu_img(
        ["info", "-U", "-f", ours.format, "--output=json", f"/proc/self/fd/{number}"], [number], end
    )
    if code != 0:
        told = fault.replace(f"/proc/self/fd/{number}", "the file")
        why = told or f"qemu-img ended with {code}"
        raise ImageRefused(f"{path} is not a sound {ours.format} image ({why}): make it anew")
    _compare(path, ours, said)


def qemu_img(
    arguments: Sequence[str], files: Sequence[int], end: float, *, written: int = _OUTPUT_LIMIT
) -> tuple[int, bytes, str]:
    """Run `qemu-img`: its exit code, its output, and what it complains of in one line.

    It inherits the descriptors `files`, has until `end` on the monotonic clock, and may write files
    of at most `written` bytes. Errors: `InspectFailed` where it could not run or had no time.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise InspectFailed("the image could not be looked at in time")
    command = [
        "prlimit",
        f"--as={_MEMORY_LIMIT}",
        f"--cpu={max(1, math.ceil(left))}",
        f"--fsize={written}",
        "--core=0",
        "--",
        "qemu-img",
        *arguments,
    ]
    # One arena: each further one takes 128 MiB of the address space that is limited.
    env = {
        "PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "MALLOC_ARENA_MAX": "1",
    }
    # Into files, not pipes: the limit on the size of files is what bounds them.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                pass_fds=tuple(files),
                timeout=left,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InspectFailed("the image could not be looked at in time") from error
        except FileNotFoundError as error:
            raise InspectFailed("images need prlimit: install util-linux") from error
        out.seek(0)
        err.seek(0)
        said, fault = out.read(_OUTPUT_LIMIT), err.read(2000).decode(errors="replace")
    if done.returncode == 127 or "failed to execute qemu-img" in fault:
        raise InspectFailed("images need qemu-img: install qemu-utils")
    line = "".join(c if c.isprintable() else " " for c in fault.strip())
    return done.returncode, said, line[:300]


def _compare(path: Path, ours: ImageInfo, said: bytes) -> None:
    try:
        theirs = json.loads(said)
        details = theirs.get("format-specific", {}).get("data", {})
        same = (theirs["format"], theirs["virtual-size"]) == (ours.format, ours.virtual_bytes)
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise InspectFailed(f"what qemu-img says of {path} cannot be understood") from error
    bad = ("backing-filename" in theirs, theirs.get("encrypted"), "data-file" in details)
    if not same or any(bad) or details.get("corrupt"):
        raise ImageRefused(
            f"{path} reads differently to qemu-img: make it anew with qemu-img convert -O qcow2"
        )
