"""The course of a live move, as one pure function, like `compute/lifecycle.py` for instances.

`plan(move, here, there, ...)` says what to do next from what the two hosts show. It is called anew
after whatever happened in between, and must then be right: at most one copy of the guest may ever
run, and none may be lost.

The rules behind it: a guest that runs at the target has arrived, whatever the source shows. A move
that was begun is never begun again: its outcome is looked for. Where the target does not answer,
nothing is decided, since the guest may run there. One whose memory is in part at either host
(post-copy) has neither half taken away: it goes on by itself, whether a controller is there or not,
and where it does not, since the way between the hosts broke, it is gone on with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from treadle.compute.lifecycle import ImageOnHost, Lost
from treadle.hypervisor.base import Domain, Power


class Kind(StrEnum):
    """What a move is, in OpenStack's words. An evacuation's source is off: the guest is built anew
    at the target. Of the last two the guest is off meanwhile; `cold.py` is their plan."""

    LIVE = "live-migration"
    EVACUATION = "evacuation"
    COLD = "migration"
    RESIZE = "resize"


class Stage(StrEnum):
    """How far a move is. `MOVING`: it has been begun. `ARRIVED`: the source is being cleaned; of an
    evacuation, the target has the claim and builds it.

    Of cold ones: `FINISHED`: it is at the target, and what the source keeps of it can still be
    gone back to. `REVERTING`: that is being done.
    """

    QUEUED = "queued"
    READY = "ready"
    MOVING = "moving"
    ARRIVED = "arrived"
    FINISHED = "finished"
    REVERTING = "reverting"
    REVERTED = "reverted"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({Stage.DONE, Stage.REVERTED, Stage.FAILED, Stage.CANCELLED})
LANDED = frozenset({Stage.FINISHED, Stage.REVERTING})
"""The stages in which it is the source whose room is held, for what is kept there."""
RUNS = frozenset({Power.RUNNING, Power.PAUSED})
ENDED_THERE = frozenset({Power.OFF, Power.REMNANT})

Seen = Domain | Lost | None


@dataclass(frozen=True, slots=True)
class Move:
    """One row of the migration table. Times are seconds since 1970, the sizes what is held of the
    host `holder` while `held`. `wanted_id`: the host that was asked for. `left_off`: an evacuation
    that does not start it. Of a cold one: `ask`: whether somebody confirms it; `after` are columns
    of the instance that change with its host, `before` those that come back with it.
    """

    id: int
    uuid: str
    instance_id: int
    stage: Stage
    source_id: int
    target_id: int | None
    wanted_id: int | None
    stop: bool
    hurry: bool
    deadline: float
    held: bool
    vcpus: int
    memory_mib: int
    disk_mib: int
    revision: int
    user_id: str
    project_id: str
    progress: tuple[int, ...]
    error: str | None
    created_at: float
    updated_at: float
    kind: Kind = Kind.LIVE
    left_off: bool = False
    ask: bool = False
    after: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    cells: str = ""

    @property
    def holder(self) -> int | None:
        """The host of which it holds room while `held`."""
        return self.source_id if self.stage in LANDED else self.target_id


@dataclass(frozen=True, slots=True)
class Choose:
    """Find a target and hold room on it."""


@dataclass(frozen=True, slots=True)
class AwaitImage:
    """The image is on its way to the target."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Have the target expect it, and move it."""


@dataclass(frozen=True, slots=True)
class Resume:
    """It goes on at the target already: bring the rest of its memory there."""


@dataclass(frozen=True, slots=True)
class Arrive:
    """It runs at the target: from now on that is its host."""


@dataclass(frozen=True, slots=True)
class Clean:
    """Remove what is left of it on the source, or on the target."""

    target: bool


@dataclass(frozen=True, slots=True)
class End:
    """The move is over."""

    stage: Stage
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now."""

    reason: str


Action = Choose | AwaitImage | Begin | Resume | Arrive | Clean | End | Wait


@dataclass(frozen=True, slots=True)
class Context:
    """What a plan needs besides. `unwanted`: somebody has ended it, or deletes the instance, which
    is `deleted` then. `source_off`: the source does not answer, and is off for sure."""

    image: ImageOnHost = ImageOnHost.READY
    unwanted: bool = False
    deleted: bool = False
    late: bool = False
    trouble: str = ""
    source_off: bool = False


def plan(move: Move, here: Seen, there: Seen, context: Context) -> Action:
    """What to do next; `here` is what the source shows, `there` the target."""
    if move.stage is Stage.ARRIVED:
        return _after_arrival(here)
    if move.stage in (Stage.QUEUED, Stage.READY):
        return _before(move, here, there, context)
    if there is Lost.HOST:
        return Wait("the target does not answer: the guest may run there")
    assert not isinstance(there, Lost)
    # Who ends the move of one that stands still wants it started anew, once its time is over.
    enough = context.unwanted and context.late
    if there is not None and there.split and not (context.deleted or enough):
        if here is Lost.HOST and not (context.late or context.source_off):
            return Wait("the source, which has a part of its memory, does not answer")
        if _is_alive(here):
            torn = isinstance(here, Domain) and here.torn and there.torn
            return Resume() if torn else Wait("a part of its memory is still at the source")
    if isinstance(here, Domain) and here.split and there is not None and there.power in ENDED_THERE:
        return Arrive()  # it has ended there; its disk is there, newer than the source's
    if there is not None and there.power is Power.RUNNING:
        return Arrive()
    if there is not None and there.power is Power.PAUSED:
        if here is Lost.HOST:
            return Wait("the source does not answer: the guest may run there")
        if not _is_alive(here):
            return Arrive()  # the source is done with it
        if there.split and not context.deleted:
            return Wait("a part of its memory is still at the source")
        return Clean(target=True)  # a copy that has not been let go on
    if there is not None:
        if not _is_alive(here) and here is not Lost.HOST:
            return End(Stage.FAILED, context.trouble or "the guest ended while it was moved")
        return Clean(target=True)
    return End(Stage.CANCELLED if context.unwanted else Stage.FAILED,
               context.trouble or "it did not arrive")


def _before(move: Move, here: Seen, there: Seen, context: Context) -> Action:
    """Nothing has been begun yet: it can be left at any time."""
    if context.unwanted or context.late:
        return given_up(context.trouble, unwanted=context.unwanted)
    if here is Lost.HOST:
        return Wait("the source does not answer")
    if not _is_alive(here):
        return End(Stage.FAILED, "the guest does not run")
    return towards(move, there, context.image, context.trouble)


def given_up(trouble: str, *, unwanted: bool) -> End:
    """Somebody has ended it, or its time is over."""
    if unwanted:
        return End(Stage.CANCELLED, trouble)
    return End(Stage.FAILED, trouble or "there was no time left")


def towards(
    move: Move, there: Seen, image: ImageOnHost, trouble: str
) -> Choose | AwaitImage | Begin | End:
    """What is next of a move that nothing keeps on its source: a target, its image, the move."""
    if move.target_id is None:
        return Choose()
    if there is Lost.HOST:
        return End(Stage.FAILED, "the target does not answer")
    if isinstance(there, Domain) and there.power is not Power.REMNANT:
        return End(Stage.FAILED, "a guest with its UUID is at the target already")
    if image is ImageOnHost.PENDING:
        return AwaitImage()
    if image is not ImageOnHost.READY:
        return End(Stage.FAILED, trouble or "the target could not take its image")
    return Begin()


def _after_arrival(here: Seen) -> Action:
    if here is None or here is Lost.HOST:
        # A source that is back later is swept: the row names another host.
        return End(Stage.DONE)
    return Clean(target=False)


def _is_alive(seen: Seen) -> bool:
    return isinstance(seen, Domain) and seen.power in RUNS
