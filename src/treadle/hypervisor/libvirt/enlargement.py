"""A guest that becomes larger while it runs, and its root disk with it.

For that it is moved onto a volume that lies over the one that it runs on, by an external snapshot
onto a volume that is there. libvirt is told both by their paths, never by the device's name: a call
that was given up, and is carried out late, finds that the guest runs on another volume, or that the
new one is gone, and does nothing.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import libvirt

from treadle.hypervisor.base import DomainSpec, HostRefused, Power, Unsupported
from treadle.hypervisor.libvirt import definitions, domains, growth, sharing, storage
from treadle.hypervisor.libvirt.connection import Attempt
from treadle.hypervisor.libvirt.copies import own_disk
from treadle.hypervisor.libvirt.domain_xml import Place, disk_volume
from treadle.hypervisor.libvirt.domains import Subject
from treadle.hypervisor.libvirt.storage import GIB

KINDS = ("QEMU",)
"""The kinds of hosts that can do it."""
ONTO = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)


def ready(it: Subject, spec: DomainSpec) -> None:
    """Errors: `HostRefused` where it does not run, or is past the spec; `Unsupported`."""
    if it.link.kind not in KINDS:
        raise Unsupported(f"guests of {it.link.kind} hosts are given nothing while they run")
    domains.expect(it, spec, Power.RUNNING)


def give(it: Subject, pool: Any, place: Place, spec: DomainSpec, copy_mib_s: float) -> None:
    """Give it what it lacks of `spec`, and store that. The new volume comes first: without it,
    nothing is done. Errors: `HostFull`, `HostRefused`."""
    link, attempt, domain = it.link, it.attempt, it.domain
    due = is_due(attempt(domain.XMLDesc, 0), spec)
    if due:
        sharing.claim(link, attempt, pool, spec.uuid, (), defined=True)
        storage.make_disks(attempt, pool, place.pool_path, spec)
    growth.give(attempt, domain, it.mark.most, spec)
    if due:
        domains.write_mark(attempt, domain, replace(it.mark, disk=spec.disks[0]))
    definitions.define(link, attempt, pool, place, spec, copy_mib_s)
    if len(spec.disks) > 1:
        carry_over(attempt, domain, place.pool_path, spec)


def tell(it: Subject, spec: DomainSpec) -> None:
    """Have what runs be of that generation: all of it is done."""
    ready(it, spec)
    mark = replace(it.mark, generation=spec.generation, values=spec.metadata)
    domains.write_mark(it.attempt, it.domain, mark)


def is_due(text: str, spec: DomainSpec) -> bool:
    """Whether a guest, whose live definition is `text`, is still to be moved onto the uppermost
    volume of `spec`. Errors: `HostRefused` where it runs on none that this one lies over."""
    top, *under = (disk_volume(spec.uuid, number) for number in spec.disks)
    _, name = own_disk(text)
    if name != top and name not in under[:1]:
        raise HostRefused(f"it runs on {name}, which {top} does not lie over")
    return name != top


def carry_over(attempt: Attempt, domain: Any, path: str, spec: DomainSpec) -> None:
    """Move the running guest onto the uppermost volume of `spec`, in the folder `path`, and have it
    see how large that is. The stored definition must name that volume by then: libvirt changes none
    that does, and whatever ends the guest, its next start finds what it wrote."""
    text = attempt(domain.XMLDesc, 0)
    if is_due(text, spec):
        attempt(domain.snapshotCreateXML, snapshot_xml(text, path, spec), ONTO)
    top, size = f"{path}/{disk_volume(spec.uuid, spec.disks[0])}", spec.disk_gib * GIB
    # The guest is not told of another size by the move; nothing is ever made smaller.
    if int(attempt(domain.blockInfo, top, 0)[0]) <= size:
        attempt(domain.blockResize, top, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def snapshot_xml(text: str, path: str, spec: DomainSpec) -> str:
    """From the second volume of `spec` to the first; the other disks of the domain stay."""
    target, _ = own_disk(text)
    new, old = (f"{path}/{disk_volume(spec.uuid, number)}" for number in spec.disks[:2])
    root = ET.Element("domainsnapshot")
    disks = ET.SubElement(root, "disks")
    for device in ET.fromstring(text).iterfind("devices/disk/target"):
        name = device.get("dev", "")
        if name != target:
            ET.SubElement(disks, "disk", {"name": name, "snapshot": "no"})
    disk = ET.SubElement(disks, "disk", {"name": old, "snapshot": "external", "type": "file"})
    ET.SubElement(disk, "driver", {"type": "qcow2"})
    ET.SubElement(disk, "source", {"file": new})
    return ET.tostring(root, encoding="unicode")
