"""Server groups: instances that shall be on one host, or each on another, if need be or at best.

The SQL is here; every function takes an open connection of the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from treadle.compute import quota
from treadle.compute.model import State
from treadle.compute.store import CHANGED
from treadle.db.clock import now
from treadle.db.engine import note
from treadle.db.schema import instance
from treadle.db.schema import server_group as table
from treadle.errors import NotFound


@dataclass(frozen=True, slots=True)
class ServerGroup:
    """One group. `members` are the UUIDs of its living instances; `max_per_host` is for
    anti-affinity alone, None there is 1."""

    id: int
    uuid: str
    project_id: str
    user_id: str
    name: str
    policy: str
    max_per_host: int | None
    members: tuple[str, ...]


def create(
    conn: sa.Connection, project_id: str, user_id: str, name: str, policy: str,
    max_per_host: int | None,
) -> ServerGroup:
    """A new group. Errors: `QuotaExceeded`."""
    quota.check_groups(conn, project_id, user_id)
    uuid = str(uuid4())
    conn.execute(sa.insert(table).values(
        uuid=uuid, project_id=project_id, user_id=user_id, name=name, policy=policy,
        max_per_host=max_per_host, created_at=now(),
    ))
    return get(conn, uuid, project_id)


def get(conn: sa.Connection, uuid: str, project_id: str | None) -> ServerGroup:
    """One group of the project; None: of any. Errors: `NotFound`."""
    found = _read(conn, _of(project_id).where(table.c.uuid == uuid))
    if not found:
        raise NotFound(f"Instance group {uuid} could not be found.")
    return found[0]


def listed(
    conn: sa.Connection, project_id: str | None, first: int, limit: int
) -> list[ServerGroup]:
    """At most `limit` groups of the project from number `first` on, by age; None: of all."""
    return _read(conn, _of(project_id).order_by(table.c.id).offset(first).limit(limit))


def delete(conn: sa.Connection, uuid: str, project_id: str | None) -> None:
    """Forget a group; its instances stay where they are. Errors: `NotFound`."""
    id = get(conn, uuid, project_id).id
    left = conn.execute(
        sa.update(instance).where(instance.c.group_id == id)
        .values(group_id=None, version=instance.c.version + 1).returning(instance.c.id)
    )
    for instance_id in left.scalars().all():
        note(conn, CHANGED, instance_id)
    conn.execute(sa.delete(table).where(table.c.id == id))


def _of(project_id: str | None) -> sa.Select[Any]:
    statement = sa.select(table)
    return statement if project_id is None else statement.where(table.c.project_id == project_id)


def _read(conn: sa.Connection, statement: sa.Select[Any]) -> list[ServerGroup]:
    rows: Sequence[Any] = conn.execute(statement).all()
    members: dict[int, list[str]] = {}
    for row in conn.execute(
        sa.select(instance.c.group_id, instance.c.uuid)
        .where(instance.c.group_id.in_([row.id for row in rows]),
               instance.c.state != State.DELETED)
        .order_by(instance.c.id)
    ):
        members.setdefault(row.group_id, []).append(row.uuid)
    return [
        ServerGroup(
            row.id, row.uuid, row.project_id, row.user_id, row.name, row.policy,
            row.max_per_host, tuple(members.get(row.id, ())),
        )
        for row in rows
    ]
