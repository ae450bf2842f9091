"""A domain's XML, built by ElementTree alone, and the mark by which we know our own.

Nothing that a user wrote is ever part of a path, an element's name or a domain's name: his words
are text and attribute values, escaped by the serializer.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from treadle.errors import InvalidInput
from treadle.hypervisor.base import DomainSpec, ImageSpec, NumaCell
from treadle.hypervisor.libvirt import growth, nodes
from treadle.hypervisor.libvirt.shape import shape_of

NAMESPACE = "urn:treadle:instance:1"
PREFIX = "treadle"

#: What XML 1.0 cannot carry at all.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAKS = re.compile("[\n\r\t]")


@dataclass(frozen=True, slots=True)
class Place:
    """What a domain's XML needs to know of its host.

    `network` and `bridge`: at most one is set; where neither is, the guest gets a network of its
    own inside the hypervisor's process. `machine` and `net_filter` are "" where there is none.
    """

    virt_type: str
    pool_path: str
    arch: str = ""
    machine: str = ""
    network: str = ""
    bridge: str = ""
    net_filter: str = ""
    cells: tuple[NumaCell, ...] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """What we write on a domain: `seed` is a digest of what the guest is told, `forward` the
    port of the host that leads to the guest's SSH (0: none), `shape` what the definition gives to
    the guest (`shape.shape_of`), `most` what it can come to (`growth.most_of`), both written by
    `finished`. `disk`, of what runs alone, is as in `Domain`."""

    generation: int
    mac: str = ""
    seed: str = ""
    forward: int = 0
    values: Mapping[str, str] = field(default_factory=dict)
    shape: str = ""
    most: tuple[int, int] | None = None
    disk: int = 0

    def xml(self) -> ET.Element:
        """As an element."""
        ET.register_namespace(PREFIX, NAMESPACE)
        root = ET.Element(f"{{{NAMESPACE}}}instance", {"generation": str(self.generation)})
        if self.mac:
            root.set("mac", self.mac)
        if self.seed:
            root.set("seed", self.seed)
        if self.forward:
            root.set("forward", str(self.forward))
        if self.shape:
            root.set("shape", self.shape)
        if self.most:
            root.set("most", growth.written(self.most))
        if self.disk:
            root.set("disk", str(self.disk))
        for key in sorted(self.values):
            item = ET.SubElement(root, f"{{{NAMESPACE}}}value", {"key": _text("metadata", key)})
            item.text = _text("metadata", self.values[key])
        return root

    def text(self) -> str:
        """As libvirt's setMetadata wants it: it puts the namespace on by itself."""
        root = self.xml()
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return ET.tostring(root, encoding="unicode")

    def with_forward(self, port: int) -> Mark:
        """The same with another forwarded port."""
        return replace(self, forward=port)


def read_mark(text: str) -> Mark:
    """The mark out of what libvirt keeps; what cannot be read of it counts as absent."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return Mark(0)
    values = {
        item.get("key", ""): item.text or ""
        for item in root
        if item.tag.rpartition("}")[2] == "value"
    }
    return Mark(
        generation=_number(root.get("generation")),
        mac=root.get("mac", ""),
        seed=root.get("seed", ""),
        forward=_number(root.get("forward")),
        values=values,
        shape=root.get("shape", ""),
        most=growth.read(root.get("most", "")),
        disk=_number(root.get("disk")),
    )


def canonical_uuid(uuid: str) -> str:
    """The UUID as libvirt writes it. Errors: `InvalidInput`."""
    try:
        return str(UUID(uuid))
    except ValueError as error:
        raise InvalidInput("uuid", uuid, "give a UUID") from error


def domain_name(uuid: str) -> str:
    """The domain's name on the host: of the UUID, since names of users need not differ."""
    return f"treadle-{UUID(uuid).hex[:12]}"


def disk_volume(uuid: str, number: int = 1) -> str:
    """Name of a volume with the guest's data."""
    return f"{uuid}.qcow2" if number == 1 else f"{uuid}.{number}.qcow2"


def rescue_volume(uuid: str, sha256: str) -> str:
    """Name of the volume that a guest is rescued from with the image."""
    return f"{uuid}.rescue-{sha256[:16]}.qcow2"


def copy_volume(uuid: str) -> str:
    """Name of the volume that the root disk is copied to."""
    return f"{uuid}.copy.qcow2"


def seed_volume(uuid: str) -> str:
    """Name of the volume with the seed."""
    return f"{uuid}.seed.iso"


def console_volume(uuid: str) -> str:
    """Name of the volume that the serial port is written to."""
    return f"{uuid}.console.log"


def image_volume(sha256: str) -> str:
    """Name of an image's volume."""
    return f"image-{sha256}"


def domain_xml(spec: DomainSpec, place: Place, mark: Mark) -> str:
    """The definition of an instance. Errors: `InvalidInput` for text that XML cannot carry;
    `HostRefused` where the host has not got the cells of its nodes."""
    root = opened(spec, place, mark)
    beside = spec.rescue is not None and spec.rescue_on is not None
    features = _machine(root, place, ordered=beside)
    if place.arch in ("x86_64", "i686", ""):
        ET.SubElement(features, "apic")
    _cpu(root, place)
    if spec.nodes:
        nodes.bind(root, spec.nodes, place.cells)
    else:
        growth.allow(root, spec.most, place.arch)
    ET.SubElement(root, "clock", {"offset": "utc"})
    _leaf(root, "on_poweroff", "destroy")
    _leaf(root, "on_reboot", "restart")
    _leaf(root, "on_crash", "destroy")
    devices = ET.SubElement(root, "devices")
    _disks(devices, spec, place)
    bus = spec.rescue_on[1] if spec.rescue_on is not None and beside else ""
    if place.virt_type != "test":
        model = "qemu-xhci" if bus == "usb" else "none"
        ET.SubElement(devices, "controller", {"type": "usb", "model": model})
    if bus == "scsi":
        ET.SubElement(devices, "controller", {"type": "scsi", "model": "virtio-scsi"})
    add_nic(devices, spec, place)
    _serial(devices, spec, place)
    if place.virt_type != "test":
        _agent(devices)
        _screen(devices, place)
        rng = ET.SubElement(devices, "rng", {"model": "virtio"})
        _leaf(rng, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "memballoon", {"model": "virtio"})
    return finished(root)


def finished(root: ET.Element) -> str:
    """A definition with its shape and its room in its mark, as text."""
    mark = root.find(f"metadata/{{{NAMESPACE}}}instance")
    if mark is not None:
        mark.set("shape", shape_of(root))
        most = growth.most_of(root)
        if most:
            mark.set("most", growth.written(most))
    return ET.tostring(root, encoding="unicode")


def opened(spec: DomainSpec, place: Place, mark: Mark) -> ET.Element:
    """What every definition begins with: names, the mark, the size."""
    root = ET.Element("domain", {"type": place.virt_type})
    _leaf(root, "name", domain_name(spec.uuid))
    _leaf(root, "uuid", spec.uuid)
    title = _LINE_BREAKS.sub(" ", _text("name", spec.name)).strip()
    if title:
        _leaf(root, "title", title)
    ET.SubElement(root, "metadata").append(mark.xml())
    _leaf(root, "memory", str(spec.memory_mib), unit="MiB")
    _leaf(root, "vcpu", str(spec.vcpus))
    return root


def probe_xml(name: str, uuid: str, place: Place, disk: str, memory_mib: int = 16) -> str:
    """A guest that is nothing but a boot sector at the path `disk`."""
    root = ET.Element("domain", {"type": place.virt_type})
    _leaf(root, "name", name)
    _leaf(root, "uuid", uuid)
    _leaf(root, "memory", str(memory_mib), unit="MiB")
    _leaf(root, "vcpu", "1")
    features = _machine(root, place)
    ET.SubElement(features, "apic")
    _cpu(root, place)
    _leaf(root, "on_poweroff", "destroy")
    _leaf(root, "on_reboot", "destroy")
    _leaf(root, "on_crash", "destroy")
    devices = ET.SubElement(root, "devices")
    element = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
    ET.SubElement(element, "driver", {"name": "qemu", "type": "raw"})
    ET.SubElement(element, "source", {"file": disk})
    ET.SubElement(element, "target", {"dev": "vda", "bus": "virtio"})
    ET.SubElement(element, "readonly")
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    ET.SubElement(devices, "memballoon", {"model": "none"})
    return ET.tostring(root, encoding="unicode")


def _machine(root: ET.Element, place: Place, *, ordered: bool = False) -> ET.Element:
    """What it boots on; its features, to add to. `ordered`: its disks say which comes first."""
    boot = ET.SubElement(root, "os")
    kind = _leaf(boot, "type", "hvm")
    if place.arch:
        kind.set("arch", place.arch)
    if place.machine:
        kind.set("machine", place.machine)
    if not ordered:
        ET.SubElement(boot, "boot", {"dev": "hd"})
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    return features


def _cpu(root: ET.Element, place: Place) -> None:
    if place.virt_type == "kvm":
        ET.SubElement(root, "cpu", {"mode": "host-passthrough"})
    elif place.virt_type == "qemu":
        ET.SubElement(root, "cpu", {"mode": "maximum"})


def _disks(devices: ET.Element, spec: DomainSpec, place: Place) -> None:
    """The disk that it boots from, the seed, and where it is rescued its own disk."""
    own = [disk_volume(spec.uuid, number) for number in spec.disks]
    if spec.rescue is None:
        _disk(devices, place, own, spec.image, "vda")
        _seed_disk(devices, spec, place)
        return
    rescue = rescue_volume(spec.uuid, spec.rescue.sha256)
    if spec.rescue_on is None:
        _disk(devices, place, [rescue], spec.rescue, "vda")
        _seed_disk(devices, spec, place)
        _disk(devices, place, own, spec.image, "vdc")
        return
    # The own disk keeps its name; the guest boots from the one that comes last.
    _disk(devices, place, own, spec.image, "vda")
    _seed_disk(devices, spec, place)
    device, bus = spec.rescue_on
    if bus in ("ide", "sata") or (device, bus) == ("cdrom", "virtio"):
        bus = "sata" if "q35" in place.machine else "ide"
    disk = _disk(devices, place, [rescue], spec.rescue, FIRST_OF[bus], bus)
    disk.set("device", device)
    if device == "cdrom":
        ET.SubElement(disk, "readonly")
    ET.SubElement(disk, "boot", {"order": "1"})


FIRST_OF = {"virtio": "vdc", "scsi": "sda", "sata": "sda", "ide": "hda", "usb": "sda"}
"""What a disk to rescue from is called on each bus, beside the own disk and the seed."""


def _disk(
    devices: ET.Element, place: Place, volumes: Sequence[str], image: ImageSpec | None,
    target: str, bus: str = "virtio",
) -> ET.Element:
    """A disk of volumes of ours, the uppermost first, over an image."""
    disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
    driver = {
        "name": "qemu", "type": "qcow2", "cache": "writeback", "discard": "unmap",
        "detect_zeroes": "unmap",
    }
    ET.SubElement(disk, "driver", driver)
    ET.SubElement(disk, "source", {"file": f"{place.pool_path}/{volumes[0]}"})
    # The chain is written out to its end: what an image's own header names is never opened.
    under = [(name, "qcow2") for name in volumes[1:]]
    if image is not None:
        under.append((image_volume(image.sha256), image.format))
    end = disk
    for name, format in under:
        end = ET.SubElement(end, "backingStore", {"type": "file"})
        ET.SubElement(end, "format", {"type": format})
        ET.SubElement(end, "source", {"file": f"{place.pool_path}/{name}"})
    ET.SubElement(end, "backingStore")
    ET.SubElement(disk, "target", {"dev": target, "bus": bus})
    return disk


def _seed_disk(devices: ET.Element, spec: DomainSpec, place: Place) -> None:
    disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
    ET.SubElement(disk, "driver", {"name": "qemu", "type": "raw"})
    ET.SubElement(disk, "source", {"file": f"{place.pool_path}/{seed_volume(spec.uuid)}"})
    ET.SubElement(disk, "target", {"dev": "vdb", "bus": "virtio"})
    ET.SubElement(disk, "readonly")


def add_nic(devices: ET.Element, spec: DomainSpec, place: Place) -> None:
    """The network card, where it has one."""
    if not spec.mac:
        return
    if place.bridge:
        kind, source = "bridge", {"bridge": place.bridge}
    elif place.network:
        kind, source = "network", {"network": place.network}
    else:
        kind, source = "user", {}
    nic = ET.SubElement(devices, "interface", {"type": kind})
    ET.SubElement(nic, "mac", {"address": spec.mac})
    if source:
        ET.SubElement(nic, "source", source)
    ET.SubElement(nic, "model", {"type": "virtio"})
    if place.net_filter and kind != "user":
        ET.SubElement(nic, "filterref", {"filter": place.net_filter})


def _serial(devices: ET.Element, spec: DomainSpec, place: Place) -> None:
    serial = ET.SubElement(devices, "serial", {"type": "pty"})
    log = f"{place.pool_path}/{console_volume(spec.uuid)}"
    ET.SubElement(serial, "log", {"file": log, "append": "on"})
    ET.SubElement(serial, "target", {"port": "0"})


def _agent(devices: ET.Element) -> None:
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})


def _screen(devices: ET.Element, place: Place) -> None:
    """A screen and a pointer. The VNC server listens on a UNIX socket that libvirt places: no port
    of the host is opened, and the socket's path is each host's own when a guest moves."""
    graphics = ET.SubElement(devices, "graphics", {"type": "vnc"})
    ET.SubElement(graphics, "listen", {"type": "socket"})
    video = ET.SubElement(devices, "video")
    model = "vga" if place.arch in ("x86_64", "i686", "") else "virtio"
    ET.SubElement(video, "model", {"type": model})
    ET.SubElement(devices, "input", {"type": "tablet", "bus": "virtio"})


def _leaf(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _text(name: str, value: str) -> str:
    if _NOT_XML.search(value):
        raise InvalidInput(name, value, "leave control characters out")
    return value


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
