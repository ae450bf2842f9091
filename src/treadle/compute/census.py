"""What operators count of instances: on which host, of which project, for how long.

The SQL is here; every function takes an open connection of the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treadle.compute import store
from treadle.compute.model import State, vm_state
from treadle.db.clock import now
from treadle.db.schema import instance
from treadle.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Held:
    """What instances of one project take of one host. Memory in MiB, disk in GiB."""

    project_id: str
    vcpus: int
    memory_mib: int
    disk_gib: int


@dataclass(frozen=True, slots=True)
class Stay:
    """How long there was one instance of what size. Times are seconds since 1970; `state` is
    OpenStack's vm_state, `disk_gib` all its disks together."""

    uuid: str
    name: str
    project_id: str
    flavor: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    state: str
    launched_at: float
    deleted_at: float | None


def time(conn: sa.Connection) -> float:
    """Now, by the database's clock."""
    return float(conn.execute(sa.select(now())).scalar_one())


def on_hosts(
    conn: sa.Connection, host_ids: Collection[int]
) -> dict[int, list[tuple[str, str]]]:
    """Pairs of UUID and name of the instances on each of the hosts."""
    found: dict[int, list[tuple[str, str]]] = {}
    for row in conn.execute(
        sa.select(instance.c.host_id, instance.c.uuid, instance.c.name)
        .where(instance.c.host_id.in_(host_ids), _LIVE).order_by(instance.c.id)
    ):
        found.setdefault(row.host_id, []).append((row.uuid, row.name))
    return found


def building(conn: sa.Connection) -> dict[int, int]:
    """How many instances are being built on each host."""
    rows = conn.execute(
        sa.select(instance.c.host_id, sa.func.count().label("n"))
        .where(instance.c.state == State.BUILDING, instance.c.host_id.is_not(None))
        .group_by(instance.c.host_id)
    )
    return {row.host_id: row.n for row in rows}


def held_on(conn: sa.Connection, host_id: int) -> list[Held]:
    """What each project has on a host."""
    rows = conn.execute(
        sa.select(
            instance.c.project_id, sa.func.sum(instance.c.vcpus).label("vcpus"),
            sa.func.sum(instance.c.memory_mib).label("memory"),
            sa.func.sum(instance.c.disk_gib).label("disk"),
        ).where(instance.c.host_id == host_id, _LIVE)
        .group_by(instance.c.project_id).order_by(instance.c.project_id)
    )
    return [Held(row.project_id, int(row.vcpus), int(row.memory), int(row.disk)) for row in rows]


def stays(
    conn: sa.Connection, begin: float, end: float, project_id: str | None = None,
    after: str | None = None, limit: int | None = None,
) -> list[Stay]:
    """The instances of one project, or of all, that were there at any time from `begin` to `end`,
    by project and UUID, from the one after `after` on. Errors: `InvalidInput` for that."""
    statement = sa.select(instance).where(
        instance.c.launched_at < end,
        sa.or_(instance.c.deleted_at.is_(None), instance.c.deleted_at > begin),
    ).order_by(instance.c.project_id, instance.c.uuid)
    if project_id is not None:
        statement = statement.where(instance.c.project_id == project_id)
    if after is not None:
        last = conn.execute(
            sa.select(instance.c.project_id).where(instance.c.uuid == after)
        ).one_or_none()
        if last is None:
            raise InvalidInput("marker", after, f"marker [{after}] not found")
        statement = statement.where(
            sa.tuple_(instance.c.project_id, instance.c.uuid)
            > sa.tuple_(sa.literal(last.project_id), sa.literal(after))
        )
    return [_stay(row) for row in conn.execute(statement.limit(limit))]


def _stay(row: sa.Row[Any]) -> Stay:
    flavor = json.loads(row.flavor)
    return Stay(
        row.uuid, row.name, row.project_id, flavor.get("name", f"type-{row.flavor_id}"),
        row.vcpus, row.memory_mib, row.disk_gib + flavor.get("ephemeral", 0),
        vm_state(store.of_row(row)), row.launched_at, row.deleted_at,
    )


_LIVE = instance.c.state != State.DELETED.value
