"""One way to read and to write, on SQLite and on PostgreSQL.

A transaction is a function of a connection: `database.write(lambda conn: ...)`. It is short, does
no I/O of its own, may be run again, and the value it returns is given back once it is durable.

SQLite: one writer thread owns the only writing connection and commits what waits together (a group
commit), so one fsync serves many callers; reads that an event loop waits for are taken together
too, on one snapshot. PostgreSQL: a pool; serialization
failures, deadlocks and rows that two make at once are run again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from treadle.db.prepared import execute
from treadle.errors import Permanent, RetryLater

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")
Work = Callable[[sa.Connection], T]
Noted = dict[str, set[int | str]]
_NOTED = "treadle_noted"
_SPOILT = "treadle_spoilt"

WRITE_DEADLINE_S = 30.0
GROUP = 64
READ_GROUP = 8
SAFE_SQLITE = (3, 51, 3)
BACKPORTS = {(3, 50): (3, 50, 7), (3, 44): (3, 44, 6)}

_here = threading.local()


class DatabaseBusy(RetryLater):
    """The database did not answer within the deadline; what was asked may still happen."""


class DatabaseUnfit(Permanent):
    """The database cannot be used as it is; the message names the mend."""


def note(conn: sa.Connection, topic: str, item: int | str) -> None:
    """Tell those who `watch` the database of `item`, once the transaction has committed."""
    noted: Noted = conn.info.setdefault(_NOTED, {})
    noted.setdefault(topic, set()).add(item)


def in_transaction() -> bool:
    """Whether this thread is inside a transaction of ours."""
    return bool(getattr(_here, "depth", 0))


def forbid_in_transaction() -> None:
    """Raise where a transaction is open: nothing that can block on a machine may run in one."""
    if in_transaction():
        raise RuntimeError("I/O inside a database transaction: move it before or after")


@contextmanager
def _marked() -> Iterator[None]:
    if in_transaction():
        raise RuntimeError("a transaction inside a transaction: pass the connection on instead")
    _here.depth = 1
    try:
        yield
    finally:
        _here.depth = 0


@contextmanager
def _in_time() -> Iterator[None]:
    """Where a pool has had no connection to give, it is our own error that says so."""
    try:
        yield
    except sa.exc.TimeoutError as late:
        raise DatabaseBusy(f"no answer from the database in {WRITE_DEADLINE_S:g} s") from late


def sqlite_is_safe(version: tuple[int, ...]) -> bool:
    """False for versions that can lose commits in WAL mode (sqlite.org/wal.html, section 11)."""
    return version >= BACKPORTS.get((version[0], version[1]), SAFE_SQLITE)


def _switch_to_wal(cursor: Any) -> None:
    """Use the write-ahead log. While others switch the same new file, SQLite says that it is
    locked without waiting as it does elsewhere."""
    end = time.monotonic() + 10.0
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except Exception as error:
            if "database is locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


class Database:
    """Reads, writes and the clock of one database. Close it when done."""

    dialect: str
    engine: sa.Engine

    def write(self, work: Work[T], *, durable: bool = True) -> T:
        """Run `work` in a transaction; return its value when it is durable.

        Not `durable`: a power cut of this machine may lose it, but nothing that was committed
        before it, nor anything durable that came after it without it. A crash of the process loses
        nothing. For what is found out anew by looking at the hosts; other databases than SQLite,
        which several controllers may share, make all durable.
        Errors: whatever `work` raises (then nothing of it is kept); `DatabaseBusy`.
        """
        raise NotImplementedError

    def submit(self, work: Work[T], *, durable: bool = True) -> Future[T]:
        """`write` without waiting: what an event loop awaits."""
        raise NotImplementedError

    def read(self, work: Work[T]) -> T:
        """Run `work` on one consistent snapshot in this thread. Errors: `DatabaseBusy`."""
        with _marked(), self._snapshot() as conn:
            return work(conn)

    def submit_read(self, work: Work[T]) -> Future[T]:
        """`read` on one of the few reader threads."""
        raise NotImplementedError

    def glance(self, work: Work[T]) -> Future[T]:
        """A read of a few rows by their key, from the one thread that runs the event loop: done at
        once where the database is in this process, for that takes less time than waking another
        thread; else `submit_read`."""
        return self.submit_read(work)

    def close(self) -> None:
        """Finish what is queued and let the connections go."""
        raise NotImplementedError

    def watch(self, callback: Callable[[Noted], None]) -> None:
        """Call `callback` with what transactions of this process `note`, topic by topic.

        It is called once they have committed, before their callers know. It must be short.
        """
        self._watchers = (*self._watchers, callback)

    def _publish(self, noted: Noted | None) -> None:
        if noted:
            for callback in self._watchers:
                callback(noted)

    _watchers: tuple[Callable[[Noted], None], ...] = ()

    def _snapshot(self) -> AbstractContextManager[sa.Connection]:
        raise NotImplementedError


class _Job:
    __slots__ = ("durable", "future", "work")

    def __init__(self, work: Work[Any], *, durable: bool) -> None:
        self.work = work
        self.durable = durable
        self.future: Future[Any] = Future()


def _gather(jobs: queue.SimpleQueue[_Job | None], most: int) -> list[_Job] | None:
    """Wait for a job and take what waits behind it; None once the end has been asked for."""
    first = jobs.get()
    if first is None:
        return None
    batch = [first]
    while len(batch) < most:
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            break
        if job is None:
            jobs.put(None)  # after this batch
            break
        batch.append(job)
    return batch


class _Line:
    """A connection to SQLite that stays open. Its transactions are begun and ended on the driver
    itself: SQLAlchemy's own, with a connection of the pool, take a tenth of a millisecond each.

    To SQLAlchemy it is in one transaction for ever, which it never ends.
    """

    def __init__(self, sql: sa.Engine, begin: str) -> None:
        self._conn = sql.connect()
        self._begin = begin
        self._conn.begin()
        self.say("COMMIT")

    def say(self, words: str) -> None:
        """One statement about transactions. Errors: `DBAPIError`."""
        execute(self._conn, words)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing. Errors: `DBAPIError` at the beginning and at the end."""
        self.say(self._begin)
        try:
            yield self._conn
            self.say("COMMIT")
        except BaseException:
            driver: Any = self._conn.connection.dbapi_connection
            if driver.in_transaction:  # on some errors SQLite has ended it already
                self.say("ROLLBACK")
            raise

    def close(self) -> None:
        """Let the connection go."""
        self._conn.close()


class _Readers:
    """The connections that read: made as they are asked for, `most` at a time."""

    def __init__(self, sql: sa.Engine, most: int) -> None:
        self._sql = sql
        self._free = threading.BoundedSemaphore(most)
        self._idle: list[_Line] = []

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """One consistent state of the database. Errors: `DatabaseBusy`, `DBAPIError`."""
        if not self._free.acquire(timeout=WRITE_DEADLINE_S):
            raise DatabaseBusy(f"no answer from the database in {WRITE_DEADLINE_S:g} s")
        try:
            try:
                line = self._idle.pop()
            except IndexError:
                line = _Line(self._sql, "BEGIN")
            sound = False
            try:
                with line.transaction() as conn:
                    yield conn
                sound = not conn.info.pop(_SPOILT, False)
            finally:
                # A statement that an error has left half read would hold its snapshot for long.
                if sound:
                    self._idle.append(line)
                else:
                    line.close()
        finally:
            self._free.release()

    def close(self) -> None:
        """Let them go."""
        while self._idle:
            self._idle.pop().close()


class SqliteDatabase(Database):
    """SQLite in WAL mode: one writer thread with group commit, a few reader connections."""

    dialect = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str = "FULL",
        readers: int = 2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        from pysqlite3 import dbapi2

        if not sqlite_is_safe(dbapi2.sqlite_version_info):
            raise DatabaseUnfit(
                f"SQLite {dbapi2.sqlite_version} can lose data in WAL mode: "
                "install pysqlite3 0.6 or newer"
            )
        url = sa.URL.create("sqlite", database=str(path))
        shared: dict[str, Any] = {
            "module": dbapi2,
            "connect_args": {
                "isolation_level": None, "check_same_thread": False, "timeout": 10.0,
                "cached_statements": 256,
            },
        }
        self.engine = sa.create_engine(url, poolclass=sa.StaticPool, **shared)
        self._read_engine = sa.create_engine(url, poolclass=sa.NullPool, **shared)
        self._prepare(self.engine, clock, synchronous, "BEGIN IMMEDIATE", read_only=False)
        self._prepare(self._read_engine, clock, synchronous, "BEGIN", read_only=True)
        try:
            self._writer = _Line(self.engine, "BEGIN IMMEDIATE")
        except DBAPIError as error:
            raise DatabaseUnfit(f"the database cannot be opened: {error.orig}") from error
        self._durably = synchronous != "NORMAL"
        self._flushes = self._durably
        self._readers = _Readers(self._read_engine, 2 * readers)
        self._glances = _Readers(self._read_engine, 1)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._asked: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._write_loop, name="db-write", daemon=True)]
        self._threads += [
            threading.Thread(target=self._read_loop, name=f"db-read-{n}", daemon=True)
            for n in range(readers)
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _prepare(
        engine: sa.Engine, clock: Callable[[], float], synchronous: str, begin: str, *,
        read_only: bool,
    ) -> None:
        @sa.event.listens_for(engine, "connect")
        def _connect(raw: Any, _record: Any) -> None:
            raw.create_function("treadle_now", 0, clock)
            cursor = raw.cursor()
            _switch_to_wal(cursor)
            cursor.execute(f"PRAGMA synchronous={'NORMAL' if synchronous == 'NORMAL' else 'FULL'}")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute("PRAGMA busy_timeout=10000")
            if read_only:
                cursor.execute("PRAGMA query_only=ON")
                cursor.execute("PRAGMA wal_autocheckpoint=0")
            cursor.close()

        @sa.event.listens_for(engine, "begin")
        def _begin(conn: sa.Connection) -> None:
            conn.exec_driver_sql(begin)

    def _snapshot(self) -> AbstractContextManager[sa.Connection]:
        return self._readers.snapshot()

    def submit(self, work: Work[T], *, durable: bool = True) -> Future[T]:
        return self._hand_over(work, self._jobs, durable=durable)

    def submit_read(self, work: Work[T]) -> Future[T]:
        return self._hand_over(work, self._asked)

    def glance(self, work: Work[T]) -> Future[T]:
        done: Future[T] = Future()
        try:
            with _marked(), self._glances.snapshot() as conn:
                value = work(conn)
        except Exception as error:  # noqa: BLE001 - it is the caller's to deal with
            done.set_exception(error)
        else:
            done.set_result(value)
        return done

    def _hand_over(
        self, work: Work[T], jobs: queue.SimpleQueue[_Job | None], *, durable: bool = True
    ) -> Future[T]:
        job = _Job(work, durable=durable)
        with self._closing:
            if self._closed:
                job.future.set_exception(DatabaseBusy("the database is closed"))
            else:
                jobs.put(job)
        return job.future

    def write(self, work: Work[T], *, durable: bool = True) -> T:
        if in_transaction():
            raise RuntimeError("a transaction inside a transaction: pass the connection on instead")
        try:
            return self.submit(work, durable=durable).result(WRITE_DEADLINE_S)
        except TimeoutError as late:
            raise DatabaseBusy(f"no answer from the database in {WRITE_DEADLINE_S:g} s") from late

    def close(self) -> None:
        with self._closing:
            self._closed = True
            self._jobs.put(None)
            for _ in self._threads[1:]:
                self._asked.put(None)
        end = time.monotonic() + WRITE_DEADLINE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._readers.close()
        self._glances.close()
        self._writer.close()
        self._read_engine.dispose()
        self.engine.dispose()

    def _write_loop(self) -> None:
        while (batch := _gather(self._jobs, GROUP)) is not None:
            self._commit(batch)

    def _read_loop(self) -> None:
        while (batch := _gather(self._asked, READ_GROUP)) is not None:
            self._read_together(batch)

    def _read_together(self, batch: list[_Job]) -> None:
        """Run the jobs on one snapshot: each sees all that had committed when it was asked."""
        batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
        told = 0
        try:
            with _marked(), self._readers.snapshot() as conn:
                for job in batch:
                    try:
                        value = job.work(conn)
                    except Exception as error:  # noqa: BLE001 - it is the caller's to deal with
                        conn.info[_SPOILT] = True
                        job.future.set_exception(error)
                    else:
                        job.future.set_result(value)
                    told += 1
        except Exception as error:  # noqa: BLE001 - it is the callers' to deal with
            for job in batch[told:]:
                job.future.set_exception(error)

    def _flush(self, wanted: bool) -> None:
        """Whether the next commits wait until the disk has them, and all that came before them."""
        if wanted is not self._flushes and self._durably:
            self._writer.say(f"PRAGMA synchronous={'FULL' if wanted else 'NORMAL'}")
            self._flushes = wanted

    def _commit(self, batch: list[_Job]) -> None:
        # One whose caller has gone away is left out; from here on nobody can cancel the others.
        self._in_order([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _in_order(self, batch: list[_Job]) -> None:
        """Commit the jobs together; where one raises, what is before it, it alone, and the rest."""
        failed = self._together(batch) if batch else None
        if failed is not None:
            self._in_order(batch[:failed])
            self._together([batch[failed]])
            self._in_order(batch[failed + 1:])

    def _together(self, batch: list[_Job]) -> int | None:
        """Commit the jobs in one transaction and tell their callers.

        Where one of several raises, nothing is kept, nobody is told, and its index comes back.
        """
        values: list[Any] = []
        begun = False
        try:
            self._flush(any(job.durable for job in batch))
            with _marked(), self._writer.transaction() as conn:
                begun = True
                conn.info.pop(_NOTED, None)
                for job in batch:
                    values.append(job.work(conn))
            self._publish(conn.info.pop(_NOTED, None))
        except Exception as error:  # noqa: BLE001 - it is the callers' to deal with
            if begun and len(values) < len(batch) and len(batch) > 1:
                return len(values)
            for job in batch:
                job.future.set_exception(error)
            return None
        for job, value in zip(batch, values, strict=True):
            job.future.set_result(value)
        return None


class PostgresDatabase(Database):
    """PostgreSQL through psycopg: the pool is the limit, the server groups commits itself."""

    dialect = "postgresql"
    RETRIES = 5
    # Serialization failure, deadlock, and a row that another has made since this one looked for it.
    RETRIED = frozenset({"40001", "40P01", "23505"})

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.engine = sa.create_engine(
            url, pool_size=pool_size, max_overflow=pool_size, pool_pre_ping=True,
            pool_timeout=WRITE_DEADLINE_S,
            connect_args={"connect_timeout": 5, "options": "-c statement_timeout=30000"},
        )
        self._snapshots = self.engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._pool = ThreadPoolExecutor(pool_size, thread_name_prefix="db")

    @contextmanager
    def _snapshot(self) -> Iterator[sa.Connection]:
        with _in_time(), self._snapshots.connect() as conn, conn.begin():
            yield conn

    def submit(self, work: Work[T], *, durable: bool = True) -> Future[T]:
        return self._pool.submit(self.write, work, durable=durable)

    def submit_read(self, work: Work[T]) -> Future[T]:
        return self._pool.submit(self.read, work)

    def write(self, work: Work[T], *, durable: bool = True) -> T:  # noqa: ARG002
        for attempt in range(self.RETRIES):
            try:
                with _marked(), _in_time(), self.engine.connect() as conn:
                    conn.info.pop(_NOTED, None)
                    with conn.begin():
                        value = work(conn)
                    noted = conn.info.pop(_NOTED, None)
                self._publish(noted)
                return value
            except DBAPIError as error:
                if attempt + 1 == self.RETRIES or not self._retried(error):
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def _retried(cls, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) in cls.RETRIED

    def close(self) -> None:
        self._pool.shutdown()
        self.engine.dispose()


def open_database(
    url: str, folder: Path, *, synchronous: str = "FULL", pool_size: int = 8
) -> Database:
    """The database that `url` names; empty: SQLite in `folder`. Does not migrate it.

    Errors: `DatabaseUnfit` for a URL of another kind, a driver that is not installed, or a file
    that SQLite cannot open.
    """
    if not url:
        return SqliteDatabase(folder / "treadle.sqlite", synchronous=synchronous)
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise DatabaseUnfit("database.url is not a URL: use postgresql://USER@HOST/NAME") from error
    if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
        return SqliteDatabase(Path(parsed.database), synchronous=synchronous)
    if parsed.get_backend_name() == "postgresql":
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise DatabaseUnfit("no driver for it: pip install treadle[postgres]") from error
        return PostgresDatabase(
            parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False),
            pool_size=pool_size,
        )
    raise DatabaseUnfit("database.url is neither sqlite:/// nor postgresql://")
