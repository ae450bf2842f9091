"""A root disk that is made larger while its guest runs, where its host refuses more than one thing.

The sweep has one fault at a time. Here the guest has been moved onto the new volume when the host
refuses the rest, and then refuses to shut it down as well: the wish is given up, the guest runs on,
and what it writes must be found by its next start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from brain import Brain
from memory import Clock, world_time
from scenarios import running, settle
from world import World

from treadle.compute import changes
from treadle.compute.model import Mode, State
from treadle.hypervisor.base import HostRefused
from treadle.hypervisor.fake_host import Fault, FaultKind


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = Clock()
    with world_time(clock):
        one = World(tmp_path, clock=clock)
        running(one)
        yield one


def given_up(world: World, seam: str) -> None:
    """The disk is to grow; the host refuses at that seam, and refuses to shut the guest down."""
    assert world.act(1, "enlarge") is not None

    def refuse(name: str) -> None:
        if name.startswith(seam):
            raise HostRefused("not this")

    world.on_seam = refuse
    world.machines[1].faults = [Fault("shut_down", 1, FaultKind.REFUSE, times=9)]
    brain = Brain(world, "refused")
    assert world.drive(brain)
    brain.close()
    world.on_seam = None
    world.machines[1].faults = []


def test_what_was_written_to_the_new_volume_is_found_by_the_next_start(world: World) -> None:
    given_up(world, "amid grow")
    row = world.get(1)
    assert (row.state, row.mode) == (State.RUNNING, Mode.NORMAL)
    assert (row.vcpus, row.memory_mib, row.disk_gib) == (1, 256, 2)
    assert (row.disks[1:], world.guest(1).on) == ((1,), row.disks[0])
    world.finish()
    assert not world.wrong
    guest = world.guest(1)
    guest.disks = {**guest.disks, guest.on: "what the guest has written"}
    for wish in ("stop", "start", "reboot"):
        assert world.act(1, wish) is not None
        settle(world)
        assert world.get(1).state is (State.STOPPED if wish == "stop" else State.RUNNING)
    assert world.guest(1).disks[row.disks[0]] == "what the guest has written"
    assert world.guest(1).on == row.disks[0]
    assert world.machines[1].starts[row.uuid] == 3
    world.check()
    assert not world.wrong


def test_where_nothing_was_done_all_is_as_before(world: World) -> None:
    before = world.get(1)
    given_up(world, "before grow")
    row = world.get(1)
    assert (row.vcpus, row.memory_mib, row.disk_gib, row.disks) == (1, 256, 1, before.disks)
    assert row.generation == before.generation
    world.finish()
    assert not world.wrong


def test_a_volume_that_is_taken_from_under_a_guest_is_caught(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of the test."""
    real = changes.undone
    monkeypatch.setattr(changes, "undone", lambda one, _on=0: real(one))
    given_up(world, "amid grow")
    world.finish()
    assert any("what runs" in one for one in world.wrong), world.wrong


def test_no_guest_is_stopped_for_a_disk_that_has_no_room(world: World) -> None:
    before = world.get(1)
    world.machines[1].faults = [Fault("grow", 1, FaultKind.FULL, times=9)]
    assert world.act(1, "enlarge") is not None
    settle(world)
    row = world.get(1)
    assert (row.state, row.mode, row.disk_gib, row.disks) == (
        State.RUNNING, Mode.NORMAL, 1, before.disks
    )
    assert row.fault is not None
    assert "no disk left" in row.fault
    assert world.machines[1].starts[row.uuid] == 1
    assert not world.machines[1].calls["shut_down"]
    # The next one finds room.
    world.machines[1].faults = []
    assert world.act(1, "enlarge") is not None
    settle(world)
    assert (world.get(1).mode, world.guest(1).live[2]) == (Mode.RESIZED, 2)
    world.finish()
    assert not world.wrong
