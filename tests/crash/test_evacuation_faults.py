"""Evacuations: every fault at every seam of one, and the host that failed comes back at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from brain import Outlet
from faults import OF_MOVES
from memory import Clock, world_time
from scenarios import Do, Scenario, dead_at, ends, look, notice, settle
from sweep import each_ends_as_wanted, of, sweep
from world import World

from treadle.compute.model import State

R, S, E, D = State.RUNNING, State.STOPPED, State.ERROR, State.DELETED
BUILT = ends(R, host_dies=(E,), cut_off=(E,), dies_before=(E,), dies_after=(E,), guest_stops=(S,))


def silent(fail: Callable[[World], None], *wishes: str) -> Do:
    """Two run, one of which asks to be evacuated and was told to do this; their host fails, and is
    known to be down."""

    def start(world: World) -> None:
        world.create(ha="evacuate")
        world.create(name="waits")
        settle(world)
        for wish in wishes:
            assert world.act(1, wish) is not None
            settle(world)
        assert {row.host_id for row in world.rows()} == {1}
        fail(world)
        notice(world)

    return start


failed_host = silent(lambda world: world.machines[1].power_failure())
cut_off_host = silent(lambda world: world.machines[1].cut_off())
"""Its guests run on."""


def failed_under(wish: str) -> Do:
    """One was told to do this, and its host failed before it was done."""

    def start(world: World) -> None:
        silent(lambda one: one.act(1, wish) and one.machines[1].power_failure())(world)

    return start


def fence(world: World) -> None:
    """The watch wants it switched off."""
    assert world.fence(1)


def asked(world: World) -> None:
    """An operator has said that it is off."""
    failed_host(world)
    confirm(world)


def confirm(world: World) -> None:
    """An operator says that it is off."""
    outcome = world.confirm_off(1)
    assert len(outcome.going) == 1


def until(seam: str) -> Do:
    """Asked for, and the controller died the first time it came to `seam`."""

    def start(world: World) -> None:
        asked(world)
        dead_at(world, seam)

    return start


SCENARIOS = [
    Scenario("fence", cut_off_host, fence, BUILT, sizes=(4, 4, 4), waits=True),
    Scenario("evacuate", failed_host, confirm, BUILT, sizes=(4, 4, 4), waits=True),
    Scenario("evacuate a resized one",
             silent(lambda world: world.machines[1].power_failure(), "resize"), confirm, BUILT,
             sizes=(4, 4, 4), waits=True),
    Scenario("evacuate one that is being resized", failed_under("resize"), confirm, BUILT,
             sizes=(4, 4, 4), waits=True),
    Scenario("an evacuation taken up when started", until("after start"), look, BUILT,
             sizes=(4, 4, 4), waits=True),
]
AT_LEAST = 150
AS_OTHERS = frozenset({"evacuate a resized one", "evacuate one that is being resized"})
"""What differs of these is where they begin: of their faults, these stay."""
FEW = frozenset({"crash", "host_reboots"})


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_leaves_one(scenario: Scenario, tmp_path: Path) -> None:
    few = scenario.name in AS_OTHERS
    each_ends_as_wanted(
        tmp_path, scenario, AT_LEAST // 3 if few else AT_LEAST, only=of(FEW if few else OF_MOVES)
    )


def test_a_fence_that_lies_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the test: two copies would be seen."""
    monkeypatch.setattr(Outlet, "off", lambda _self, _target, _seconds: None)
    clock = Clock()
    with world_time(clock), pytest.raises(AssertionError, match="runs on two hosts"):
        sweep(World(tmp_path, (4, 4, 4), clock=clock), SCENARIOS[0])
