"""Guests that are given their network card, and have it taken, while they run."""

from __future__ import annotations

from uuid import uuid4

import libvirt
import pytest

from tests.contract.conftest import World
from treadle.hypervisor.base import (
    AtNextStart,
    Diagnostics,
    Domain,
    DomainSpec,
    HostRefused,
    Plugs,
    Power,
)


def seen(world: World, uuid: str) -> Domain:
    found = world.driver.observe(uuid)
    assert found is not None
    return found


def cards(world: World, uuid: str) -> list[str]:
    """The MAC addresses of the cards of what runs."""
    assert isinstance(world.driver, Diagnostics)
    return [one.mac for one in world.driver.diagnostics(uuid).nics]


def without(world: World, uuid: str, generation: int) -> DomainSpec:
    return world.spec(uuid, generation, mac="")


@pytest.fixture
def driver(world: World) -> Plugs:
    if "plug" not in world.driver.facts().capabilities:
        pytest.skip("it gives guests no card while they run")
    assert isinstance(world.driver, Plugs)
    return world.driver


def test_one_without_a_card_is_one_like_others(world: World) -> None:
    uuid = world.new(mac="")
    world.driver.start(uuid)
    found = seen(world, uuid)
    assert (found.power, found.addresses, found.changed) == (Power.RUNNING, (), ())
    if "plug" not in world.driver.facts().capabilities and isinstance(world.driver, Plugs):
        with pytest.raises(HostRefused):
            world.driver.plug(world.spec(uuid, 2))
        assert seen(world, uuid).generation == 1
    # What is off has its definition for it.
    world.driver.power_off(uuid)
    world.driver.define(world.spec(uuid, 2))
    assert (seen(world, uuid).generation, seen(world, uuid).changed) == (2, ())


def test_it_is_given_its_card_once(world: World, driver: Plugs) -> None:
    uuid = world.new(mac="")
    world.driver.start(uuid)
    assert cards(world, uuid) == []
    mac = world.spec(uuid).mac
    if world.behind is not None:
        # As a controller leaves it that died when the guest had it and nothing was stored.
        world.behind.conn.lookupByUUIDString(uuid).attachDeviceFlags(
            f"<interface type='network'><mac address='{mac}'/><source network='treadle'/>"
            "<model type='virtio'/></interface>", libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )
        assert (cards(world, uuid), seen(world, uuid).generation) == ([mac], 1)
    for _ in range(2):
        driver.plug(world.spec(uuid, 2))
        found = seen(world, uuid)
        assert (found.power, found.generation, found.changed) == (Power.RUNNING, 2, ())
        assert cards(world, uuid) == [mac]
    with pytest.raises(HostRefused):
        driver.plug(without(world, uuid, 1))
    assert (seen(world, uuid).generation, cards(world, uuid)) == (2, [mac])
    # It outlasts a save, and what is stored has it too.
    world.driver.suspend(uuid)
    world.driver.start(uuid)
    assert (seen(world, uuid).generation, cards(world, uuid)) == (2, [mac])
    world.driver.power_off(uuid)
    assert seen(world, uuid).generation == 2
    world.driver.start(uuid)
    assert cards(world, uuid) == [mac]


def test_a_guest_that_does_not_let_go_of_it_is_without_it_from_its_next_start_on(
    world: World, driver: Plugs
) -> None:
    uuid = world.new()
    world.driver.start(uuid)
    world.driver.pause(uuid)
    with pytest.raises(AtNextStart):
        driver.plug(without(world, uuid, 2))
    found = seen(world, uuid)
    assert (found.power, found.generation, found.changed) == (Power.PAUSED, 2, ())
    driver.plug(without(world, uuid, 2))
    # It may let go at any time: it is not given back what it was to let go of.
    with pytest.raises(HostRefused):
        driver.plug(world.spec(uuid, 3))
    assert seen(world, uuid).generation == 2
    world.driver.power_off(uuid)
    world.driver.start(uuid)
    assert cards(world, uuid) == []
    driver.plug(world.spec(uuid, 3))
    assert (seen(world, uuid).generation, len(cards(world, uuid))) == (3, 1)


def test_a_paused_one_is_given_it_and_what_does_not_run_is_refused(
    world: World, driver: Plugs
) -> None:
    uuid = world.new(mac="")
    with pytest.raises(HostRefused):
        driver.plug(world.spec(uuid, 2))
    with pytest.raises(HostRefused):
        driver.plug(world.spec(str(uuid4()), 2))
    world.driver.start(uuid)
    world.driver.pause(uuid)
    driver.plug(world.spec(uuid, 2))
    found = seen(world, uuid)
    assert (found.power, found.generation, len(cards(world, uuid))) == (Power.PAUSED, 2, 1)
    world.driver.resume(uuid)
    assert len(cards(world, uuid)) == 1
