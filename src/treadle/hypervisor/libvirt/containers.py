"""Containers on libvirt's LXC driver: the disk, the seed and the definition of one.

A container's disk is a copy of its image, a raw file system with a root tree, which the host
mounts through a loop device. It is told what guests are told (NoCloud) by a small file system of
its own at the place where cloud-init looks for such a folder. Nothing needs a shell on the host.

A container shares the host's kernel, and its root is the host's root within what libvirt takes
from it: only for tenants that the host's owner trusts (ADR "Containers are for trusted tenants").
"""

from __future__ import annotations

import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt

from treadle.errors import RetryLater
from treadle.hypervisor.base import DomainSpec, HostRefused, Seed, Unsupported
from treadle.hypervisor.libvirt import domain_xml, errors, seed, storage
from treadle.hypervisor.libvirt.connection import Attempt
from treadle.hypervisor.libvirt.domain_xml import Mark, Place

SEED_FOLDER = "/var/lib/cloud/seed/nocloud"
SEED_KIB = 1024
TOOL_SECONDS = 20
GIB = 1 << 30
LOOP_PATH_MAX = 63
"""libvirt puts a loop device's file into the kernel's 64 bytes for its name; hence short names."""


def root_volume(uuid: str) -> str:
    """Name of the volume with the container's data."""
    return f"{uuid}.r"


def root_marker(uuid: str) -> str:
    """Name of the volume that says that the root volume was copied whole."""
    return f"{uuid}.ok"


def seed_volume(uuid: str) -> str:
    """Name of the volume with the seed."""
    return f"{uuid}.s"


def make_root(attempt: Attempt, pool: Any, spec: DomainSpec, copy_mib_s: float) -> None:
    """The container's disk, unless it is there.

    Errors: `Unsupported` for a disk in layers, a rescue or no image; `HostRefused` for an image
    that is none of a root file system, is not on the host, or is larger than the disk.
    """
    if spec.disks != (1,) or spec.rescue is not None or spec.image is None:
        raise Unsupported("a container has one disk, a copy of its image")
    if spec.image.format != "raw":
        raise HostRefused(
            f"a container starts from a raw root file system, not from {spec.image.format}"
        )
    if storage.find(attempt, pool, root_marker(spec.uuid)) is not None:
        return
    source = storage.find(attempt, pool, domain_xml.image_volume(spec.image.sha256))
    if source is None or not storage.has_image(attempt, pool, spec.image.sha256):
        raise HostRefused("its image is not on the host")
    size = spec.image.size_bytes
    if size > spec.disk_gib * GIB:
        raise HostRefused(f"the disk has {spec.disk_gib} GiB, its image needs {-(-size // GIB)}")
    name = root_volume(spec.uuid)
    storage.remove(attempt, pool, name)
    attempt.extend(size / storage.MIB / copy_mib_s)
    try:
        attempt(pool.createXMLFrom, storage.raw_xml(name, size), source, 0)
    except libvirt.libvirtError as error:
        storage.refuse_if_full(attempt, pool, error)
        raise
    storage.create_raw(attempt, pool, root_marker(spec.uuid), 0)


def seed_image(uuid: str, told: Seed) -> bytes:
    """The seed as an ext4 file system: hosts need not know ISO 9660. Errors: `RetryLater`."""
    with tempfile.TemporaryDirectory(prefix="treadle-seed-") as name:
        content, image = Path(name, "content"), Path(name, "image")
        content.mkdir()
        (content / "meta-data").write_bytes(seed.meta_data(uuid, told))
        (content / "user-data").write_bytes(seed.user_data(told))
        try:
            subprocess.run(
                ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", seed.LABEL,
                 "-d", str(content), str(image), f"{SEED_KIB}K"],
                check=True, capture_output=True, timeout=TOOL_SECONDS,
                env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"},
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise RetryLater(f"mke2fs cannot make the container's seed: {error}") from error
        return image.read_bytes()


def container_xml(spec: DomainSpec, place: Place, mark: Mark) -> str:
    """The definition of a container. Errors: `InvalidInput` for text that XML cannot carry."""
    root = domain_xml.opened(spec, place, mark)
    system = ET.SubElement(root, "os")
    kind = ET.SubElement(system, "type")
    kind.text = "exe"
    if place.arch:
        kind.set("arch", place.arch)
    ET.SubElement(system, "init").text = "/sbin/init"
    features = ET.SubElement(root, "features")
    # Without a card of its own it would have the host's.
    ET.SubElement(features, "privnet")
    for when, what in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        ET.SubElement(root, f"on_{when}").text = what
    devices = ET.SubElement(root, "devices")
    _file_system(devices, f"{place.pool_path}/{root_volume(spec.uuid)}", "/")
    told = _file_system(
        devices, f"{place.pool_path}/{seed_volume(spec.uuid)}", SEED_FOLDER
    )
    ET.SubElement(told, "readonly")
    domain_xml.add_nic(devices, spec, place)
    ET.SubElement(devices, "console", {"type": "pty"})
    return domain_xml.finished(root)


def _file_system(devices: ET.Element, path: str, target: str) -> ET.Element:
    if len(path.encode()) > LOOP_PATH_MAX:
        raise HostRefused(
            f"the pool's path is too long: libvirt mounts files with paths of at most "
            f"{LOOP_PATH_MAX} bytes, and {path} is longer"
        )
    found = ET.SubElement(devices, "filesystem", {"type": "file", "accessmode": "passthrough"})
    ET.SubElement(found, "driver", {"type": "loop", "format": "raw"})
    ET.SubElement(found, "source", {"file": path})
    ET.SubElement(found, "target", {"dir": target})
    return found


def ask_to_stop(domain: Any) -> None:
    """Tell the container's init both ways: its control file, which one may listen to, and SIGTERM.

    By itself libvirt takes the first way that it believes in, and the other not at all.
    """
    try:
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_INITCTL)
    except libvirt.libvirtError as error:
        if errors.is_broken(error):
            raise
    domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_SIGNAL)
