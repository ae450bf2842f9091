"""Volumes on a host: the pool, images, overlays, seeds, and the log of the serial port.

All of it is a directory pool of libvirt's, moved over libvirt's own connection: no shell on the
host, no file of ours outside the pool.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import libvirt

from treadle.hypervisor.base import (
    DomainSpec,
    HostFull,
    HostRefused,
    ImageBroken,
    ImageSpec,
    Unsupported,
)
from treadle.hypervisor.libvirt import domain_xml, errors
from treadle.hypervisor.libvirt.connection import Attempt, Link, as_value

MIB = 1 << 20
GIB = 1 << 30
BLOCK = MIB
#: With less than that, no disk can be made: an empty one takes 0.2 MiB.
LEAST_FREE = MIB
REFRESH_TRIES = 10
REFRESH_PAUSE = 0.02
SYSTEM_PATH = "/var/lib/libvirt"
FORMATS = ("raw", "qcow2")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: The volumes with a guest's data; and all that are built on images.
_OURS = re.compile(rf"({_UUID})(?:(?:\.([1-9][0-9]*))?\.qcow2|\.r)")
_COPY = re.compile(rf"({_UUID})\.copy\.qcow2")
_BUILT = re.compile(rf"{_UUID}(?:\.[a-z0-9-]+)?\.qcow2")

QCOW2_MAGIC = b"QFI\xfb"
QCOW2_HEADER = 104
QCOW2_EXTERNAL_DATA = 1 << 2


# -- the pool


def default_path(name: str, link: Link, uri_host: str) -> str:
    """Where a pool lies if the setup does not say. Errors: `HostRefused`."""
    if not link.session:
        return f"{SYSTEM_PATH}/{name}"
    if uri_host:
        raise HostRefused("another user's session has no known folder: name a pool path")
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return str(Path(base) / "libvirt" / name)


def prepare_pool(link: Link, attempt: Attempt, name: str, path: str) -> None:
    """Have the pool defined, built, started, and started with the host."""
    conn = link.conn
    pool = as_value(
        attempt, conn.storagePoolLookupByName, name, missing=libvirt.VIR_ERR_NO_STORAGE_POOL
    )
    if pool is None:
        root = ET.Element("pool", {"type": "dir"})
        ET.SubElement(root, "name").text = name
        target = ET.SubElement(root, "target")
        ET.SubElement(target, "path").text = path
        if not link.session:
            # Traversable, not listable: the emulator runs as another user than the daemon.
            permissions = ET.SubElement(target, "permissions")
            ET.SubElement(permissions, "mode").text = "0711"
        pool = attempt(conn.storagePoolDefineXML, ET.tostring(root, encoding="unicode"), 0)
    if not attempt(pool.isActive):
        attempt(pool.build, 0)
        attempt(pool.create, 0)
    if not attempt(pool.autostart):
        attempt(pool.setAutostart, 1)
    link.known["pool", name] = pool
    link.known.pop(("path", name), None)


def remove_pool(link: Link, attempt: Attempt, name: str) -> None:
    """Take the pool and its folder away; nothing where volumes are in it."""
    pool = as_value(
        attempt, link.conn.storagePoolLookupByName, name, missing=libvirt.VIR_ERR_NO_STORAGE_POOL
    )
    if pool is None or (attempt(pool.isActive) and attempt(pool.listAllVolumes, 0)):
        return
    if attempt(pool.isActive):
        attempt(pool.destroy)
    attempt(pool.delete, 0)
    attempt(pool.undefine)
    link.known.pop(("pool", name), None)
    link.known.pop(("path", name), None)


def pool_of(link: Link, attempt: Attempt, name: str) -> Any:
    """The pool; looked up once per connection."""
    pool = link.known.get(("pool", name))
    if pool is None:
        pool = attempt(link.conn.storagePoolLookupByName, name)
        link.known["pool", name] = pool
    return pool


def pool_path(link: Link, attempt: Attempt, name: str) -> str:
    """The folder on the host that the pool is."""
    path: str | None = link.known.get(("path", name))
    if path is None:
        text = attempt(pool_of(link, attempt, name).XMLDesc, 0)
        path = ET.fromstring(text).findtext("target/path") or ""
        link.known["path", name] = path
    return path


def find(attempt: Attempt, pool: Any, name: str) -> Any:
    """The volume, or None."""
    return as_value(
        attempt, pool.storageVolLookupByName, name, missing=libvirt.VIR_ERR_NO_STORAGE_VOL
    )


def remove(attempt: Attempt, pool: Any, name: str) -> None:
    """Delete the volume if it is there."""
    volume = find(attempt, pool, name)
    if volume is not None:
        as_value(attempt, volume.delete, 0, missing=libvirt.VIR_ERR_NO_STORAGE_VOL)


def create_raw(attempt: Attempt, pool: Any, name: str, size: int) -> Any:
    """A raw volume of `size` bytes that takes room only as it is written."""
    return attempt(pool.createXML, raw_xml(name, size), 0)


def raw_xml(name: str, size: int) -> str:
    """A raw volume's XML; `size` in bytes."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity", {"unit": "bytes"}).text = str(size)
    ET.SubElement(root, "allocation").text = "0"
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", {"type": "raw"})
    return ET.tostring(root, encoding="unicode")


# -- images


def check_name(sha256: str) -> str:
    """Errors: `ImageBroken` for what is not 64 hex digits."""
    if not _SHA256.fullmatch(sha256):
        raise ImageBroken("an image is named by 64 lower-case hex digits")
    return sha256


def has_image(attempt: Attempt, pool: Any, sha256: str) -> bool:
    """Whether the image is there whole: its marker is written last and removed first."""
    return find(attempt, pool, marker(sha256)) is not None


def marker(sha256: str) -> str:
    """Name of the volume that says that an image is whole."""
    return f"image-{check_name(sha256)}.ok"


def put_image(link: Link, attempt: Attempt, pool: Any, image: ImageSpec, content: Path) -> None:
    """Copy the image, read the copy back, and mark it. On any error nothing of it is left.

    Errors: `ImageBroken`, `HostFull`, `HostUnreachable`.
    """
    name = domain_xml.image_volume(check_name(image.sha256))
    if image.format not in FORMATS:
        raise ImageBroken(f"the image's format is {image.format}: raw and qcow2 are known")
    remove(attempt, pool, marker(image.sha256))
    remove(attempt, pool, name)
    try:
        with content.open("rb") as file:
            _check_file(file, image)
            if link.kind == "TEST":
                _hash_only(attempt, file, image)
                create_raw(attempt, pool, name, image.size_bytes)
            else:
                _copy_image(link, attempt, pool, name, file, image)
    except OSError as error:
        raise ImageBroken(f"the image file cannot be read: {error.strerror}") from error
    create_raw(attempt, pool, marker(image.sha256), 0)


def remove_image(attempt: Attempt, pool: Any, sha256: str) -> None:
    """Marker first: what is left of a broken removal is a half copy, never used.

    Errors: `HostRefused` where a disk in the pool is built on it.
    """
    image = domain_xml.image_volume(sha256)
    for volume in attempt(pool.listAllVolumes, 0):
        if _BUILT.fullmatch(volume.name()) is None:
            continue
        text = as_value(attempt, volume.XMLDesc, 0, missing=libvirt.VIR_ERR_NO_STORAGE_VOL)
        backing = ET.fromstring(text).findtext("backingStore/path") if text else None
        if backing and backing.rpartition("/")[2] == image:
            raise HostRefused(f"the image is in use: {volume.name()} is built on it")
    remove(attempt, pool, marker(sha256))
    remove(attempt, pool, image)


def _copy_image(
    link: Link, attempt: Attempt, pool: Any, name: str, file: BinaryIO, image: ImageSpec
) -> None:
    volume = create_raw(attempt, pool, name, image.size_bytes)
    whole = False
    try:
        found = upload(link, attempt, volume, _blocks(file), image.size_bytes)
        if found != image.sha256:
            raise ImageBroken("the image file has changed since it was added: add it again")
        if _download_hash(link, attempt, volume, image.size_bytes) != image.sha256:
            raise HostRefused("the image's copy on the host differs: its disk or memory is bad")
        whole = True
    finally:
        if not whole and not attempt.given_up:
            _delete_quietly(volume)


def _hash_only(attempt: Attempt, file: BinaryIO, image: ImageSpec) -> None:
    """libvirt's test driver keeps no bytes: what can be checked is the file."""
    digest = hashlib.sha256()
    for block in _blocks(file):
        attempt.check()
        digest.update(block)
    if digest.hexdigest() != image.sha256:
        raise ImageBroken("the image file has changed since it was added: add it again")


def _check_file(file: BinaryIO, image: ImageSpec) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != image.size_bytes:
        raise ImageBroken(f"the image file has {size} bytes, not {image.size_bytes}: add it again")
    header = file.read(QCOW2_HEADER)
    file.seek(0)
    if image.format != "qcow2":
        return
    if header[:4] != QCOW2_MAGIC or len(header) < 72:
        raise ImageBroken("the image file is no qcow2")
    version = int.from_bytes(header[4:8], "big")
    features = int.from_bytes(header[72:80], "big") if version >= 3 else 0
    if int.from_bytes(header[8:16], "big") or features & QCOW2_EXTERNAL_DATA:
        raise ImageBroken("the image refers to another file: flatten it with qemu-img convert")


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


# -- streams


def upload(
    link: Link, attempt: Attempt, volume: Any, blocks: Iterator[bytes], size: int
) -> str:
    """Write `size` bytes into a volume. Returns their SHA-256. Holds one block in memory."""
    digest = hashlib.sha256()
    sent = 0
    stream = attempt(link.conn.newStream, 0)
    ended = False
    try:
        attempt(volume.upload, stream, 0, size, 0)
        for block in blocks:
            digest.update(block)
            sent += len(block)
            if sent > size:
                raise ImageBroken("the image file grew while it was read: add it again")
            send_all(attempt, stream, block)
        if sent != size:
            raise ImageBroken("the image file shrank while it was read: add it again")
        attempt(stream.finish)
        ended = True
    finally:
        if not ended:
            abort_quietly(stream)
    return digest.hexdigest()


def send_all(attempt: Attempt, stream: Any, block: bytes) -> None:
    """Write all of the block: a stream may take less at once."""
    view = memoryview(block)
    while view:
        count = attempt(stream.send, bytes(view) if len(view) < len(block) else block)
        view = view[count:]


def download(
    link: Link, attempt: Attempt, volume: Any, offset: int, length: int
) -> Iterator[bytes]:
    """Read a volume's bytes from `offset` on, at most `length`."""
    stream = attempt(link.conn.newStream, 0)
    ended = False
    try:
        attempt(volume.download, stream, offset, length, 0)
        while True:
            block = attempt(stream.recv, BLOCK)
            if not block:
                break
            yield block
        attempt(stream.finish)
        ended = True
    finally:
        if not ended:
            abort_quietly(stream)


def _download_hash(link: Link, attempt: Attempt, volume: Any, size: int) -> str:
    digest = hashlib.sha256()
    if size:
        for block in download(link, attempt, volume, 0, size):
            digest.update(block)
    return digest.hexdigest()


def abort_quietly(stream: Any) -> None:
    """End a stream that comes to nothing."""
    try:
        stream.abort()
    except libvirt.libvirtError:
        return


def _delete_quietly(volume: Any) -> None:
    try:
        volume.delete(0)
    except libvirt.libvirtError:
        return


# -- one instance's volumes


def make_disks(
    attempt: Attempt, pool: Any, path: str, spec: DomainSpec, *, first: bool = False
) -> None:
    """The uppermost volume of the root disk, unless it is there: it is the guest's data, and never
    made again; and the one that it is rescued from. `first`: no domain is there, so most likely no
    disk is either.

    Errors: `HostRefused` where an image is not on the host or is larger than the disk, or what the
    uppermost lies over is gone.
    """
    top, *under = (domain_xml.disk_volume(spec.uuid, number) for number in spec.disks)
    if first and not under:
        try:
            _over_image(attempt, pool, path, top, spec.disk_gib, spec.image)
        except libvirt.libvirtError as error:
            if not _is_there(attempt, pool, top, error):
                raise
    elif find(attempt, pool, top) is None:
        for name in under:
            if find(attempt, pool, name) is None:
                raise HostRefused(f"a part of its disk is gone from the host: {name}")
        if under:
            _overlay(attempt, pool, top, spec.disk_gib * GIB, f"{path}/{under[0]}", "qcow2")
        else:
            _over_image(attempt, pool, path, top, spec.disk_gib, spec.image)
    if spec.rescue is not None:
        name = domain_xml.rescue_volume(spec.uuid, spec.rescue.sha256)
        if find(attempt, pool, name) is None:
            _over_image(attempt, pool, path, name, 0, spec.rescue)


def lies_over(attempt: Attempt, pool: Any, uuid: str) -> bool:
    """Whether a disk of the instance has another file under it."""
    for name in names(attempt, pool):
        if name.startswith(uuid) and is_disk(name):
            volume = find(attempt, pool, name)
            text = None if volume is None else attempt(volume.XMLDesc, 0)
            if text and ET.fromstring(text).findtext("backingStore/path"):
                return True
    return False


def drop_disks(attempt: Attempt, pool: Any, spec: DomainSpec) -> None:
    """Remove the disks of an instance that `spec` does not name."""
    kept = {domain_xml.disk_volume(spec.uuid, number) for number in spec.disks}
    if spec.rescue is not None:
        kept.add(domain_xml.rescue_volume(spec.uuid, spec.rescue.sha256))
    for name in names(attempt, pool):
        if name.startswith(spec.uuid) and _BUILT.fullmatch(name) and name not in kept:
            remove(attempt, pool, name)


def _over_image(
    attempt: Attempt, pool: Any, path: str, name: str, disk_gib: int, image: ImageSpec | None
) -> None:
    size = disk_gib * GIB
    if image is None:
        _overlay(attempt, pool, name, size, "", "")
        return
    if not has_image(attempt, pool, image.sha256):
        raise HostRefused("its image is not on the host")
    size = size or image.virtual_bytes
    if size < image.virtual_bytes:
        need = -(-image.virtual_bytes // GIB)
        raise HostRefused(f"the disk has {disk_gib} GiB, its image needs {need}")
    below = f"{path}/{domain_xml.image_volume(image.sha256)}"
    _overlay(attempt, pool, name, size, below, image.format)


def _overlay(
    attempt: Attempt, pool: Any, name: str, size: int, below: str, below_format: str
) -> Any:
    """A qcow2 volume of `size` bytes, over the file `below` where one is given."""
    text = qcow2_xml(name, size, below, below_format)
    try:
        return attempt(pool.createXML, text, 0)
    except libvirt.libvirtError as error:
        if not _is_there(attempt, pool, name, error):
            refuse_if_full(attempt, pool, error)
        raise


def _is_there(attempt: Attempt, pool: Any, name: str, error: libvirt.libvirtError) -> bool:
    """Whether it could not be made because it is there: the test driver has no code for that."""
    if errors.code_of(error) == libvirt.VIR_ERR_STORAGE_VOL_EXIST:
        return True
    return not errors.is_broken(error) and find(attempt, pool, name) is not None


def refuse_if_full(attempt: Attempt, pool: Any, error: libvirt.libvirtError) -> None:
    """Errors: `HostFull` where the pool is full: what a tool on the host made has no errno."""
    if not errors.is_broken(error) and _is_full(attempt, pool):
        raise HostFull(f"the host's pool is full: {errors.detail(error)}") from error


def qcow2_xml(name: str, size: int, below: str = "", below_format: str = "") -> str:
    """A qcow2 volume's XML; `size` in bytes, `below` the path of the file that it lies over."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity", {"unit": "bytes"}).text = str(size)
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", {"type": "qcow2"})
    ET.SubElement(target, "compat").text = "1.1"
    if below:
        backing = ET.SubElement(root, "backingStore")
        ET.SubElement(backing, "path").text = below
        ET.SubElement(backing, "format", {"type": below_format})
    return ET.tostring(root, encoding="unicode")


def _is_full(attempt: Attempt, pool: Any) -> bool:
    try:
        attempt(pool.refresh, 0)
        return int(attempt(pool.info)[3]) < LEAST_FREE
    except libvirt.libvirtError:
        return False


def write_seed(link: Link, attempt: Attempt, pool: Any, name: str, data: bytes) -> None:
    """The seed's volume, written anew."""
    volume = _anew(attempt, pool, name, len(data))
    if link.kind != "TEST":
        upload(link, attempt, volume, iter((data,)), len(data))


def fresh_console(attempt: Attempt, pool: Any, uuid: str, *, again: bool = False) -> None:
    """An empty log for a guest that boots. `again`: there is one of an earlier boot."""
    name = domain_xml.console_volume(uuid)
    if again:
        remove(attempt, pool, name)
    _anew(attempt, pool, name, 0)


def _anew(attempt: Attempt, pool: Any, name: str, size: int) -> Any:
    """A raw volume of that name, in place of the one that is there. Mostly there is none."""
    try:
        return create_raw(attempt, pool, name, size)
    except libvirt.libvirtError as error:
        if errors.code_of(error) == libvirt.VIR_ERR_OPERATION_INVALID:
            # The file is there, and libvirtd does not know of it: another host has made it.
            refresh(attempt, pool)
        elif not _is_there(attempt, pool, name, error):
            raise
    remove(attempt, pool, name)
    return create_raw(attempt, pool, name, size)


def read_console(link: Link, attempt: Attempt, pool: Any, uuid: str, limit: int) -> bytes:
    """The end of the log; the file that it was rotated from goes before it."""
    if link.kind != "QEMU":
        raise Unsupported(f"{link.kind} hosts keep no log of a guest's console")
    name = domain_xml.console_volume(uuid)
    tail = _tail(link, attempt, find(attempt, pool, name), limit)
    if len(tail) < limit:
        tail = _tail(link, attempt, find(attempt, pool, f"{name}.0"), limit - len(tail)) + tail
    return tail


def _tail(link: Link, attempt: Attempt, volume: Any, limit: int) -> bytes:
    if volume is None or limit <= 0:
        return b""
    size = int(attempt(volume.info)[1])
    if size == 0:
        return b""
    length = min(limit, size)
    return b"".join(download(link, attempt, volume, size - length, length))


def is_disk(name: str) -> bool:
    """Whether a volume of that name holds a guest's own data."""
    return _OURS.fullmatch(name) is not None


def has_disk(attempt: Attempt, pool: Any, uuid: str) -> bool:
    """Whether a volume with the guest's data is there."""
    return any(name.startswith(uuid) and is_disk(name) for name in names(attempt, pool))


def remnants(attempt: Attempt, pool: Any) -> tuple[set[str], set[str]]:
    """UUIDs of which a disk is in the pool, and of which a copy of one is."""
    disks, copies = set(), set()
    for name in names(attempt, pool):
        if match := _OURS.fullmatch(name):
            disks.add(match.group(1))
        elif match := _COPY.fullmatch(name):
            copies.add(match.group(1))
    return disks, copies


def remove_volumes(attempt: Attempt, pool: Any, volumes: Iterable[str]) -> None:
    """Those of an instance, its disks last: while one is there, so is the remnant."""
    for name in sorted(volumes, key=is_disk):
        remove(attempt, pool, name)


def names(attempt: Attempt, pool: Any) -> list[str]:
    """The volumes' names, in one call: `listVolumes` counts first, and cuts off what came since."""
    return [volume.name() for volume in attempt(pool.listAllVolumes, 0)]


def refresh(attempt: Attempt, pool: Any) -> bool:
    """Have libvirt see what others put there: a log that was rotated. False where it does not: it
    refuses while it makes a volume, which takes some 10 ms, or long where one is copied."""
    for _ in range(REFRESH_TRIES):
        try:
            attempt(pool.refresh, 0)
            return True
        except libvirt.libvirtError as error:
            if errors.is_broken(error):
                raise
        if not attempt(pool.isActive):
            # A file that went while it was looked at: libvirtd has let the pool go for that.
            attempt(pool.create, 0)
            return True
        time.sleep(REFRESH_PAUSE)
    return False


def scratch(
    link: Link, attempt: Attempt, pool: Any, prefix: str, data: bytes, size: int
) -> Any:
    """A volume of `size` bytes and a name of its own that begins with `data`."""
    volume = create_raw(attempt, pool, f"{prefix}-{uuid4().hex[:12]}", size)
    upload(link, attempt, volume, iter((data,)), len(data))
    return volume
