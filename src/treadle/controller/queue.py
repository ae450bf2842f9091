"""The work queue: one durable row per unfinished thing.

    work(kind, id, lane, due_at, wake, lease_until, token, tries, last_error)

A row is never taken off a list and lost: it is *leased*. `claim` takes due rows whose lease has
run out and gives each a new token; only the holder of the newest token can commit (`finish`,
`carry`). A wake-up carries no data: it moves `due_at` forward and counts `wake`, and a pass that
was under way then is followed by another at once.

Every function takes an open connection and belongs to the caller's transaction, so a change of
state and the record of what is left to do commit together.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from treadle.db.clock import now
from treadle.db.prepared import Prepared, at_most
from treadle.db.schema import work
from treadle.errors import RetryLater

CHANNEL = "treadle_work"
FAR_S = 3600.0
"""When a settled thing is looked at again without any hint, in seconds."""
MARGIN_S = 1.0
"""An act is begun only with this much of the lease left; the keeper lengthens it meanwhile."""


class LeaseLost(RetryLater):
    """Somebody else owns the row now: what this pass found out is dropped."""


class Lease:
    """Until when a row is ours, on this process's monotonic clock; `renew` moves it.

    It is taken before the statement is sent, so it is never later than the lease in the database.
    `hinted`: something has happened since the pass last looked; the engine wakes the row then.
    `over`: the pass has said its end, so it acts no more, whether or not its thread got as far.
    """

    __slots__ = ("expires", "hinted", "over")

    def __init__(self, expires: float) -> None:
        self.expires = expires
        self.hinted = False
        self.over = False

    def time_left(self) -> float:
        """Seconds until the lease ends."""
        return self.expires - time.monotonic()


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to make one pass over one row while its lease lasts.

    `now` is the database's clock at the claim, `tries` how many passes in a row have failed. `row`
    is what the pass before has left for this one: the thing as it was at the commit between them.
    """

    kind: str
    id: str
    lane: int
    token: int
    wake: int
    tries: int
    lease: Lease
    now: float
    row: Any = None

    @property
    def key(self) -> tuple[str, str]:
        """What names the row."""
        return self.kind, self.id


def hold_lease(ticket: Ticket) -> None:
    """Errors: `LeaseLost` where an act may not be begun any more."""
    if ticket.lease.time_left() < MARGIN_S:
        raise LeaseLost("too little of the lease is left to begin an act")


def enqueue(conn: sa.Connection, kind: str, id: str, *, lane: int = 0, delay: float = 0.0) -> None:
    """Make the row, due in `delay` seconds; where it exists, wake it."""
    if wake(conn, kind, [id]):
        return
    _INSERT(conn, {"x_kind": kind, "x_id": id, "x_lane": lane, "x_delay": delay})
    hint(conn)


def enqueue_new(conn: sa.Connection, kind: str, ids: Iterable[str]) -> None:
    """Make rows that cannot exist yet, due now."""
    for id in ids:
        _INSERT(conn, {"x_kind": kind, "x_id": id, "x_lane": 0, "x_delay": 0.0})
    hint(conn)


def wake(conn: sa.Connection, kind: str, ids: Collection[str]) -> int:
    """Make the rows due now; return how many there are. A leased row is looked at again after."""
    if not ids:
        return 0
    if len(ids) == 1:
        found = _WAKE_ONE(conn, {"k": kind, "i": next(iter(ids))}).rowcount
    else:
        found = conn.execute(_WAKE, {"k": kind, "ids": list(ids)}).rowcount
    if found:
        hint(conn)
    return found


def shift(conn: sa.Connection, kind: str, id: str, lane: int) -> None:
    """Have the row worked on in another lane from its next pass on, which is due now."""
    conn.execute(
        sa.update(work).where(work.c.kind == kind, work.c.id == id)
        .values(lane=lane, **_WOKEN)
    )
    hint(conn)


def postpone(conn: sa.Connection, kind: str, id: str, delay: float) -> None:
    """Make the row due in `delay` seconds only: who asks is at work on the thing himself."""
    conn.execute(
        sa.update(work).where(work.c.kind == kind, work.c.id == id).values(due_at=now() + delay)
    )


def hint(conn: sa.Connection) -> None:
    """Tell other controllers that something is due, once this commits (PostgreSQL's NOTIFY)."""
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql(f"NOTIFY {CHANNEL}")


def claim(
    conn: sa.Connection, limit: int, lease_s: float, *,
    busy_lanes: Collection[int] = (), kinds: Collection[str] | None = None,
) -> list[Ticket]:
    """Lease up to `limit` due rows, longest due first, none of a lane in `busy_lanes`.

    The same statement on both databases: on PostgreSQL rows that another controller is claiming
    are passed over (SKIP LOCKED); on SQLite the writer is alone anyway.
    """
    started = time.monotonic()
    statement = _claim_of(
        limit, tuple(sorted(busy_lanes)), None if kinds is None else tuple(sorted(kinds))
    )
    return [
        Ticket(r.kind, r.id, r.lane, r.token, r.wake, r.tries, Lease(started + lease_s), r.now)
        for r in statement(conn, {"x_lease": lease_s})
    ]


@lru_cache(maxsize=256)
def _claim_of(limit: int, busy: tuple[int, ...], kinds: tuple[str, ...] | None) -> Prepared:
    due = (
        sa.select(work.c.kind, work.c.id)
        .where(work.c.due_at <= now(), work.c.lease_until < now())
        .order_by(work.c.due_at)
        .limit(at_most(limit))
        .with_for_update(skip_locked=True)
    )
    due = due.where(*(work.c.lane != lane for lane in busy))
    if kinds is not None:
        due = due.where(sa.or_(sa.false(), *(work.c.kind == kind for kind in kinds)))
    picked = due.cte("picked")
    return Prepared(
        sa.update(work)
        .where(sa.tuple_(work.c.kind, work.c.id).in_(sa.select(picked.c.kind, picked.c.id)))
        .values(
            lease_until=now() + sa.bindparam("x_lease", type_=sa.Float), token=work.c.token + 1
        )
        .returning(
            work.c.kind, work.c.id, work.c.lane, work.c.token, work.c.wake, work.c.tries,
            now().label("now"),
        )
    )


def finish(
    conn: sa.Connection, ticket: Ticket, *, delay: float, error: str | None = None,
    lane: int | None = None,
) -> None:
    """End the pass: let the lease go, due again in `delay` seconds, or now if it was woken.

    `error` counts a try; None starts the count anew. Errors: `LeaseLost`.
    """
    done = _FINISH(conn, {
        "k": ticket.kind, "i": ticket.id, "t": ticket.token, "x_wake": ticket.wake,
        "x_delay": delay, "x_tries": 0 if error is None else ticket.tries + 1, "x_error": error,
        "x_lane": ticket.lane if lane is None else lane,
    })
    _over(ticket, done.rowcount)


def remove(conn: sa.Connection, ticket: Ticket) -> None:
    """End the pass and the row with it: nothing is left to do, ever. Errors: `LeaseLost`."""
    done = _REMOVE(conn, {"k": ticket.kind, "i": ticket.id, "t": ticket.token})
    _over(ticket, done.rowcount)


def _over(ticket: Ticket, rows: int) -> None:
    if rows != 1:
        raise LeaseLost(f"{ticket.kind} {ticket.id} was taken over")
    ticket.lease.over = True


def complete(conn: sa.Connection, ticket: Ticket) -> bool:
    """End the row with the pass, unless it was woken meanwhile: then it is due now, and False.

    Errors: `LeaseLost`.
    """
    if _COMPLETE(conn, {
        "k": ticket.kind, "i": ticket.id, "t": ticket.token, "x_wake": ticket.wake,
    }).rowcount == 1:
        ticket.lease.over = True
        return True
    finish(conn, ticket, delay=0.0)
    return False


def carry(conn: sa.Connection, ticket: Ticket, lease_s: float, *, lane: int) -> Ticket:
    """End one pass and begin the next with the same lease, lengthened. Errors: `LeaseLost`."""
    started = time.monotonic()
    row = _CARRY(conn, {
        "k": ticket.kind, "i": ticket.id, "t": ticket.token, "x_lease": lease_s, "x_lane": lane,
    }).one_or_none()
    if row is None:
        raise LeaseLost(f"{ticket.kind} {ticket.id} was taken over")
    ticket.lease.expires = started + lease_s
    return replace(ticket, lane=lane, wake=row.wake, tries=0, now=row.now, row=None)


def renew(conn: sa.Connection, tickets: Iterable[Ticket], lease_s: float) -> set[tuple[str, str]]:
    """Lengthen the leases that are still ours in the database; return the keys of those.

    The caller moves `Ticket.lease` once this is durable.
    """
    kept = set()
    for ticket in tickets:
        done = _RENEW(conn, {
            "k": ticket.kind, "i": ticket.id, "t": ticket.token, "x_lease": lease_s,
        })
        if done.rowcount == 1:
            kept.add(ticket.key)
    return kept


def is_leased(conn: sa.Connection, kind: str, id: str) -> bool:
    """Whether a pass over the row is under way."""
    return conn.execute(
        sa.select(work.c.id).where(
            work.c.kind == kind, work.c.id == id, work.c.lease_until >= now()
        )
    ).first() is not None


def next_due(conn: sa.Connection) -> float | None:
    """Seconds until the next row can be claimed (0 or less: now); None where there is none."""
    wait: float | None = _NEXT(conn).scalar()
    return wait


_NEXT = Prepared(
    sa.select((work.c.due_at - now()).label("wait"))
    .where(work.c.lease_until < now())
    .order_by(work.c.due_at)
    .limit(at_most(1))
)
_MINE = sa.and_(
    work.c.kind == sa.bindparam("k"), work.c.id == sa.bindparam("i"),
    work.c.token == sa.bindparam("t"),
)
_INSERT = Prepared(
    sa.insert(work).values(
        kind=sa.bindparam("x_kind"), id=sa.bindparam("x_id"), lane=sa.bindparam("x_lane"),
        due_at=now() + sa.bindparam("x_delay", type_=sa.Float),
    )
)
_WOKEN = {"due_at": now(), "wake": work.c.wake + 1}
_WAKE_ONE = Prepared(
    sa.update(work).where(
        work.c.kind == sa.bindparam("k"), work.c.id == sa.bindparam("i")
    ).values(_WOKEN)
)
_WAKE = sa.update(work).where(
    work.c.kind == sa.bindparam("k"), work.c.id.in_(sa.bindparam("ids", expanding=True))
).values(_WOKEN)
_FINISH = Prepared(
    sa.update(work).where(_MINE).values(
        lease_until=0,
        due_at=sa.case(
            (work.c.wake != sa.bindparam("x_wake", type_=sa.Integer), now()),
            else_=now() + sa.bindparam("x_delay", type_=sa.Float),
        ),
        tries=sa.bindparam("x_tries", type_=sa.Integer),
        last_error=sa.bindparam("x_error", type_=sa.Text),
        lane=sa.bindparam("x_lane", type_=sa.Integer),
    )
)
_REMOVE = Prepared(sa.delete(work).where(_MINE))
_COMPLETE = Prepared(
    _REMOVE.statement.where(work.c.wake == sa.bindparam("x_wake", type_=sa.Integer))
)
_CARRY = Prepared(
    sa.update(work).where(_MINE).values(
        lease_until=now() + sa.bindparam("x_lease", type_=sa.Float), tries=0,
        lane=sa.bindparam("x_lane", type_=sa.Integer),
    ).returning(work.c.wake, now().label("now"))
)
_RENEW = Prepared(
    sa.update(work).where(_MINE, work.c.lease_until > 0).values(
        lease_until=now() + sa.bindparam("x_lease", type_=sa.Float)
    )
)
