"""The sweep: every scenario × every point where a process can die × every fault × {finish, die}.

A *scenario* is a start state and what a user asks for then. A dry run of it counts the *seams*:
before and after each verb of a host and each transaction. A case runs the scenario again, and at
one seam one *fault* strikes; then the controller goes on (`finish`), or is gone at that very point
and another one takes over when its lease has run out (`die`). When the faults are over everything
must come to be as wanted, and the invariants of `world.py` hold.

Two seams with nothing between them that the world could tell apart are one: what strikes after a
commit would strike before the read that follows it with the same effect.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

from brain import Brain, Crash, Runaway
from faults import KINDS, Kind, Strike
from memory import Clock
from scenarios import Scenario
from world import CHANGING, SOON_S, Saved, World, world_time

from treadle.compute.model import State

COMMON = frozenset({
    "read", "write", "observe", "observe_all", "facts", "define", "start", "shut_down",
})
"""What nearly every scenario comes by, many times: nine of ten cases."""


@dataclass(frozen=True)
class Case:
    """One of them; `str()` of it is enough to run it again."""

    scenario: str
    position: int
    seam: str
    fault: str
    dies: bool

    def __str__(self) -> str:
        end = "die" if self.dies else "finish"
        return f"{self.scenario} | {self.position} {self.seam} | {self.fault} | {end}"


class _Idle(BaseException):
    """The fault has no effect here: nothing is to be seen that another case does not show."""


@dataclass(frozen=True)
class Wrong:
    """A case that went wrong, and how."""

    case: Case
    what: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.case}\n" + "\n".join(f"      {one}" for one in self.what)


def positions(seams: Sequence[str]) -> list[tuple[int, str, bool]]:
    """Those that differ: (number, name, whether only what a call meets is to strike there)."""
    found = []
    previous = ""
    for number, name in enumerate(seams):
        when, what, *_ = name.split()
        if what in ("read", "write"):
            # Nothing happens between a commit or a verb's end and the next transaction.
            if when == "after" or previous in ("", "before claim"):
                found.append((number, name, False))
        elif when == "before" and what not in CHANGING:
            found.append((number, name, True))
        else:
            found.append((number, name, False))
        previous = name
    return found


class Sweep:
    """Runs the cases of one scenario in one world."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world = world
        self.scenario = scenario
        empty = world.save("empty")
        scenario.start(world)
        world.on_seam = None
        self.saved: Saved = world.save("start")
        del empty
        self.positions = positions(self.dry_run())
        self.idle = False

    def dry_run(self) -> list[str]:
        """The seams that the scenario passes when nothing goes wrong."""
        seams: list[str] = []
        world = self.world
        world.restore(self.saved)
        self.scenario.ask(world)
        brain = Brain(world, "victim")
        world.on_seam = seams.append
        if not self._drive(brain) and not self.scenario.waits:
            world.wrong.append("it does not settle even where nothing goes wrong")
        brain.close()
        if not self.scenario.waits:
            world.check()
        world.finish()
        assert not world.wrong, (self.scenario.name, world.wrong)
        return seams

    def cases(self, one_of: int = 1) -> Iterator[tuple[Case, Kind]]:
        """Each position with each fault, going on and dying.

        `one_of` thins them at the seams that are passed most, those of `COMMON`: at each position
        every `one_of`-th case, from a start that the position and the scenario give, and always
        the crashes. An odd number, so that going on and dying take turns. No position is left out.
        """
        for number, name, calls_only in self.positions:
            step = one_of if name.split()[1] in COMMON else 1
            first = crc32(f"{self.scenario.name} {number} {name}".encode())
            for index, (case, kind) in enumerate(self._at(number, name, calls_only)):
                if (first + index) % step == 0 or kind.name in ("crash", "power_cut"):
                    yield case, kind

    def _at(self, number: int, name: str, calls_only: bool) -> Iterator[tuple[Case, Kind]]:
        before_verb = name.startswith("before") and " h" in name
        for kind in KINDS:
            if kind.verbs_only != calls_only and not (kind.verbs_only and before_verb):
                continue
            for dies in (False, True) if kind.finish else (True,):
                yield Case(self.scenario.name, number, name, kind.name, dies), kind

    def run(self, case: Case, kind: Kind) -> Wrong | None:
        """One case; None where all is well."""
        world = self.world
        world.restore(self.saved)
        self.scenario.ask(world)
        victim = Brain(world, "victim")
        at = Strike(world, case.seam, victim)
        passed = 0
        dying = self.idle = False

        def on_seam(_name: str) -> None:
            nonlocal passed, dying
            if world.actor is not victim:
                return
            if dying:
                raise Crash
            passed += 1
            if passed - 1 != case.position:
                return
            with world.acting(None):
                kind.strike(at)
            if at.idle:
                raise _Idle
            if case.dies:
                if not kind.verbs_only:
                    raise Crash
                dying = True

        world.on_seam = on_seam
        try:
            self._drive(victim)
            world.on_seam = None
            victim.close()
        except _Idle:
            self.idle = True
            return None
        except Crash:
            victim.close()
            self._heir(at)
        except Runaway as runaway:
            return Wrong(case, (str(runaway),))
        try:
            world.finish()
        except Runaway as runaway:
            return Wrong(case, (str(runaway),))
        if passed <= case.position:
            world.wrong.append("the seam was not reached")
        if not at.asked:
            self._ended_well(case)
        return Wrong(case, tuple(dict.fromkeys(world.wrong))) if world.wrong else None

    def _heir(self, at: Strike) -> None:
        """Another controller comes; while a host is down for good it still does what it can."""
        at.world.on_seam = None
        heir = Brain(at.world, "next")
        self._drive(heir)
        heir.close()

    def _drive(self, brain: Brain) -> bool:
        return self.world.drive(brain, 3.0 if self.scenario.waits else SOON_S)

    def _ended_well(self, case: Case) -> None:
        allowed = self.scenario.ends.get(case.fault, self.scenario.ends[""])
        rows = self.world.rows()
        for row in rows:
            if row.state not in allowed:
                self.world.wrong.append(f"instance {row.id} ends as {row.state}: {row.fault}")
        if rows and rows[0].rollback and len({row.state is State.DELETED for row in rows}) > 1:
            self.world.wrong.append("all or none: " + ", ".join(row.state for row in rows))


def sweep(
    world: World, scenario: Scenario, *, stop_after: int = 0,
    only: Callable[[Case], bool] = lambda _case: True, one_of: int = 1,
) -> tuple[int, list[Wrong]]:
    """How many cases there were, and those that went wrong (at most `stop_after`, where set)."""
    runner = Sweep(world, scenario)
    count = 0
    wrong: list[Wrong] = []
    for case, kind in runner.cases(one_of):
        if not only(case):
            continue
        bad = runner.run(case, kind)
        count += not runner.idle
        if bad is not None:
            wrong.append(bad)
            if stop_after and len(wrong) >= stop_after:
                break
    return count, wrong


@cache
def _freeze() -> None:
    """What is there when the process begins its first sweep is not looked through for garbage at
    every collection from then on."""
    gc.collect()
    gc.freeze()


def each_ends_as_wanted(
    folder: Path, scenario: Scenario, least: int, *,
    only: Callable[[Case], bool] = lambda _case: True, one_of: int = 1,
) -> None:
    """Sweep the scenario: no case may go wrong, and `least` of them must come to something."""
    _freeze()
    clock = Clock()
    with world_time(clock):
        count, wrong = sweep(
            World(folder, scenario.sizes, clock=clock), scenario, only=only, one_of=one_of
        )
    shown = "\n".join(str(one) for one in wrong[:10])
    assert not wrong, f"{len(wrong)} of {count} cases went wrong:\n{shown}"
    assert count >= least, f"the sweep has shrunk to {count} cases"
