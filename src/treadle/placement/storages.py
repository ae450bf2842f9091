"""Hosts that share their storage: who they are, and how much of it each may give out.

What hosts have seen of each other is in their facts (`HostFacts.storage_others`). The functions
take an open connection and belong to the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from treadle.db.engine import note
from treadle.db.prepared import Prepared, at_most
from treadle.db.schema import host
from treadle.hypervisor.base import HostFacts
from treadle.placement.ledger import CHANGED, HostStatus, read_facts


@dataclass(frozen=True, slots=True)
class Heirs:
    """The hosts that have the storage of one that is off. `known`: it is not alone in it, though
    none of those may have been seen since."""

    ids: frozenset[int]
    known: bool


def together(conn: sa.Connection, host_id: int) -> tuple[int, ...]:
    """Itself and the hosts that share its storage, or once did, or have a copy of it: of whatever
    must not be done by two of them at a time. In order."""
    if not list(_SEEING(conn)):
        return (host_id,)
    facts = _facts(conn)
    ids = {known.host_uuid.lower(): id for id, known in facts.items()}
    near: dict[int, set[int]] = {}
    for id, known in facts.items():
        for uuid in seen_by(known):
            if (other := ids.get(uuid)) is not None:
                near.setdefault(id, set()).add(other)
                near.setdefault(other, set()).add(id)
    found, new = {host_id}, {host_id}
    while new:
        new = {other for id in new for other in near.get(id, ())} - found
        found |= new
    return tuple(sorted(found))


def keeper(conn: sa.Connection, host_id: int) -> int:
    """The one of them under whose number the work on what they share is queued."""
    return together(conn, host_id)[0]


def heirs(conn: sa.Connection, host_id: int) -> Heirs:
    """Who has the disks of a host that is off: they see what it has written into its storage last,
    and it has seen them there. A copy of its storage was not seen by it."""
    facts = _facts(conn)
    source = facts.get(host_id)
    if source is None:
        return Heirs(frozenset(), known=False)
    others = {id: known for id, known in facts.items() if id != host_id}
    seen = seen_by(source)
    return Heirs(
        frozenset(
            id for id, known in others.items()
            if known.host_uuid.lower() in seen and source.storage_token in known.storage_others
        ),
        known=any(known.host_uuid.lower() in seen for known in others.values()),
    )


def unmet(conn: sa.Connection, host_id: int, mine: HostFacts) -> list[int]:
    """The hosts that this one, of which these are the facts, sees in its storage, and that have not
    seen this one yet. Where it sees none, nothing is read."""
    seen = seen_by(mine)
    if not seen:
        return []
    return [
        id for id, known in _facts(conn).items()
        if id != host_id and known.host_uuid.lower() in seen
        and mine.host_uuid.lower() not in seen_by(known)
    ]


def seen_by(facts: HostFacts) -> frozenset[str]:
    """UUIDs of the hosts that one has seen in its storage."""
    return frozenset(token.partition(".")[0] for token in facts.storage_others)


def level(conn: sa.Connection, host_id: int) -> None:
    """What is free in a storage is given out once: each of its hosts that answer may give out an
    equal part of it. Makes the hosts' limits say so."""
    ids = together(conn, host_id)
    if len(ids) == 1:
        return
    rows = conn.execute(
        sa.select(host.c.id, host.c.status, host.c.enabled, host.c.facts, host.c.disk_ratio,
                  host.c.disk_used_mib, host.c.disk_limit_mib)
        .where(host.c.id.in_(ids)).order_by(host.c.id).with_for_update()
    ).all()
    sizes = [
        int(read_facts(row.facts).disk_mib * row.disk_ratio)
        for row in rows if row.facts and row.status == HostStatus.UP
    ]
    free = max(0, min(sizes, default=0) - sum(row.disk_used_mib for row in rows))
    open_to = [row.id for row in rows if row.status == HostStatus.UP and row.enabled]
    for row in rows:
        part = free // len(open_to) if row.id in open_to else 0
        if row.disk_limit_mib != row.disk_used_mib + part:
            conn.execute(sa.update(host).where(host.c.id == row.id).values(
                disk_limit_mib=row.disk_used_mib + part
            ))
            note(conn, CHANGED, row.id)


def allow(conn: sa.Connection, host_id: int, disk_mib: int) -> None:
    """Let the host give out that much more (less, where negative) of its disk: what one of its
    storage gives up is another's."""
    conn.execute(sa.update(host).where(host.c.id == host_id).values(
        disk_limit_mib=host.c.disk_limit_mib + disk_mib
    ))
    note(conn, CHANGED, host_id)


def _facts(conn: sa.Connection) -> dict[int, HostFacts]:
    return dict(_read(_FACTS(conn)))


def _read(rows: Any) -> Iterator[tuple[int, HostFacts]]:
    for row in rows:
        yield row.id, _parsed(row.facts)


@lru_cache(maxsize=4096)
def _parsed(body: str) -> HostFacts:
    return read_facts(body)


_SEEING = Prepared(sa.select(host.c.id).where(host.c.sees_others).limit(at_most(1)))
_FACTS = Prepared(
    sa.select(host.c.id, host.c.facts).where(host.c.facts.is_not(None)).order_by(host.c.id)
)
