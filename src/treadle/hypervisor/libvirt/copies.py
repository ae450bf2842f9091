"""A copy of a guest's own root disk, in one file, as it is at one moment.

Of a guest that runs, QEMU's backup job makes it: what the guest writes after its start is not in
it. Of one that does not, `qemu-img` does, as libvirt's storage driver calls it. Either way the
chain of volumes under the disk is flattened, and what a crash leaves is one volume of a known name.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import libvirt

from treadle.hypervisor.base import HostRefused, Unsupported
from treadle.hypervisor.libvirt import storage
from treadle.hypervisor.libvirt.connection import Attempt, Link, as_value
from treadle.hypervisor.libvirt.domain_xml import copy_volume

POLL_S = 0.1
LIVE = libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
COMPLETED = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED


def begin(link: Link, attempt: Attempt, pool: Any, domain: Any, runs: bool) -> None:
    """Begin the copy of a domain that runs; of another it is made when it is fetched."""
    if link.kind != "QEMU":
        raise Unsupported(f"disks of {link.kind} hosts cannot be copied")
    drop(attempt, pool, domain, domain.UUIDString())
    if not runs:
        return
    text = attempt(domain.XMLDesc, 0)
    target, _ = own_disk(text)
    size = int(attempt(domain.blockInfo, target, 0)[0])
    name = copy_volume(domain.UUIDString())
    volume = attempt(pool.createXML, storage.qcow2_xml(name, size), 0)
    job = backup_xml(text, target, attempt(volume.path))
    attempt(domain.backupBegin, job, None, LIVE)


def fetch(
    link: Link, attempt: Attempt, pool: Any, domain: Any, runs: bool,
    into: Callable[[bytes], None], copy_mib_s: float,
) -> None:
    """Wait for the copy and hand its bytes over."""
    if link.kind != "QEMU":
        raise Unsupported(f"disks of {link.kind} hosts cannot be copied")
    uuid = domain.UUIDString()
    _, source = own_disk(attempt(domain.XMLDesc, 0))
    disk = attempt(pool.storageVolLookupByName, source)
    capacity = int(attempt(disk.info)[1])
    attempt.extend(3 * capacity / storage.MIB / copy_mib_s)
    volume = storage.find(attempt, pool, copy_volume(uuid))
    if runs:
        if volume is None:
            raise HostRefused("no copy of its disk is being made")
        _wait(attempt, domain)
    else:
        storage.remove(attempt, pool, copy_volume(uuid))
        text = storage.qcow2_xml(copy_volume(uuid), capacity)
        volume = attempt(pool.createXMLFrom, text, disk, 0)
    for block in storage.download(link, attempt, volume, 0, 0):
        into(block)


def drop(attempt: Attempt, pool: Any, domain: Any, uuid: str) -> None:
    """End a copy that is being made, and remove it."""
    name = copy_volume(uuid)
    if storage.find(attempt, pool, name) is None:
        return
    if domain is not None and _job(attempt, domain) != libvirt.VIR_DOMAIN_JOB_NONE:
        # It may have ended by itself meanwhile.
        as_value(attempt, domain.abortJob, missing=libvirt.VIR_ERR_OPERATION_INVALID)
        while _job(attempt, domain) != libvirt.VIR_DOMAIN_JOB_NONE:
            attempt.check()
            time.sleep(POLL_S)
    storage.remove(attempt, pool, name)


def own_disk(text: str) -> tuple[str, str]:
    """The device name and the uppermost volume of a domain's own root disk. Errors: `HostRefused`
    where it has none."""
    for disk in ET.fromstring(text).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is None or target is None:
            continue
        name = source.get("file", "").rpartition("/")[2]
        if storage.is_disk(name):
            return target.get("dev", ""), name
    raise HostRefused("it has no disk of its own")


def backup_xml(text: str, target: str, path: str) -> str:
    """A full push backup of one disk of the domain into the file `path`."""
    root = ET.Element("domainbackup", {"mode": "push"})
    disks = ET.SubElement(root, "disks")
    for device in ET.fromstring(text).iterfind("devices/disk/target"):
        name = device.get("dev", "")
        if name != target:
            ET.SubElement(disks, "disk", {"name": name, "backup": "no"})
            continue
        disk = ET.SubElement(disks, "disk", {
            "name": name, "backup": "yes", "type": "file", "backupmode": "full",
        })
        ET.SubElement(disk, "target", {"file": path})
        ET.SubElement(disk, "driver", {"type": "qcow2"})
    return ET.tostring(root, encoding="unicode")


def _wait(attempt: Attempt, domain: Any) -> None:
    while _job(attempt, domain) != libvirt.VIR_DOMAIN_JOB_NONE:
        time.sleep(POLL_S)
    stats = as_value(
        attempt, domain.jobStats, COMPLETED, missing=libvirt.VIR_ERR_OPERATION_INVALID
    )
    if not stats or not stats.get("success"):
        why = stats.get("errmsg") if stats else None
        raise HostRefused(f"the copy of its disk came to nothing: {why or 'it was ended'}")


def _job(attempt: Attempt, domain: Any) -> int:
    # What does not run has no job, and says so.
    found = as_value(attempt, domain.jobInfo, missing=libvirt.VIR_ERR_OPERATION_INVALID)
    return libvirt.VIR_DOMAIN_JOB_NONE if found is None else int(found[0])
