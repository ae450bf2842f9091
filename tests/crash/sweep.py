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
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from brain import Brain, Crash, Memory, Runaway
from faults import KINDS, Kind, Strike
from memory import Clock, world_time
from merging import End, Known, Merged
from scenarios import Scenario
from world import CHANGING, SOON_S, Saved, World

from treadle.compute.model import State

WHOLE = "TREADLE_WHOLE_SWEEP" in os.environ
PROVE_ONE_OF = 64
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


@dataclass(frozen=True)
class Checkpoint:
    """A moment between two passes of the dry run: cases whose seam comes after it begin here."""

    saved: Saved
    passed: int
    """How many seams lie before it."""
    memory: Memory
    end: float


class Checkpoints:
    """Takes one before each pass of the dry run. The savepoints lie one in the other: who goes
    back to one has left those after it."""

    def __init__(self, world: World, seams: Sequence[str]) -> None:
        self._world = world
        self._seams = seams
        self._all: list[Checkpoint] = []

    def at(self, brain: Brain, end: float) -> None:
        """Take one."""
        saved = self._world.save(f"at{len(self._all)}")
        self._all.append(Checkpoint(saved, len(self._seams), brain.memory(), end))

    def over(self, settled: bool) -> None:
        """Nothing."""

    def back(self, position: int) -> Checkpoint | None:
        """The last one before the seam, in whose world we are then; None where there is none any
        more."""
        while self._all and self._all[-1].passed > position:
            self._all.pop()
        if not self._all:
            return None
        self._world.restore(self._all[-1].saved)
        return self._all[-1]

    def leave(self) -> None:
        """Somebody goes back further."""
        self._all.clear()


class Sweep:
    """Runs the cases of one scenario in one world."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world = world
        self.scenario = scenario
        self.patience = 3.0 if scenario.waits else SOON_S
        empty = world.save("empty")
        scenario.start(world)
        world.on_seam = None
        for machine in world.machines.values():
            # The faults that are there begin with the next call.
            machine.calls.clear()
        self.saved: Saved = world.save("start")
        del empty
        self.positions = positions(self.dry_run())
        self.idle = False
        self.merged = Merged(world)

    def dry_run(self) -> list[str]:
        """The seams that the scenario passes when nothing goes wrong."""
        seams: list[str] = []
        world = self.world
        world.restore(self.saved)
        world.database.safe = True
        self.scenario.ask(world)
        brain = Brain(world, "victim")
        world.on_seam = seams.append
        world.track = self.checkpoints = Checkpoints(world, seams)
        if not world.drive(brain, self.patience) and not self.scenario.waits:
            world.wrong.append("it does not settle even where nothing goes wrong")
        brain.close()
        world.track = None
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
        for number, name, calls_only in reversed(self.positions):
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
        begun = None if kind.name == "power_cut" else self.checkpoints.back(case.position)
        world.database.safe = begun is not None
        if begun is None:
            self.checkpoints.leave()
            world.restore(self.saved)
            self.scenario.ask(world)
            victim = Brain(world, "victim")
            until = world.clock.now + self.patience
            passed = 0
        else:
            victim = Brain(world, "victim", begun.memory)
            until, passed = begun.end, begun.passed
        at = Strike(world, case.seam, victim)
        self.idle = False
        proving = WHOLE or crc32(str(case).encode()) % PROVE_ONE_OF == 0
        self.merged.begin(proving=proving)
        world.track = self.merged
        try:
            self._play(case, kind, at, passed, until)
            end = self._end()
            self.merged.ended(end)
        except _Idle:
            self.idle = True
            return None
        except Runaway as runaway:
            return Wrong(case, (str(runaway),))
        except Known as known:
            end = known.end
        wrong = list(dict.fromkeys(end.wrong))
        if not at.asked:
            wrong += self._ended_ill(case, end)
        expected = self.merged.expected
        if expected is not None and _in_short(expected) != _in_short(end):
            wrong.append(f"it was taken for one that ends otherwise: {expected}, not {end}")
        return Wrong(case, tuple(wrong)) if wrong else None

    def _play(self, case: Case, kind: Kind, at: Strike, passed: int, until: float) -> None:
        """Let the fault strike, and what follows. `passed`: how many seams lie behind us; `until`:
        how long the controller has time."""
        world, victim = self.world, at.brain
        dying = False

        def on_seam(_name: str) -> None:
            nonlocal passed, dying
            if world.actor is not victim:
                return
            if dying:
                raise Crash
            passed += 1
            if passed - 1 != case.position:
                return
            world.track = None
            with world.acting(None):
                kind.strike(at)
            world.track = self.merged
            if at.idle:
                raise _Idle
            if case.dies:
                if not kind.verbs_only:
                    raise Crash
                dying = True
            else:
                self.merged.active = True

        world.on_seam = on_seam
        try:
            world.drive(victim, until - world.clock.now)
            world.on_seam = None
            victim.close()
        except Crash:
            victim.close()
            world.on_seam = None
            world.left = None
            self.merged.active = True
            # Another one comes; while a host is down for good it still does what it can.
            heir = Brain(world, "next")
            world.drive(heir, self.patience)
            heir.close()
        world.finish()
        if passed <= case.position:
            world.wrong.append("the seam was not reached")

    def _end(self) -> End:
        return End(tuple(self.world.wrong), tuple(
            (row.id, row.state, row.fault, row.rollback) for row in self.world.rows()
        ))

    def _ended_ill(self, case: Case, end: End) -> Iterator[str]:
        allowed = self.scenario.ends.get(case.fault, self.scenario.ends[""])
        for number, state, fault, _ in end.rows:
            if state not in allowed:
                yield f"instance {number} ends as {state}: {fault}"
        states = [state for _, state, _, rollback in end.rows if rollback]
        if len({state is State.DELETED for state in states}) > 1:
            yield "all or none: " + ", ".join(states)


def _in_short(end: End) -> tuple[Any, ...]:
    """What two that are merged must have in common: the words of a fault are not looked at."""
    return set(end.wrong), [row[:2] for row in end.rows]


def sweep(
    world: World, scenario: Scenario, *, stop_after: int = 0,
    only: Callable[[Case], bool] = lambda _case: True, one_of: int = 1,
) -> tuple[int, list[Wrong]]:
    """How many cases there were, and those that went wrong (at most `stop_after`, where set)."""
    runner = Sweep(world, scenario)
    count = 0
    wrong: list[Wrong] = []
    # Those that begin at the start come last: the checkpoints are gone then.
    for case, kind in sorted(runner.cases(one_of), key=lambda one: one[1].name == "power_cut"):
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
