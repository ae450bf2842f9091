"""What a host is and can do, out of libvirt's capabilities and counters."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import libvirt

from treadle.hypervisor.base import NumaCell
from treadle.hypervisor.libvirt import errors, growth
from treadle.hypervisor.libvirt.connection import Attempt, Link
from treadle.hypervisor.libvirt.shape import kib

#: Kinds whose guests run, and are on the host's network.
GUESTS = ("QEMU", "LXC")
#: Best first; what is not named here comes after, as libvirt lists it.
PREFERENCE = ("kvm", "qemu")
OWN = "kvm"
"""How guests run that have the host's own processor."""

LIFECYCLE = frozenset({"pause", "suspend", "graceful_stop"})
BY_KIND = {
    "QEMU": LIFECYCLE | {"images", "console", "probe", "serial_console", "diagnostics", "agent",
                         "snapshot", "transfer", "grow_disk", "plug"},
    "TEST": LIFECYCLE | {"images", "network"},
    "LXC": frozenset({"pause", "graceful_stop", "root_filesystems", "serial_console",
                      "diagnostics"}),
}

LOAD_STEPS = 20


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of all processors together, since the host was started."""

    busy: float
    idle: float


@dataclass(frozen=True, slots=True)
class Shape:
    """What does not change while a host is up. `machine` is "" where the default is to be had;
    `machines` are the full names of all, but for aliases that mean one of them."""

    host_uuid: str
    arch: str
    virt_types: tuple[str, ...]
    machine: str
    machines: tuple[str, ...] = ()
    cells: tuple[NumaCell, ...] = ()


@dataclass(frozen=True, slots=True)
class Processor:
    """As in `HostFacts`."""

    name: str = ""
    features: tuple[str, ...] = ()


def of_kind(
    kind: str, session: bool, filtered: bool, screen: bool = False, arch: str = "",
) -> frozenset[str]:
    """The optional things that work on this kind of connection.

    "images": guests boot from disk images; "root_filesystems": containers from raw file systems.
    "transfer": disks can be sent to another host. "forward": a guest's SSH is a port of the host.
    "nwfilter": guests cannot speak for others. "grow": guests can be given more vcpus and memory
    while they run, "grow_disk" a larger root disk, "plug" a network card, or have it taken.
    `screen`: guests' screens can be reached over the connection's way.
    """
    found = set(BY_KIND.get(kind, frozenset()))
    if kind in GUESTS:
        found.add("forward" if session else "network")
    if screen:
        found.add("vnc_console")
    if filtered:
        found.add("nwfilter")
    if kind == "QEMU" and arch in growth.ARCHES:
        found.add("grow")
    return frozenset(found)


def shape_of(link: Link, attempt: Attempt) -> Shape:
    """Read once per connection."""
    shape = link.known.get("shape")
    if not isinstance(shape, Shape):
        shape = read_shape(attempt(link.conn.getCapabilities))
        link.known["shape"] = shape
    return shape


def processor_of(link: Link, attempt: Attempt) -> Processor:
    """What guests that are not emulated run on; nothing where there are none, or libvirt does not
    know it. Read once per connection."""
    known = link.known.get("processor")
    if isinstance(known, Processor):
        return known
    found = Processor()
    shape = shape_of(link, attempt)
    if link.kind == "QEMU" and OWN in shape.virt_types:
        about = None, shape.arch, shape.machine or None, OWN
        try:
            model = read_model(attempt(link.conn.getDomainCapabilities, *about, 0))
            if model:
                found = read_processor(attempt(
                    link.conn.baselineHypervisorCPU, *about, [model],
                    libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES,
                ))
        except libvirt.libvirtError as error:
            if errors.is_broken(error):
                raise
    link.known["processor"] = found
    return found


def read_model(text: str) -> str:
    """The model of the host's processor as an element, out of a domain's capabilities; "" where
    there is none."""
    for mode in ET.fromstring(text).iterfind("cpu/mode[@name='host-model']"):
        if mode.get("supported") == "yes":
            model = ET.Element("cpu")
            model.extend(mode)
            return ET.tostring(model, encoding="unicode")
    return ""


def read_processor(text: str) -> Processor:
    """The processor out of a model with all of its features."""
    model = ET.fromstring(text)
    names = (model.findtext("vendor"), model.findtext("model"))
    return Processor(" ".join(filter(None, names)), tuple(sorted(
        feature.get("name", "") for feature in model.iterfind("feature[@policy='require']")
    )))


def read_shape(text: str) -> Shape:
    """The shape out of the capabilities' XML."""
    root = ET.fromstring(text)
    arch = root.findtext("host/cpu/arch") or ""
    types: list[str] = []
    machine = ""
    machines: set[str] = set()
    for guest in root.findall("guest"):
        if guest.findtext("os_type") == "xen":
            continue
        block = guest.find("arch")
        if block is None or block.get("name") != arch:
            continue
        types += [t for d in block.findall("domain") if (t := d.get("type")) and t not in types]
        for one in block.iter("machine"):
            machines.add(one.get("canonical", one.text or ""))
        if any(m.text == "q35" for m in block.findall("machine")):
            machine = "q35"
    types.sort(key=lambda t: PREFERENCE.index(t) if t in PREFERENCE else len(PREFERENCE))
    return Shape(
        root.findtext("host/uuid") or "", arch, tuple(types), machine, tuple(sorted(machines)),
        tuple(sorted(map(_cell, root.iterfind("host/topology/cells/cell")))),
    )


def _cell(element: ET.Element) -> NumaCell:
    found = sorted(int(cpu.get("id", "0")) for cpu in element.iterfind("cpus/cpu"))
    memory = element.find("memory")
    return NumaCell(
        int(element.get("id", "0")), ranges(found), len(found), kib(memory) // 1024,
    )


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as libvirt writes them: 0 1 2 3 8 is "0-3,8"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)


def cells(link: Link, attempt: Attempt, whole_mib: int) -> tuple[NumaCell, ...]:
    """The NUMA cells that guests can be bound to. The only one has the whole of the memory: what
    was added while the host ran, the capabilities leave out, and so may the cell's counters."""
    if link.kind not in ("QEMU", "TEST"):
        return ()
    found: list[NumaCell] = []
    known = shape_of(link, attempt).cells
    if len(known) == 1:
        return (known[0]._replace(memory_mib=whole_mib),)
    for cell in known:
        try:
            stats = attempt(link.conn.getMemoryStats, cell.id, 0)
            found.append(cell._replace(memory_mib=int(stats["total"]) // 1024))
        except libvirt.libvirtError as error:
            if errors.is_broken(error):
                raise
            found.append(cell)
    return tuple(found)


def memory_mib(link: Link, attempt: Attempt) -> int:
    """All of the host's memory. The node's info leaves memory out that was added while it ran."""
    try:
        stats = attempt(link.conn.getMemoryStats, libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
        return int(stats["total"]) // 1024
    except libvirt.libvirtError as error:
        if errors.code_of(error) != libvirt.VIR_ERR_NO_SUPPORT:
            raise
    return int(attempt(link.conn.getInfo)[1])


def spent(link: Link, attempt: Attempt) -> Spent | None:
    """What its processors have spent since the host was started; None where libvirt does not count
    it."""
    try:
        told = attempt(link.conn.getCPUStats, libvirt.VIR_NODE_CPU_STATS_ALL_CPUS, 0)
    except libvirt.libvirtError as error:
        if errors.code_of(error) not in (
            libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG
        ):
            raise
        return None
    if not all(part in told for part in ("kernel", "user", "idle", "iowait")):
        return None
    return Spent(
        (int(told["kernel"]) + int(told["user"])) / 1e9,
        (int(told["idle"]) + int(told["iowait"])) / 1e9,
    )


def booted_at(since: Spent, processors: int) -> float:
    """When the host was started, seconds since 1970, to the minute: all that its processors have
    spent since then, over how many they are."""
    return round((time.time() - (since.busy + since.idle) / processors) / 60) * 60.0


def load_since(link: Link, now: Spent) -> float | None:
    """The part that was busy of what was spent since this was last asked over the link; None the
    first time. In steps, for what depends on it is reckoned anew when it changes."""
    before: Spent | None = link.known.get("spent")
    link.known["spent"] = now
    if before is None:
        return None
    busy, idle = now.busy - before.busy, now.idle - before.idle
    if busy < 0 or idle < 0 or busy + idle == 0:
        return None
    return round(round(busy / (busy + idle) * LOAD_STEPS) / LOAD_STEPS, 2)


def version_text(number: int) -> str:
    """9000000 is "9.0.0"."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
