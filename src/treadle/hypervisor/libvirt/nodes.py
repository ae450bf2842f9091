"""Guests of NUMA nodes of their own, each bound to a NUMA cell of the host.

The guest's view is in `<cpu><numa>`. Its memory is taken of the cell alone (`strict`): where that
has none left, the guest does not start, rather than that it is slow and nobody knows why. Each of
its processors runs on those of its node's cell, and the emulator itself on those of all.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from treadle.hypervisor.base import GuestNode, HostRefused, NumaCell


def bind(root: ET.Element, nodes: Sequence[GuestNode], cells: Sequence[NumaCell]) -> None:
    """Make the definition one of a guest of `nodes`, which has what they have together. Errors:
    `HostRefused` where the host has no such cell."""
    known = {cell.id: cell.cpus for cell in cells}
    missing = sorted({node.cell for node in nodes} - known.keys())
    if missing:
        raise HostRefused(f"it has no NUMA node {missing[0]}")
    vcpu, cpu = root.find("vcpu"), root.find("cpu")
    assert vcpu is not None
    if cpu is None:
        cpu = ET.SubElement(root, "cpu")
    chosen = [node.cell for node in nodes]
    vcpu.set("placement", "static")
    vcpu.set("cpuset", ",".join(known[cell] for cell in sorted(set(chosen))))
    tuning = ET.Element("numatune")
    root.insert(list(root).index(vcpu) + 1, tuning)
    ET.SubElement(tuning, "memory", {
        "mode": "strict", "nodeset": ",".join(map(str, sorted(set(chosen)))),
    })
    pins = ET.Element("cputune")
    topology = ET.SubElement(cpu, "numa")
    first = 0
    for number, node in enumerate(nodes):
        after = first + node.vcpus
        ET.SubElement(tuning, "memnode", {
            "cellid": str(number), "mode": "strict", "nodeset": str(node.cell),
        })
        ET.SubElement(topology, "cell", {
            "id": str(number), "cpus": f"{first}-{after - 1}" if node.vcpus > 1 else f"{first}",
            "memory": str(node.memory_mib), "unit": "MiB",
        })
        for one in range(first, after):
            ET.SubElement(pins, "vcpupin", {"vcpu": str(one), "cpuset": known[node.cell]})
        first = after
    if len(nodes) > 1:
        root.insert(list(root).index(vcpu) + 1, pins)
