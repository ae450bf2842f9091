"""What can be asked of moves. The functions run in one transaction and talk to no host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treadle.compute import actions, store
from treadle.compute.actions import OPERATOR, Caller
from treadle.compute.kinds import MOVE_KIND, move_lane
from treadle.compute.model import Instance, Task, vm_state
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import ENDED, LANDED, Kind, Move, Stage
from treadle.compute.store import Flavor
from treadle.controller import queue
from treadle.db.clock import now
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.placement import ledger

MOVABLE = frozenset({"active", "paused"})
"""The vm_states in which an instance can be moved while it runs."""
COLD = frozenset({"active", "stopped"})
"""The vm_states in which it can be moved while it is off."""
NAMES = {Kind.COLD: "migrate", Kind.RESIZE: "resize"}
"""What the action log calls the kinds."""


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
    source_id = _elsewhere(conn, instance, target_id)
    time = float(conn.execute(sa.select(now())).scalar_one())
    revision = instance.revision + 1
    move = moves.insert(
        conn, instance_id=id, stage=Stage.QUEUED, source_id=source_id,
        wanted_id=target_id, deadline=time + deadline_s, revision=revision,
        user_id=by.user_id, project_id=by.project_id,
    )
    store.update(conn, id, moving=move, task=Task.MIGRATING, revision=revision)
    store.begin_action(
        conn, id, request_id, "live-migration", revision, user_id=by.user_id,
        project_id=by.project_id,
    )
    queue.enqueue(conn, MOVE_KIND, str(move), lane=move_lane(source_id))
    return move


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: for the whole of a cold move, and of that for the guest to shut down."""

    move_s: float
    stop_s: float


def migrate(
    conn: sa.Connection, id: int, target_id: int | None, *, request_id: str, patience: Patience,
    ask: bool = True, by: Caller = OPERATOR,
) -> int:
    """Have a running or stopped instance shut down, moved to the host or (None) to the one that
    the scheduler likes best, and started again if it ran. `ask`: it can then be taken back until
    somebody confirms it, as a resize. The move's number comes back. Errors: `NotFound`, `Locked`,
    `InvalidState`, `Conflict` where its hypervisor has no such thing, `InvalidInput` for a host
    that is not there or is its own."""
    instance = migratable(conn, id, target_id, by)
    return _leave(
        conn, instance, Kind.COLD, {}, target_id, request_id, patience, by, ask=ask
    )


def move_away(
    conn: sa.Connection, id: int, target_id: int | None, *, request_id: str, patience: Patience,
) -> int:
    """Have it moved as it is: what runs or is paused goes on meanwhile, what is stopped stays so,
    and nobody is asked to confirm it. For operators. Errors: those of `live_migrate`, `migrate`."""
    if vm_state(actions.require(conn, id)) in COLD - MOVABLE:
        return migrate(
            conn, id, target_id, request_id=request_id, patience=patience, ask=False
        )
    return live_migrate(
        conn, id, target_id, request_id=request_id, deadline_s=patience.move_s
    )


def migratable(
    conn: sa.Connection, id: int, target_id: int | None, by: Caller = OPERATOR
) -> Instance:
    """The instance, where `migrate` may be asked for it now. Errors: those of `migrate`."""
    instance = actions.require(conn, id)
    actions.unlocked(instance, "migrate", by)
    actions.expect(instance, "migrate", COLD)
    actions.able(conn, instance, "migrate")
    _elsewhere(conn, instance, target_id)
    return instance


def resize(
    conn: sa.Connection, id: int, wanted: int | Flavor, *, request_id: str, patience: Patience,
    by: Caller = OPERATOR,
) -> int:
    """Another size on another host, which the scheduler chooses; confirmed or taken back as any
    resize. The move's number comes back. Errors: those of `actions.sized`; `Conflict` where its
    hypervisor has no such thing."""
    instance, after = larger(conn, id, wanted, by)
    return _leave(conn, instance, Kind.RESIZE, after, None, request_id, patience, by)


def larger(
    conn: sa.Connection, id: int, wanted: int | Flavor, by: Caller
) -> tuple[Instance, dict[str, Any]]:
    """The instance, and what it will be on another host. Errors: those of `resize`."""
    instance, after = actions.sized(conn, id, wanted, by)
    actions.able(conn, instance, "migrate")
    if after["disk_gib"] > instance.disk_gib:
        after["disks"] = f"{instance.revision + 1},{','.join(map(str, instance.disks))}"
    return instance, after


def _elsewhere(conn: sa.Connection, instance: Instance, target_id: int | None) -> int:
    """The host where it is. Errors: `InvalidInput` where the target is no other one; `Conflict`."""
    actions.whole(instance)
    if target_id is not None:
        if ledger.get_host(conn, target_id) is None:
            raise InvalidInput("host", target_id, "there is no such host")
        if target_id == instance.host_id:
            raise InvalidInput("host", target_id, "it is on this host already")
    assert instance.host_id is not None
    return instance.host_id


def _leave(
    conn: sa.Connection, instance: Instance, kind: Kind, after: Mapping[str, Any],
    target_id: int | None, request_id: str, patience: Patience, by: Caller, *, ask: bool = True,
) -> int:
    """The row of a cold move. The instance's generation is raised: whatever becomes of the move,
    a guest that was stopped for it is then started anew."""
    assert instance.host_id is not None
    source = ledger.get_host(conn, instance.host_id)
    if source is None or not source.answers:
        raise Conflict(f"instance {instance.uuid} cannot be moved: its host does not answer")
    time = float(conn.execute(sa.select(now())).scalar_one())
    move = moves.insert(
        conn, instance_id=instance.id, kind=kind, stage=Stage.QUEUED, source_id=instance.host_id,
        wanted_id=target_id, deadline=time + patience.move_s, revision=instance.revision + 1,
        user_id=by.user_id, project_id=by.project_id, ask=ask, after=store.compact(after),
    )
    actions.wish(conn, instance, NAMES[kind], {
        "moving": move, "task": Task.RESIZE_PREP if ask else Task.MIGRATING,
        "generation": instance.generation + 1, "graceful": True,
    }, request_id, by, patience.stop_s)
    queue.enqueue(conn, MOVE_KIND, str(move), lane=move_lane(instance.host_id))
    return move


def abort(conn: sa.Connection, instance: Instance, move_id: int) -> None:
    """End a move that has not ended: the instance stays where it is. Errors: `NotFound`,
    `Conflict`."""
    _flag(conn, instance, move_id, "stop")


def hurry(conn: sa.Connection, instance: Instance, move_id: int) -> None:
    """Pause the guest, so that the move ends. Errors: `NotFound`, `Conflict`."""
    move = _flag(conn, instance, move_id, "hurry")
    if move.stage is not Stage.MOVING or move.kind is not Kind.LIVE:
        raise Conflict(f"migration {move_id} is {move.stage}: it cannot be forced to complete")


def find(conn: sa.Connection, instance: Instance, move_id: int) -> Move:
    """A move of the instance, but no evacuation, which nobody leads. Errors: `NotFound`."""
    move = moves.get(conn, move_id)
    if move is None or move.instance_id != instance.id or move.kind is Kind.EVACUATION:
        raise NotFound(f"Migration {move_id} for server {instance.uuid} could not be found.")
    return move


def _flag(conn: sa.Connection, instance: Instance, move_id: int, name: str) -> Move:
    move = find(conn, instance, move_id)
    if move.stage in ENDED | LANDED or move.stage is Stage.ARRIVED:
        raise Conflict(f"migration {move_id} has ended: {move.stage}")
    moves.update(conn, move_id, **{name: True})
    queue.wake(conn, MOVE_KIND, [str(move_id)])
    return move
