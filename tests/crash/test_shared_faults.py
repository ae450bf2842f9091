"""Hosts that share their storage: faults at the seams of moves and evacuations. What the guest has
written must be there at the end, whoever runs it, and nobody else may run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import OF_MOVES
from memory import Clock, world_time
from scenarios import Do, Scenario, act, ends, notice, running, settle
from sweep import of, sweep
from test_evacuation_faults import confirm
from world import World

from treadle.compute import changes
from treadle.compute.model import State

R, S, D = State.RUNNING, State.STOPPED, State.DELETED
DATA = "what the guest has written"
REFUSED = {"guest_stops": (S,), "stall": (S,), "refused": (S,), "full": (S,)}


def written(start: Do) -> Do:
    """The guest has written to its disk."""

    def done(world: World) -> None:
        running(world)
        guest = world.guest(1)
        guest.disks = dict.fromkeys(guest.disks, DATA)
        world.precious = DATA
        start(world)

    return done


def nothing(_world: World) -> None:
    """It runs."""


def wished(what: str) -> Do:
    """Somebody has wished that, and it was done."""

    def done(world: World) -> None:
        world.act(1, what)
        settle(world)

    return done


def failed(world: World) -> None:
    """It asked for it, its host has lost its power, and that is known."""
    world.create(ha="evacuate")
    settle(world)
    fails(world)


def failed_resized(world: World) -> None:
    """The same, of one whose new size can still be taken back."""
    world.create(ha="evacuate")
    settle(world)
    wished("enlarge")(world)
    fails(world)


def fails(world: World) -> None:
    """The guest has written to its disk, and its host loses its power."""
    guest = world.guest(1)
    guest.disks = dict.fromkeys(guest.disks, DATA)
    world.precious = DATA
    world.machines[1].power_failure()
    notice(world)


SCENARIOS = [
    Scenario("live", written(nothing), act("migrate"), ends(R, guest_stops=(S,))),
    Scenario("cold", written(nothing), act("migrate cold"), ends(R, **REFUSED)),
    Scenario("confirm", written(wished("migrate cold")), act("confirm"), ends(R, guest_stops=(S,))),
    Scenario("revert", written(wished("resize away")), act("revert"), ends(R, **REFUSED)),
    Scenario("delete", written(wished("migrate cold")), act("delete"), ends(D)),
    Scenario("evacuate a resized one", failed_resized, confirm, ends(R, **REFUSED),
             sizes=(4, 4, 4), waits=True),
    Scenario("evacuate", failed, confirm, ends(R, **REFUSED), sizes=(4, 4, 4), waits=True),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_a_disk_survives_every_fault(scenario: Scenario, tmp_path: Path) -> None:
    clock = Clock()
    with world_time(clock):
        count, wrong = sweep(
            World(tmp_path, scenario.sizes, clock=clock, shared=True), scenario,
            only=of(OF_MOVES),
        )
    shown = "\n".join(str(one) for one in wrong[:10])
    assert not wrong, f"{len(wrong)} of {count} cases went wrong:\n{shown}"
    assert count >= 250, f"the sweep has shrunk to {count} cases"


def test_a_disk_that_is_given_up_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of the test: one that is built anew has lost what was written."""
    monkeypatch.setattr(changes, "inherited", changes.evacuated)
    clock = Clock()
    with world_time(clock), pytest.raises(AssertionError, match="what was on its disk is lost"):
        sweep(World(tmp_path, (4, 4, 4), clock=clock, shared=True), SCENARIOS[-1])
