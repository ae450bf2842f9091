"""Server groups as placement sees them: the rule, and where the members are.

A hard rule is judged in the transaction that claims: the group's row is locked there, so that of
two members that are placed at once the second sees where the first went. The functions take an open
connection and belong to the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treadle.db.prepared import Prepared, at_most
from treadle.db.schema import allocation, instance, migration, server_group

AFFINITY = "affinity"
ANTI_AFFINITY = "anti-affinity"


@dataclass(frozen=True, slots=True)
class Group:
    """A rule: "affinity", "anti-affinity", or one of them with "soft-" before it."""

    policy: str
    max_per_host: int

    @property
    def hard(self) -> bool:
        """Whether the rule may never be broken."""
        return self.policy in (AFFINITY, ANTI_AFFINITY)

    def allows(self, members: Mapping[int, int], host_id: int) -> bool:
        """Whether one more member may come to the host, where `members` are on each by its id."""
        if self.policy == AFFINITY:
            return not members or host_id in members
        if self.policy == ANTI_AFFINITY:
            return members.get(host_id, 0) < self.max_per_host
        return True


def get(conn: sa.Connection, group_id: int) -> Group | None:
    """The group's rule; None where the group is gone, and binds nobody any more."""
    return _group(_GET(conn, {"g": group_id}).one_or_none())


def rule(conn: sa.Connection, group_id: int | None, but: int) -> Callable[[int], bool]:
    """Which hosts the group allows the instance `but`, and goes on to allow until this commits.

    Until then no other member gets past this call.
    """
    if group_id is None:
        return lambda _host_id: True
    group = _group(_LOCK(conn, {"g": group_id}).one_or_none())
    if group is None or not group.hard:
        return lambda _host_id: True
    there = members(conn, group_id, but)
    if group.policy == AFFINITY and (
        _UNDER_WAY(conn, {"g": group_id, "i": but}).one_or_none() is not None
    ):
        # It will be on one of two hosts, and which is not known before it is over.
        return lambda _host_id: False
    return lambda host_id: group.allows(there, host_id)


def members(conn: sa.Connection, group_id: int, but: int) -> dict[int, int]:
    """How many members hold room on each host, by its id; `but` this instance. One that is being
    moved, or can still go back, does on both."""
    rows = _MEMBERS(conn, {"g": group_id, "i": but})
    return {row.host_id: row.members for row in rows}


def _group(row: Any) -> Group | None:
    return None if row is None else Group(row.policy, max(row.max_per_host or 1, 1))


_GET = Prepared(
    sa.select(server_group.c.policy, server_group.c.max_per_host).where(
        server_group.c.id == sa.bindparam("g")
    )
)
_LOCK = Prepared(_GET.statement.with_for_update())
_OTHERS = sa.and_(instance.c.group_id == sa.bindparam("g"), instance.c.id != sa.bindparam("i"))
_LANDED = sa.or_(migration.c.stage == "finished", migration.c.stage == "reverting")
"""The stages in which a move holds room of its source, for what is kept there; else its target's.
"""
_HELD = sa.union_all(
    sa.select(allocation.c.host_id)
    .join(instance, instance.c.id == allocation.c.instance_id).where(_OTHERS),
    sa.select(
        sa.case((_LANDED, migration.c.source_id), else_=migration.c.target_id).label("host_id")
    )
    .join(instance, instance.c.id == migration.c.instance_id).where(_OTHERS, migration.c.held),
).subquery()
_MEMBERS = Prepared(
    sa.select(_HELD.c.host_id, sa.func.count().label("members"))
    .group_by(_HELD.c.host_id).order_by(_HELD.c.host_id)
)
_UNDER_WAY = Prepared(
    sa.select(migration.c.id).join(instance, instance.c.id == migration.c.instance_id)
    .where(_OTHERS, migration.c.held, sa.not_(_LANDED)).limit(at_most(1))
)
