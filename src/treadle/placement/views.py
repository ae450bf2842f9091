"""The hosts as the scheduler sees them: what the ledger says of each, in one read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from treadle.db.prepared import Prepared
from treadle.db.schema import aggregate, aggregate_host, allocation, host, host_image
from treadle.placement import cells
from treadle.placement.ledger import DEFAULT_ZONE, HostStatus, ImageState, read_facts
from treadle.scheduler.model import HostView, Pairs


def snapshot(
    conn: sa.Connection, only: Collection[int] | None = None, *, ends: bool = False
) -> list[HostView]:
    """Every host, or `only` those of the ids, as the scheduler sees it. `ends`: also when the last
    of its instances is expected to end, for a policy that goes by that."""
    busy_until: dict[int, float] = {}
    if ends:
        busy_until = {row.host_id: row.last for row in _each(conn, _ENDS, only)}
    images: dict[int, set[str]] = {}
    for host_id, sha256 in _each(conn, _IMAGES, only):
        images.setdefault(host_id, set()).add(sha256)
    places = _places(conn, only)
    nothing: frozenset[str] = frozenset()
    views = []
    for row in _each(conn, _SNAPSHOT, only):
        state = "disabled" if not row.enabled else row.status
        if row.forced_down and row.enabled:
            state = HostStatus.DOWN
        arch, capabilities, load = _traits(row.facts)
        zone, properties = places.get(row.id, (None, ()))
        views.append(HostView(
            id=row.id, name=row.name, state=state, arch=arch, capabilities=capabilities,
            vcpus_limit=row.vcpus_limit, vcpus_used=row.vcpus_used,
            memory_limit_mib=row.memory_limit_mib, memory_used_mib=row.memory_used_mib,
            disk_limit_mib=row.disk_limit_mib, disk_used_mib=row.disk_used_mib,
            instances=row.instances,
            images=frozenset(images[row.id]) if row.id in images else nothing,
            zone=zone or DEFAULT_ZONE, properties=properties,
            rack=next((value for key, value in properties if key == "rack"), None), load=load,
            numa=_free_cells(row.cells) if row.cells else (),
            busy_until=busy_until.get(row.id, 0.0),
        ))
    return views


def _each(
    conn: sa.Connection, statements: tuple[Prepared, Prepared], only: Collection[int] | None
) -> Iterator[Any]:
    """The rows of every host, or of `only` some: a few, that is, one after the other."""
    every, one = statements
    if only is None:
        yield from every(conn)
    else:
        for host_id in sorted(only):
            yield from one(conn, {"h": host_id})


def _places(
    conn: sa.Connection, only: Collection[int] | None
) -> dict[int, tuple[str | None, Pairs]]:
    """The zone of each host that is in an aggregate, and what its aggregates say of it."""
    found: dict[int, tuple[str | None, Pairs]] = {}
    for row in _each(conn, _PLACES, only):
        zone, pairs = found.get(row.host_id, (None, ()))
        said = json.loads(row.metadata).items()
        found[row.host_id] = (
            zone or row.availability_zone, tuple(sorted({*pairs, *said})),
        )
    return found


_Traits = tuple[str | None, frozenset[str], float | None]
_known_traits: dict[str, _Traits] = {}


def _traits(body: str | None) -> _Traits:
    if body is None:
        return None, frozenset(), None
    found = _known_traits.get(body)
    if found is None:
        if len(_known_traits) > 10_000:
            _known_traits.clear()
        facts = read_facts(body)
        found = _known_traits[body] = (facts.arch, facts.capabilities, facts.load)
    return found


def cell_limits(conn: sa.Connection) -> dict[int, tuple[tuple[int, int], ...]]:
    """What the NUMA cells of hosts have, taken or not: vCPUs and MiB of each, with overcommit."""
    rows = conn.execute(sa.select(host.c.id, host.c.cells).where(host.c.cells != ""))
    return {
        row.id: tuple(cell[1:3] for cell in cells.of_text(row.cells)) for row in rows
    }


@lru_cache(10_000)
def _free_cells(text: str) -> tuple[tuple[int, int], ...]:
    return cells.free_of(text)


def _all_or_one(statement: sa.Select[Any], key: sa.Column[int]) -> tuple[Prepared, Prepared]:
    return Prepared(statement), Prepared(statement.where(key == sa.bindparam("h")))


_SNAPSHOT = _all_or_one(sa.select(
    host.c.id, host.c.name, host.c.status, host.c.enabled, host.c.facts, host.c.vcpus_limit,
    host.c.vcpus_used, host.c.memory_limit_mib, host.c.memory_used_mib, host.c.disk_limit_mib,
    host.c.disk_used_mib, host.c.instances, host.c.forced_down, host.c.cells,
).order_by(host.c.id), host.c.id)
_PLACES = _all_or_one(sa.select(
    aggregate_host.c.host_id, aggregate.c.availability_zone, aggregate.c.metadata,
).join_from(
    aggregate_host, aggregate, aggregate.c.id == aggregate_host.c.aggregate_id
), aggregate_host.c.host_id)
_ENDS = _all_or_one(
    sa.select(allocation.c.host_id, sa.func.max(allocation.c.ends_at).label("last"))
    .where(allocation.c.ends_at.is_not(None)).group_by(allocation.c.host_id),
    allocation.c.host_id,
)
_IMAGES = _all_or_one(sa.select(host_image.c.host_id, host_image.c.sha256).where(
    sa.or_(host_image.c.state == ImageState.READY, host_image.c.state == ImageState.WANTED)
), host_image.c.host_id)
