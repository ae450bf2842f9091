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
from typing import Any
from zlib import crc32

from world import (
    BUILD_S,
    CHANGING,
    CONFIRM_S,
    LEASE_S,
    SOON_S,
    Brain,
    Clock,
    Crash,
    Runaway,
    Saved,
    World,
    world_time,
)

from treadle.compute.model import State
from treadle.hypervisor.base import Power
from treadle.hypervisor.fake_host import Fault, FaultKind

Do = Callable[[World], Any]


@dataclass(frozen=True)
class Scenario:
    """`start` brings the world to where the scenario begins, `ask` is the user's wish.

    `ends`: the states in which the instances may end when nobody wishes anything else, by fault;
    "" is for all other faults.
    """

    name: str
    start: Do
    ask: Do
    ends: dict[str, frozenset[State]]
    sizes: tuple[int, ...] = (4, 4)
    waits: bool = False
    """It settles only when the faults are over."""


# -- start states


def nothing(_world: World) -> None:
    """No instance yet."""


def settle(world: World) -> None:
    """Let one controller bring all to where it is wanted."""
    brain = Brain(world, "starter")
    assert world.drive(brain), "the start state is not reached"
    brain.close()


def running(world: World) -> None:
    """One instance runs."""
    world.create()
    settle(world)


def growable(*wishes: str) -> Do:
    """One that runs and can be given more, and was told to do this."""

    def start(world: World) -> None:
        world.create(flavor=3)
        settle(world)
        for wish in wishes:
            world.act(1, wish)
            settle(world)

    return start


def cardless(*wishes: str) -> Do:
    """One that runs without a network card, and was told to do this."""

    def start(world: World) -> None:
        world.create(networked=False)
        settle(world)
        for wish in wishes:
            world.act(1, wish)
            settle(world)

    return start


def ignoring(world: World) -> None:
    """One runs, and its guest does not listen to ACPI."""
    running(world)
    world.guest(1).ignores_acpi = True
    world.act_s = 1.5


def told(*wishes: str) -> Do:
    """One that was told to do this after it ran."""

    def start(world: World) -> None:
        running(world)
        for wish in wishes:
            world.act(1, wish)
            settle(world)

    return start


def built_until(seam: str) -> Do:
    """A build whose controller died the first time it came to `seam`."""

    def start(world: World) -> None:
        world.create()
        dead_at(world, seam)

    return start


def dead_at(world: World, seam: str) -> None:
    """The controller dies the first time it comes to `seam`, and its lease runs out."""
    brain = Brain(world, "dead")

    def stop(name: str) -> None:
        if name.startswith(seam):
            raise Crash

    world.on_seam = stop
    try:
        world.drive(brain)
    except Crash:
        world.on_seam = None
        brain.close()
        world.clock.now += LEASE_S + 1
        return
    raise AssertionError(f"{seam} was never reached")


def moved_until(seam: str, wish: str = "migrate") -> Do:
    """One that runs, and whose move's controller died the first time it came to `seam`."""

    def start(world: World) -> None:
        running(world)
        world.act(1, wish)
        dead_at(world, seam)

    return start


def failed(world: World) -> None:
    """One that no host could take."""
    for machine in world.machines.values():
        machine.faults = [Fault("define", 1, FaultKind.REFUSE, times=99)]
    world.create()
    settle(world)
    assert world.get(1).state is State.ERROR
    for machine in world.machines.values():
        machine.faults = []


def on_a_dead_host(world: World) -> None:
    """One runs, then its host is gone, and known to be."""
    running(world)
    world.machines[1].power_failure()
    brain = Brain(world, "starter")
    with world.acting(brain):
        while world.due():
            brain.once()
    brain.close()


def half_gone(world: World) -> None:
    """One runs; somebody removed its domain and left the disk."""
    running(world)
    guest = world.guest(1)
    guest.defined, guest.power = False, Power.OFF


def aged(start: Do) -> Do:
    """The same, and hours later: every deadline of what was asked for then has passed."""

    def old(world: World) -> None:
        start(world)
        world.clock.now += 2 * BUILD_S
        settle(world)

    return old


def overdue(wish: str) -> Do:
    """One whose time to decide about this wish is up."""

    def start(world: World) -> None:
        told(wish)(world)
        world.clock.now += CONFIRM_S + 1

    return start


def refusing(verb: str, begin: Do = running) -> Do:
    """One runs, on a host that refuses this verb twice."""

    def start(world: World) -> None:
        begin(world)
        for machine in world.machines.values():
            machine.faults = [Fault(verb, 1, FaultKind.REFUSE, times=2)]

    return start


def imaging(world: World) -> None:
    """One of which an image is asked for."""
    running(world)
    world.act(1, "image")


def undefined(world: World) -> None:
    """One runs; somebody has removed its definition."""
    running(world)
    guest = world.guest(1)
    guest.defined = guest.autostart = False


def changed(world: World) -> None:
    """One runs; somebody has changed its definition."""
    running(world)
    world.guest(1).changed = ("memory",)


# -- wishes


def create(world: World) -> None:
    """One instance."""
    world.create()


def create_two(world: World) -> None:
    """Two, all or none."""
    world.create(2, rollback=True)


def act(what: str) -> Do:
    """An action on the first instance."""

    def ask(world: World) -> None:
        assert world.act(1, what) is not None

    return ask


def look(world: World) -> None:
    """Nothing is asked; the hosts are looked at, as they are from time to time."""
    world.look()


# -- scenarios


def ends(*states: State, **by_fault: Sequence[State]) -> dict[str, frozenset[State]]:
    """The end states: the first is the one for all faults that are not named."""
    return {"": frozenset(states), **{k: frozenset((*states, *v)) for k, v in by_fault.items()}}


R, S, P, U, E, D, SHELF = (
    State.RUNNING, State.STOPPED, State.PAUSED, State.SUSPENDED, State.ERROR, State.DELETED,
    State.OFFLOADED,
)
REFUSALS = ("refused", "full")
BUILT = ends(R, host_dies=(E,), cut_off=(E,), dies_before=(E,), dies_after=(E,), guest_stops=(S,))
OFF_THE_SHELF = ends(
    R, host_dies=(SHELF,), cut_off=(SHELF,), dies_before=(SHELF,), dies_after=(SHELF,),
    guest_stops=(S,),
)


def moved(goal: State, before: State, **more: Sequence[State]) -> dict[str, frozenset[State]]:
    """The ends of an action: where a host refuses it, the instance stays what it was."""
    return ends(goal, refused=(before,), full=(before,), **more)


# A process that stands still inside a verb past its lease is ended by its keeper before. Where it
# is not, the guest of after the reboot obeys the shutdown that was meant for the one before.
TOLD_LATE = {"stall": (S,), "guest_stops": (S,)}


# What a host refuses when the guest is off already leaves it off.
CUT_SHORT = {"refused": (S,), "full": (S,)}

# What was paused is off when its host is back, and by then its time is up.
LOST: dict[str, Sequence[State]] = dict.fromkeys(("host_dies", "dies_before", "dies_after"), (S,))

SCENARIOS = [
    Scenario("create", nothing, create, BUILT, sizes=(4, 4, 4)),
    Scenario("create two or none", nothing, create_two, {
        **BUILT, **dict.fromkeys(
            ("host_dies", "cut_off", "dies_before", "dies_after"), frozenset((R, D, S))
        ),
    }),
    Scenario("create two where one fits", nothing, create_two, ends(D), sizes=(1,)),
    Scenario("a build taken up when placed", built_until("before observe"), look, BUILT),
    Scenario("a build taken up when defined", built_until("before start"), look, BUILT),
    Scenario("a build taken up when started", built_until("after start"), look, BUILT),
    Scenario("delete a queued one", create, act("delete"), ends(D)),
    Scenario("delete a placed one", built_until("before observe"), act("delete"), ends(D)),
    Scenario("delete a defined one", built_until("before start"), act("delete"), ends(D)),
    Scenario("delete a started one", built_until("after start"), act("delete"), ends(D)),
    Scenario("look at a running one", running, look, ends(R, guest_stops=(S,))),
    Scenario("look at an old running one", aged(running), look, ends(R, guest_stops=(S,))),
    Scenario("look at an old paused one", aged(told("pause")), look, ends(P)),
    Scenario("stop", running, act("stop"), moved(S, R)),
    Scenario("stop a deaf one", ignoring, act("stop"), moved(S, R)),
    Scenario("reboot", running, act("reboot"), moved(R, S, **TOLD_LATE)),
    Scenario("reboot a deaf one", ignoring, act("reboot"), moved(R, S, guest_stops=(S,))),
    Scenario("pause", running, act("pause"), moved(P, R, guest_stops=(S,))),
    Scenario("suspend", running, act("suspend"), moved(
        U, R, host_reboots=(S,), host_dies=(S,), dies_before=(S,), dies_after=(S,),
        guest_stops=(S,),
    )),
    Scenario("delete a running one", running, act("delete"), ends(D)),
    Scenario("stop after two refusals", refusing("shut_down"), act("stop"), ends(R, S)),
    Scenario("look at a stopped one", told("stop"), look, ends(S)),
    Scenario("start", told("stop"), act("start"), moved(R, S, guest_stops=(S,))),
    Scenario("delete a stopped one", told("stop"), act("delete"), ends(D)),
    Scenario("look at a paused one", told("pause"), look, ends(P)),
    Scenario("resume", told("pause"), act("resume"), moved(R, P, guest_stops=(S,))),
    Scenario("stop a paused one", told("pause"), act("stop"), moved(S, P)),
    Scenario("suspend a paused one", told("pause"), act("suspend"), moved(
        U, P, host_reboots=(S,), host_dies=(S,), dies_before=(S,), dies_after=(S,),
    )),
    Scenario("delete a paused one", told("pause"), act("delete"), ends(D)),
    Scenario("look at a suspended one", told("suspend"), look, ends(U)),
    Scenario("resume a suspended one", told("suspend"), act("resume"),
             moved(R, U, guest_stops=(S,))),
    Scenario("delete a suspended one", told("suspend"), act("delete"), ends(D)),
    Scenario("delete a failed one", failed, act("delete"), ends(D)),
    Scenario("delete one on a dead host", on_a_dead_host, act("delete"), ends(D), waits=True),
    Scenario("mend a half removed one", half_gone, look, ends(R, guest_stops=(S,), refused=(S,),
             full=(S,))),
    Scenario("mend an undefined one", undefined, look, ends(R, guest_stops=(S,), refused=(R, S),
             full=(R, S))),
    Scenario("mend a changed one", changed, look, ends(R, guest_stops=(S,), refused=(R, S),
             full=(R, S))),
    Scenario("reboot hard", running, act("hard reboot"), moved(R, S, guest_stops=(S,))),
    Scenario("reboot a stopped one hard", told("stop"), act("hard reboot"),
             moved(R, S, guest_stops=(S,))),
    Scenario("delete softly", running, act("soft delete"), moved(S, R)),
    Scenario("restore", told("soft delete"), act("restore"), moved(R, S, guest_stops=(S,))),
    Scenario("reclaim", overdue("soft delete"), look, ends(D)),
    Scenario("rescue", running, act("rescue"), ends(R, **CUT_SHORT, **TOLD_LATE)),
    Scenario("rescue a stopped one", told("stop"), act("rescue"),
             ends(R, **CUT_SHORT, guest_stops=(S,))),
    Scenario("unrescue", told("rescue"), act("unrescue"), ends(R, **CUT_SHORT, guest_stops=(S,))),
    Scenario("delete a rescued one", told("rescue"), act("delete"), ends(D)),
    Scenario("delete a rescued one softly", told("rescue"), act("soft delete"), moved(S, R)),
    Scenario("rebuild", running, act("rebuild"), ends(R, **CUT_SHORT, guest_stops=(S,))),
    Scenario("rebuild a stopped one", told("stop"), act("rebuild"), ends(S)),
    Scenario("rebuild a failed one", failed, act("rebuild"), BUILT),
    Scenario("resize", running, act("resize"), ends(R, **CUT_SHORT, **TOLD_LATE)),
    Scenario("resize a stopped one", told("stop"), act("resize"), ends(S)),
    Scenario("grow", growable(), act("grow"), ends(R, **CUT_SHORT, guest_stops=(S,))),
    Scenario("revert a growth", growable("grow"), act("revert"),
             ends(R, **CUT_SHORT, **TOLD_LATE)),
    Scenario("attach", cardless(), act("attach"), ends(R, guest_stops=(S,))),
    Scenario("attach after two refusals", refusing("plug", cardless()), act("attach"),
             ends(R, guest_stops=(S,))),
    Scenario("attach to a stopped one", cardless("stop"), act("attach"), ends(S)),
    Scenario("attach to a paused one", cardless("pause"), act("attach"), ends(P, **LOST)),
    Scenario("detach", running, act("detach"), ends(R, guest_stops=(S,))),
    Scenario("detach from a paused one", told("pause"), act("detach"), ends(P, **LOST)),
    Scenario("enlarge", running, act("enlarge"), ends(R, **CUT_SHORT, guest_stops=(S,))),
    Scenario("confirm a resize in time", overdue("resize"), look, ends(R, guest_stops=(S,))),
    Scenario("revert a resize", told("resize"), act("revert"),
             ends(R, **CUT_SHORT, **TOLD_LATE)),
    Scenario("delete a resized one softly", told("resize"), act("soft delete"), moved(S, R)),
    Scenario("make an image", running, act("image"), ends(R, guest_stops=(S,))),
    Scenario("make an image of a suspended one", told("suspend"), act("image"), ends(U)),
    Scenario("delete while an image is made", imaging, act("delete"), ends(D)),
    Scenario("shelve", running, act("shelve"), moved(S, R)),
    Scenario("shelve a stopped one", told("stop"), act("shelve"), ends(S)),
    Scenario("offload in time", overdue("shelve"), look, ends(SHELF)),
    Scenario("unshelve one on its host", told("shelve"), act("unshelve"),
             moved(R, S, guest_stops=(S,))),
    Scenario("unshelve", told("shelve", "offload"), act("unshelve"), OFF_THE_SHELF),
    Scenario("delete one on the shelf", told("shelve", "offload"), act("delete"), ends(D)),
    Scenario("delete one on the shelf softly", told("shelve", "offload"), act("soft delete"),
             ends(SHELF)),
    Scenario("take a mark off", told("mark"), act("unmark"), ends(R, guest_stops=(S,))),
]


# -- faults


@dataclass
class Strike:
    """A fault about to strike: where, and in which world."""

    world: World
    seam: str
    brain: Brain
    idle: bool = False
    """Nothing came of it: the wish was refused, no guest was there to stop."""
    asked: bool = False
    """Whether a user has wished something else meanwhile: then any settled end is right."""

    @property
    def verb(self) -> str:
        """The verb at this seam, "" at a transaction."""
        return self.seam.split()[1] if " h" in self.seam else ""

    @property
    def host(self) -> int:
        """The host in question: the verb's, or the instance's, or the first."""
        if self.verb:
            return int(self.seam.rsplit("h", 1)[1])
        rows = self.world.rows()
        return next((row.host_id for row in rows if row.host_id is not None), 1)


@dataclass(frozen=True)
class Kind:
    """A fault. `verbs_only`: it is something a call can meet, so it strikes before verbs alone.

    Where the controller dies as well, it does so at once, or at the next seam after the call.
    """

    name: str
    strike: Callable[[Strike], None]
    verbs_only: bool = False
    finish: bool = True


def _call_meets(kind: FaultKind, times: int = 1) -> Callable[[Strike], None]:
    def strike(at: Strike) -> None:
        machine = at.world.machines[at.host]
        machine.faults.append(Fault(at.verb, machine.calls[at.verb] + 1, kind, times))

    return strike


def _nothing(_at: Strike) -> None:
    pass


def _power_is_cut(at: Strike) -> None:
    """The controller's machine dies, and with it what it need not have written to the disk."""
    at.idle = not at.world.database.lose()


def _stall(at: Strike) -> None:
    """The process stands still past its lease; another one takes over and finishes."""
    world = at.world
    world.clock.now += LEASE_S + 1
    rival = Brain(world, "rival")
    world.drive(rival)
    rival.close()
    world.overtaken(at.brain)


def _overtaken(at: Strike) -> None:
    """As `_stall`; and when all is done, a user asks for something else, and that is done too."""
    _stall(at)
    for what in ("stop", "start", "resume"):
        for row in at.world.rows():
            if row.state is not State.DELETED and at.world.act(row.id, what) is not None:
                at.asked = True
                rival = Brain(at.world, "rival")
                at.world.drive(rival)
                rival.close()
                at.world.overtaken(at.brain)
                return
    at.idle = True


def _second(at: Strike) -> None:
    """Another controller does all that is due now, side by side."""
    rival = Brain(at.world, "second")
    with at.world.acting(rival):
        while at.world.due():
            rival.once()
    rival.close()


def _wish(what: str) -> Callable[[Strike], None]:
    def strike(at: Strike) -> None:
        for row in at.world.rows():
            if row.state is not State.DELETED and at.world.act(row.id, what) is not None:
                at.asked = True
                return
        at.idle = True

    return strike


def _wish_then_stall(what: str) -> Callable[[Strike], None]:
    wish = _wish(what)

    def strike(at: Strike) -> None:
        wish(at)
        if not at.idle:
            _stall(at)

    return strike


def _host_reboots(at: Strike) -> None:
    machine = at.world.machines[at.host]
    machine.power_failure()
    machine.boot()


def _host_dies(at: Strike) -> None:
    at.world.machines[at.host].power_failure()


def _cut_off(at: Strike) -> None:
    """The host does not answer any more; what runs on it goes on."""
    at.world.machines[at.host].cut_off()


def _guest_stops(at: Strike) -> None:
    at.idle = True
    for machine in at.world.machines.values():
        for uuid in sorted(machine.running()):
            if machine.guests[uuid].power is Power.RUNNING:
                machine.guest_powers_off(uuid)
                at.idle = False


KINDS = [
    Kind("crash", _nothing, finish=False),
    Kind("power_cut", _power_is_cut, finish=False),
    Kind("stall", _stall),
    Kind("overtaken", _overtaken),
    Kind("second", _second),
    Kind("delete", _wish("delete")),
    Kind("delete_and_stall", _wish_then_stall("delete")),
    Kind("stop", _wish("stop")),
    Kind("start", _wish("start")),
    Kind("reboot", _wish("reboot")),
    Kind("host_reboots", _host_reboots),
    Kind("host_dies", _host_dies),
    Kind("cut_off", _cut_off),
    Kind("guest_stops", _guest_stops),
    Kind("lost_before", _call_meets(FaultKind.LOSE_BEFORE), verbs_only=True),
    Kind("lost_after", _call_meets(FaultKind.LOSE_AFTER), verbs_only=True),
    Kind("hangs", _call_meets(FaultKind.HANG), verbs_only=True),
    Kind("late", _call_meets(FaultKind.LATE), verbs_only=True),
    Kind("refused", _call_meets(FaultKind.REFUSE, 9), verbs_only=True),
    Kind("full", _call_meets(FaultKind.FULL, 9), verbs_only=True),
    Kind("dies_before", _call_meets(FaultKind.DIE_BEFORE), verbs_only=True),
    Kind("dies_after", _call_meets(FaultKind.DIE_AFTER), verbs_only=True),
]
WISHES = frozenset({"delete", "delete_and_stall", "stop", "start", "reboot"})
COMMON = frozenset({
    "read", "write", "observe", "observe_all", "facts", "define", "start", "shut_down",
})
"""What nearly every scenario comes by, many times: nine of ten cases."""


# -- cases


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
