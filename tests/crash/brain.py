"""One controller process, driven by hand in the thread of the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treadle.compute.failure import fencing
from treadle.compute.failure.evacuation import EvacuationHandler
from treadle.compute.failure.fencing import FenceHandler, Target
from treadle.compute.fleet import Fleet
from treadle.compute.hosts import HostHandler, HostImageHandler
from treadle.compute.kinds import (
    EVACUATION_KIND,
    HOST_KIND,
    IMAGE_KIND,
    KIND,
    MOVE_KIND,
    SNAPSHOT_KIND,
)
from treadle.compute.moves.cold_handler import EveryMove
from treadle.compute.moves.handler import MovePolicy
from treadle.compute.reconciler import InstanceHandler
from treadle.compute.snapshots import SnapshotHandler
from treadle.controller import queue
from treadle.controller.queue import Ticket
from treadle.controller.signals import Signals
from treadle.controller.worker import Controller
from treadle.hypervisor.base import MoveOptions
from treadle.hypervisor.fake_host import FakeHost
from treadle.placement.board import Board
from treadle.placement.ledger import Room
from treadle.scheduler.model import HostView
from treadle.scheduler.table import HostTable

if TYPE_CHECKING:
    from world import World

LEASE_S = 30.0
BUILD_S = 300.0
MOST_PASSES = 300


class Crash(BaseException):
    """The process dies here: no handler may catch it."""


class Runaway(AssertionError):
    """Passes go on and on while no time passes."""


class Inline(Controller):
    """The engine without its threads: what is given to a lane is worked off by `work_off`."""

    ticket: Ticket | None = None
    passes = 0

    def _give(self, ticket: Ticket) -> None:
        with self._lock:
            self._held[ticket.key] = ticket
            self._load[ticket.lane] += 1
        self._given = ticket

    def _pass(self, ticket: Ticket) -> Ticket | None:
        self.ticket = ticket
        self.passes += 1
        if self.passes > MOST_PASSES:
            raise Runaway(f"{self.passes} passes, the last over {ticket.key}")
        return super()._pass(ticket)

    def work_off(self, ticket: Ticket) -> None:
        """Make its pass, and those that follow at once on whatever lane."""
        self._given: Ticket | None = ticket
        self._give(ticket)
        while self._given is not None:
            given, self._given = self._given, None
            self._work(given)
        self.ticket = None


class Unwatched(EveryMove):
    """Moves without the thread beside each: there is one thread here, and a move is one step."""

    @contextmanager
    def _watched(self, *_of: Any) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class Outlet:
    """A fence: it takes the power of a machine away, in a step that has its seams."""

    world: World

    def off(self, target: Target, seconds: float) -> None:
        assert seconds > 0
        self.world._seam(f"before fence h{target.id}")
        self.world.machines[target.id].power_failure()
        self.world._seam(f"after fence h{target.id}")


@dataclass(frozen=True)
class Memory:
    """All that a controller remembers between two passes.

    `hosts`: those it has a driver for, with what that knows: whether it has prepared its host, and
    is told of events. `prepared`: those that were set up. `read_at`, `views`, `changed` and `held`:
    how it sees the room that there is.
    """

    hosts: tuple[tuple[int, bool, bool], ...]
    prepared: tuple[tuple[int, str], ...]
    read_at: float | None
    views: tuple[HostView, ...]
    changed: tuple[int, ...]
    held: tuple[tuple[str, tuple[int, Room]], ...]

    @classmethod
    def of_new(cls, world: World) -> Memory:
        """Of a controller that has begun, and has made a pass over each host."""
        hosts = world.machines.items()
        return cls(
            tuple((id, False, machine.up) for id, machine in hosts),
            tuple((id, uri_of(machine)) for id, machine in hosts), None, (), (), (),
        )


class Brain:
    """One controller process, driven by hand: its handlers, and the lease of its pass."""

    def __init__(self, world: World, name: str, memory: Memory | None = None) -> None:
        """With the `memory` of another, or as after its first pass over each host."""
        self.name = name
        self.world = world
        self.fleet = Fleet(world.driver)
        signals = Signals()
        database = world.database
        self.board = board = Board(database, world.scheduler)
        self.handlers: dict[str, Any] = {
            KIND: InstanceHandler(database, self.fleet, board, world.timing, "cloud"),
            HOST_KIND: HostHandler(database, self.fleet, signals, world.policy),
            MOVE_KIND: Unwatched(
                database, self.fleet, board,
                MovePolicy(MoveOptions(post_copy=world.post_copy), lease_s=LEASE_S), "cloud",
            ),
            EVACUATION_KIND: EvacuationHandler(
                database, self.fleet, board, BUILD_S, "cloud"
            ),
            fencing.KIND: FenceHandler(database, Outlet(world), "outlet", 5.0, evacuates=False),
            IMAGE_KIND: HostImageHandler(database, self.fleet, signals, world.policy),
            SNAPSHOT_KIND: SnapshotHandler(database, self.fleet, signals, world.contents),
        }
        self.controller = Inline(database, self.handlers, signals, lease_s=LEASE_S)
        self.handlers[HOST_KIND].hint = self.controller.hint
        self._recall(memory or Memory.of_new(world))

    def memory(self) -> Memory:
        """What it remembers now."""
        board = self.board
        return Memory(
            tuple(
                (id, driver._prepared, driver._watcher in self.world.machines[id].watchers)
                for id, (_, driver) in sorted(self.fleet._drivers.items())
            ),
            tuple(sorted(self.handlers[HOST_KIND]._prepared.items())),
            board._read_at, tuple(view for _, view in sorted(board._views.items())),
            tuple(sorted(board._changed)), tuple(sorted(board._held.items())),
        )

    def _recall(self, memory: Memory) -> None:
        hosts = self.handlers[HOST_KIND]
        hosts._prepared.update(memory.prepared)
        for id, prepared, told in memory.hosts:
            machine = self.world.machines[id]
            driver: Any = self.fleet.driver(id, uri_of(machine))
            driver._prepared, driver._watcher = prepared, hosts._watcher(id)
            if told:
                machine.watchers.append(driver._watcher)
        board = self.board
        if memory.read_at is None:
            return
        board._read_at = memory.read_at
        board._views = {view.id: view for view in memory.views}
        board._held.update(memory.held)
        board._changed.update(memory.changed)
        board._table = HostTable(memory.views)
        for id in {id for _, (id, _) in memory.held}:
            board._put(id)

    def once(self) -> bool:
        """Claim one due row and make its pass; False where nothing is due."""
        claimed = self.world.database.write(lambda conn: queue.claim(conn, 1, LEASE_S))
        if not claimed:
            return False
        self.controller.work_off(claimed[0])
        self.world.still_as_left(self)
        return True

    def close(self) -> None:
        """What a dead process lets go: its connections, so its watchers."""
        self.fleet.close()


def uri_of(machine: FakeHost) -> str:
    """A fake host's address."""
    return f"fake://{machine.name}"
