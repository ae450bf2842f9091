"""Hosts that are off for sure: what is written of it. The functions take an open connection and
belong to the caller's transaction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from treadle.db.clock import now
from treadle.db.engine import note
from treadle.db.schema import host
from treadle.placement.ledger import CHANGED, Fence, HostStatus


def ask(conn: sa.Connection, host_id: int, why: str) -> bool:
    """Have a host that does not answer switched off. False where it is, or is to be, already, or
    answers, or is out of use: nothing is changed then."""
    return _set(
        conn, host_id, host.c.status == HostStatus.DOWN, host.c.enabled,
        host.c.fence == Fence.NONE, fence=Fence.ASKED, fenced_at=now(), fence_note=why,
    )


def renew(conn: sa.Connection, host_id: int) -> None:
    """It is still to be switched off, as of now."""
    _set(conn, host_id, host.c.fence == Fence.ASKED, fenced_at=now())


def withdraw(conn: sa.Connection, host_id: int) -> None:
    """It is not to be switched off any more, unless that is asked anew."""
    _set(conn, host_id, host.c.fence == Fence.ASKED, fence=Fence.NONE, fenced_at=None)


def off(conn: sa.Connection, host_id: int, note_: str, *, asked: bool = True) -> bool:
    """It is off. False, and nothing is changed, where it answers, or (`asked`) where nobody wants
    that any more."""
    where = [host.c.fence == Fence.ASKED] if asked else []
    return _set(
        conn, host_id, host.c.status != HostStatus.UP, *where,
        fence=Fence.OFF, fenced_at=now(), fence_note=note_,
    )


def still_off(conn: sa.Connection, host_id: int) -> bool:
    """Whether it is off for sure. Its row is held until the transaction ends, so that whoever finds
    it up comes before or after."""
    return _set(
        conn, host_id, host.c.status != HostStatus.UP,
        sa.or_(host.c.fence == Fence.OFF, host.c.forced_down), fence=host.c.fence,
    )


def remark(conn: sa.Connection, host_id: int, note_: str) -> None:
    """Say what is thought of a host that does not answer."""
    _set(conn, host_id, host.c.status != HostStatus.UP, host.c.fence != Fence.OFF, fence_note=note_)


def _set(conn: sa.Connection, host_id: int, *where: Any, **values: Any) -> bool:
    done = conn.execute(sa.update(host).where(host.c.id == host_id, *where).values(values))
    if done.rowcount:
        note(conn, CHANGED, host_id)
    return done.rowcount == 1
