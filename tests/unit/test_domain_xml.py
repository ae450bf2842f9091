"""Every domain that we write is valid by libvirt's own schema, whatever users call things."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from treadle.errors import InvalidInput
from treadle.hypervisor.base import DomainSpec, ImageSpec, Seed
from treadle.hypervisor.libvirt.domain_xml import (
    NAMESPACE,
    Mark,
    Place,
    canonical_uuid,
    domain_name,
    domain_xml,
    probe_xml,
    read_mark,
)
from treadle.hypervisor.libvirt.network import filter_xml, network_xml, parse_subnet

SCHEMAS = Path("/usr/share/libvirt/schemas")
UUID = "0a1b2c3d-4e5f-4678-9abc-def012345678"
IMAGE = ImageSpec("ab" * 32, "qcow2", 1000, 1 << 20)
PLACES = {
    "emulated": Place("qemu", "/var/lib/libvirt/treadle", "x86_64", "q35", network="treadle"),
    "kvm": Place(
        "kvm", "/var/lib/libvirt/treadle", "x86_64", "q35", network="treadle",
        net_filter="treadle-clean",
    ),
    "bridge": Place("kvm", "/p", "x86_64", bridge="br0"),
    "rootless": Place("qemu", "/home/a b&c/pool", "x86_64", "q35"),
    "arm": Place("kvm", "/p", "aarch64", network="treadle"),
    "test": Place("test", "/p", network="treadle"),
}
HOSTILE = [
    "", "web", "a<b", "a&b", "]]>", '"><disk/>', "';--", "\u202eabc", "\U0001f9f6" * 30, "a\nb",
    "  spaced\tout  ", "x" * 5000, "<!--", "&lt;", "\ufffd",
]


def spec(**changes: Any) -> DomainSpec:
    values: dict[str, Any] = {
        "uuid": UUID, "name": "web", "generation": 7, "vcpus": 2, "memory_mib": 512,
        "disk_gib": 3, "mac": "52:54:00:00:00:01", "image": IMAGE, "seed": Seed("web"),
    }
    return DomainSpec(**{**values, **changes})


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    path = SCHEMAS / "domain.rng"
    if not path.exists():
        pytest.skip("libvirt's schemas are not installed")
    return etree.RelaxNG(etree.parse(str(path)))


def assert_valid(schema: etree.RelaxNG, text: str) -> None:
    document = etree.fromstring(text.encode())
    assert schema.validate(document), schema.error_log


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("image", [IMAGE, None], ids=["image", "blank"])
def test_a_domain_is_valid(schema: etree.RelaxNG, place: Place, image: ImageSpec | None) -> None:
    mark = Mark(7, "52:54:00:00:00:01", "abcd", 2222, {"project": "p"})
    assert_valid(schema, domain_xml(spec(image=image), place, mark))


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_words_change_no_structure(schema: etree.RelaxNG, word: str) -> None:
    place = PLACES["emulated"]

    def shape(text: str) -> list[str]:
        return [element.tag for element in ET.fromstring(text).iter() if element.tag != "title"]

    hostile = domain_xml(spec(name=word), place, Mark(7, values={word: word}))
    assert_valid(schema, hostile)
    assert shape(hostile) == shape(domain_xml(spec(), place, Mark(7, values={"a": "b"})))
    root = ET.fromstring(hostile)
    assert root.findtext("name") == domain_name(UUID)
    value = root.find(f"metadata/{{{NAMESPACE}}}instance/{{{NAMESPACE}}}value")
    assert value is not None
    assert (value.text or "").split() == word.split()


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_words_at_all(name: str, values: dict[str, str]) -> None:
    try:
        text = domain_xml(spec(name=name), PLACES["emulated"], Mark(1, values=values))
    except InvalidInput:
        return
    ET.fromstring(text)


@pytest.mark.parametrize("word", ["a\x00b", "\x1b[31m", "a\x08", "\ufffe", "\ud800"])
def test_what_xml_cannot_carry_is_refused(word: str) -> None:
    with pytest.raises(InvalidInput):
        domain_xml(spec(name=word), PLACES["emulated"], Mark(1))
    with pytest.raises(InvalidInput):
        domain_xml(spec(), PLACES["emulated"], Mark(1, values={"key": word}))


def test_the_chain_of_disks_is_written_to_its_end() -> None:
    """QEMU then opens no file that only the header of an image names."""
    root = ET.fromstring(domain_xml(spec(), PLACES["kvm"], Mark(1)))
    backing = root.find("devices/disk/backingStore")
    assert backing is not None
    assert backing.find("format").attrib == {"type": "qcow2"}  # type: ignore[union-attr]
    end = backing.find("backingStore")
    assert end is not None
    assert len(end) == 0


def test_what_is_not_for_a_guest_is_not_there() -> None:
    root = ET.fromstring(domain_xml(spec(), PLACES["kvm"], Mark(1)))
    assert [one.attrib for one in root.iterfind("devices/graphics")] == [{"type": "vnc"}]
    assert [one.attrib for one in root.iterfind("devices/graphics/listen")] == [{"type": "socket"}]
    usb = root.find("devices/controller[@type='usb']")
    assert usb is not None
    assert usb.get("model") == "none"
    assert root.findtext("on_crash") == "destroy"
    assert root.find("features/acpi") is not None


def test_a_mark_is_read_as_it_was_written() -> None:
    mark = Mark(12, "52:54:00:00:00:01", "0123", 20022, {"a": "b", "c<": "d&"})
    assert read_mark(mark.text()) == mark
    assert read_mark(ET.tostring(mark.xml(), encoding="unicode")) == mark
    assert NAMESPACE not in mark.text(), "libvirt puts the namespace on, and refuses it twice"


@pytest.mark.parametrize(
    "text", ["", "<", "<instance/>", "<instance generation='-3' forward='x'/>"]
)
def test_a_mark_that_cannot_be_read_says_nothing(text: str) -> None:
    assert read_mark(text) == Mark(0)


def test_a_uuid_is_one_way_of_writing() -> None:
    assert canonical_uuid(UUID.upper()) == UUID
    assert canonical_uuid(UUID.replace("-", "")) == UUID
    for wrong in ("", "..", "../x", UUID + "x"):
        with pytest.raises(InvalidInput):
            canonical_uuid(wrong)


def test_the_probe_the_network_and_the_filter_are_valid(schema: etree.RelaxNG) -> None:
    assert_valid(schema, probe_xml("treadle-probe", UUID, PLACES["kvm"], "/p/disk"))
    for kind, text in (
        ("network", network_xml("treadle", parse_subnet("10.64.0.0/24"))),
        ("nwfilter", filter_xml()),
    ):
        rng = etree.RelaxNG(etree.parse(str(SCHEMAS / f"{kind}.rng")))
        assert_valid(rng, text)


@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata", "ide", "usb"])
@pytest.mark.parametrize("device", ["disk", "cdrom"])
def test_a_rescue_disk_beside_the_others_is_what_it_boots_from(
    schema: etree.RelaxNG, device: str, bus: str
) -> None:
    rescue = ImageSpec("b" * 64, "qcow2", 10, 10)
    wish = spec(rescue=rescue, rescue_on=(device, bus))
    text = domain_xml(wish, PLACES["emulated"], Mark(1, ""))
    assert_valid(schema, text)
    disks = ET.fromstring(text).findall("devices/disk")
    targets = [disk.find("target").get("dev") for disk in disks]
    assert targets[:2] == ["vda", "vdb"]
    assert [disk.find("boot") is not None for disk in disks] == [False, False, True]
    assert disks[2].get("device") == device
    assert ET.fromstring(text).find("os/boot") is None
    assert rescue.sha256[:16] in disks[2].find("source").get("file")
