"""Disks that are sent from host to host while their guests are off: of each driver alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest

from tests.contract.conftest import World
from treadle.hypervisor.base import (
    HostRefused,
    Hypervisor,
    Moves,
    Power,
    Transfers,
    Unsupported,
)


@pytest.fixture
def target(world: World) -> Iterator[Hypervisor]:
    """Another host, with the image; the host itself where it sends no disks anyway."""
    if world.second is None:
        yield world.driver
        return
    other = world.second()
    other.prepare(replace(world.setup, subnet="10.77.9.0/24"))
    other.ensure_image(world.image, world.content)
    yield other
    for domain in other.observe_all():
        other.undefine(domain.uuid)
    other.close()


def sender(world: World) -> Transfers:
    assert isinstance(world.driver, Transfers)
    return world.driver


def test_a_disk_is_sent_whole_any_number_of_times(world: World, target: Hypervisor) -> None:
    uuid, told = world.new(), [(0, 1)]
    if "transfer" not in world.driver.facts().capabilities:
        with pytest.raises((Unsupported, HostRefused)):
            sender(world).send_disk(uuid, target, 60.0, lambda *at: told.append(at))
        return
    for _ in range(2):
        sender(world).send_disk(uuid, target, 60.0, lambda *at: told.append(at))
        done, total = told[-1]
        assert done == total > 0
        assert world.power(uuid) is Power.OFF, "nothing is changed at the source"
        found = target.observe(uuid)
        assert found is not None
        assert found.power is Power.REMNANT, "and nothing is defined at the target"
    target.define(world.spec(uuid, 2))
    target.start(uuid)
    found = target.observe(uuid)
    assert found is not None
    assert found.power is Power.RUNNING
    with pytest.raises(HostRefused, match="there"):
        sender(world).send_disk(uuid, target, 60.0, lambda *_at: None)
    target.undefine(uuid)
    assert target.observe(uuid) is None


def test_what_cannot_be_sent_is_refused_and_what_is_ended_leaves_the_source_as_it_was(
    world: World, target: Hypervisor
) -> None:
    uuid = world.new()
    if "transfer" not in world.driver.facts().capabilities:
        world.driver.start(uuid)
        with pytest.raises((Unsupported, HostRefused)):
            sender(world).send_disk(uuid, target, 60.0, lambda *_at: None)
        return

    class Ended(Exception):
        """Nobody wants it any more."""

    def end(_done: int, _total: int) -> None:
        raise Ended

    with pytest.raises(Ended):
        sender(world).send_disk(uuid, target, 60.0, end)
    target.undefine(uuid)
    assert target.observe(uuid) is None
    world.driver.start(uuid)
    with pytest.raises(HostRefused, match="not off"):
        sender(world).send_disk(uuid, target, 60.0, lambda *_at: None)
    assert target.observe(uuid) is None
    assert world.power(uuid) is Power.RUNNING
    with pytest.raises(HostRefused):
        sender(world).send_disk(
            "00000000-0000-4000-8000-00000000000e", target, 60.0, lambda *_at: None
        )


def test_what_a_guest_runs_on_is_named_as_hosts_name_what_they_offer(world: World) -> None:
    uuid = world.new()
    world.driver.start(uuid)
    assert isinstance(world.driver, Moves)
    facts = world.driver.facts()
    if facts.machines:
        assert world.driver.machine(uuid) in facts.machines
    else:
        assert world.name == "libvirt-test"
    with pytest.raises(HostRefused):
        world.driver.machine(str(uuid4()))
