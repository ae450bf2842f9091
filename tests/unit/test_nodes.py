"""NUMA nodes: how they are shared out, and what a definition says of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from treadle.compute.model import NUMA_KEY, nodes_wanted, numa_nodes
from treadle.hypervisor.base import DomainSpec, GuestNode, HostRefused, NumaCell, Seed
from treadle.hypervisor.libvirt import capabilities, shape
from treadle.hypervisor.libvirt.domain_xml import NAMESPACE, Mark, Place, domain_xml
from treadle.scheduler import nodes

MARK = f"{{{NAMESPACE}}}instance"
CELLS = (NumaCell(0, "0-3,8", 5, 4096), NumaCell(1, "4-7", 4, 4096))


def define(*given: GuestNode, virt_type: str = "qemu", **more: object) -> ET.Element:
    spec = DomainSpec(
        "00000000-0000-4000-8000-000000000001", "web", 1, sum(n.vcpus for n in given) or 1,
        sum(n.memory_mib for n in given) or 512, 1, "", None, Seed("web"), nodes=given, **more,  # type: ignore[arg-type]
    )
    return ET.fromstring(domain_xml(
        spec, Place(virt_type, "/pool", "x86_64", "q35", cells=CELLS), Mark(1)
    ))


@pytest.mark.parametrize(("amount", "count", "shares"), [
    (4, 2, [2, 2]), (5, 2, [3, 2]), (1000, 3, [334, 333, 333]), (3, 1, [3]),
])
def test_shares_are_even_and_whole(amount: int, count: int, shares: list[int]) -> None:
    assert nodes.split(amount, count) == shares


def test_the_tightest_cells_with_room_are_chosen() -> None:
    free = [(4, 4096), (4, 1024), (4, 2048), (1, 9999)]
    assert nodes.choose(free, 1, 2, 1024) == [1]
    assert nodes.choose(free, 2, 4, 2048) == [1, 2]
    assert nodes.choose(free, 3, 5, 3000) == [0, 1, 2]
    assert nodes.choose(free, 1, 5, 512) is None
    assert nodes.choose(free, 2, 1, 512) is None, "a node without a processor"
    assert nodes.choose(free, 4, 8, 4096) is None
    assert nodes.choose([], 1, 1, 1) is None
    assert nodes.without(((4, 4096), (4, 1024)), 1, 3, 1000) == ((4, 4096), (1, 24))
    assert nodes.without(((4, 4096),), 2, 4, 2048) == ((4, 4096),)


def test_a_guest_of_two_nodes_is_bound_to_two_cells() -> None:
    root = define(GuestNode(1, 2, 600), GuestNode(0, 1, 500))
    [vcpu] = root.iterfind("vcpu")
    assert (vcpu.text, vcpu.attrib) == ("3", {"placement": "static", "cpuset": "0-3,8,4-7"})
    assert [one.attrib for one in root.iterfind("cpu/numa/cell")] == [
        {"id": "0", "cpus": "0-1", "memory": "600", "unit": "MiB"},
        {"id": "1", "cpus": "2", "memory": "500", "unit": "MiB"},
    ]
    assert [one.attrib for one in root.iterfind("numatune/*")] == [
        {"mode": "strict", "nodeset": "0,1"},
        {"cellid": "0", "mode": "strict", "nodeset": "1"},
        {"cellid": "1", "mode": "strict", "nodeset": "0"},
    ]
    assert [(one.get("vcpu"), one.get("cpuset")) for one in root.iterfind("cputune/*")] == [
        ("0", "4-7"), ("1", "4-7"), ("2", "0-3,8"),
    ]


def test_a_guest_of_one_node_needs_no_pins() -> None:
    root = define(GuestNode(1, 2, 600), most=(4, 2048))
    assert root.find("cputune") is None
    assert root.find("maxMemory") is None, "what is bound is given nothing while it runs"
    [vcpu] = root.iterfind("vcpu")
    assert (vcpu.text, vcpu.get("cpuset"), vcpu.get("current")) == ("2", "4-7", None)


def test_a_cell_that_the_host_has_not_got_is_refused() -> None:
    with pytest.raises(HostRefused, match="no NUMA node 2"):
        define(GuestNode(0, 1, 256), GuestNode(2, 1, 256))


@pytest.mark.parametrize("path", ["numatune/memory", "numatune/memnode", "cputune/vcpupin"])
def test_what_somebody_changes_of_it_shows(path: str) -> None:
    root = define(GuestNode(0, 1, 256), GuestNode(1, 1, 256))
    assert not shape.changed(ET.tostring(root, encoding="unicode"), MARK)
    found = root.find(path)
    assert found is not None
    found.set("cpuset" if "pin" in path else "nodeset", "7")
    assert shape.changed(ET.tostring(root, encoding="unicode"), MARK) == ("nodes",)
    plain = define()
    ET.SubElement(ET.SubElement(plain, "numatune"), "memory", {"mode": "strict", "nodeset": "0"})
    assert shape.changed(ET.tostring(plain, encoding="unicode"), MARK) == ("nodes",)


def test_a_mark_that_is_older_than_nodes_says_nothing_of_them() -> None:
    root = define()
    [mark] = root.iterfind(f"metadata/{MARK}")
    mark.set("shape", mark.get("shape", "").rpartition(":")[0])
    ET.SubElement(ET.SubElement(root, "numatune"), "memory", {"mode": "strict", "nodeset": "0"})
    assert not shape.changed(ET.tostring(root, encoding="unicode"), MARK)


def test_cells_out_of_the_capabilities() -> None:
    def cell(id: int, kib: int, *cpus: int) -> str:
        inner = "".join(f"<cpu id='{cpu}' socket_id='0'/>" for cpu in cpus)
        return (f"<cell id='{id}'><memory unit='KiB'>{kib}</memory>"
                f"<cpus num='{len(cpus)}'>{inner}</cpus></cell>")

    found = capabilities.read_shape(
        "<capabilities><host><cpu><arch>x86_64</arch></cpu><topology><cells num='3'>"
        + cell(1, 4194304, 4, 5, 6, 7) + cell(0, 4194304, 8, 0, 1, 2, 3) + cell(2, 1024)
        + "</cells></topology></host></capabilities>"
    )
    assert found.cells == (*CELLS, NumaCell(2, "", 0, 1))


@pytest.mark.parametrize(("said", "wanted"), [
    ("2", 2), ("10000", 10_000), ("", 0), ("-1", 0), ("two", 0), ("1" * 10, 0),
])
def test_a_flavor_and_its_extra_specs_say_the_same_number(said: str, wanted: int) -> None:
    specs = {NUMA_KEY: said}
    assert nodes_wanted(specs) == wanted
    assert numa_nodes(json.dumps({"extra_specs": specs})) == wanted
