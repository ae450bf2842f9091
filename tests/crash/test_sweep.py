"""The sweep over the code as it is: no case may go wrong, and no case may be lost.

All of it, every time. `TREADLE_WHOLE_SWEEP=1 bin/test tests/crash/test_sweep.py` runs each case to
its end, also those that come to a world where another was before, and compares: many minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import KINDS
from memory import Clock, world_time
from scenarios import SCENARIOS, Scenario
from sweep import Sweep, each_ends_as_wanted
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


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_ends_as_wanted(scenario: Scenario, tmp_path: Path) -> None:
    each_ends_as_wanted(tmp_path, scenario, AT_LEAST.get(scenario.name, OTHERS))


def test_each_verb_and_each_fault_is_in_the_sweep(tmp_path: Path) -> None:
    verbs: set[str] = set()
    faults: set[str] = set()
    for scenario in SCENARIOS:
        clock = Clock()
        with world_time(clock):
            runner = Sweep(World(tmp_path, scenario.sizes, clock=clock), scenario)
        cases = [case for case, _ in runner.cases()]
        assert len(cases) >= AT_LEAST.get(scenario.name, OTHERS)
        verbs |= {case.seam.split()[1] for case in cases}
        faults |= {case.fault for case in cases}
    assert faults == {kind.name for kind in KINDS if not kind.verbs}
    assert verbs >= {
        "read", "write", "observe", "observe_all", "facts", "ensure_image", "define", "start",
        "pause", "resume", "suspend", "shut_down", "power_off", "undefine", "autostart",
        "begin_copy", "fetch_copy", "drop_copy", "freeze", "thaw",
        "grow", "plug", "restart",
    }


def test_the_scenarios_have_names_of_their_own() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert set(AT_LEAST) <= set(names)
