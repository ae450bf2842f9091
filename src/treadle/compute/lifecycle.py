"""The life of an instance, as one pure function: show this file to a newcomer first.

`plan(instance, seen, ...)` says what to do next, given what is wanted (the instance) and what its
host shows (`seen`). It has no clock, no database, no libvirt: the pass in `reconciler.py` observes
before it and acts and commits after it, and then asks again, until the answer is `Settle`.

Whatever happens in between (a crash, a lost connection, a user's other wish, a host's reboot), the
next call starts from what is observed then; so each answer must be right from *any* combination of
wanted and seen, and each act must be harmless when it is done twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from treadle.compute import changes
from treadle.compute.model import Goal, Ha, Instance, Phase, State, is_settled
from treadle.errors import RetryLater
from treadle.hypervisor.base import Domain, HostRefused, Power, StopCause


class Lost(Enum):
    """In place of a domain: its host does not answer."""

    HOST = "host"


class ImageOnHost(Enum):
    """Where the instance's image stands on its host."""

    READY = "ready"
    PENDING = "pending"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Place:
    """Choose a host and claim room on it."""


@dataclass(frozen=True, slots=True)
class AwaitImage:
    """The image is on its way to the host; look again when it is there."""


@dataclass(frozen=True, slots=True)
class Call:
    """One verb of the hypervisor, idempotent, keyed by the instance's UUID."""

    verb: str


@dataclass(frozen=True, slots=True)
class Release:
    """Give the room on the host back. `again`: then choose another host."""

    again: bool


@dataclass(frozen=True, slots=True)
class Settle:
    """It is as wanted."""

    state: State


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take what is seen as what is wanted from now on, and say why."""

    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The time of its mode is up: what comes then is wanted from now on."""


@dataclass(frozen=True, slots=True)
class Rehome:
    """This host will not do: clean up there, and choose another."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Give it up: clean up, and keep the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Nothing can be done now; look again, later each time."""

    reason: str


Action = Place | AwaitImage | Call | Release | Settle | Adopt | End | Rehome | Fail | Retry

POWER_OF = {
    Goal.RUNNING: Power.RUNNING,
    Goal.STOPPED: Power.OFF,
    Goal.PAUSED: Power.PAUSED,
    Goal.SUSPENDED: Power.SAVED,
}
STATE_OF = {
    Power.RUNNING: State.RUNNING,
    Power.OFF: State.STOPPED,
    Power.PAUSED: State.PAUSED,
    Power.SAVED: State.SUSPENDED,
}
GONE = {
    Goal.DELETED: State.DELETED,
    Goal.FAILED: State.ERROR,
    Goal.OFFLOADED: State.OFFLOADED,
}
"""The goals for which nothing of it may be left on a host, and what it is then."""
NOWHERE = frozenset(GONE.values())
DRIFT = {
    Power.RUNNING: "it was started on its host, not by Treadle",
    Power.OFF: "it was stopped on its host, not by Treadle",
    Power.PAUSED: "it was paused on its host, not by Treadle",
    Power.SAVED: "it was suspended on its host, not by Treadle",
}
CHANGED = "its definition was changed on its host, not by Treadle: "
LOST_TRIES = 4
"""How many passes in a row may find the host silent before a build on it is given up."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a plan needs to know besides the instance and its domain.

    `late`: the deadline has passed. `tries`: how many passes in a row have failed.
    `max_attempts`: how many hosts may be tried. `last_error`: what the last failure said.
    `ended`: the time of its mode is up. `adopt_drift`: what somebody else did with the domain, not
    through us, is wanted from now on; else it is undone. A changed definition is left then, and
    said; else it is put back, for the next start. `evacuates`: instances that say nothing of
    it are evacuated when their host fails. `host_off`: its host does not answer, and is off for
    sure; told where it is to be removed. `shared`: other hosts see its host's storage.
    """

    image: ImageOnHost = ImageOnHost.READY
    late: bool = False
    tries: int = 0
    max_attempts: int = 3
    last_error: str = ""
    ended: bool = False
    adopt_drift: bool = False
    evacuates: bool = False
    host_off: bool = False
    shared: bool = False


def plan(instance: Instance, seen: Domain | Lost | None, context: Context) -> Action:
    """What to do next. `seen` is None where the host has neither a domain nor a volume of it."""
    if context.ended and instance.goal is not Goal.DELETED:
        return End()
    if instance.goal in GONE:
        if seen is Lost.HOST and context.host_off:
            return Release(again=False)  # what is left there is swept when it is back
        return _remove(instance, seen)
    if instance.host_id is None:
        return Fail(_too_late("not placed", context)) if context.late else Place()
    if seen is Lost.HOST:
        return _host_lost(instance, context)
    assert not isinstance(seen, Lost)
    if instance.phase is Phase.LEAVING:
        return Release(again=True) if seen is None else Call("undefine")
    if seen is None or seen.power is Power.REMNANT:
        return _define(instance, seen, context)
    if not seen.defined:
        return Call("define")  # it runs on; what is stored again is for its next start
    if (seen.changed and not context.adopt_drift) or stored_differs(instance, seen):
        return Call("define")  # likewise
    if seen.torn:
        return Call("power_off")  # the memory that it lacks is lost with its move
    old = seen.generation < instance.generation
    if seen.power is POWER_OF[instance.goal] and not old:
        if autostart_differs(host_starts(instance, context.evacuates, context.shared), seen):
            return Call("autostart")
        if seen.changed and is_settled(instance):
            return Adopt(STATE_OF[seen.power], CHANGED + ", ".join(seen.changed))
        return Settle(STATE_OF[seen.power])
    if new_here(instance) and context.late:
        return Fail(_too_late("not running", context))
    if old:
        return _next_generation(instance, seen, context)
    # What was as wanted before has drifted, and no deadline of old counts.
    if context.late and instance.goal is not Goal.STOPPED and not is_settled(instance):
        return Adopt(STATE_OF[seen.power], _too_late(f"not {instance.goal}", context))
    if context.adopt_drift and is_settled(instance) and _somebody_did(seen):
        return Adopt(STATE_OF[seen.power], DRIFT[seen.power])
    return _move(instance, seen, context)


def after_error(
    instance: Instance, seen: Domain | Lost | None, error: Exception, context: Context
) -> Action:
    """What a failed act means, after `seen` led to it. `error` is a `TreadleError`; its family
    decides."""
    if isinstance(error, RetryLater):
        return Retry(str(error))
    if instance.goal in GONE:
        return Retry(str(error))
    if new_here(instance) and isinstance(error, HostRefused):
        if instance.attempts >= context.max_attempts:
            return Fail(f"{error} (tried {instance.attempts} hosts)")
        return Rehome(str(error))
    if new_here(instance):
        return Fail(str(error))
    if context.tries == 0:
        # It may have changed between the look and the act: look once more.
        return Retry(str(error))
    power = seen.power if isinstance(seen, Domain) else Power.OFF
    return Adopt(STATE_OF.get(power, State.STOPPED), str(error))


def _remove(instance: Instance, seen: Domain | Lost | None) -> Action:
    """Delete is legal from every state."""
    if instance.host_id is None:
        return Settle(GONE[instance.goal])
    if seen is Lost.HOST:
        if instance.phase is Phase.PLACED:
            return Release(again=False)
        return Retry("its host does not answer; it is removed when the host is back")
    return Release(again=False) if seen is None else Call("undefine")


def _host_lost(instance: Instance, context: Context) -> Action:
    if not new_here(instance):
        return Retry("its host does not answer")
    if instance.phase in (Phase.PLACED, Phase.LEAVING) and context.tries >= 1:
        # Nothing was ever started there: what may be left is found by the sweep.
        if instance.attempts >= context.max_attempts:
            return Fail(context.last_error or "its host does not answer")
        return Release(again=True)
    if context.late or context.tries >= LOST_TRIES:
        return Fail("its host stopped answering while it was being started")
    return Retry("its host does not answer")


def _define(instance: Instance, seen: Domain | None, context: Context) -> Action:
    building = new_here(instance)
    if building and context.late:
        return Fail(_too_late("not running", context))
    if not building and seen is None:
        return Fail("its domain and its disk are gone from the host")
    if not building and context.image is not ImageOnHost.READY:
        # Its disk is there and is the user's: never given up, however long the image takes.
        return Retry(context.last_error or "its image is not on the host")
    if context.image is ImageOnHost.BROKEN:
        return Fail(context.last_error or "the image cannot be used")
    if context.image is ImageOnHost.REFUSED:
        if instance.attempts >= context.max_attempts:
            return Fail(context.last_error or "no host could take the image")
        return Rehome(context.last_error or "the host could not take the image")
    if context.image is ImageOnHost.PENDING:
        return AwaitImage()
    return Call("define")


def _next_generation(instance: Instance, seen: Domain, context: Context) -> Action:
    """A reboot: what runs was started with an older generation, so stop it and define the new.
    What the new one needs is fetched before. What is only to have more may be given it, and what is
    only to have a card, or none, starts nothing anew, however long it takes."""
    if plugs(instance, seen):
        live = seen.power is POWER_OF[instance.goal]
        return Call("plug") if live else _move(instance, seen, context)
    if not context.late and grows(instance, seen):
        return Call("grow")
    if needs_image(instance) and context.image is not ImageOnHost.READY:
        if context.image is ImageOnHost.PENDING:
            return AwaitImage()  # it comes or is refused; the deadline is the guest's
        return Adopt(STATE_OF[seen.power], context.last_error or "its image is not on the host")
    if seen.power is Power.RUNNING and instance.graceful and not context.late:
        return Call("shut_down")
    if seen.power is Power.OFF:
        return Call("define")
    # Whose time is up gets a new one with the `power_off`.
    at_once = instance.goal is Goal.RUNNING and not (instance.graceful or context.late)
    return Call("restart" if at_once else "power_off")


def _move(instance: Instance, seen: Domain, context: Context) -> Action:
    """One step from what is seen towards the goal; they differ."""
    match instance.goal:
        case Goal.RUNNING if seen.power is Power.PAUSED:
            # Nothing brings the rest of its memory any more.
            return Call("power_off" if seen.split else "resume")
        case Goal.RUNNING if _stopped_itself(instance, seen):
            return Adopt(State.STOPPED, "the guest shut itself down")
        case Goal.STOPPED if seen.power is Power.RUNNING and not context.late:
            return Call("shut_down")
        case Goal.STOPPED:
            return Call("power_off")
        case Goal.PAUSED if seen.power is Power.RUNNING:
            return Call("pause")
        case Goal.SUSPENDED if seen.power in (Power.RUNNING, Power.PAUSED):
            return Call("suspend")
        case Goal.SUSPENDED:
            return Adopt(State.STOPPED, "it is off and its saved memory is not there")
        case _:
            return Call("start")


def new_here(instance: Instance) -> bool:
    """Nothing of it has run since it was asked for, or came back from the shelf: no data of its
    owner's is on its host yet."""
    return instance.state in (State.BUILDING, State.OFFLOADED)


def needs_image(instance: Instance) -> bool:
    """Whether the next definition may make a disk out of an image, beside the first one."""
    return instance.rescue_image_id is not None or (
        len(instance.disks) == 1 and instance.disks != (1,)
    )


def grows(instance: Instance, seen: Domain) -> bool:
    """Whether what runs can be given all that is wanted of it besides. A host that refuses has the
    generation raised once more: then it cannot."""
    if not (
        seen.power is Power.RUNNING and instance.goal is Goal.RUNNING
        and seen.generation == instance.settled_generation
    ):
        return False
    more = changes.grown(instance)
    if not more or ("disk_gib" in more and not seen.disk_grows):
        return False
    return more == {"disk_gib"} or (
        seen.room is not None
        and instance.vcpus <= seen.room[0] and instance.memory_mib <= seen.room[1]
    )


def plugs(instance: Instance, seen: Domain) -> bool:
    """Whether what is there only has to have a network card, or none. What is off has its
    definition for that."""
    return (
        seen.power is not Power.OFF and seen.generation == instance.settled_generation
        and changes.plugged(instance)
    )


def evacuates(instance: Instance, unsaid: bool) -> bool:
    """Whether it is built anew elsewhere when its host is off for sure. `unsaid`: the settings."""
    return instance.ha is Ha.EVACUATE or (instance.ha is Ha.UNSAID and unsaid)


def host_starts(instance: Instance, unsaid: bool, shared: bool = False) -> bool:
    """Whether its host shall start it when it reboots, though no controller may be there: what
    shall run, but for what may run on another host by then. That is anything whose disk other
    hosts see (`shared`): an operator may have it evacuated."""
    return instance.goal is Goal.RUNNING and not shared and not evacuates(instance, unsaid)


def expected_power(instance: Instance) -> Power | None:
    """What the host should show of a settled instance; None where a pass is under way anyway."""
    return POWER_OF.get(instance.goal) if is_settled(instance) else None


def autostart_differs(wanted: bool, seen: Domain) -> bool:
    """Whether its host, when it reboots, would do other than is wanted."""
    return seen.autostart is not None and seen.autostart is not wanted


def stored_differs(instance: Instance, seen: Domain) -> bool:
    """Whether it runs as wanted, and its next start would be of another generation: of a wish that
    was given up when its host had been told."""
    return seen.generation == instance.generation and seen.stored not in (0, instance.generation)


def _somebody_did(seen: Domain) -> bool:
    """Whether what is seen was done by hand: a host that lost its power did not mean it, nor one
    that lost the other half of a guest."""
    return not seen.split and (seen.power is not Power.OFF or seen.cause is StopCause.FORCED)


def _stopped_itself(instance: Instance, seen: Domain) -> bool:
    """Off by the guest's own will: it was settled as running in this very generation, or in one
    that is no start."""
    return (
        seen.power is Power.OFF
        and seen.cause is StopCause.GUEST
        and instance.state is State.RUNNING
        and (instance.settled_generation == instance.generation or changes.plugged(instance))
    )


def _too_late(what: str, context: Context) -> str:
    return f"{what} by its deadline" + (f": {context.last_error}" if context.last_error else "")
