"""Guests whose root disk becomes larger while they run."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.contract.conftest import World
from treadle.hypervisor.base import (
    Domain,
    Grows,
    HostRefused,
    Power,
    Snapshots,
    VerbTimeout,
)
from treadle.hypervisor.fake import FakeHypervisor
from treadle.hypervisor.libvirt import enlargement
from treadle.hypervisor.libvirt.connection import Attempt
from treadle.hypervisor.libvirt.domain_xml import disk_volume

MOST = (2, 256)


def seen(world: World, uuid: str) -> Domain:
    found = world.driver.observe(uuid)
    assert found is not None
    assert found in world.driver.observe_all()
    return found


def chain(world: World, uuid: str) -> tuple[int, ...]:
    """The GiB that what runs sees, and the numbers of the volumes that it is on."""
    if world.behind is None:
        assert isinstance(world.driver, FakeHypervisor)
        guest = world.driver.host.guests[uuid]
        return guest.live[2], *sorted((n for n in guest.disks if n <= guest.on), reverse=True)
    domain = world.behind.conn.lookupByUUIDString(uuid)
    disk = ET.fromstring(domain.XMLDesc(0)).find("devices/disk")
    assert disk is not None
    numbers = {disk_volume(uuid, number): number for number in range(1, 50)}
    names = [one.get("file", "").rpartition("/")[2] for one in disk.iter("source")]
    return domain.blockInfo("vda")[0] >> 30, *(numbers[one] for one in names if one in numbers)


@pytest.fixture
def driver(world: World) -> Grows:
    if "grow_disk" not in world.driver.facts().capabilities:
        uuid = world.new()
        world.driver.start(uuid)
        assert not seen(world, uuid).disk_grows
        pytest.skip("its guests' disks do not grow while they run")
    assert isinstance(world.driver, Grows)
    return world.driver


def test_a_running_guest_is_moved_onto_a_larger_volume(
    world: World, driver: Grows, tmp_path: Path
) -> None:
    uuid = world.new()
    assert not seen(world, uuid).disk_grows, "it does not run"
    world.driver.start(uuid)
    found = seen(world, uuid)
    assert (found.disk_grows, found.disk, found.room) == (True, 0, None)
    larger = world.spec(uuid, 2, disks=(2, 1), disk_gib=3)
    for _ in range(2):
        driver.grow(larger)
        found = seen(world, uuid)
        assert (found.power, found.generation, found.disk) == (Power.RUNNING, 2, 2)
        assert not found.changed
        assert chain(world, uuid) == (3, 2, 1)
    driver.grow(world.spec(uuid, 3, disks=(3, 2, 1), disk_gib=4))
    with pytest.raises(HostRefused):
        driver.grow(larger)
    assert (seen(world, uuid).generation, seen(world, uuid).disk) == (3, 3)
    # It is so after a save, in a copy, and from its next start on.
    world.driver.suspend(uuid)
    world.driver.start(uuid)
    assert chain(world, uuid) == (4, 3, 2, 1)
    assert seen(world, uuid).generation == 3
    assert isinstance(world.driver, Snapshots)
    world.driver.begin_copy(uuid)
    with (tmp_path / "copy").open("wb") as file:
        world.driver.fetch_copy(uuid, lambda block: file.write(block) and None)
    world.driver.drop_copy(uuid)
    if world.behind is not None:
        told = subprocess.run(
            ["qemu-img", "info", tmp_path / "copy"], capture_output=True, text=True, check=True,
        ).stdout
        assert "4 GiB" in told
        assert "backing" not in told
    world.driver.power_off(uuid)
    assert seen(world, uuid).generation == 3
    world.driver.start(uuid)
    assert chain(world, uuid) == (4, 3, 2, 1)
    assert seen(world, uuid).disk == 0
    # And taken back, it is on the old volume, as large as that is.
    world.driver.power_off(uuid)
    world.driver.define(world.spec(uuid, 4, disks=(1,)))
    world.driver.start(uuid)
    assert chain(world, uuid) == (1, 1)
    with pytest.raises(HostRefused):
        driver.grow(larger)
    world.driver.undefine(uuid)
    assert world.leftovers(uuid) == []


def test_it_is_given_with_the_rest_or_not_at_all(world: World, driver: Grows) -> None:
    uuid = world.new(most=MOST)
    with pytest.raises(HostRefused):
        driver.grow(world.spec(uuid, 2, disks=(2, 1), disk_gib=2, most=MOST))
    world.driver.start(uuid)
    for more in ({"vcpus": 3, "disks": (2, 1)}, {"disks": (9, 8)}, {"disks": (9, 2, 1)}):
        with pytest.raises(HostRefused):
            driver.grow(world.spec(uuid, 2, disk_gib=2, most=MOST, **more))
        found = seen(world, uuid)
        assert (found.generation, found.disk, chain(world, uuid)) == (1, 0, (1, 1))
    driver.grow(world.spec(
        uuid, 2, vcpus=2, memory_mib=256, disks=(2, 1), disk_gib=2, most=MOST
    ))
    found = seen(world, uuid)
    assert (found.generation, found.disk, found.room) == (2, 2, MOST)
    assert chain(world, uuid) == (2, 2, 1)
    # What it has already is not given again with the next.
    driver.grow(world.spec(
        uuid, 3, vcpus=2, memory_mib=256, disks=(3, 2, 1), disk_gib=3, most=MOST
    ))
    assert chain(world, uuid) == (3, 3, 2, 1)


CHANGES = frozenset({
    "createXML", "setMetadata", "defineXMLFlags", "snapshotCreateXML", "blockResize",
})


def on_each_change(
    monkeypatch: pytest.MonkeyPatch, do: Callable[[Callable[[], Any], str], Any]
) -> None:
    """Have `do` called in place of each call to libvirt that changes something, with that call and
    its name."""
    plain = Attempt.__call__

    def call(self: Attempt, function: Callable[..., Any], *arguments: Any) -> Any:
        def go() -> Any:
            return plain(self, function, *arguments)

        name = getattr(function, "__name__", "")
        return do(go, name) if name in CHANGES else go()

    monkeypatch.setattr(Attempt, "__call__", call)


def test_whoever_comes_after_a_call_that_was_given_up_goes_on_from_there(
    world: World, driver: Grows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the simulated host, the sweep looks into the midst of it."""
    if world.behind is None:
        return
    uuid = world.new()
    world.driver.start(uuid)
    numbers: tuple[int, ...] = (1,)
    names: list[str] = []

    def larger() -> Any:
        top = numbers[0] + 1
        return world.spec(uuid, top, disks=(top, *numbers), disk_gib=top)

    with monkeypatch.context() as patch:
        on_each_change(patch, lambda go, name: (names.append(name), go())[1])
        driver.grow(larger())
    numbers = (2, *numbers)
    assert names == [
        "createXML", "setMetadata", "defineXMLFlags", "snapshotCreateXML", "blockResize",
        "setMetadata",
    ]
    for at in range(len(names)):
        for is_done in (False, True):
            spec = larger()
            count = iter(range(100))

            def cut(go: Callable[[], Any], _name: str) -> Any:
                if next(count) != at:  # noqa: B023
                    return go()
                if is_done:  # noqa: B023
                    go()
                raise VerbTimeout("it was given up")

            with monkeypatch.context() as patch:
                on_each_change(patch, cut)
                with pytest.raises(VerbTimeout):
                    driver.grow(spec)
            last = is_done and at == len(names) - 1
            found = seen(world, uuid)
            assert found.generation == (spec.generation if last else spec.generation - 1)
            # Who has written to the new volume is known to be on it, and starts from it.
            _size, *volumes = chain(world, uuid)
            if volumes[0] == spec.disks[0]:
                assert found.disk == volumes[0]
                stored = world.behind.conn.lookupByUUIDString(uuid).XMLDesc(
                    libvirt.VIR_DOMAIN_XML_INACTIVE
                )
                assert disk_volume(uuid, volumes[0]) in stored
            driver.grow(spec)
            numbers = spec.disks
            found = seen(world, uuid)
            assert (found.power, found.generation) == (Power.RUNNING, spec.generation)
            assert (found.disk, found.changed) == (numbers[0], ())
            assert chain(world, uuid) == (spec.disk_gib, *numbers)


def test_what_comes_late_changes_nothing(world: World, driver: Grows) -> None:
    """libvirt carries out what was given up, after all else was done and taken back."""
    if world.behind is None:
        return
    uuid = world.new()
    world.driver.start(uuid)
    domain = world.behind.conn.lookupByUUIDString(uuid)
    folder = ET.fromstring(world.behind.pool().XMLDesc(0)).findtext("target/path") or ""
    larger = world.spec(uuid, 2, disks=(2, 1), disk_gib=2)
    late = enlargement.snapshot_xml(domain.XMLDesc(0), folder, larger)

    def nothing_comes_of_it(was: tuple[int, ...]) -> None:
        stored = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        with pytest.raises(libvirt.libvirtError):
            domain.snapshotCreateXML(late, enlargement.ONTO)
        if was != (2, 2, 1):
            with pytest.raises(libvirt.libvirtError):
                domain.blockResize(
                    f"{folder}/{disk_volume(uuid, 2)}", 2 << 30,
                    libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES,
                )
        assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == stored
        assert domain.snapshotNum() == 0
        if was:
            assert chain(world, uuid) == was

    driver.grow(larger)
    nothing_comes_of_it((2, 2, 1))
    driver.grow(world.spec(uuid, 3, disks=(3, 2, 1), disk_gib=3))
    nothing_comes_of_it((3, 3, 2, 1))
    world.driver.power_off(uuid)
    world.driver.define(world.spec(uuid, 4, disks=(1,)))
    nothing_comes_of_it(())
    world.driver.start(uuid)
    nothing_comes_of_it((1, 1))
