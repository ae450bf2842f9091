"""Cold moves: every fault at every seam, from each of their stages. Thinned as the sweep is."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from sweep import Scenario, act, ends, look, moved_until, overdue, running, sweep, told
from test_sweep import ONE_OF
from world import Clock, World, world_time

from treadle.compute.model import State

R, S, D = State.RUNNING, State.STOPPED, State.DELETED
STOPS = {"guest_stops": (S,), "stall": (S,), "refused": (S,), "full": (S,)}

SCENARIOS = [
    Scenario("migrate", running, act("migrate cold"), ends(R, **STOPS)),
    Scenario("migrate a stopped one", told("stop"), act("migrate cold"), ends(S)),
    Scenario("migrate one that nobody confirms", told("stop"), act("drain cold"), ends(S)),
    Scenario("migrate and confirm", told("migrate cold"), act("confirm"),
             ends(R, guest_stops=(S,))),
    Scenario("migrate and confirm in time", overdue("migrate cold"), look,
             ends(R, guest_stops=(S,))),
    Scenario("migrate and revert", told("migrate cold"), act("revert"), ends(R, **STOPS)),
    Scenario("resize to another host", running, act("resize away"), ends(R, **STOPS)),
    Scenario("resize to another host and revert", told("resize away"), act("revert"),
             ends(R, **STOPS)),
    Scenario("look at a migrated one", told("migrate cold"), look, ends(R, guest_stops=(S,))),
    Scenario("delete a migrated one", told("migrate cold"), act("delete"), ends(D)),
    Scenario("delete a migrated one softly", told("migrate cold"), act("soft delete"),
             ends(S, refused=(R,), full=(R,))),
    Scenario("delete one that is being sent", moved_until("before send_disk", "migrate cold"),
             act("delete"), ends(D)),
]
AT_LEAST: dict[str, int] = {}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_of_a_cold_move(scenario: Scenario, tmp_path: Path) -> None:
    clock = Clock()
    gc.collect()
    gc.freeze()
    try:
        with world_time(clock):
            count, wrong = sweep(
                World(tmp_path, scenario.sizes, clock=clock), scenario, one_of=ONE_OF
            )
    finally:
        gc.unfreeze()
    shown = "\n".join(str(one) for one in wrong[:10])
    assert not wrong, f"{len(wrong)} of {count} cases went wrong:\n{shown}"
    least = AT_LEAST.get(scenario.name, 0) // ONE_OF
    assert count >= least, f"the sweep has shrunk to {count} cases"
