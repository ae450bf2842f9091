"""What a definition allows a guest to come to, and what a running one lacks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import product

import pytest
from lxml import etree
from tests.unit.test_domain_xml import PLACES, SCHEMAS, spec

from treadle.compute import changes, lifecycle
from treadle.compute.lifecycle import Call, Context
from treadle.compute.model import MOST_KEYS, Goal, Instance, Mode, Phase, State
from treadle.compute.reconciler import spec_of
from treadle.compute.store import Loaded, compact
from treadle.hypervisor.base import Domain, HostRefused, ImageSpec, Power
from treadle.hypervisor.libvirt import enlargement, growth, moves, shape
from treadle.hypervisor.libvirt.domain_xml import NAMESPACE, Mark, domain_xml, read_mark

MARK = f"{{{NAMESPACE}}}instance"
PLACE = PLACES["emulated"]
GIB = 1024


def defined(most: tuple[int, int] | None, place: str = "emulated") -> str:
    return domain_xml(spec(most=most), PLACES[place], Mark(7))


def mark_of(text: str) -> Mark:
    found = ET.fromstring(text).find(f"metadata/{MARK}")
    assert found is not None
    return read_mark(ET.tostring(found, encoding="unicode"))


@pytest.mark.parametrize("most", [(8, 4096), (8, 512), (2, 4096)], ids=str)
@pytest.mark.parametrize("place", ["emulated", "kvm", "rootless"])
def test_a_definition_with_room_is_valid_and_its_mark_says_so(
    most: tuple[int, int], place: str
) -> None:
    text = defined(most, place)
    schema = etree.RelaxNG(etree.parse(str(SCHEMAS / "domain.rng")))
    assert schema.validate(etree.fromstring(text.encode())), schema.error_log
    assert mark_of(text).most == most
    assert not shape.changed(text, MARK)
    root = ET.fromstring(text)
    vcpu = root.find("vcpu")
    assert vcpu is not None
    assert (vcpu.get("current", vcpu.text), root.findtext("memory")) == ("2", "512")


@pytest.mark.parametrize("place", ["test", "arm", "bridge", "emulated"])
def test_any_other_definition_is_as_it_was(place: str) -> None:
    assert defined((2, 512), place) == defined(None, place)
    assert mark_of(defined(None, place)).most is None
    if place in ("test", "arm"):
        assert defined((8, 4096), place) == defined(None, place)


@pytest.mark.parametrize(("tag", "part"), [("vcpu", "vcpus"), ("maxMemory", "memory")])
def test_somebody_elses_change_of_the_room_shows(tag: str, part: str) -> None:
    root = ET.fromstring(defined((8, 4096)))
    found = root.find(tag)
    assert found is not None
    found.text = str(2 * int(found.text or "0"))
    assert shape.changed(ET.tostring(root, encoding="unicode"), MARK) == (part,)


def test_the_mark_keeps_it_and_takes_nothing_else() -> None:
    assert read_mark(Mark(3, most=(4, 1024)).text()).most == (4, 1024)
    assert read_mark(Mark(3, disk=2).text()).disk == 2
    for text in ("", "4", "4:", ":1", "4:x", "-4:1", "4:1:1", "4:1 ", "\u0664:1", "9" * 12 + ":1"):
        assert growth.read(text) is None


def running(memory_mib: int, *modules: int) -> ET.Element:
    """A live definition, as libvirt has it: booted with that, and then given these."""
    whole = memory_mib + sum(modules)
    root = ET.fromstring(f"<domain><memory unit='KiB'>{whole * 1024}</memory><devices/></domain>")
    devices = root.find("devices")
    assert devices is not None
    for slot, size in enumerate(modules):
        devices.append(ET.fromstring(
            f"<memory model='dimm'><target><size unit='KiB'>{size * 1024}</size></target>"
            f"<address type='dimm' slot='{slot}'/></memory>"
        ))
    return root


def test_a_module_is_what_is_lacking_in_the_first_free_slot() -> None:
    assert growth.module(running(512), 512) == ""
    assert growth.module(running(512, 512), 768) == "", "nothing is taken away"
    found = ET.fromstring(growth.module(running(512, 128, 128), 1024))
    assert found.findtext("target/size") == "256"
    address = found.find("address")
    assert address is not None
    assert address.get("slot") == "2"
    root = running(512, 128, 128)
    devices = root.find("devices")
    assert devices is not None
    devices.remove(devices[0])
    first = ET.fromstring(growth.module(root, 2048)).find("address")
    assert first is not None
    assert first.get("slot") == "0"


@pytest.mark.parametrize(("root", "wanted"), [
    (running(512), 576), (running(512), 513), (running(64 * GIB), 65 * GIB),
    (running(512, *[128] * growth.SLOTS), 4096),
], ids=["half a block", "a MiB", "half a large block", "no slot"])
def test_what_the_guest_could_not_use_is_refused(root: ET.Element, wanted: int) -> None:
    with pytest.raises(HostRefused):
        growth.module(root, wanted)
    assert growth.module(running(64 * GIB), 66 * GIB)


# -- a larger disk

LARGER = spec(disks=(7, 1), disk_gib=2)
UUID = LARGER.uuid


def test_the_volume_is_told_by_the_path_of_what_the_guest_runs_on() -> None:
    text = defined(None)
    assert enlargement.is_due(text, LARGER)
    root = ET.fromstring(enlargement.snapshot_xml(text, PLACE.pool_path, LARGER))
    schema = etree.RelaxNG(etree.parse(str(SCHEMAS / "domainsnapshot.rng")))
    whole = etree.fromstring(ET.tostring(root))
    assert schema.validate(whole), schema.error_log
    assert {disk.get("name"): disk.get("snapshot") for disk in root.iter("disk")} == {
        f"{PLACE.pool_path}/{UUID}.qcow2": "external", "vdb": "no",
    }
    assert [one.get("file") for one in root.iter("source")] == [
        f"{PLACE.pool_path}/{UUID}.7.qcow2"
    ]


def test_a_guest_is_moved_once_and_only_from_what_lies_under() -> None:
    there = domain_xml(LARGER, PLACE, Mark(7))
    assert not enlargement.is_due(there, LARGER)
    for disks in ((9, 1), (1,), (9, 8, 7)):
        with pytest.raises(HostRefused):
            enlargement.is_due(there, replace(LARGER, disks=disks))


def test_where_layers_become_one_nothing_lies_under_it() -> None:
    text = domain_xml(replace(LARGER, disks=(9, 7, 1)), PLACE, Mark(7, values={"id": "3"}))
    found = ET.fromstring(moves.of_one(text))
    own, seed = found.findall("devices/disk")
    sources = [one.get("file") for one in own.iter("source")]
    assert sources == [f"{PLACE.pool_path}/{UUID}.9.qcow2"]
    [under] = own.findall("backingStore")
    assert len(under) == 0
    assert seed.find("backingStore") is None
    assert mark_of(ET.tostring(found, encoding="unicode")) == mark_of(text)
    assert not shape.changed(ET.tostring(found, encoding="unicode"), MARK)


# -- when it is asked for

BEFORE = compact({"vcpus": 1, "memory_mib": 256, "disk_gib": 1, "disks": "1", "flavor_id": 1,
                  "flavor": "{}"})
ROW = Instance(
    id=1, uuid="11111111-2222-4333-8444-555555555555", name="vm", flavor_id=2, vcpus=2,
    memory_mib=512, disk_gib=1, image_id=1, mac="", user_data="", ssh_keys=(), goal=Goal.RUNNING,
    state=State.RUNNING, phase=Phase.DEFINED, revision=2, generation=5, settled_generation=4,
    graceful=True, deadline=100.0, attempts=1, excluded=frozenset(), batch="b", rollback=False,
    host_id=7, address=None, fault=None, created_at=0.0, launched_at=1.0, deleted_at=None,
    mode=Mode.RESIZED, before=BEFORE, most=(4, 1024),
)
SEEN = Domain(ROW.uuid, Power.RUNNING, 4, autostart=True, room=(4, 1024))
ANEW = Call("shut_down")


def test_what_only_is_to_have_more_is_given_it() -> None:
    assert lifecycle.plan(ROW, SEEN, Context()) == Call("grow")
    for sizes in ((2, 256), (1, 512), (4, 1024)):
        row = replace(ROW, vcpus=sizes[0], memory_mib=sizes[1])
        assert lifecycle.plan(row, SEEN, Context()) == Call("grow")
    one = replace(ROW, disks=(2, 1), disk_gib=2)
    assert lifecycle.plan(one, replace(SEEN, disk_grows=True), Context()) == Call("grow")
    alone = replace(one, vcpus=1, memory_mib=256)
    assert lifecycle.plan(
        alone, replace(SEEN, disk_grows=True, room=None), Context()
    ) == Call("grow"), "a disk needs no room"
    done = replace(SEEN, generation=5)
    assert lifecycle.plan(ROW, done, Context()) == lifecycle.Settle(State.RUNNING)


@pytest.mark.parametrize(("row", "seen"), [
    (replace(ROW, vcpus=5), SEEN), (replace(ROW, memory_mib=1025), SEEN),
    (ROW, replace(SEEN, room=None)), (ROW, replace(SEEN, generation=3)),
    (replace(ROW, disks=(2, 1), disk_gib=2), SEEN),
    (replace(ROW, disks=(2, 1), disk_gib=2), replace(SEEN, disk_grows=True, room=None)),
    (replace(ROW, disks=(2,), disk_gib=2), replace(SEEN, disk_grows=True)),
    (replace(ROW, vcpus=1, memory_mib=256), SEEN),
    (replace(ROW, memory_mib=128), SEEN), (replace(ROW, generation=6), SEEN),
    (replace(ROW, mode=Mode.NORMAL, before=""), SEEN),
    (replace(ROW, mode=Mode.NORMAL, settled_mode=Mode.RESIZED), SEEN),
], ids=["vcpus", "memory", "no room", "older", "disk", "disk without room", "another disk",
        "the same", "less", "refused", "reboot", "revert"])
def test_all_else_starts_anew(row: Instance, seen: Domain) -> None:
    assert lifecycle.plan(row, seen, Context()) == ANEW
    assert lifecycle.plan(row, seen, Context(late=True)) == Call("power_off")


def test_what_does_not_run_or_has_waited_too_long_starts_anew() -> None:
    assert lifecycle.plan(ROW, SEEN, Context(late=True)) == Call("power_off")
    for power, answer in ((Power.OFF, "define"), (Power.PAUSED, "power_off")):
        seen = replace(SEEN, power=power)
        assert lifecycle.plan(ROW, seen, Context()) == Call(answer)
    stopped = replace(ROW, goal=Goal.STOPPED, state=State.STOPPED)
    assert lifecycle.plan(stopped, SEEN, Context()) == ANEW


def test_growing_is_seen_from_what_a_resize_makes_of_a_row() -> None:
    """`changes.resized` and `changes.grown` go by the same columns."""
    for vcpus, memory_mib, disk_gib in product((1, 2), (256, 512), (1, 2)):
        was = replace(
            ROW, vcpus=1, memory_mib=256, generation=4, mode=Mode.NORMAL, before="",
        )
        size = {"vcpus": vcpus, "memory_mib": memory_mib, "disk_gib": disk_gib}
        made = changes.resized(was, size)
        row = replace(
            was, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib, mode=made["mode"],
            disks=tuple(map(int, made["disks"].split(","))), generation=made["generation"],
            before=BEFORE,
        )
        assert changes.grown(row) == {
            name for name, least in (("vcpus", 1), ("memory_mib", 256), ("disk_gib", 1))
            if getattr(row, name) > least
        }
        assert not changes.grown(replace(row, disks=(7, *row.disks)))


def test_what_was_written_to_a_larger_disk_outlives_the_wish_for_it() -> None:
    row = replace(ROW, disks=(2, 1), disk_gib=2)
    whole = changes.undone(row)
    assert (whole["disks"], whole["disk_gib"], whole["vcpus"]) == ("1", 1, 1)
    assert changes.undone(row, 1) == whole, "it is on the old one"
    kept = changes.undone(row, 2)
    assert (kept["disks"], kept["disk_gib"], kept["vcpus"]) == ("2,1", 2, 1)
    # What it was moved onto before is part of what was.
    later = replace(
        row, disks=(5, 2, 1), before=BEFORE.replace('"disks":"1"', '"disks":"2,1"')
    )
    assert changes.undone(later, 2)["disks"] == "2,1"
    assert changes.undone(replace(ROW, mode=Mode.NORMAL, before=""), 1) == {
        "mode": Mode.NORMAL, "before": "",
    }


def test_a_spec_says_what_the_flavor_says() -> None:
    image = ImageSpec("ab" * 32, "qcow2", 1, 1)
    loaded = Loaded(ROW, image, None, None, None, None, None, 0.0)
    assert spec_of(loaded, "cloud", False).most == (4, 1024)
    assert MOST_KEYS == ("treadle:max_vcpus", "treadle:max_memory_mib")
