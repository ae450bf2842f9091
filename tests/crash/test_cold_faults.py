"""Cold moves: every fault at every seam, from each of their stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from faults import OF_MOVES
from scenarios import Scenario, act, ends, look, moved_until, overdue, running, told
from sweep import each_ends_as_wanted, of
from world import SOON_S

from treadle.compute.model import State

R, S, D = State.RUNNING, State.STOPPED, State.DELETED
STOPS = {"guest_stops": (S,), "stall": (S,), "refused": (S,), "full": (S,)}

SCENARIOS = [
    Scenario("migrate", running, act("migrate cold"), ends(R, **STOPS)),
    Scenario("migrate one that nobody confirms", told("stop"), act("drain cold"), ends(S)),
    Scenario("migrate and confirm", told("migrate cold"), act("confirm"),
             ends(R, guest_stops=(S,))),
    Scenario("migrate and confirm in time", overdue("migrate cold"), look,
             ends(R, guest_stops=(S,))),
    Scenario("migrate and revert", told("migrate cold", flavor=6), act("revert"), ends(R, **STOPS)),
    Scenario("resize to another host", running, act("resize away"), ends(R, **STOPS)),
    Scenario("resize to another host and revert", told("resize away", flavor=6), act("revert"),
             ends(R, **STOPS)),
    Scenario("look at a migrated one", told("migrate cold"), look, ends(R, guest_stops=(S,))),
    Scenario("delete a migrated one", told("migrate cold"), act("delete"), ends(D)),
    Scenario("delete a migrated one softly", told("migrate cold"), act("soft delete"),
             ends(S, refused=(R,), full=(R,))),
    Scenario("delete one that is being sent", moved_until("before send_disk", "migrate cold"),
             act("delete"), ends(D)),
]
AT_LEAST = 120


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_of_a_cold_move(scenario: Scenario, tmp_path: Path) -> None:
    # Longer than a move has: it is given up while the fault lasts.
    patient = replace(scenario, lasts_s=SOON_S)
    each_ends_as_wanted(tmp_path, patient, AT_LEAST, only=of(OF_MOVES))
