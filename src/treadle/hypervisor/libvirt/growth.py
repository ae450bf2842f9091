"""Guests that can be given more processors and memory while they run.

A definition that allows it names the most that the guest may come to: sockets that are empty, and
slots for memory modules (DIMMs) in its one NUMA node, which libvirt wants for that. A module that
was added is never taken out: that takes the guest's consent.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import libvirt

from treadle.hypervisor.base import DomainSpec, HostRefused
from treadle.hypervisor.libvirt.connection import Attempt
from treadle.hypervisor.libvirt.shape import kib

ARCHES = ("x86_64",)
SLOTS = 16
"""How often a guest can be given memory until it is started anew."""
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
MIB = 1024
BLOCK_MIB, LARGE_MIB, LARGE_BLOCK_MIB = 128, 64 * 1024, 2048
"""Linux on x86 takes memory in blocks: of 128 MiB, or of up to 2 GiB where it was booted with 64
GiB or more (arch/x86/mm/init_64.c). It makes no use of a module that ends within one."""


def allow(root: ET.Element, most: tuple[int, int] | None, arch: str) -> None:
    """Make the definition one of a guest that may come to `most`, vcpus and MiB, while it runs."""
    vcpu, memory, cpu = root.find("vcpu"), root.find("memory"), root.find("cpu")
    if most is None or arch not in ARCHES or vcpu is None or memory is None or cpu is None:
        return
    vcpus, memory_mib = int(vcpu.text or "0"), kib(memory) // MIB
    if most[0] > vcpus:
        vcpu.text = str(most[0])
        vcpu.set("current", str(vcpus))
    if most[1] > memory_mib:
        room = ET.Element("maxMemory", {"slots": str(SLOTS), "unit": "MiB"})
        room.text = str(most[1])
        root.insert(list(root).index(memory), room)
        ET.SubElement(ET.SubElement(cpu, "numa"), "cell", {
            "id": "0", "cpus": f"0-{max(most[0], vcpus) - 1}", "memory": str(memory_mib),
            "unit": "MiB",
        })


def most_of(root: ET.Element) -> tuple[int, int] | None:
    """The vcpus and the memory in MiB that a guest of the definition can come to; None where it is
    what it has."""
    vcpu, room = root.find("vcpu"), kib(root.find("maxMemory")) // MIB
    if vcpu is None or not (room or vcpu.get("current")):
        return None
    return int(vcpu.text or "0"), room or kib(root.find("memory")) // MIB


def written(most: tuple[int, int]) -> str:
    """As the mark has it."""
    return f"{most[0]}:{most[1]}"


def read(text: str) -> tuple[int, int] | None:
    """What `written` made; None of anything else."""
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,12})", text)
    return None if found is None else (int(found[1]), int(found[2]))


def give(attempt: Attempt, domain: Any, most: tuple[int, int] | None, spec: DomainSpec) -> None:
    """Give the running domain what it lacks of the vcpus and the memory of `spec`.

    What is there is read anew, and a module goes to a slot that was seen to be free: a call that
    was given up, and is done by libvirt all the same, is not done twice. Errors: `HostRefused`.
    """
    root = ET.fromstring(attempt(domain.XMLDesc, 0))
    vcpu = root.find("vcpu")
    assert vcpu is not None
    vcpus = int(vcpu.get("current", vcpu.text or "0"))
    if spec.vcpus <= vcpus and spec.memory_mib <= kib(root.find("memory")) // MIB:
        return
    if most is None:
        raise HostRefused("it was not started as a guest that can be given more")
    if spec.vcpus > most[0] or spec.memory_mib > most[1]:
        raise HostRefused(f"it can come to {most[0]} vcpus and {most[1]} MiB while it runs")
    lacks = module(root, spec.memory_mib)
    if lacks:
        try:
            attempt(domain.attachDeviceFlags, lacks, LIVE)
        except libvirt.libvirtError:
            if module(ET.fromstring(attempt(domain.XMLDesc, 0)), spec.memory_mib):
                raise
    if vcpus < spec.vcpus:
        attempt(domain.setVcpusFlags, spec.vcpus, LIVE)


def module(root: ET.Element, memory_mib: int) -> str:
    """The memory module that a running domain lacks, as XML; "" where it has that much. Errors:
    `HostRefused` where the guest could make no use of it."""
    lacks = memory_mib - kib(root.find("memory")) // MIB
    if lacks <= 0:
        return ""
    booted = kib(root.find("memory")) // MIB
    used = set()
    for one in root.iterfind("devices/memory"):
        booted -= kib(one.find("target/size")) // MIB
        address = one.find("address")
        used.add("" if address is None else address.get("slot", ""))
    block = BLOCK_MIB if booted < LARGE_MIB else LARGE_BLOCK_MIB
    if lacks % block:
        raise HostRefused(
            f"it lacks {lacks} MiB of memory, and while it runs it takes multiples of {block} MiB"
        )
    free = next((n for n in range(SLOTS) if str(n) not in used), None)
    if free is None:
        raise HostRefused(f"it has been given memory {SLOTS} times since it was started")
    element = ET.Element("memory", {"model": "dimm"})
    target = ET.SubElement(element, "target")
    ET.SubElement(target, "size", {"unit": "MiB"}).text = str(lacks)
    ET.SubElement(target, "node").text = "0"
    ET.SubElement(element, "address", {"type": "dimm", "slot": str(free)})
    return ET.tostring(element, encoding="unicode")
