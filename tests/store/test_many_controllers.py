"""Controllers that share one PostgreSQL: a hint of one reaches the others without a poll."""

from __future__ import annotations

import threading
import time

import sqlalchemy as sa

from treadle.controller import queue
from treadle.controller.queue import Ticket
from treadle.controller.signals import Signals
from treadle.controller.worker import Controller
from treadle.db.engine import Database, PostgresDatabase
from treadle.db.schema import work

PATIENCE_S = 20.0
POLL_S = 15.0


class Done:
    """Removes what it is given, and says so."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.keys: list[str] = []
        self.any = threading.Event()

    def run(self, ticket: Ticket) -> Ticket | None:
        self.database.write(lambda conn: queue.remove(conn, ticket))
        self.keys.append(ticket.id)
        self.any.set()
        return None


def test_work_of_another_process_is_found_before_the_poll(
    postgres_database: PostgresDatabase,
) -> None:
    handler = Done(postgres_database)
    one = Controller(postgres_database, {"k": handler}, Signals(), poll_s=POLL_S)
    one.start()
    try:
        # A connection that listens shows in the server's list of sessions.
        listening = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'"
        )
        end = time.monotonic() + PATIENCE_S
        while not postgres_database.read(lambda conn: conn.execute(listening).scalar_one()):
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.02)
        started = time.monotonic()
        postgres_database.write(lambda conn: queue.enqueue(conn, "k", "from afar"))
        assert handler.any.wait(PATIENCE_S)
        assert time.monotonic() - started < POLL_S / 2
    finally:
        one.stop()
    assert handler.keys == ["from afar"]
    left = sa.select(sa.func.count()).select_from(work)
    assert postgres_database.read(lambda conn: conn.execute(left).scalar_one()) == 0


def test_three_controllers_share_the_rows_and_do_each_once(
    postgres_database: PostgresDatabase,
) -> None:
    handlers = [Done(postgres_database) for _ in range(3)]
    all_three = [
        Controller(postgres_database, {"k": one}, Signals(), poll_s=0.1, threads=2)
        for one in handlers
    ]
    ids = [str(n) for n in range(150)]
    postgres_database.write(lambda conn: queue.enqueue_new(conn, "k", ids))
    for one in all_three:
        one.start()
    try:
        end = time.monotonic() + PATIENCE_S
        while sum(len(one.keys) for one in handlers) < len(ids):
            assert time.monotonic() < end, "not all were done"
            time.sleep(0.02)
    finally:
        for one in all_three:
            one.stop()
    assert sorted(key for one in handlers for key in one.keys) == sorted(ids)
