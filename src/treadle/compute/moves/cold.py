"""The course of a cold move, as one pure function, like `plan.py` for live ones.

The guest is shut down at the source, its disk is copied, and one commit makes the target its host:
from there on it is an instance like any other, and defined and started by its own passes. What the
source keeps stays until somebody confirms the move or takes it back.

The rules behind it: nothing is defined at the target before that commit, so until then the only
guest is at the source and a copy can be made any number of times. After it, the source's is never
started, until one commit makes the source its host again; and that comes only after the target was
seen to have nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from treadle.compute.lifecycle import ImageOnHost, Lost
from treadle.compute.moves import plan as live
from treadle.compute.moves.plan import (
    RUNS,
    Clean,
    End,
    Move,
    Seen,
    Stage,
    Wait,
    given_up,
    towards,
)
from treadle.hypervisor.base import Domain, Power

LOST_TRIES = 3
"""How many passes in a row may find the target silent before the move is given up."""


@dataclass(frozen=True, slots=True)
class Do:
    """One verb on what is at the source: shut_down, power_off, or autostart, which is ended."""

    verb: str


@dataclass(frozen=True, slots=True)
class Send:
    """Copy the disk to the target, and in the commit that follows make that its host."""


@dataclass(frozen=True, slots=True)
class Return:
    """Make the source its host again. `off`: the target does not answer, and is said to be off."""

    off: bool = False


@dataclass(frozen=True, slots=True)
class Stay:
    """It cannot be taken back: it is at the target as before."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rest:
    """There is nothing to do until somebody decides."""


Action = live.Action | Do | Send | Return | Stay | Rest


@dataclass(frozen=True, slots=True)
class Context:
    """What a plan needs besides. `unwanted`: somebody has ended it, or wants something else of the
    instance. `trouble`: what went wrong, for good. `tries`: how many passes in a row have failed.
    `patient`: the guest is still asked to shut down. `undecided`: what the source keeps may still
    be gone back to. `off`: a fence, or an operator, says that nothing runs at the target.
    """

    image: ImageOnHost = ImageOnHost.READY
    unwanted: bool = False
    late: bool = False
    trouble: str = ""
    tries: int = 0
    patient: bool = True
    undecided: bool = True
    off: bool = False


def plan(move: Move, here: Seen, there: Seen, context: Context) -> Action:
    """What to do next; `here` is what the source shows, `there` the target."""
    match move.stage:
        case Stage.FINISHED:
            return _kept(here, context)
        case Stage.REVERTING:
            return _back(here, there, context)
        case Stage.MOVING:
            return _under_way(here, there, context)
        case _:
            return _before(move, here, there, context)


def _before(move: Move, here: Seen, there: Seen, context: Context) -> Action:
    """Nothing has been begun yet: the guest is as it was."""
    if context.unwanted or context.late:
        return given_up(context.trouble, unwanted=context.unwanted)
    if here is Lost.HOST:
        return Wait("the source does not answer")
    if not isinstance(here, Domain) or here.power is Power.REMNANT:
        return End(Stage.FAILED, "it is not on its host")
    return towards(move, there, context.image, context.trouble)


def _under_way(here: Seen, there: Seen, context: Context) -> Action:
    """The guest is shut down, then its disk is copied. Until that is whole, the source has it."""
    if context.unwanted or context.late or context.trouble:
        # Of a target that does not answer, the rest is swept when it is back.
        if isinstance(there, Domain) and there.power is Power.REMNANT:
            return Clean(target=True)
        return given_up(context.trouble, unwanted=context.unwanted)
    if here is Lost.HOST:
        return Wait("the source does not answer")
    if not isinstance(here, Domain) or here.power in (Power.REMNANT, Power.SAVED):
        return _fail(there, "it is not on its host as it was")
    if here.power in RUNS:
        asked = here.power is Power.RUNNING and context.patient
        return Do("shut_down" if asked else "power_off")
    if here.autostart:
        return Do("autostart")
    if there is Lost.HOST:
        if context.tries < LOST_TRIES:
            return Wait("the target does not answer")
        return End(Stage.FAILED, "the target does not answer")
    if isinstance(there, Domain) and there.power is not Power.REMNANT:
        return End(Stage.FAILED, "a guest with its UUID is at the target already")
    return Send()


def _kept(here: Seen, context: Context) -> Action:
    """It is at the target. The source's copy stays off, and goes once all is decided."""
    if not context.undecided:
        # A source that is back later is swept: the row names another host.
        return End(Stage.DONE) if here is None or here is Lost.HOST else Clean(target=False)
    if isinstance(here, Domain) and here.power in RUNS:
        return Do("power_off")
    if isinstance(here, Domain) and here.autostart:
        return Do("autostart")
    return Rest()


def _back(here: Seen, there: Seen, context: Context) -> Action:
    """The target's copy goes, then the source has it again. Of a target that is off, what it has is
    swept when it is back."""
    if there is Lost.HOST and context.off and isinstance(here, Domain):
        return Return(off=True)
    if there is Lost.HOST:
        return Wait("the target does not answer: the guest may run there")
    if here is Lost.HOST:
        return Wait("the source does not answer")
    if there is None:
        return Return()
    if here is None:
        return Stay("what its former host kept of it is gone")
    return Clean(target=True)


def _fail(there: Seen, reason: str) -> Action:
    if isinstance(there, Domain) and there.power is Power.REMNANT:
        return Clean(target=True)
    return End(Stage.FAILED, reason)
