"""The faults of the sweep, and how each strikes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from brain import LEASE_S, Brain
from world import World

from treadle.compute.model import State
from treadle.hypervisor.base import Power
from treadle.hypervisor.fake_host import Fault, FaultKind


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
    """A fault. `verbs_only`: it is something a call can meet, so it strikes before verbs alone, or
    before `verbs` alone.

    Where the controller dies as well, it does so at once, or at the next seam after the call.
    `brief`: it is over at once, no controller has a part in it.
    """

    name: str
    strike: Callable[[Strike], None]
    verbs_only: bool = False
    verbs: frozenset[str] = frozenset()
    finish: bool = True
    brief: bool = False


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
    Kind("crash", _nothing, finish=False, brief=True),
    Kind("power_cut", _power_is_cut, finish=False),
    Kind("stall", _stall),
    Kind("overtaken", _overtaken),
    Kind("second", _second),
    Kind("delete", _wish("delete"), brief=True),
    Kind("delete_and_stall", _wish_then_stall("delete")),
    Kind("stop", _wish("stop"), brief=True),
    Kind("start", _wish("start"), brief=True),
    Kind("reboot", _wish("reboot"), brief=True),
    Kind("host_reboots", _host_reboots, brief=True),
    Kind("host_dies", _host_dies, brief=True),
    Kind("cut_off", _cut_off, brief=True),
    Kind("guest_stops", _guest_stops, brief=True),
    Kind("lost_before", _call_meets(FaultKind.LOSE_BEFORE), verbs_only=True),
    Kind("lost_after", _call_meets(FaultKind.LOSE_AFTER), verbs_only=True),
    Kind("hangs", _call_meets(FaultKind.HANG), verbs_only=True),
    Kind("late", _call_meets(FaultKind.LATE), verbs_only=True),
    Kind("refused", _call_meets(FaultKind.REFUSE, 9), verbs_only=True),
    Kind("full", _call_meets(FaultKind.FULL, 9), verbs_only=True),
    Kind("dies_before", _call_meets(FaultKind.DIE_BEFORE), verbs_only=True),
    Kind("dies_after", _call_meets(FaultKind.DIE_AFTER), verbs_only=True),
    Kind("parted", _call_meets(FaultKind.PARTED), verbs_only=True,
         verbs=frozenset({"move", "resume_move"})),
]
OF_MOVES = frozenset({
    "crash", "stall", "overtaken", "second", "delete", "host_reboots", "host_dies", "cut_off",
    "refused", "lost_before", "lost_after", "parted",
})
"""What moves and evacuations meet at every seam; all else with `TREADLE_WHOLE_SWEEP=1`."""
