"""Moves: every fault at every verb and transaction of a move, from each of its stages.

Of the cases, all crashes run and every third of the others; all of them with
`TREADLE_WHOLE_SWEEP=1 bin/test tests/crash/test_move_faults.py`.
"""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import pytest
from scenarios import Scenario, act, ends, look, moved_until, running, told
from sweep import Case, each_ends_as_wanted
from test_sweep import WHOLE
from world import World

from treadle.compute.model import State

VERBS = frozenset({"machine", "expect", "move", "undefine", "observe"})
FAULTS = frozenset({
    "crash", "lost_before", "lost_after", "cut_off", "host_dies", "delete", "refused", "stall",
    "overtaken",
})
AT_COMMITS = frozenset({"crash", "stall", "overtaken"})
R, P, D = State.RUNNING, State.PAUSED, State.DELETED


def queued(world: World) -> None:
    """One that runs, and whose move was asked for."""
    running(world)
    world.act(1, "migrate")


SCENARIOS = [
    Scenario("move", running, act("migrate"), ends(R)),
    Scenario("move a paused one", told("pause"), act("migrate"), ends(P)),
    Scenario("a move taken up when begun", moved_until("before move"), look, ends(R)),
    Scenario("a move taken up when made", moved_until("after move"), look, ends(R)),
    Scenario("delete one that is being moved", moved_until("before move"), act("delete"), ends(D)),
    Scenario("delete one that has been moved", moved_until("after move"), act("delete"), ends(D)),
    Scenario("end a move that is queued", queued, act("abort"), ends(R)),
    Scenario("end a move that was begun", moved_until("before move"), act("abort"), ends(R)),
    Scenario("end a move that was made", moved_until("after move"), act("abort"), ends(R)),
]
AT_LEAST = {
    "move": 250, "move a paused one": 250, "a move taken up when begun": 110,
    "a move taken up when made": 140, "delete one that is being moved": 140,
    "delete one that has been moved": 160, "end a move that is queued": 20,
    "end a move that was begun": 80, "end a move that was made": 80,
}
ONE_OF = 3


def of_a_move(case: Case) -> bool:
    """Whether the case is one of the table, its seam and its fault, and one of those that run."""
    what = case.seam.split()[1]
    if not (WHOLE or case.fault == "crash" or crc32(str(case).encode()) % ONE_OF == 0):
        return False
    return case.fault in (AT_COMMITS if what == "write" else FAULTS if what in VERBS else ())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_verb_of_a_move(scenario: Scenario, tmp_path: Path) -> None:
    least = AT_LEAST[scenario.name] // (1 if WHOLE else ONE_OF)
    each_ends_as_wanted(tmp_path, scenario, least, only=of_a_move)
