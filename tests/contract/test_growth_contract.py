"""Guests that are given more vcpus and memory while they run."""

from __future__ import annotations

from uuid import uuid4

import libvirt
import pytest

from tests.contract.conftest import World
from treadle.hypervisor.base import Diagnostics, Domain, Grows, HostRefused, Power

MOST = (4, 1024)


def seen(world: World, uuid: str) -> Domain:
    found = world.driver.observe(uuid)
    assert found is not None
    return found


def has(world: World, uuid: str) -> tuple[int, int]:
    """The vcpus and the memory of what runs."""
    assert isinstance(world.driver, Diagnostics)
    stats = world.driver.diagnostics(uuid)
    return len(stats.cpu_ns), stats.memory_mib


@pytest.fixture
def driver(world: World) -> Grows:
    if "grow" not in world.driver.facts().capabilities:
        pytest.skip("it gives guests nothing while they run")
    assert isinstance(world.driver, Grows)
    return world.driver


def test_a_guest_that_was_not_made_for_it_is_refused(world: World) -> None:
    uuid = world.new()
    world.driver.start(uuid)
    assert seen(world, uuid).room is None
    if isinstance(world.driver, Grows):
        with pytest.raises(HostRefused):
            world.driver.grow(world.spec(uuid, 2, vcpus=2))
    assert seen(world, uuid).generation == 1


def test_what_a_host_cannot_do_is_left_out_of_a_definition(world: World) -> None:
    uuid = world.new(most=MOST)
    assert seen(world, uuid).room is None, "it does not run"
    world.driver.start(uuid)
    can = "grow" in world.driver.facts().capabilities
    found = seen(world, uuid)
    assert found.room == (MOST if can else None)
    assert not found.changed
    assert [one.room for one in world.driver.observe_all()] == [found.room]


def test_what_is_stored_for_its_next_start_is_told(world: World) -> None:
    uuid = world.new()
    assert seen(world, uuid).stored == 0, "it does not run"
    world.driver.start(uuid)
    for number in (1, 2, 1):
        world.driver.define(world.spec(uuid, number))
        found = seen(world, uuid)
        assert (found.generation, found.stored, found.changed) == (1, number, ())
        assert found in world.driver.observe_all()
    world.driver.define(world.spec(uuid, 2))
    world.driver.power_off(uuid)
    assert (seen(world, uuid).generation, seen(world, uuid).stored) == (2, 0)


def test_it_is_given_once_what_it_lacks(world: World, driver: Grows) -> None:
    uuid = world.new(most=MOST)
    world.driver.start(uuid)
    assert has(world, uuid) == (1, 128)
    larger = world.spec(uuid, 2, vcpus=2, memory_mib=256, most=MOST)
    for _ in range(2):
        driver.grow(larger)
        found = seen(world, uuid)
        assert (found.power, found.generation, found.room) == (Power.RUNNING, 2, MOST)
        assert not found.changed
        assert has(world, uuid) == (2, 256)
    if world.behind is not None:
        # A call that libvirt carries out after we gave it up finds its slot taken.
        domain = world.behind.conn.lookupByUUIDString(uuid)
        with pytest.raises(libvirt.libvirtError):
            domain.attachDeviceFlags(
                "<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target>"
                "<address type='dimm' slot='0'/></memory>", libvirt.VIR_DOMAIN_AFFECT_LIVE,
            )
    driver.grow(world.spec(uuid, 3, vcpus=2, memory_mib=512, most=MOST))
    assert has(world, uuid) == (2, 512)
    with pytest.raises(HostRefused):
        driver.grow(larger)
    assert seen(world, uuid).generation == 3
    # What is stored is the same again, in one piece.
    world.driver.power_off(uuid)
    assert seen(world, uuid).generation == 3
    world.driver.start(uuid)
    assert has(world, uuid) == (2, 512)
    assert seen(world, uuid).room == MOST


def test_what_does_not_fit_or_does_not_run_is_refused(world: World, driver: Grows) -> None:
    uuid = world.new(most=MOST)
    larger = world.spec(uuid, 2, vcpus=2, most=MOST)
    with pytest.raises(HostRefused):
        driver.grow(larger)
    world.driver.start(uuid)
    for more in ({"vcpus": 5}, {"memory_mib": 1152}):
        with pytest.raises(HostRefused):
            driver.grow(world.spec(uuid, 2, most=MOST, **more))
    world.driver.pause(uuid)
    with pytest.raises(HostRefused):
        driver.grow(larger)
    assert (seen(world, uuid).generation, has(world, uuid)) == (1, (1, 128))
    with pytest.raises(HostRefused):
        driver.grow(world.spec(str(uuid4()), 2, most=MOST))


def test_what_it_was_given_outlasts_a_save(world: World, driver: Grows) -> None:
    uuid = world.new(most=(2, 256))
    world.driver.start(uuid)
    driver.grow(world.spec(uuid, 2, vcpus=2, memory_mib=256, most=(2, 256)))
    world.driver.suspend(uuid)
    world.driver.start(uuid)
    found = seen(world, uuid)
    assert (found.generation, found.room, has(world, uuid)) == (2, (2, 256), (2, 256))
