"""One pass over an evacuation: find a host with room, and give the instance over to it.

Nothing is done on any host here. One commit takes the room there, gives the old host's back and
makes the row that of an instance that is being built on the new one; from then on its own passes
carry it. Before that commit nothing has changed; after it, the old host has no say any more: it is
off, and what it still has is swept when it is back.

Where the disk is in storage that other hosts share, it is not built but goes on from that disk. The
one thing that is done on a host comes before the commit then: the new one takes the disk, which
changes nothing for the old one. Such a disk is waited for, never given up for a new one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import sqlalchemy as sa
import structlog

from treadle.compute import changes, placing, store
from treadle.compute.fleet import Fleet, call
from treadle.compute.kinds import KIND
from treadle.compute.model import Goal
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import ENDED, Move, Stage
from treadle.compute.reconciler import spec_of
from treadle.compute.store import Loaded, Step
from treadle.controller import queue
from treadle.controller.queue import LeaseLost, Ticket
from treadle.controller.worker import backoff, end_pass
from treadle.db.engine import Database
from treadle.errors import TreadleError
from treadle.hypervisor.base import HostRefused
from treadle.image import store as images
from treadle.placement import fences, ledger, storages
from treadle.placement.board import Board
from treadle.placement.ledger import Host, HostStatus, Room
from treadle.scheduler.plugin import PluginError

log = structlog.get_logger("treadle.failure")

BUSY_S = 0.25
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Scene:
    """An evacuation with what one pass needs to know around it. `leased`: a pass over the instance
    that began before is not over. `heirs`: who can go on from its disk; None: it is built anew."""

    move: Move
    loaded: Loaded
    source: Host | None
    room: Room
    leased: bool
    heirs: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Choose:
    """Find a host, and give the instance over to it."""


@dataclass(frozen=True, slots=True)
class End:
    """It does not come about: the instance stays where it is."""

    stage: Stage
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now. `hurry`: it will not be long."""

    reason: str
    hurry: bool = False


def plan(scene: Scene) -> Choose | End | Wait:
    """What to do next. A source that answers, or of which nobody says that it is off, is never
    evacuated: a guest may run there."""
    move, source = scene.move, scene.source
    if move.stop or scene.loaded.instance.goal in (Goal.DELETED, Goal.FAILED):
        return End(Stage.CANCELLED)
    if source is None or scene.loaded.instance.host_id != source.id:
        return End(Stage.FAILED, "it is on another host")
    if not source.said_off:
        return End(Stage.FAILED, "its host is back")
    if scene.loaded.now > move.deadline:
        return End(Stage.FAILED, "no host had room for it in time")
    if source.status is HostStatus.UP:
        return Wait("its host answers, though it was said to be off")
    if scene.leased:
        return Wait("a pass over it that began before is not over", hurry=True)
    if scene.heirs is not None and not scene.heirs:
        return Wait("its disk is in shared storage, of which no other host is known to be in use")
    return Choose()


class EvacuationHandler:
    """Makes passes over evacuations."""

    def __init__(
        self, database: Database, fleet: Fleet, board: Board, build_deadline_s: float,
        cloud_id: str, *, evacuates: bool = False,
    ) -> None:
        """`evacuates` as in `reconciler.Timing`."""
        self._db = database
        self._fleet = fleet
        self._cloud_id = cloud_id
        self._evacuates = evacuates
        self._build_deadline_s = build_deadline_s
        self._board = board

    def run(self, ticket: Ticket) -> Ticket | None:
        """One pass."""
        scene = self._db.read(lambda conn: _scene(conn, int(ticket.id)))
        if scene is None:
            self._db.write(lambda conn: queue.remove(conn, ticket))
            return None
        match plan(scene):
            case Choose():
                self._choose(ticket, scene)
            case End(stage, reason):
                self._end(ticket, scene, stage, reason)
            case Wait(reason, hurry):
                end_pass(self._db, ticket, delay=BUSY_S if hurry else LOOK_S, error=reason)
        return None

    def _choose(self, ticket: Ticket, scene: Scene) -> None:
        move, instance, room = scene.move, scene.loaded.instance, scene.room
        if scene.heirs is not None:
            room = replace(room, disk_mib=0)  # it has its place already
        started = time.time()

        def ask(conn: sa.Connection) -> placing.Asked:
            request = placing.request_of(
                conn, instance, room, with_flavors=self._board.scheduler.wants_flavors,
            )
            only = request.only_hosts
            if move.wanted_id is not None:
                only = frozenset({move.wanted_id}) & (only or frozenset({move.wanted_id}))
            if scene.heirs is not None:
                only = scene.heirs if only is None else scene.heirs & only
            return placing.Asked(replace(
                request, excluded_hosts=request.excluded_hosts | {move.source_id},
                only_hosts=only,
            ), room)

        def commit(conn: sa.Connection, offer: placing.Offer) -> int | None:
            return self._give(conn, ticket, scene, offer, started)

        def take(offer: placing.Offer) -> placing.Offer:
            return offer if scene.heirs is None else self._take(ticket, scene, offer)

        try:
            given = placing.place(self._db, self._board, instance.uuid, ask, commit, take)
        except LeaseLost:
            raise
        except PluginError as error:
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
            return
        except TreadleError as error:
            self._put_off(ticket, scene, str(error))
            return
        if given is None:
            busy = "others are taking the room at this moment"
            end_pass(self._db, ticket, delay=BUSY_S, error=busy)
        elif isinstance(given, placing.NoRoom):
            self._put_off(ticket, scene, given.reason)
        else:
            log.info("evacuated", instance=instance.uuid, source=move.source_id)

    def _take(self, ticket: Ticket, scene: Scene, offer: placing.Offer) -> placing.Offer:
        """Have the disk be the best host's as well. Errors: those of the verb."""
        best = next(iter(offer.hosts))
        host = self._db.read(lambda conn: ledger.get_host(conn, best))
        if host is None:
            raise HostRefused("the host is gone")
        queue.hold_lease(ticket)
        driver = self._fleet.driver(host.id, host.uri)
        call(driver, "take", spec_of(scene.loaded, self._cloud_id, self._evacuates))
        return replace(offer, hosts=[best])

    def _give(
        self, conn: sa.Connection, ticket: Ticket, scene: Scene, offer: placing.Offer,
        started: float,
    ) -> int | None:
        """The commit: the host. None, and nothing is changed, where it cannot be made now."""
        move = scene.move
        instance = store.get(conn, move.instance_id)
        if (
            instance is None or instance.host_id != move.source_id
            or instance.goal in (Goal.DELETED, Goal.FAILED)
            or not fences.still_off(conn, move.source_id)
            or queue.is_leased(conn, KIND, instance.uuid)
        ):
            return None
        spare = 0 if scene.heirs is None else scene.room.disk_mib
        taken = ledger.Taken()

        def hold(conn: sa.Connection, host_id: int, _room: Room) -> bool:
            storages.allow(conn, host_id, spare)
            if taken.hold(conn, host_id, scene.room):
                return True
            storages.allow(conn, host_id, -spare)
            return False

        target = offer.take(conn, instance, hold)
        if target is None:
            return None
        queue.remove(conn, ticket)
        ledger.moved(conn, instance.id, target, taken.cells)
        storages.allow(conn, move.source_id, -spare)
        became = changes.evacuated if scene.heirs is None else changes.inherited
        store.update(
            conn, instance.id, deadline=scene.loaded.now + self._build_deadline_s,
            **became(instance, target, left_off=move.left_off),
        )
        store.hold(conn, instance.id)
        moves.update(conn, move.id, stage=Stage.ARRIVED, target_id=target)
        store.record_decision(conn, instance.id, target, offer.record.to_dict())
        store.log_step(conn, instance.id, move.revision, Step(
            "place", target, started, time.time(), "ok",
        ))
        queue.shift(conn, KIND, instance.uuid, target)
        return target

    def _put_off(self, ticket: Ticket, scene: Scene, reason: str) -> None:
        """Try again later, and say why."""

        def change(conn: sa.Connection) -> None:
            if scene.move.error != reason:
                moves.update(conn, scene.move.id, error=reason)

        delay = backoff(ticket.tries, first=LOOK_S)
        end_pass(self._db, ticket, change, delay=delay, error=reason)

    def _end(self, ticket: Ticket, scene: Scene, stage: Stage, reason: str) -> None:
        move, uuid = scene.move, scene.loaded.instance.uuid

        def end(conn: sa.Connection) -> None:
            queue.remove(conn, ticket)
            moves.update(conn, move.id, stage=stage, error=reason or move.error)
            columns: dict[str, object] = {"moving": None}
            current = store.get(conn, move.instance_id)
            if current is not None and current.revision == move.revision:
                columns["task"] = None
            store.update(conn, move.instance_id, **columns)
            store.end_actions(conn, move.instance_id, move.revision, "error", reason or None)
            queue.wake(conn, KIND, [uuid])

        self._db.write(end)
        log.info("evacuation_ended", instance=uuid, stage=stage, reason=reason)


def _scene(conn: sa.Connection, id: int) -> Scene | None:
    move = moves.get(conn, id)
    if move is None or move.stage in ENDED or move.stage is Stage.ARRIVED:
        return None
    instance = store.get(conn, move.instance_id)
    loaded = None if instance is None else store.load(conn, instance.uuid)
    if instance is None or loaded is None:
        return None
    image = images.get(conn, instance.image_id)
    assert image is not None
    sha256, size = image.sha256 or "", image.size_bytes or 0
    heirs = storages.heirs(conn, move.source_id)
    return Scene(
        move, loaded, ledger.get_host(conn, move.source_id),
        Room(
            *changes.held(instance), sha256, placing.mib(size), changes.nodes_held(instance)
        ),
        queue.is_leased(conn, KIND, instance.uuid),
        heirs.ids if heirs.known and instance.launched_at is not None else None,
    )
