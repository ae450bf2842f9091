"""A clock that stands still, and a database in memory that goes back to a saved state at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any

import sqlalchemy as sa
from pysqlite3 import dbapi2

from treadle.db.engine import Database, Work, _marked
from treadle.db.schema import metadata

START = 1_000_000.0


class Clock:
    """The only time there is; both the database's and the process's monotonic one."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


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
    metadata.create_all(conn)
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
        self.unsafe = False
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
        elif not durable and not self.unsafe:
            self.run("SAVEPOINT unsafe")
            self.unsafe = True
        with _marked():
            self.run("SAVEPOINT one")
            try:
                value = work(self._conn)
            except BaseException:
                self.run("ROLLBACK TO one")
                raise
            finally:
                self.run("RELEASE one")
        return value

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
