"""Anything in any order: users, faults, power cuts, crashes; then all must come to rest.

`TREADLE_EXAMPLES=2000 bin/test tests/crash/test_statemachine.py` walks wider.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from brain import Brain
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from memory import Clock, world_time
from world import World

from treadle.compute.actions import ACTIONS
from treadle.errors import CallerError
from treadle.hypervisor.base import Power
from treadle.hypervisor.fake_host import Fault, FaultKind

VERBS = ("observe", "define", "start", "pause", "resume", "suspend", "shut_down", "power_off",
         "restart", "undefine", "ensure_image", "autostart", "begin_copy", "fetch_copy",
         "drop_copy", "freeze", "thaw")
MOST = 5
WISHES = (
    *sorted(ACTIONS), "hard reboot", "rescue", "unrescue", "rebuild", "resize", "confirm", "revert",
    "image", "shelve", "offload", "unshelve", "soft delete", "restore", "mark", "unmark", "delete",
)


class Cloud(RuleBasedStateMachine):
    """Two hosts of four cores, one controller at a time."""

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.time = world_time(self.clock)
        self.time.__enter__()
        self.folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self.folder.name), (4, 4), clock=self.clock)
        self.brain = Brain(self.world, "brain")

    @precondition(lambda self: len(self.world.rows()) < MOST)
    @rule(count=st.integers(1, 2))
    def create(self, count: int) -> None:
        self.world.create(count, rollback=count > 1)

    @rule(which=st.integers(0, MOST), what=st.sampled_from(WISHES))
    def ask(self, which: int, what: str) -> None:
        rows = self.world.rows()
        if rows:
            try:
                self.world.act(rows[which % len(rows)].id, what)
            except CallerError:
                return

    @rule(host=st.integers(1, 2), verb=st.sampled_from(VERBS), kind=st.sampled_from(FaultKind),
          times=st.integers(1, 3))
    def fault(self, host: int, verb: str, kind: FaultKind, times: int) -> None:
        machine = self.world.machines[host]
        machine.faults.append(Fault(verb, machine.calls[verb] + 1, kind, times))

    @rule(host=st.integers(1, 2))
    def power_cut(self, host: int) -> None:
        self.world.machines[host].power_failure()

    @rule(host=st.integers(1, 2))
    def power_back(self, host: int) -> None:
        self.world.machines[host].boot()

    @rule(host=st.integers(1, 2))
    def a_guest_shuts_itself_down(self, host: int) -> None:
        machine = self.world.machines[host]
        for uuid, guest in machine.guests.items():
            if guest.defined and guest.power is Power.RUNNING:
                machine.guest_powers_off(uuid)
                return

    @rule()
    def crash(self) -> None:
        self.brain.close()
        self.brain = Brain(self.world, "next")

    @rule(seconds=st.sampled_from([0.5, 5.0, 60.0]))
    def work(self, seconds: float) -> None:
        self.world.drive(self.brain, seconds)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            for machine in self.world.machines.values():
                machine.faults.clear()
                machine.boot()
            self.world.finish()
            assert not self.world.wrong, self.world.wrong
        finally:
            self.brain.close()
            self.world.database.close()
            self.time.__exit__(None, None, None)
            self.folder.cleanup()


TestCloud = Cloud.TestCase
TestCloud.settings = settings(
    max_examples=int(os.environ.get("TREADLE_EXAMPLES", "60")),
    stateful_step_count=25, deadline=None, derandomize="TREADLE_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
