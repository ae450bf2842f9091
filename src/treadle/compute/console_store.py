"""The SQL of console tokens: made, taken once, forgotten. Only a token's SHA-256 is kept."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa

from treadle.db.clock import now
from treadle.db.schema import console_token as table
from treadle.hypervisor.base import ConsoleKind

LIVE_MAX = 32
"""Tokens of one instance that can be good at once; the oldest goes for the next."""


def digest(token: str) -> str:
    """What is kept of a token: 64 hex digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def put(
    conn: sa.Connection, token: str, uuid: str, host_id: int, kind: ConsoleKind, seconds: float
) -> None:
    """Keep a token for so long. What has run out goes."""
    time = float(conn.execute(sa.select(now())).scalar_one())
    conn.execute(sa.delete(table).where(table.c.expires_at <= time))
    mine = list(conn.execute(
        sa.select(table.c.hash).where(table.c.instance_uuid == uuid)
        .order_by(table.c.expires_at, table.c.hash)
    ).scalars())
    surplus = mine[: max(0, len(mine) - LIVE_MAX + 1)]
    if surplus:
        conn.execute(sa.delete(table).where(table.c.hash.in_(surplus)))
    conn.execute(sa.insert(table).values(
        hash=digest(token), instance_uuid=uuid, host_id=host_id, kind=kind,
        expires_at=time + seconds,
    ))


def take(conn: sa.Connection, token: str, kind: ConsoleKind) -> tuple[str, int] | None:
    """The instance's UUID and the host of a token that is good, which it then no longer is.

    One statement takes it, so of many who come with it at once, on whatever controller, one has it.
    """
    row = conn.execute(
        sa.delete(table)
        .where(table.c.hash == digest(token), table.c.kind == kind, table.c.expires_at > now())
        .returning(table.c.instance_uuid, table.c.host_id)
    ).one_or_none()
    return None if row is None else (row.instance_uuid, row.host_id)


def look(conn: sa.Connection, token: str) -> tuple[str, int] | None:
    """The instance's UUID and the host of a token that is good, and stays so."""
    row = conn.execute(
        sa.select(table.c.instance_uuid, table.c.host_id)
        .where(table.c.hash == digest(token), table.c.expires_at > now())
    ).one_or_none()
    return None if row is None else (row.instance_uuid, row.host_id)
