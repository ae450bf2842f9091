"""What can be asked of moves. The functions run in one transaction and talk to no host."""

from __future__ import annotations

import sqlalchemy as sa

from treadle.compute import actions, store
from treadle.compute.actions import OPERATOR, Caller
from treadle.compute.model import Instance, Task
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import ENDED, Kind, Move, Stage
from treadle.compute.reconciler import MOVE_KIND, move_lane
from treadle.controller import queue
from treadle.db.clock import now
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.placement import ledger

MOVABLE = frozenset({"active", "paused"})
"""The vm_states in which an instance can be moved."""


def live_migrate(
    conn: sa.Connection, id: int, target_id: int | None, *, request_id: str, deadline_s: float,
    by: Caller = OPERATOR,
) -> int:
    """Have a running or paused instance moved to the host, or (None) to the one that the scheduler
    likes best; the move's number comes back. Errors: `NotFound`, `Locked`, `InvalidState`,
    `InvalidInput` for a host that is not there or is its own."""
    instance = actions.require(conn, id)
    actions.unlocked(instance, "live-migrate", by)
    actions.expect(instance, "live-migrate", MOVABLE)
    assert instance.host_id is not None
    if target_id is not None:
        if ledger.get_host(conn, target_id) is None:
            raise InvalidInput("host", target_id, "there is no such host")
        if target_id == instance.host_id:
            raise InvalidInput("host", target_id, "it is on this host already")
    time = float(conn.execute(sa.select(now())).scalar_one())
    revision = instance.revision + 1
    move = moves.insert(
        conn, instance_id=id, stage=Stage.QUEUED, source_id=instance.host_id,
        wanted_id=target_id, deadline=time + deadline_s, revision=revision,
        user_id=by.user_id, project_id=by.project_id,
    )
    store.update(conn, id, moving=move, task=Task.MIGRATING, revision=revision)
    store.begin_action(
        conn, id, request_id, "live-migration", revision, user_id=by.user_id,
        project_id=by.project_id,
    )
    queue.enqueue(conn, MOVE_KIND, str(move), lane=move_lane(instance.host_id))
    return move


def abort(conn: sa.Connection, instance: Instance, move_id: int) -> None:
    """End a move that has not ended: the instance stays where it is. Errors: `NotFound`,
    `Conflict`."""
    _flag(conn, instance, move_id, "stop")


def hurry(conn: sa.Connection, instance: Instance, move_id: int) -> None:
    """Pause the guest, so that the move ends. Errors: `NotFound`, `Conflict`."""
    move = _flag(conn, instance, move_id, "hurry")
    if move.stage is not Stage.MOVING:
        raise Conflict(f"migration {move_id} is {move.stage}: it cannot be forced to complete")


def find(conn: sa.Connection, instance: Instance, move_id: int) -> Move:
    """A live migration of the instance. Errors: `NotFound`."""
    move = moves.get(conn, move_id)
    if move is None or move.instance_id != instance.id or move.kind is not Kind.LIVE:
        raise NotFound(f"Migration {move_id} for server {instance.uuid} could not be found.")
    return move


def _flag(conn: sa.Connection, instance: Instance, move_id: int, name: str) -> Move:
    move = find(conn, instance, move_id)
    if move.stage in ENDED or move.stage is Stage.ARRIVED:
        raise Conflict(f"migration {move_id} has ended: {move.stage}")
    moves.update(conn, move_id, **{name: True})
    queue.wake(conn, MOVE_KIND, [str(move_id)])
    return move
