"""The sweep over the code as it is: no case may go wrong, and no case may be lost."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import pytest
from sweep import KINDS, SCENARIOS, Scenario, Sweep, sweep
from world import Clock, World, world_time

AT_LEAST = {
    "create": 450, "create two or none": 800,
    "create two where one fits": 350, "a build taken up when placed": 600,
    "a build taken up when defined": 350, "a build taken up when started": 250,
    "delete a queued one": 50, "delete a placed one": 180, "delete a defined one": 180,
    "delete a started one": 180, "stop a deaf one": 350, "reboot": 350,
    "reboot a deaf one": 500, "delete a failed one": 50, "delete one on a dead host": 250,
    "delete one on the shelf": 50, "delete one on the shelf softly": 40, "take a mark off": 100,
}
"""A scenario of other names has at least `OTHERS`."""
OTHERS = 150


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_ends_as_wanted(scenario: Scenario, tmp_path: Path) -> None:
    clock = Clock()
    gc.collect()
    gc.freeze()
    try:
        with world_time(clock):
            count, wrong = sweep(World(tmp_path, scenario.sizes, clock=clock), scenario)
    finally:
        gc.unfreeze()
    shown = "\n".join(str(one) for one in wrong[:10])
    assert not wrong, f"{len(wrong)} of {count} cases went wrong:\n{shown}"
    assert count >= AT_LEAST.get(scenario.name, OTHERS), f"the sweep has shrunk to {count} cases"


def test_each_verb_and_each_fault_is_in_the_sweep(tmp_path: Path) -> None:
    verbs: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for scenario in SCENARIOS:
        clock = Clock()
        with world_time(clock):
            for case, kind in Sweep(World(tmp_path, scenario.sizes, clock=clock), scenario).cases():
                verbs[case.seam.split()[1]] += 1
                faults[kind.name] += 1
    assert set(faults) == {kind.name for kind in KINDS}
    assert set(verbs) >= {
        "read", "write", "observe", "observe_all", "facts", "ensure_image", "define", "start",
        "pause", "resume", "suspend", "shut_down", "power_off", "undefine", "autostart",
        "begin_copy", "fetch_copy", "drop_copy", "freeze", "thaw",
    }


def test_the_scenarios_have_names_of_their_own() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert set(AT_LEAST) <= set(names)
