"""Aggregates: named sets of hosts, with what the scheduler shall know of them.

An aggregate may name an availability zone, which its hosts then are in; a host is in one zone at
most, and does not change it while instances are on it. The functions take an open connection and
belong to the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treadle.db.clock import now
from treadle.db.engine import note
from treadle.db.schema import aggregate as table
from treadle.db.schema import aggregate_host, host
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.placement.ledger import CHANGED, DEFAULT_ZONE


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate. `hosts` are pairs of id and name; times are seconds since 1970."""

    id: int
    uuid: str
    name: str
    zone: str | None
    metadata: Mapping[str, str]
    hosts: tuple[tuple[int, str], ...]
    created_at: float
    updated_at: float | None


def every(conn: sa.Connection) -> list[Aggregate]:
    """All of them by id."""
    return _read(conn, sa.select(table).order_by(table.c.id))


def get(conn: sa.Connection, id: int) -> Aggregate:
    """One of them. Errors: `NotFound`."""
    found = _read(conn, sa.select(table).where(table.c.id == id))
    if not found:
        raise NotFound(f"Aggregate {id} could not be found.")
    return found[0]


def zones(conn: sa.Connection, without: int = 0) -> dict[int, str]:
    """The zone of each host that is in one by an aggregate; the others are in `DEFAULT_ZONE`.

    `without` leaves one aggregate out.
    """
    rows = conn.execute(
        sa.select(aggregate_host.c.host_id, table.c.availability_zone)
        .join_from(aggregate_host, table, table.c.id == aggregate_host.c.aggregate_id)
        .where(table.c.availability_zone.is_not(None), table.c.id != without)
    )
    return {row.host_id: row.availability_zone for row in rows}


def create(conn: sa.Connection, name: str, zone: str | None) -> Aggregate:
    """A new and empty one. Errors: `Conflict` where the name is taken."""
    _free(conn, name)
    made = conn.execute(
        sa.insert(table).values(name=name, availability_zone=zone, created_at=now())
        .returning(table.c.id)
    )
    return get(conn, int(made.scalar_one()))


def update(
    conn: sa.Connection, id: int, name: str | None, zone: str | None, *, zoned: bool
) -> Aggregate:
    """Give it another name, and with `zoned` another zone, which may be none.

    Errors: `NotFound`, `Conflict`, `InvalidInput` where its hosts cannot change their zone.
    """
    known = get(conn, id)
    values: dict[str, Any] = {}
    if name is not None and name != known.name:
        _free(conn, name)
        values["name"] = name
    if zoned and zone != known.zone:
        _may_move(conn, known, zone)
        values["availability_zone"] = zone
    return _write(conn, known, values)


def set_metadata(conn: sa.Connection, id: int, changes: Mapping[str, str | None]) -> Aggregate:
    """Change what it says; None takes a key away. The key availability_zone is its zone.

    Errors: `NotFound`, `InvalidInput`.
    """
    known = get(conn, id)
    merged: dict[str, str | None] = {**known.metadata, "availability_zone": known.zone, **changes}
    zone = merged.pop("availability_zone")
    if zone != known.zone:
        _may_move(conn, known, zone)
    held = {key: value for key, value in merged.items() if value is not None}
    return _write(conn, known, {
        "availability_zone": zone, "metadata": json.dumps(held, ensure_ascii=False)
    })


def delete(conn: sa.Connection, id: int) -> None:
    """Errors: `NotFound`, `InvalidInput` while hosts are in it."""
    known = get(conn, id)
    if known.hosts:
        raise InvalidInput(
            "aggregate", id, f"Cannot delete aggregate {id}: it is not empty, remove its hosts"
        )
    conn.execute(sa.delete(table).where(table.c.id == id))


def add_host(conn: sa.Connection, id: int, host_id: int, name: str) -> Aggregate:
    """Put a host into it. Errors: `NotFound`, `Conflict`."""
    known = get(conn, id)
    if any(host_id == one for one, _ in known.hosts):
        raise Conflict(f"Aggregate {id} already has host {name}.")
    here = zones(conn).get(host_id)
    if known.zone is not None and here not in (None, known.zone):
        raise Conflict(
            f"Cannot add host to aggregate {id}. Reason: One or more hosts already in "
            f"availability zone(s) {here}."
        )
    if known.zone is not None and here is None:
        _stays(conn, [host_id], DEFAULT_ZONE, known.zone, id)
    conn.execute(sa.insert(aggregate_host).values(aggregate_id=id, host_id=host_id))
    note(conn, CHANGED, host_id)
    return _write(conn, known, {})


def remove_host(conn: sa.Connection, id: int, host_id: int, name: str) -> Aggregate:
    """Take a host out of it. Errors: `NotFound`, `Conflict`."""
    known = get(conn, id)
    if all(host_id != one for one, _ in known.hosts):
        raise NotFound(f"Cannot remove host {name} in aggregate {id}")
    if known.zone is not None and zones(conn, without=id).get(host_id) is None:
        _stays(conn, [host_id], known.zone, DEFAULT_ZONE, id)
    conn.execute(sa.delete(aggregate_host).where(
        aggregate_host.c.aggregate_id == id, aggregate_host.c.host_id == host_id
    ))
    note(conn, CHANGED, host_id)
    return _write(conn, known, {})


def _may_move(conn: sa.Connection, known: Aggregate, zone: str | None) -> None:
    """Errors: `InvalidInput` where the hosts cannot all be in `zone`."""
    ids = [id for id, _ in known.hosts]
    others = zones(conn, without=known.id)
    foreign = sorted({others[id] for id in ids if id in others and others[id] != zone})
    if zone is not None and foreign:
        raise InvalidInput(
            "availability_zone", zone,
            f"One or more hosts already in availability zone(s) {', '.join(foreign)}",
        )
    try:
        _stays(conn, [id for id in ids if id not in others], known.zone or DEFAULT_ZONE,
               zone or DEFAULT_ZONE, known.id)
    except Conflict as refused:
        raise InvalidInput("availability_zone", zone, str(refused)) from refused


def _stays(
    conn: sa.Connection, host_ids: Collection[int], old: str, new: str, id: int
) -> None:
    """Errors: `Conflict` where a host with instances would come from one zone to another."""
    full = sa.select(host.c.id).where(host.c.id.in_(host_ids), host.c.instances > 0)
    if old != new and conn.execute(full).first() is not None:
        raise Conflict(
            f"Cannot update aggregate {id}. Reason: One or more hosts contain instances in this "
            "zone."
        )


def _free(conn: sa.Connection, name: str) -> None:
    if conn.execute(sa.select(table.c.id).where(table.c.name == name)).first() is not None:
        raise Conflict(f"Aggregate {name} already exists.")


def _write(conn: sa.Connection, known: Aggregate, values: Mapping[str, Any]) -> Aggregate:
    conn.execute(
        sa.update(table).where(table.c.id == known.id).values(**values, updated_at=now())
    )
    for host_id, _ in known.hosts:
        note(conn, CHANGED, host_id)
    return get(conn, known.id)


def _read(conn: sa.Connection, statement: sa.Select[Any]) -> list[Aggregate]:
    rows = conn.execute(statement).all()
    hosts: dict[int, list[tuple[int, str]]] = {}
    for row in conn.execute(
        sa.select(aggregate_host.c.aggregate_id, host.c.id, host.c.name)
        .join_from(aggregate_host, host, host.c.id == aggregate_host.c.host_id)
        .where(aggregate_host.c.aggregate_id.in_([row.id for row in rows])).order_by(host.c.id)
    ):
        hosts.setdefault(row.aggregate_id, []).append((row.id, row.name))
    return [
        Aggregate(
            row.id, row.uuid, row.name, row.availability_zone, json.loads(row.metadata),
            tuple(hosts.get(row.id, ())), row.created_at, row.updated_at,
        )
        for row in rows
    ]
