"""What operators count of instances: on which host, of which project, for how long.

The SQL is here; every function takes an open connection of the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from treadle.compute.model import State
from treadle.db.clock import now
from treadle.db.schema import instance


@dataclass(frozen=True, slots=True)
class Held:
    """What instances of one project take of one host. Memory in MiB, disk in GiB."""

    project_id: str
    vcpus: int
    memory_mib: int
    disk_gib: int


@dataclass(frozen=True, slots=True)
class Stay:
    """How long one instance of what size there was. Times are seconds since 1970."""

    id: int
    uuid: str
    name: str
    project_id: str
    flavor: str
    flavor_id: int
    vcpus: int
    memory_mib: int
    disk_gib: int
    state: State
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


_LIVE = instance.c.state != State.DELETED.value
