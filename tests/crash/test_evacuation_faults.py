"""Evacuations: every fault at every seam of one, and the host that failed comes back at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep import Case, Scenario, dead_at, ends, look, sweep
from world import Brain, Clock, World, world_time

from treadle.compute.model import State

FAULTS = frozenset({
    "crash", "stall", "overtaken", "second", "delete", "host_reboots", "host_dies", "cut_off",
    "lost_before", "lost_after", "refused", "dies_before", "dies_after",
})
R, S, E, D = State.RUNNING, State.STOPPED, State.ERROR, State.DELETED
BUILT = ends(R, host_dies=(E,), cut_off=(E,), dies_before=(E,), dies_after=(E,))


def failed_host(world: World) -> None:
    """Two run, one of which asks to be evacuated; their host is gone, and known to be."""
    world.create(ha="evacuate")
    world.create(name="waits")
    brain = Brain(world, "starter")
    assert world.drive(brain)
    assert {row.host_id for row in world.rows()} == {1}
    world.machines[1].power_failure()
    with world.acting(brain):
        while world.due():
            brain.once()
    brain.close()


def asked(world: World) -> None:
    """An operator has said that it is off."""
    failed_host(world)
    confirm(world)


def confirm(world: World) -> None:
    """An operator says that it is off."""
    outcome = world.confirm_off(1)
    assert len(outcome.going) == 1


def until(seam: str):  # type: ignore[no-untyped-def]
    """Asked for, and the controller died the first time it came to `seam`."""

    def start(world: World) -> None:
        asked(world)
        dead_at(world, seam)

    return start


SCENARIOS = [
    Scenario("evacuate", failed_host, confirm, BUILT, sizes=(4, 4, 4), waits=True),
    Scenario("an evacuation taken up when given over", until("before observe"), look, BUILT,
             sizes=(4, 4, 4), waits=True),
    Scenario("an evacuation taken up when started", until("after start"), look, BUILT,
             sizes=(4, 4, 4), waits=True),
]
AT_LEAST = dict.fromkeys((one.name for one in SCENARIOS), 50)


def of_an_evacuation(case: Case) -> bool:
    return case.fault in FAULTS


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_leaves_one(scenario: Scenario, tmp_path: Path) -> None:
    clock = Clock()
    with world_time(clock):
        count, wrong = sweep(
            World(tmp_path, scenario.sizes, clock=clock), scenario, only=of_an_evacuation, one_of=9
        )
    shown = "\n".join(str(one) for one in wrong[:10])
    assert not wrong, f"{len(wrong)} of {count} cases went wrong:\n{shown}"
    assert count >= AT_LEAST[scenario.name], f"the sweep has shrunk to {count} cases"
