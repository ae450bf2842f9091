"""One pass over a move of whatever kind; what is done in a cold one."""

from __future__ import annotations

import json
import time
from dataclasses import astuple
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from treadle.compute import changes, store
from treadle.compute.changes import ON_A_HOST
from treadle.compute.fleet import call
from treadle.compute.kinds import KIND, MOVE_KIND
from treadle.compute.model import Mode, Task, is_settled
from treadle.compute.moves import cold
from treadle.compute.moves import store as moves
from treadle.compute.moves.cold import Do, Rest, Return, Send, Stay
from treadle.compute.moves.handler import (
    IMAGE_POLL_S,
    WATCH_S,
    MoveHandler,
    Scene,
    log,
)
from treadle.compute.moves.plan import AwaitImage, Begin, Choose, Clean, End, Kind, Stage, Wait
from treadle.compute.reconciler import SHUT_DOWN_POLL_S, spec_of
from treadle.compute.store import Step
from treadle.controller import queue
from treadle.controller.queue import FAR_S, LeaseLost, Ticket
from treadle.controller.worker import backoff, end_pass
from treadle.db.clock import now
from treadle.db.engine import Database
from treadle.errors import Permanent, RetryLater, TreadleError
from treadle.hypervisor.base import MoveProgress
from treadle.placement import ledger
from treadle.placement.ledger import HostStatus

SEND_TRIES = 4
"""How often a copy is begun anew where a host or the way to it fails."""


class _Ended(Permanent):
    """Somebody has ended the move while the disk was copied."""


class _Course:
    """Writes down how far a copy is, and ends it where nobody wants it any more."""

    def __init__(self, database: Database, ticket: Ticket, scene: Scene) -> None:
        self._db = database
        self._ticket = ticket
        self._move, self._instance = scene.move.id, scene.loaded.instance.id
        self._told = 0.0
        self._done = self._total = 0
        self.started = time.time()

    def text(self) -> str:
        """How far it is, as the row has it."""
        left = max(0, self._total - self._done)
        return json.dumps(astuple(MoveProgress(
            disk_total=self._total, disk_processed=self._done, disk_remaining=left
        )))

    def __call__(self, done: int, total: int) -> None:
        """Errors: `LeaseLost`; `_Ended`."""
        self._done, self._total = done, total
        if self._ticket.lease.time_left() <= 0:
            raise LeaseLost("the lease ended while the disk was copied")
        if time.monotonic() < self._told + WATCH_S:
            return
        self._told = time.monotonic()
        try:
            wanted = self._db.write(self._write)
        except (RetryLater, DBAPIError) as error:
            log.info("move_unwatched", move=self._move, reason=str(error))
            return
        if not wanted:
            raise _Ended("the move was ended")

    def _write(self, conn: sa.Connection) -> bool:
        moves.update(conn, self._move, progress=self.text())
        move, instance = moves.get(conn, self._move), store.get(conn, self._instance)
        return (
            move is not None and not move.stop and instance is not None
            and instance.revision == move.revision
        )


class EveryMove(MoveHandler):
    """Makes passes over moves."""

    def _pass(self, ticket: Ticket, scene: Scene, trouble: str) -> tuple[Ticket | None, str]:
        if scene.move.kind is Kind.LIVE:
            return super()._pass(ticket, scene, trouble)
        uuid = scene.loaded.instance.uuid
        here, there = self._look(scene.source, uuid), self._look(scene.target, uuid)
        return self._carry_out(
            ticket, scene, cold.plan(scene.move, here, there, self._of(ticket, scene))
        ), ""

    def _of(self, ticket: Ticket, scene: Scene) -> cold.Context:
        move, instance = scene.move, scene.loaded.instance
        plain = self._context(scene, move.error or "")
        gone = instance.goal not in ON_A_HOST
        return cold.Context(
            image=plain.image,
            unwanted=plain.unwanted or instance.revision != move.revision,
            late=plain.late, trouble=plain.trouble, tries=ticket.tries,
            patient=scene.loaded.now <= instance.deadline,
            undecided=not gone and (instance.mode is Mode.RESIZED or not is_settled(instance)),
            off=_is_off(scene.target),
        )

    def _carry_out(self, ticket: Ticket, scene: Scene, action: cold.Action) -> Ticket | None:
        match action:
            case Choose():
                return self._choose(ticket, scene)[0]
            case AwaitImage():
                end_pass(self._db, ticket, delay=IMAGE_POLL_S)
            case Begin():
                return self._enter(ticket, scene)
            case Do(verb):
                return self._do(ticket, scene, verb)
            case Send():
                return self._send(ticket, scene)
            case Return(off):
                self._db.write(lambda conn: self._return(conn, ticket, scene, off=off))
            case Stay(reason):
                end_pass(
                    self._db, ticket, lambda conn: self._stay(conn, scene, reason), delay=FAR_S
                )
            case Rest():
                end_pass(self._db, ticket, delay=FAR_S)
            case Clean(target):
                return self._clean(ticket, scene, scene.target if target else scene.source)
            case End(stage, reason):
                self._over(ticket, scene, stage, reason)
            case Wait(reason):
                end_pass(self._db, ticket, delay=backoff(ticket.tries), error=reason)
        return None

    # -- acts

    def _do(self, ticket: Ticket, scene: Scene, verb: str) -> Ticket | None:
        assert scene.source is not None
        uuid = scene.loaded.instance.uuid
        queue.hold_lease(ticket)
        try:
            driver = self._fleet.driver(scene.source.id, scene.source.uri)
            call(driver, verb, uuid, *((False,) if verb == "autostart" else ()))
        except RetryLater as error:
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
            return None
        except TreadleError as error:
            if scene.move.stage is Stage.MOVING:
                return self._failed(ticket, scene, str(error))
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
            return None
        if verb == "shut_down":
            end_pass(self._db, ticket, delay=SHUT_DOWN_POLL_S)
            return None
        return self._go_on(ticket, lambda _conn: None)

    def _failed(self, ticket: Ticket, scene: Scene, reason: str) -> Ticket:
        """It comes to nothing: what is left of it is cleaned up, and then that is said."""
        log.warning("move_failed", instance=scene.loaded.instance.uuid, reason=reason)
        return self._go_on(
            ticket, lambda conn: moves.update(conn, scene.move.id, error=reason)
        )

    def _send(self, ticket: Ticket, scene: Scene) -> Ticket | None:
        assert scene.source is not None
        assert scene.target is not None
        move = scene.move
        source = self._fleet.driver(scene.source.id, scene.source.uri)
        target = self._fleet.driver(scene.target.id, scene.target.uri)
        queue.hold_lease(ticket)
        course = _Course(self._db, ticket, scene)
        try:
            share = self._share(scene)
            queue.hold_lease(ticket)  # that was a call too
            if share:
                # It stays where it is; from here on it is the target's as well.
                spec = spec_of(scene.loaded, self._cloud_id, self._policy.evacuates)
                call(target, "take", spec)
                return self._db.write(lambda conn: self._land(conn, ticket, scene, course))
            call(
                source, "send_disk", scene.loaded.instance.uuid, target,
                max(1.0, move.deadline - scene.loaded.now), course,
            )
        except LeaseLost:
            raise
        except _Ended:
            return self._go_on(ticket, lambda _conn: None)
        except RetryLater as error:
            if ticket.tries + 1 >= SEND_TRIES:
                return self._failed(ticket, scene, str(error))
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
            return None
        except TreadleError as error:
            return self._failed(ticket, scene, str(error))
        return self._db.write(lambda conn: self._land(conn, ticket, scene, course))

    # -- commits

    def _land(
        self, conn: sa.Connection, ticket: Ticket, scene: Scene, course: _Course
    ) -> Ticket | None:
        """The disk is there: from now on the target is its host."""
        move = moves.get(conn, scene.move.id)
        instance = store.get(conn, scene.loaded.instance.id)
        assert move is not None
        assert instance is not None
        if move.stop or instance.revision != move.revision:
            return queue.carry(conn, ticket, self._policy.lease_s, lane=ticket.lane)
        assert move.target_id is not None
        queue.finish(conn, ticket, delay=FAR_S)
        time_now = float(conn.execute(sa.select(now())).scalar_one())
        before = store.columns(conn, instance.id, (*changes.SIZE_COLUMNS, "goal"))
        left = ledger.exchange(conn, instance.id, move.target_id, move)
        moves.update(
            conn, move.id, stage=Stage.FINISHED, before=store.compact(before),
            progress=course.text(), vcpus=left.vcpus, memory_mib=left.memory_mib,
            disk_mib=left.disk_mib, cells=left.cells,
        )
        asked: dict[str, Any] = (
            {"mode": Mode.RESIZED, "task": Task.RESIZE_FINISH} if move.ask else {}
        )
        store.update(
            conn, instance.id, host_id=move.target_id, address=None, moving=None, kept=move.id,
            deadline=time_now + self._policy.start_s, **asked, **move.after,
        )
        store.log_step(conn, instance.id, move.revision, Step(
            "send_disk", move.target_id, course.started, time.time(), "ok",
        ))
        queue.wake(conn, KIND, [instance.uuid])
        queue.wake(conn, MOVE_KIND, moves.waiting(conn, move.source_id, move.target_id))
        return None

    def _return(
        self, conn: sa.Connection, ticket: Ticket, scene: Scene, *, off: bool
    ) -> None:
        """Nothing of it runs at the target any more: the source is its host again."""
        move = scene.move
        assert move.target_id is not None
        if off and not _is_off(ledger.get_host(conn, move.target_id)):
            queue.finish(conn, ticket, delay=0.0, error="the target is back")
            return
        instance = store.get(conn, scene.loaded.instance.id)
        assert instance is not None
        queue.remove(conn, ticket)
        left = ledger.exchange(conn, instance.id, move.source_id, move)
        ledger.let_go(conn, left.host_id, left)
        moves.update(conn, move.id, stage=Stage.REVERTED, held=False)
        columns = dict(move.before)
        if instance.goal not in ON_A_HOST:
            del columns["goal"]
        store.update(
            conn, instance.id, host_id=move.source_id, address=None, moving=None, kept=None,
            mode=Mode.NORMAL, settled_mode=Mode.NORMAL, ends_at=None, before="",
            generation=instance.generation + 1, graceful=False,
            deadline=scene.loaded.now + self._policy.start_s, **columns,
        )
        queue.wake(conn, KIND, [instance.uuid])

    @staticmethod
    def _stay(conn: sa.Connection, scene: Scene, reason: str) -> None:
        move, instance = scene.move, scene.loaded.instance
        moves.update(conn, move.id, stage=Stage.FINISHED)
        store.update(conn, instance.id, moving=None, task=None, fault=reason)
        store.end_actions(conn, instance.id, move.revision, "error", reason)
        queue.wake(conn, KIND, [instance.uuid])

    def _over(self, ticket: Ticket, scene: Scene, stage: Stage, reason: str) -> None:
        move, instance = scene.move, scene.loaded.instance
        if move.kind is Kind.LIVE:
            super()._over(ticket, scene, stage, reason)
        elif move.stage is Stage.FINISHED:
            self._db.write(lambda conn: self._confirmed(conn, ticket, scene))
        elif move.stage is Stage.MOVING:
            # Its own passes start it again, and say when they have.
            self._end(ticket, scene, stage, reason, task=instance.task)
        else:
            # Nobody has told the guest to stop: what runs is of the newest generation.
            self._end(ticket, scene, stage, reason, generation=instance.settled_generation)

    @staticmethod
    def _confirmed(conn: sa.Connection, ticket: Ticket, scene: Scene) -> None:
        """Nothing of it is at the source any more."""
        move = scene.move
        queue.remove(conn, ticket)
        ledger.let_go(conn, move.source_id, move)
        moves.update(conn, move.id, stage=Stage.DONE, held=False)
        store.update(conn, scene.loaded.instance.id, kept=None)


def _is_off(host: ledger.Host | None) -> bool:
    return host is not None and host.said_off and host.status is not HostStatus.UP
