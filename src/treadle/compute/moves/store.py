"""The SQL of moves. Every function takes an open connection of the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from treadle.compute.moves.plan import Kind, Move, Stage
from treadle.db.clock import now
from treadle.db.prepared import Prepared
from treadle.db.schema import instance
from treadle.db.schema import migration as table


def insert(conn: sa.Connection, **values: Any) -> int:
    """A new move; returns its number."""
    return int(conn.execute(
        sa.insert(table).values(**values, created_at=now(), updated_at=now()).returning(table.c.id)
    ).scalar_one())


def get(conn: sa.Connection, id: int) -> Move | None:
    """The move, or None."""
    row = _GET(conn, {"i": id}).one_or_none()
    return None if row is None else _move(row)


def update(conn: sa.Connection, id: int, **values: Any) -> None:
    """Set columns of one move."""
    conn.execute(sa.update(table).where(table.c.id == id).values(**values, updated_at=now()))


def of_instance(conn: sa.Connection, instance_id: int) -> list[Move]:
    """Its moves, newest first."""
    return _all(conn, table.c.instance_id == instance_id)


def every(conn: sa.Connection, limit: int) -> list[tuple[Move, str, int]]:
    """The newest ones, each with its instance's UUID and flavor's number."""
    rows = conn.execute(
        sa.select(table, instance.c.uuid.label("instance_uuid"), instance.c.flavor_id)
        .join(instance, instance.c.id == table.c.instance_id)
        .order_by(table.c.id.desc()).limit(limit)
    )
    return [(_move(row), row.instance_uuid, row.flavor_id) for row in rows]


def busy(conn: sa.Connection, host_id: int) -> int:
    """How many moves to or from the host have been begun and have not ended."""
    return int(_BUSY(conn, {"h": host_id}).scalar_one())


def waiting(conn: sa.Connection, *host_ids: int) -> list[str]:
    """Those to or from the hosts that have a target and have not been begun: their work's names."""
    return [str(id) for id in conn.execute(
        sa.select(table.c.id).where(
            table.c.stage == Stage.READY,
            sa.or_(table.c.source_id.in_(host_ids), table.c.target_id.in_(host_ids)),
        ).order_by(table.c.id)
    ).scalars()]


def kept_at(conn: sa.Connection, host_id: int) -> dict[str, int]:
    """What the host keeps of instances that have gone elsewhere and may come back: UUID and move.
    Nothing but that move may touch it."""
    return {row.uuid: row.id for row in _KEPT_AT(conn, {"h": host_id})}


def held(conn: sa.Connection) -> Sequence[Move]:
    """Those that hold room, each of its `holder`."""
    return [_move(row) for row in _HELD(conn)]


def built(conn: sa.Connection, instance_id: int, stage: Stage, error: str | None = None) -> None:
    """The instance has come to an end of its building: so has the evacuation that asked for it."""
    _BUILT(conn, {"i": instance_id, "x_stage": stage, "x_error": error})


def _all(conn: sa.Connection, *where: Any) -> list[Move]:
    rows = conn.execute(sa.select(table).where(*where).order_by(table.c.id.desc()))
    return [_move(row) for row in rows]


def _move(row: Any) -> Move:
    return Move(
        row.id, row.uuid, row.instance_id, Stage(row.stage), row.source_id, row.target_id,
        row.wanted_id, row.stop, row.hurry, row.deadline, row.held, row.vcpus, row.memory_mib,
        row.disk_mib, row.revision, row.user_id, row.project_id,
        tuple(json.loads(row.progress)), row.error, row.created_at, row.updated_at,
        Kind(row.kind), row.left_off, row.ask, json.loads(row.after), json.loads(row.before),
        row.cells,
    )


_GET = Prepared(sa.select(table).where(table.c.id == sa.bindparam("i")))
_BUSY = Prepared(
    sa.select(sa.func.count()).where(
        table.c.stage == Stage.MOVING,
        sa.or_(
            table.c.source_id == sa.bindparam("h"), table.c.target_id == sa.bindparam("h")
        ),
    )
)
_KEPT_AT = Prepared(
    sa.select(instance.c.uuid, table.c.id)
    .join(table, table.c.id == instance.c.kept)
    .where(table.c.source_id == sa.bindparam("h"))
)
_HELD = Prepared(sa.select(table).where(table.c.held).order_by(table.c.id.desc()))
_BUILT = Prepared(
    sa.update(table).where(
        table.c.instance_id == sa.bindparam("i"), table.c.kind == Kind.EVACUATION,
        table.c.stage == Stage.ARRIVED,
    ).values(
        stage=sa.bindparam("x_stage", type_=sa.String),
        error=sa.bindparam("x_error", type_=sa.Text), updated_at=now(),
        target_id=sa.func.coalesce(
            sa.select(instance.c.host_id).where(instance.c.id == sa.bindparam("i"))
            .scalar_subquery(), table.c.target_id,
        ),
    )
)
