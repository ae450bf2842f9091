"""What is the same in each world, every time: its clock, its dice, its database in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import cache
from hashlib import md5
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import UUID

import sqlalchemy as sa
from pysqlite3 import dbapi2

from treadle.compute import creating, reconciler
from treadle.controller import queue
from treadle.db import schema
from treadle.db.engine import _NOTED, Database, Noted, Work, _marked
from treadle.image import store as images
from treadle.placement import board

START = 1_000_000.0


class Clock:
    """The only time there is; both the database's and the process's monotonic one. And the only
    dice: what is drawn follows from how often one has drawn."""

    def __init__(self) -> None:
        self.now = START
        self.drawn = 0

    def __call__(self) -> float:
        return self.now

    def uuid4(self) -> UUID:
        """The next one."""
        self.drawn += 1
        return UUID(bytes=md5(b"%d" % self.drawn, usedforsecurity=False).digest(), version=4)


@contextmanager
def world_time(clock: Clock) -> Iterator[None]:
    """Have leases, and the age of what a controller remembers, measured by the world's clock, and
    the names of what is made drawn from it."""
    time = SimpleNamespace(monotonic=clock, time=clock)
    dice = SimpleNamespace(uuid4=clock.uuid4, UUID=UUID)
    with ExitStack() as stack:
        for module in (queue, board, reconciler):
            stack.enter_context(patch.object(module, "time", time))
        stack.enter_context(patch.object(creating, "uuids", dice))
        for module in (schema, images):
            stack.enter_context(patch.object(module, "uuid4", clock.uuid4))
        yield


ENGINE = sa.create_engine(
    "sqlite://", module=dbapi2, poolclass=sa.NullPool,
    connect_args={
        # A sweep runs some two hundred statements; a statement that is made anew costs most of it.
        "isolation_level": None, "check_same_thread": False, "cached_statements": 512,
    },
)
"""Each connection is a database of its own; what SQLAlchemy has compiled serves all."""


@cache
def _empty() -> sa.Connection:
    """A database with every table and no row, to copy."""
    conn = ENGINE.connect()
    schema.metadata.create_all(conn)
    conn.commit()
    return conn


class MemoryDatabase(Database):
    """SQLite in memory, on one connection and in the caller's thread.

    One transaction is open for ever; what the code takes for transactions are savepoints in it.
    """

    dialect = "sqlite"

    def __init__(self, clock: Clock) -> None:
        self.engine = ENGINE
        self.seam: Callable[[str], None] = lambda _name: None
        self.told: Callable[[Noted], None] = lambda _noted: None
        """Told what a transaction notes: the process that made it, and no other."""
        self.unsafe = False
        self.safe = False
        """The power will not be cut: all may be taken for durable."""
        self._conn = self.engine.connect()
        raw: Any = self._conn.connection.driver_connection
        raw.create_function("treadle_now", 0, clock)
        self.run: Callable[[str], Any] = raw.cursor().execute
        empty: Any = _empty().connection.driver_connection
        empty.backup(raw)
        self.run("PRAGMA foreign_keys=ON")
        self._conn.begin()
        self.run("BEGIN")

    def write(self, work: Work[Any], *, durable: bool = True) -> Any:
        self.seam("before write")
        value = self.apply(work, durable=durable)
        self.seam("after write")
        return value

    def read(self, work: Work[Any]) -> Any:
        self.seam("before read")
        with _marked():
            value = work(self._conn)
        self.seam("after read")
        return value

    def submit(self, work: Work[Any], *, durable: bool = True) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(self.apply(work, durable=durable))
        return done

    def apply(self, work: Work[Any], *, durable: bool = True) -> Any:
        """A transaction without seams. What is not durable lies above a savepoint of its own."""
        if durable and self.unsafe:
            self.run("RELEASE unsafe")
            self.unsafe = False
        elif not durable and not self.unsafe and not self.safe:
            self.run("SAVEPOINT unsafe")
            self.unsafe = True
        with _marked():
            self.run("SAVEPOINT one")
            try:
                value = work(self._conn)
            except BaseException:
                self.run("ROLLBACK TO one")
                self._conn.info.pop(_NOTED, None)
                raise
            finally:
                self.run("RELEASE one")
        noted = self._conn.info.pop(_NOTED, None)
        if noted:
            self.told(noted)
        return value

    def watch(self, callback: Callable[[Noted], None]) -> None:
        """Nothing: `told` finds whom it concerns."""

    def lose(self) -> bool:
        """The power is cut: what was not durable is gone. False where there was nothing such."""
        if not self.unsafe:
            return False
        self.run("ROLLBACK TO unsafe")
        self.run("RELEASE unsafe")
        self.unsafe = False
        return True

    def one(self, query: str) -> Any:
        """The first value that a plain query gives: for the harness, which asks often."""
        row = self.run(query).fetchone()
        return row and row[0]

    def close(self) -> None:
        self._conn.close()
