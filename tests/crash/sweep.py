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
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any
from zlib import crc32

from brain import Brain, Memory, Runaway
from faults import KINDS, Kind, Strike
from memory import Clock, world_time
from merging import End, Known, Merged
from scenarios import Scenario
from world import CHANGING, Saved, World

from treadle.compute.model import State

WHOLE = "TREADLE_WHOLE_SWEEP" in os.environ
PROVE_ONE_OF = 64
"""One of how many cases is run to its end although it could be merged, and compared."""


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


class _Left(BaseException):
    """Nothing more is to be seen here: the fault has no effect, or its cases were tried."""


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


@dataclass(frozen=True)
class Visit:
    """On the way to a seam: `position` counts them, `passed` lie behind; the controller has time
    until `end`."""

    position: int
    victim: Brain
    end: float
    passed: int


class Sweep:
    """Runs the cases of one scenario in one world."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world = world
        self.scenario = scenario
        self.patience = 3.0 if scenario.waits else scenario.lasts_s
        empty = world.save("empty")
        scenario.start(world)
        world.on_seam = None
        for machine in world.machines.values():
            # The faults that are there begin with the next call.
            machine.calls.clear()
        self.saved: Saved = world.save("start")
        del empty
        self.positions = positions(self.dry_run())
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

    def cases(self) -> Iterator[tuple[Case, Kind]]:
        """Each position with each fault, going on and dying; the last position first, since the
        checkpoints are left in that order."""
        for number, name, calls_only in reversed(self.positions):
            yield from self._at(number, name, calls_only)

    def _at(self, number: int, name: str, calls_only: bool) -> Iterator[tuple[Case, Kind]]:
        before_verb = name.startswith("before") and " h" in name
        for kind in KINDS:
            if kind.verbs_only != calls_only and not (kind.verbs_only and before_verb):
                continue
            if kind.verbs and name.split()[1] not in kind.verbs:
                continue
            for dies in (False, True) if kind.finish else (True,):
                yield Case(self.scenario.name, number, name, kind.name, dies), kind

    def run(self, cases: Sequence[tuple[Case, Kind]]) -> Iterator[tuple[Case, Wrong | None]]:
        """Cases of one seam: those that came to something, each with what went wrong.

        All that end with the controller's death are tried in one visit to the seam, but for those
        that take long. Each of the other faults has a visit of its own, for going on and dying.
        """
        deaths = [(case, kind) for case, kind in cases if case.dies and kind.brief]
        idle: set[str] = set()
        if deaths:
            yield from self._try_each(deaths, idle)
        left = [one for one in cases if one not in deaths and one[1].name not in idle]
        for _, group in groupby(left, lambda one: one[1].name):
            yield from self._go_through(list(group))

    def _try_each(
        self, cases: list[tuple[Case, Kind]], idle: set[str]
    ) -> Iterator[tuple[Case, Wrong | None]]:
        """At the seam each fault strikes, and the controller dies, as if no other did. The names
        of those of which nothing comes go to `idle`."""
        found = []
        visit = self._begin(cases[0][0].position)

        def there() -> None:
            for case, kind in cases:
                with self.world.aside():
                    at = self._strike(case, kind, visit)
                    if at.idle:
                        idle.add(kind.name)
                    else:
                        found.append((case, self._die(case, at)))
            raise _Left

        with suppress(_Left):
            self._go(visit, there)
        yield from found

    def _go_through(self, cases: list[tuple[Case, Kind]]) -> Iterator[tuple[Case, Wrong | None]]:
        """The seam's one fault; the controller goes on, and before that we try how it is if it
        dies."""
        kind = cases[0][1]
        dying = next((case for case, _ in cases if case.dies), None)
        going = next((case for case, _ in cases if not case.dies), None)
        case = cases[0][0]
        visit = self._begin(case.position, from_start=kind.name == "power_cut")
        found = []
        at = Strike(self.world, case.seam, visit.victim)

        def there() -> None:
            self._strike(case, kind, visit, at)
            if at.idle:
                raise _Left
            if not kind.verbs_only:
                parted()

        def after() -> None:
            if kind.verbs_only:
                parted()

        def parted() -> None:
            if dying is not None:
                with nullcontext() if going is None else self.world.aside():
                    found.append((dying, self._die(dying, at)))
            if going is None:
                raise _Left
            self.merged.begin(proving=_proving(going))

        try:
            bad = self._judge(case, at, lambda: self._go(visit, there, after))
        except _Left:
            pass
        else:
            assert going is not None
            found.append((going, bad))
        yield from found

    def _begin(self, position: int, *, from_start: bool = False) -> Visit:
        """Set out for a seam. From the very start where the power is cut there: a checkpoint does
        not tell what was not durable."""
        world = self.world
        begun = None if from_start else self.checkpoints.back(position)
        world.database.safe = not from_start
        if begun is None:
            self.checkpoints.leave()
            world.restore(self.saved)
            self.scenario.ask(world)
            end = world.clock.now + self.patience
            return Visit(position, Brain(world, "victim"), end, 0)
        return Visit(position, Brain(world, "victim", begun.memory), begun.end, begun.passed)

    def _go(
        self, visit: Visit, there: Callable[[], None], after: Callable[[], None] = lambda: None
    ) -> None:
        """Let the controller work, do what is to be done at the seam and at the one after it, and
        go on until all is looked at."""
        world = self.world
        passed = visit.passed

        def on_seam(_name: str) -> None:
            nonlocal passed
            if world.actor is not visit.victim:
                return
            passed += 1
            if passed == visit.position + 1:
                there()
            elif passed == visit.position + 2:
                after()

        world.on_seam = on_seam
        self.merged.rest()
        world.track = self.merged
        world.drive(visit.victim, visit.end - world.clock.now)
        world.on_seam = None
        visit.victim.close()
        world.finish()
        if passed <= visit.position:
            world.wrong.append("the seam was not reached")

    def _strike(self, case: Case, kind: Kind, visit: Visit, at: Strike | None = None) -> Strike:
        at = at or Strike(self.world, case.seam, visit.victim)
        track, self.world.track = self.world.track, None
        with self.world.acting(None):
            kind.strike(at)
        self.world.track = track
        return at

    def _die(self, case: Case, at: Strike) -> Wrong | None:
        """The controller is gone at this point; another comes. While a host is down for good it
        still does what it can."""
        world = self.world

        def succeed() -> None:
            self.merged.at_birth(world.clock.now + self.patience)
            heir = Brain(world, "next")
            world.drive(heir, self.patience)
            heir.close()
            world.finish()

        world.on_seam = world.left = None
        for machine in world.machines.values():
            machine.watchers = []
        self.merged.begin(proving=_proving(case))
        return self._judge(case, at, succeed)

    def _judge(self, case: Case, at: Strike, play: Callable[[], None]) -> Wrong | None:
        """Have it played to its end, or to where another came by, and look at how it ends."""
        try:
            play()
            end = self._end()
            self.merged.ended(end)
        except Known as known:
            end = known.end
        except Runaway as runaway:
            return Wrong(case, (str(runaway),))
        wrong = list(dict.fromkeys(end.wrong))
        if not at.asked:
            wrong += self._ended_ill(case, end)
        expected = self.merged.expected
        if expected is not None and _in_short(expected) != _in_short(end):
            wrong.append(f"it was taken for one that ends otherwise: {expected}, not {end}")
        return Wrong(case, tuple(wrong)) if wrong else None

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


def _proving(case: Case) -> bool:
    """Whether it is run to its end even if it could be merged."""
    return WHOLE or crc32(str(case).encode()) % PROVE_ONE_OF == 0


def _in_short(end: End) -> tuple[Any, ...]:
    """What two that are merged must have in common: the words of a fault are not looked at."""
    return set(end.wrong), [row[:2] for row in end.rows]


def of(faults: Collection[str]) -> Callable[[Case], bool]:
    """Their cases. Images on their way have a sweep of their own. All, where the whole is run."""
    return lambda case: WHOLE or (case.fault in faults and " ensure_image " not in case.seam)


def sweep(
    world: World, scenario: Scenario, *, stop_after: int = 0,
    only: Callable[[Case], bool] = lambda _case: True,
) -> tuple[int, list[Wrong]]:
    """How many cases there were, and those that went wrong (at most `stop_after`, where set)."""
    runner = Sweep(world, scenario)
    count = 0
    wrong: list[Wrong] = []
    cases = [one for one in runner.cases() if only(one[0])]
    # Those that begin at the start come last: the checkpoints are gone then.
    cases.sort(key=lambda one: one[1].name == "power_cut")
    for _, some in groupby(cases, lambda one: one[0].position):
        for _, bad in runner.run(list(some)):
            count += 1
            if bad is not None:
                wrong.append(bad)
                if stop_after and len(wrong) >= stop_after:
                    return count, wrong
    return count, wrong


@cache
def _freeze() -> None:
    """What is there when the process begins its first sweep is not looked through for garbage at
    every collection from then on."""
    gc.collect()
    gc.freeze()


def each_ends_as_wanted(
    folder: Path, scenario: Scenario, least: int, *,
    only: Callable[[Case], bool] = lambda _case: True,
) -> None:
    """Sweep the scenario: no case may go wrong, and `least` of them must come to something."""
    _freeze()
    clock = Clock()
    with world_time(clock):
        count, wrong = sweep(
            World(folder, scenario.sizes, clock=clock), scenario, only=only
        )
    shown = "\n".join(str(one) for one in wrong[:10])
    assert not wrong, f"{len(wrong)} of {count} cases went wrong:\n{shown}"
    assert count >= least, f"the sweep has shrunk to {count} cases"
