"""The scenarios of the sweep: a start state, and what a user asks for then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from brain import BUILD_S, LEASE_S, Brain, Crash
from world import CONFIRM_S, World

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
    lasts_s: float = 2 * LEASE_S + 5.0
    """How long a fault lasts that does not end by itself: the lease of one who dies runs out, and
    as much again. Then all is well, and must come to be as wanted."""


# -- start states


def nothing(_world: World) -> None:
    """No instance yet."""


def settle(world: World) -> None:
    """Let one controller bring all to where it is wanted."""
    brain = Brain(world, "starter")
    assert world.drive(brain), "the start state is not reached"
    brain.close()


def notice(world: World) -> None:
    """Let one controller do what is due at this moment, and no more."""
    brain = Brain(world, "starter")
    with world.acting(brain):
        while world.due():
            brain.once()
    brain.close()


def running(world: World) -> None:
    """One instance runs."""
    world.create()
    settle(world)


def told(*wishes: str, **made: Any) -> Do:
    """One that was told to do this after it ran. `made`: what is asked for with it."""

    def start(world: World) -> None:
        world.create(**made)
        settle(world)
        for wish in wishes:
            world.act(1, wish)
            settle(world)

    return start


growable = partial(told, flavor=3)
"""One that can be given more."""
cardless = partial(told, networked=False)
"""One without a network card."""


def ignoring(world: World) -> None:
    """One runs, and its guest does not listen to ACPI."""
    running(world)
    world.guest(1).ignores_acpi = True
    world.act_s = 1.5


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
    notice(world)


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
