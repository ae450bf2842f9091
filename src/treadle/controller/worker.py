"""The engine: takes due rows off the queue and has a handler make one pass over each.

    dispatcher thread   waits for the next due row, claims a few, hands each to its lane
    a lane              the bounded threads of one host (lane 0: work that has no host yet), so a
                        host that hangs holds up only its own work
    keeper thread       lengthens the leases of passes under way, and ends the process where it
                        cannot: an act must never outlive its lease
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from treadle.controller import queue
from treadle.controller.queue import LeaseLost, Ticket
from treadle.controller.signals import Key, Signals
from treadle.db.engine import Database
from treadle.errors import RetryLater, TreadleError

log = structlog.get_logger("treadle.controller")

CLAIM = 64
LANE_QUEUE = 16
EXIT_LEASE_LOST = 70
RENEWAL = 0.2
"""What part of a lease its renewal may take."""


class Handler(Protocol):
    """Knows one kind of work. A pass is: observe, decide, act once, commit."""

    def run(self, ticket: Ticket) -> Ticket | None:
        """Make one pass and commit it through `ticket`.

        Returns a ticket from `queue.carry` to go on with at once, or None. Errors: `LeaseLost`
        (the result is dropped); any other `TreadleError` counts a try and is made again later.
        """


def backoff(tries: int, *, first: float = 0.25, most: float = 30.0) -> float:
    """Seconds to wait after `tries` failures in a row: doubling, bounded."""
    return float(min(most, first * 2 ** min(tries, 20)))


def end_pass(
    database: Database, ticket: Ticket, change: Callable[[sa.Connection], None] | None = None, *,
    delay: float = 0.0, error: str | None = None, durable: bool = True,
) -> None:
    """Commit what a pass has come to, `change`, and when the next is due: in `delay` seconds.

    What an act has done or a look has shown need not be `durable`: whoever comes after a power cut
    sees it again. Errors: `LeaseLost`.
    """
    def commit(conn: sa.Connection) -> None:
        queue.finish(conn, ticket, delay=delay, error=error)
        if change is not None:
            change(conn)

    database.write(commit, durable=durable)


def end_process(reason: str) -> None:
    """What the keeper does when a lease is about to end under an act: stop everything now."""
    log.critical("lease_ends_under_an_act", reason=reason)
    os._exit(EXIT_LEASE_LOST)


class Controller:
    """Runs handlers over the queue until it is stopped. Many may share one PostgreSQL."""

    def __init__(
        self,
        database: Database,
        handlers: Mapping[str, Handler],
        signals: Signals,
        *,
        lease_s: float = 30.0,
        poll_s: float = 1.0,
        threads: int = 4,
        host_threads: int = 4,
        on_lease_end: Callable[[str], None] = end_process,
    ) -> None:
        self._db = database
        self._handlers = dict(handlers)
        self._signals = signals
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._threads = {0: threads}
        self._host_threads = host_threads
        self._on_lease_end = on_lease_end
        self._lanes: dict[int, ThreadPoolExecutor] = {}
        self._load: Counter[int] = Counter()
        self._held: dict[Key, Ticket] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._idle = threading.Condition(self._lock)
        self._own: list[threading.Thread] = []

    def start(self) -> None:
        """Start the dispatcher and the keeper (and on PostgreSQL, the listener)."""
        loops = [("dispatch", self._dispatch), ("keeper", self._keep)]
        if self._db.dialect == "postgresql":
            loops.append(("listen", self._listen))
        for name, loop in loops:
            thread = threading.Thread(target=loop, name=name, daemon=True)
            thread.start()
            self._own.append(thread)

    def stop(self, seconds: float = 10.0) -> None:
        """Claim nothing more and wait up to `seconds` for the passes under way. What was claimed
        and not begun is let go, so that another controller need not wait for the lease."""
        end = time.monotonic() + seconds
        self._stop.set()
        self._signals.due.set()
        for thread in self._own[:1]:
            # The dispatcher first: until it has ended, it may give out what it has just claimed.
            thread.join(max(0.0, end - time.monotonic()))
        with self._idle:
            self._idle.wait_for(lambda: not self._held, max(0.0, end - time.monotonic()))
        for thread in self._own[1:]:
            thread.join(max(0.0, end - time.monotonic()))
        for lane in self._lanes.values():
            lane.shutdown(wait=False, cancel_futures=True)

    # -- dispatcher

    def _dispatch(self) -> None:
        while not self._stop.is_set():
            try:
                claimed = self._claim()
                wait = 0.0 if claimed == CLAIM else self._time_to_wait(claimed)
            except (DBAPIError, RetryLater) as error:
                log.warning("queue_unreachable", error=str(error))
                wait = self._poll_s
            if wait > 0:
                self._signals.due.wait(wait)

    def _time_to_wait(self, claimed: int) -> float:
        due = self._db.read(queue.next_due)
        if due is None:
            return self._poll_s
        if due <= 0:
            # Due, but not claimed: its lane is full. A pass that ends says so.
            return 0.0 if claimed else self._poll_s
        return min(due, self._poll_s)

    def _claim(self) -> int:
        self._signals.due.clear()
        with self._lock:
            full = [lane for lane, load in self._load.items() if load >= LANE_QUEUE]
        tickets = self._db.write(lambda conn: queue.claim(
            conn, CLAIM, self._lease_s, busy_lanes=full, kinds=self._handlers,
        ), durable=False)
        for ticket in tickets:
            self._give(ticket)
        return len(tickets)

    def _give(self, ticket: Ticket) -> None:
        with self._lock:
            self._held[ticket.key] = ticket
            self._load[ticket.lane] += 1
            lane = self._lanes.get(ticket.lane)
            if lane is None:
                lane = self._lanes[ticket.lane] = ThreadPoolExecutor(
                    self._threads.get(ticket.lane, self._host_threads),
                    thread_name_prefix=f"lane-{ticket.lane}",
                )
        try:
            lane.submit(self._work, ticket)
        except RuntimeError:  # the lane is shut down
            self._release(ticket, None)
            self._let_go(ticket)

    # -- a pass

    def _work(self, ticket: Ticket) -> None:
        following: Ticket | None = ticket
        while following is not None and following.lane == ticket.lane:
            if self._stop.is_set():
                break
            ticket = following
            with self._lock:
                self._held[ticket.key] = ticket
            following = self._pass(ticket)
        # Before it is let go of: who waits for all to be idle sees no gap.
        if following is not None:
            if self._stop.is_set():
                self._release(following, None)
            else:
                self._give(following)
        self._let_go(ticket)

    def _pass(self, ticket: Ticket) -> Ticket | None:
        try:
            following = self._handlers[ticket.kind].run(ticket)
        except LeaseLost as lost:
            log.info("lease_lost", kind=ticket.kind, id=ticket.id, detail=str(lost))
            return None
        except (TreadleError, DBAPIError) as error:
            self._release(ticket, str(error))
            return None
        except Exception as error:
            log.exception("pass_failed", kind=ticket.kind, id=ticket.id)
            self._release(ticket, f"{type(error).__name__}: {error}")
            return None
        if following is None:  # or the pass that goes on will say so
            self._signals.changed(ticket.key)
        return following

    def _release(self, ticket: Ticket, error: str | None) -> None:
        delay = 0.0 if error is None else backoff(ticket.tries)
        try:
            end_pass(self._db, ticket, delay=delay, error=error)
        except (TreadleError, DBAPIError) as also:
            # The lease runs out by itself then, and the row is claimed again.
            log.warning("release_failed", kind=ticket.kind, id=ticket.id, error=str(also))
        self._signals.changed(ticket.key)

    def _let_go(self, ticket: Ticket) -> None:
        with self._idle:
            if self._held.get(ticket.key) is ticket:
                del self._held[ticket.key]
            self._load[ticket.lane] -= 1
            hinted = ticket.lease.hinted
            if not self._held:
                self._idle.notify_all()
        if hinted:
            self._wake(ticket.key)
        # The pass may have left work for others, or its own row due again.
        self._signals.due.set()

    def hint(self, key: Key) -> None:
        """Something happened to what `key` names: have a pass look at it. Returns at once.

        While a pass is under way, most hints are of its own doing: they count only if the pass
        does not look again after them.
        """
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                held.lease.hinted = True
                return
        self._wake(key)

    def _wake(self, key: Key) -> None:
        kind, id = key
        woken = self._db.submit(lambda conn: queue.wake(conn, kind, [id]), durable=False)
        woken.add_done_callback(lambda _done: self._signals.work_is_due())

    # -- leases

    def _keep(self) -> None:
        step = min(1.0, self._lease_s / 4)
        # The next look comes after one step and one renewal that is not answered: what would
        # not live until then ends now.
        least = step + self._lease_s * (RENEWAL + 0.05)
        wait = step
        while not self._stop.wait(wait):
            with self._lock:
                held = list(self._held.values())
            ending = [t for t in held if t.lease.time_left() < self._lease_s * 0.7]
            kept = self._renew(ending) if ending else set()
            late = [t for t in ending if t.lease.time_left() < least and not t.lease.over]
            with self._lock:
                late = [t for t in late if self._held.get(t.key) is t]
            lost = [t for t in late if t.key not in kept]
            if lost:
                self._on_lease_end(", ".join(f"{t.kind} {t.id}" for t in lost))
            # This thread itself was held up: what it has just renewed is due again.
            wait = 0.0 if late and not lost else step

    def _renew(self, tickets: list[Ticket]) -> set[Key]:
        started = time.monotonic()
        renewal = self._db.submit(
            lambda conn: queue.renew(conn, tickets, self._lease_s), durable=False
        )
        try:
            kept = renewal.result(self._lease_s * RENEWAL)
        except (TimeoutError, DBAPIError, TreadleError) as error:
            log.warning("leases_not_renewed", count=len(tickets), error=str(error))
            return set()
        for ticket in tickets:
            if ticket.key in kept:
                ticket.lease.expires = started + self._lease_s
        return kept

    # -- hints from other controllers

    def _listen(self) -> None:
        import psycopg

        url = self._db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        while not self._stop.is_set():
            try:
                with psycopg.connect(url, autocommit=True, connect_timeout=5) as conn:
                    conn.execute(f"LISTEN {queue.CHANNEL}")
                    while not self._stop.is_set():
                        for _notice in conn.notifies(timeout=1.0, stop_after=1):
                            self._signals.due.set()
            except psycopg.Error as error:
                log.warning("listen_failed", error=str(error))
                self._stop.wait(self._poll_s)
