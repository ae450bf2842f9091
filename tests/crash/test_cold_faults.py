"""Cold moves: every fault at every seam, from each of their stages.

Thinned at the commonest seams as the sweep is, and further: each case passes two lives of a guest.
`TREADLE_WHOLE_SWEEP=1 bin/test tests/crash/test_cold_faults.py` runs every case.
"""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import pytest
from scenarios import Scenario, act, ends, look, moved_until, overdue, running, told
from sweep import Case, each_ends_as_wanted
from test_sweep import ONE_OF, WHOLE

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
ONE_OF_CRASHES, ONE_OF_OTHERS = 3, 9


def stays(case: Case) -> bool:
    """Whether the case is one of those that are left. Images on their way have their own sweep."""
    if WHOLE:
        return True
    step = ONE_OF_CRASHES if case.fault == "crash" else ONE_OF_OTHERS
    return " ensure_image " not in case.seam and crc32(str(case).encode()) % step == 0


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_of_a_cold_move(scenario: Scenario, tmp_path: Path) -> None:
    each_ends_as_wanted(tmp_path, scenario, 5, only=stays, one_of=ONE_OF)
