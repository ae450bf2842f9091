"""What OpenStack calls disk formats: which content each may have, and what hosts are given for it.

The content decides, never the name. A name that promises a structure must have it; a name that
promises none (raw, iso, the parts of an AMI) must not have one, so that nothing that was called
raw is ever read as something else. qcow2 and raw go to hosts as they are. The rest is converted by
a `qemu-img` that is told the format, is given the open file only, and is kept from following what
the file names.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from treadle.image.inspect import (
    MAX_VIRTUAL,
    SECTOR,
    ImageRefused,
    InspectFailed,
    inspect,
    known_as,
    open_regular,
    qemu_img,
)

STRUCTURED = {"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"}
"""Disk formats with a structure of their own, and what qemu-img calls them."""
DISK_FORMATS = ("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso")
CONTAINER_FORMATS = ("ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed")
BUNDLES = frozenset({"ova", "docker", "compressed"})
"""Containers that hide the disk in an archive: no host can boot from what is in them."""

INSPECT_S = 30.0
_HEAD = 64 << 10
_VMDK_DESCRIPTOR = 20 * SECTOR
_VMDK_KINDS = frozenset({b"monolithicsparse", b"streamoptimized"})
_DISKS = {
    "qcow2": "qcow2", "qcow (version 1)": "qcow", "vmdk": "vmdk", "vhdx": "vhdx",
    "vpc (VHD)": "vhd", "vdi": "vdi", "qed": "qed", "parallels": "ploop",
    "LUKS (encrypted)": "luks", "dmg": "dmg",
}
"""What `known_as` says of disk images, as disk formats are named; it knows archives too."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an image is for hosts. `convert`: by qemu-img first, from `format`."""

    format: str
    virtual_bytes: int
    convert: bool = False


def examine(path: Path, disk_format: str, container_format: str) -> Found:
    """Look at what was uploaded under the name of a disk format.

    Errors: `ImageRefused` where the content is not what its name says or could not be used,
    `InspectFailed` where nothing could be found out.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            head = file.read(_HEAD)
            file.seek(max(0, size - SECTOR))
            shown = _DISKS.get(known_as(head, file.read(SECTOR)) or "")
            if container_format in BUNDLES:
                return Found("raw", _sectors(size))
            if shown != (disk_format if disk_format in STRUCTURED else None):
                raise ImageRefused(
                    f"the content is {shown or 'no ' + disk_format}, and the disk format says "
                    f"{disk_format}: name the right one"
                )
            if disk_format not in STRUCTURED:
                return Found("raw", _sectors(size))
            if disk_format == "vmdk":
                _check_vmdk(file, head, size)
            elif disk_format == "vhd":
                _check_vhd(file, head, size)
        except OSError as error:
            raise InspectFailed(f"the content cannot be read: {error.strerror}") from error
    if disk_format == "qcow2":
        return Found("qcow2", _sound(path))
    return Found(STRUCTURED[disk_format], _virtual_of(path, STRUCTURED[disk_format]), convert=True)


def convert(source: Path, format: str, target: Path, *, most: int, seconds: float) -> Found:
    """Write the image at `source` as qcow2 to the new file `target`, of at most `most` bytes.

    Errors: `ImageRefused`, `InspectFailed` where it took longer than `seconds`.
    """
    end = time.monotonic() + seconds
    with open_regular(source) as file:
        number = file.fileno()
        code, _, fault = qemu_img(
            ["convert", "-q", "-O", "qcow2", _only(number, format), str(target)], [number], end,
            written=most,
        )
    if code != 0:
        why = fault.replace(f"/proc/self/fd/{number}", "the file").replace(str(target), "a file")
        raise ImageRefused(f"it could not be converted from {format}: {why or f'ended by {code}'}")
    return Found("qcow2", _sound(target))


def _sound(path: Path) -> int:
    """The virtual size of a qcow2 file that is safe for hosts. What is wrong with it is said
    without its name, which is ours and not the caller's."""
    try:
        return inspect(path).virtual_bytes
    except (ImageRefused, InspectFailed) as error:
        raise type(error)(str(error).replace(str(path), "the content")) from error


def _sectors(size: int) -> int:
    """What a guest sees of a raw file: whole sectors. Errors: `ImageRefused`."""
    if size > MAX_VIRTUAL:
        raise ImageRefused(f"it has {size} bytes: at most 64 TiB can be used")
    return -(-size // SECTOR) * SECTOR


def _only(number: int, format: str) -> str:
    """The file behind a descriptor as qemu-img takes it: this file, and none that it names."""
    file = {"driver": "file", "filename": f"/proc/self/fd/{number}"}
    return "json:" + json.dumps({"driver": format, "backing": None, "file": file})


def _virtual_of(path: Path, format: str) -> int:
    """The size that qemu-img sees, after it found nothing else that is needed."""
    with open_regular(path) as file:
        number = file.fileno()
        code, said, fault = qemu_img(
            ["info", "-U", "--output=json", _only(number, format)], [number],
            time.monotonic() + INSPECT_S,
        )
    if code != 0:
        why = fault.replace(f"/proc/self/fd/{number}", "the file")
        raise ImageRefused(f"it is not a sound {format} image: {why or f'ended by {code}'}")
    try:
        told = json.loads(said)
        virtual = int(told["virtual-size"])
        extents = told.get("format-specific", {}).get("data", {}).get("extents", [])
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InspectFailed("what qemu-img says of it cannot be understood") from error
    if "backing-filename" in told or len(extents) > 1 or told.get("encrypted"):
        raise ImageRefused(f"it is a {format} image that is not whole in itself")
    if not 0 < virtual <= MAX_VIRTUAL:
        raise ImageRefused(f"it has a virtual size of {virtual} bytes: at most 64 TiB is taken")
    return virtual


def _check_vmdk(file: BinaryIO, head: bytes, size: int) -> None:
    """That it is one file with its descriptor inside, which names no other.

    VMware's "Virtual Disk Format 5.0": a sparse extent begins with KDMV; the descriptor is text.
    """
    if not head.startswith(b"KDMV") or len(head) < SECTOR:
        raise ImageRefused(
            "this vmdk names other files: export it as one file (monolithicSparse or "
            "streamOptimized)"
        )
    capacity, _, place, length = struct.unpack_from("<QQQQ", head, 12)
    if capacity == 0 or place == 0 or place * SECTOR >= size or length * SECTOR > _HEAD:
        raise ImageRefused("this vmdk has no descriptor of its own: export it as one file")
    file.seek(place * SECTOR)
    described = file.read(max(length * SECTOR, _VMDK_DESCRIPTOR))
    # qemu-img looks for a parent at a place of its own, which need not be the named one.
    if any(b"parentfilenamehint" in part.lower() for part in (head, described)):
        raise ImageRefused("this vmdk is built on another file: make it whole first")
    text = described.partition(b"\0")[0]
    kinds = set(_values(text, rb"createType"))
    extents = re.findall(rb"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\S+)", text, re.M | re.I)
    if not kinds or kinds - _VMDK_KINDS or [one.upper() for one in extents] != [b"SPARSE"]:
        raise ImageRefused(
            "this vmdk names other files: export it as one file (monolithicSparse or "
            "streamOptimized)"
        )
    if any(parent != b"ffffffff" for parent in _values(text, rb"parentCID")):
        raise ImageRefused("this vmdk is built on another file: make it whole first")


def _values(text: bytes, key: bytes) -> Iterable[bytes]:
    found = re.findall(rb"^\s*" + key + rb"\s*=\s*\"?([^\"\r\n]*)", text, re.M | re.I)
    return (one.strip().lower() for one in found)


def _check_vhd(file: BinaryIO, head: bytes, size: int) -> None:
    """That it is not a differencing disk (type 4), in either copy of the footer.

    Microsoft's "Virtual Hard Disk Image Format Specification": disk type at byte 60, big-endian.
    """
    file.seek(max(0, size - SECTOR))
    for footer in (head[:SECTOR], file.read(SECTOR)):
        if footer.startswith(b"conectix") and footer[60:64] not in (
            b"\0\0\0\2", b"\0\0\0\3"
        ):
            raise ImageRefused("this vhd is built on another file: make it whole first")
