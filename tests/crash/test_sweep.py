"""The sweep over the code as it is: no case may go wrong, and no case may be lost.

It is thinned at the commonest seams; `TREADLE_WHOLE_SWEEP=1 bin/test tests/crash/test_sweep.py`
runs every case.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults import KINDS
from memory import Clock, world_time
from scenarios import SCENARIOS, Scenario
from sweep import Case, Sweep, each_ends_as_wanted
from world import World

AT_LEAST = {
    "create": 450, "create two or none": 800,
    "create two where one fits": 350, "a build taken up when placed": 600,
    "a build taken up when defined": 350, "a build taken up when started": 250,
    "delete a queued one": 50, "delete a placed one": 180, "delete a defined one": 180,
    "delete a started one": 180, "stop a deaf one": 350, "reboot": 350,
    "reboot a deaf one": 500, "delete a failed one": 50, "delete one on a dead host": 250,
    "delete one on the shelf": 50, "delete one on the shelf softly": 40, "take a mark off": 100,
}
"""How many cases of the whole sweep come to something, at least; of other names `OTHERS`."""
OTHERS = 150
WHOLE = "TREADLE_WHOLE_SWEEP" in os.environ
ONE_OF = 1 if WHOLE else 9
"""The whole takes many minutes; the next test says what stays."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_ends_as_wanted(scenario: Scenario, tmp_path: Path) -> None:
    least = AT_LEAST.get(scenario.name, OTHERS) // ONE_OF
    each_ends_as_wanted(tmp_path, scenario, least, one_of=ONE_OF)


def test_each_verb_and_each_fault_is_in_the_sweep(tmp_path: Path) -> None:
    """And what is left of it where it is thinned: each position, each fault at each kind of seam,
    and most of them both going on and dying."""
    verbs: set[str] = set()
    faults: set[str] = set()
    whole: set[tuple[str, str, bool]] = set()
    thinned: set[tuple[str, str, bool]] = set()
    for scenario in SCENARIOS:
        clock = Clock()
        with world_time(clock):
            runner = Sweep(World(tmp_path, scenario.sizes, clock=clock), scenario)
        cases = [case for case, _ in runner.cases()]
        left = [case for case, _ in runner.cases(9)]
        assert len(cases) >= AT_LEAST.get(scenario.name, OTHERS)
        assert {case.position for case in left} == {at for at, _, _ in runner.positions}
        verbs |= {case.seam.split()[1] for case in cases}
        faults |= {case.fault for case in cases}
        whole |= {_sort(case) for case in cases}
        thinned |= {_sort(case) for case in left}
    assert faults == {kind.name for kind in KINDS}
    assert {sort[:2] for sort in thinned} == {sort[:2] for sort in whole}
    assert len(thinned) > 0.95 * len(whole)
    assert verbs >= {
        "read", "write", "observe", "observe_all", "facts", "ensure_image", "define", "start",
        "pause", "resume", "suspend", "shut_down", "power_off", "undefine", "autostart",
        "begin_copy", "fetch_copy", "drop_copy", "freeze", "thaw",
        "grow", "plug",
    }


def _sort(case: Case) -> tuple[str, str, bool]:
    return case.seam.split(" h")[0], case.fault, case.dies


def test_the_scenarios_have_names_of_their_own() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert set(AT_LEAST) <= set(names)
