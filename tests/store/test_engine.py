"""One way to read and to write: what a transaction promises, on both databases."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from treadle.db import engine
from treadle.db.clock import now
from treadle.db.engine import (
    Database,
    DatabaseBusy,
    DatabaseUnfit,
    PostgresDatabase,
    SqliteDatabase,
    forbid_in_transaction,
    in_transaction,
    open_database,
    sqlite_is_safe,
)
from treadle.db.schema import meta

PATIENCE_S = 10.0


@pytest.fixture
def sqlite_database(own_sqlite_database: SqliteDatabase) -> SqliteDatabase:
    return own_sqlite_database


def put(conn: sa.Connection, key: str, value: str = "") -> str:
    conn.execute(sa.insert(meta).values(key=key, value=value))
    return key


def keys(conn: sa.Connection) -> set[str]:
    return set(conn.execute(sa.select(meta.c.key)).scalars())


def before(database: SqliteDatabase, words: str, do: Callable[[], None]) -> None:
    """Have the writer do something before it says `words` of a transaction."""
    say = database._writer.say

    def said(what: str) -> None:
        if what == words:
            do()
        say(what)

    database._writer.say = said  # type: ignore[method-assign]


class Held:
    """A transaction that stays open until it is let go."""

    def __init__(self, database: Database) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.future: Future[str] = database.submit(self._work)
        assert self.entered.wait(PATIENCE_S)

    def _work(self, _conn: sa.Connection) -> str:
        self.entered.set()
        assert self.let_go.wait(PATIENCE_S)
        return "held"


# -- what is kept, and what is not


def test_a_write_gives_its_value_back_and_is_there_afterwards(database: Database) -> None:
    assert database.write(lambda conn: put(conn, "a")) == "a"
    assert database.submit(lambda conn: put(conn, "b")).result(PATIENCE_S) == "b"
    assert database.read(keys) == {"a", "b"}
    assert database.submit_read(keys).result(PATIENCE_S) == {"a", "b"}


def test_a_glance_sees_what_is_there_and_raises_what_the_read_raises(database: Database) -> None:
    database.write(lambda conn: put(conn, "glanced"))
    assert "glanced" in database.glance(keys).result(PATIENCE_S)

    def fails(_conn: sa.Connection) -> None:
        raise LookupError("not there")

    with pytest.raises(LookupError, match="not there"):
        database.glance(fails).result(PATIENCE_S)
    assert "glanced" in database.glance(keys).result(PATIENCE_S)


def test_a_write_that_raises_keeps_nothing(database: Database) -> None:
    def half(conn: sa.Connection) -> None:
        put(conn, "a")
        raise KeyError("half way")

    with pytest.raises(KeyError, match="half way"):
        database.write(half)
    assert database.read(keys) == set()
    database.write(lambda conn: put(conn, "b"))
    assert database.read(keys) == {"b"}


def test_a_statement_that_fails_keeps_nothing_of_the_write(database: Database) -> None:
    database.write(lambda conn: put(conn, "there"))

    def twice(conn: sa.Connection) -> None:
        put(conn, "new")
        put(conn, "there")

    with pytest.raises(IntegrityError):
        database.write(twice)
    assert database.read(keys) == {"there"}


def test_a_reader_cannot_write_on_sqlite(sqlite_database: SqliteDatabase) -> None:
    with pytest.raises(DBAPIError, match="readonly"):
        sqlite_database.read(lambda conn: put(conn, "a"))
    assert sqlite_database.read(keys) == set()


def test_a_reader_cannot_write_on_postgresql(postgres_database: PostgresDatabase) -> None:
    with pytest.raises(DBAPIError, match="read-only"):
        postgres_database.read(lambda conn: put(conn, "a"))
    assert postgres_database.read(keys) == set()
    postgres_database.write(lambda conn: put(conn, "b"))  # the same connection, back from its pool
    assert postgres_database.read(keys) == {"b"}


def test_all_statements_of_a_read_see_one_snapshot(database: Database) -> None:
    database.write(lambda conn: put(conn, "before"))

    def read(conn: sa.Connection) -> tuple[set[str], set[str]]:
        first = keys(conn)
        database.submit(lambda other: put(other, "meanwhile")).result(PATIENCE_S)
        return first, keys(conn)

    assert database.read(read) == ({"before"}, {"before"})
    assert database.read(keys) == {"before", "meanwhile"}


def test_foreign_keys_are_held_to(database: Database) -> None:
    insert = sa.text("INSERT INTO orphan VALUES (77, 'u', 'running', 1.0)")
    with pytest.raises(IntegrityError):
        database.write(lambda conn: conn.execute(insert))


def test_the_clock_goes_on_within_a_transaction(database: Database) -> None:
    def twice(conn: sa.Connection) -> tuple[float, float]:
        first = conn.execute(sa.select(now())).scalar_one()
        time.sleep(0.02)
        return first, conn.execute(sa.select(now())).scalar_one()

    first, second = database.write(twice)
    assert second - first >= 0.015
    assert abs(first - time.time()) < 5


# -- where a transaction may not be


def test_a_transaction_within_a_transaction_is_refused(database: Database) -> None:
    for inner in (database.read, database.write):
        for outer in (database.read, database.write):
            with pytest.raises(RuntimeError, match="a transaction inside a transaction"):
                outer(lambda _conn, inner=inner: inner(keys))
    assert not in_transaction()
    assert database.read(keys) == set()


def test_io_within_a_transaction_is_refused(database: Database) -> None:
    forbid_in_transaction()
    for way in (database.read, database.write):
        with pytest.raises(RuntimeError, match="I/O inside a database transaction"):
            way(lambda _conn: forbid_in_transaction())
    forbid_in_transaction()


def test_one_threads_transaction_is_not_anothers(database: Database) -> None:
    held = Held(database)
    forbid_in_transaction()
    held.let_go.set()
    assert held.future.result(PATIENCE_S) == "held"


# -- group commit


def test_a_job_that_fails_does_not_hurt_its_neighbours(sqlite_database: SqliteDatabase) -> None:
    held = Held(sqlite_database)

    def fail(conn: sa.Connection) -> None:
        put(conn, "lost")
        raise KeyError("mine alone")

    jobs = [sqlite_database.submit(lambda conn, n=n: put(conn, f"kept-{n}")) for n in range(3)]
    bad = sqlite_database.submit(fail)
    broken = sqlite_database.submit(lambda conn: put(conn, "kept-0"))
    jobs += [sqlite_database.submit(lambda conn, n=n: put(conn, f"kept-{n}")) for n in (3, 4)]
    held.let_go.set()
    assert [job.result(PATIENCE_S) for job in jobs] == [f"kept-{n}" for n in range(5)]
    with pytest.raises(KeyError, match="mine alone"):
        bad.result(PATIENCE_S)
    with pytest.raises(IntegrityError):
        broken.result(PATIENCE_S)
    assert sqlite_database.read(keys) == {f"kept-{n}" for n in range(5)}


def test_what_waits_together_is_committed_together(sqlite_database: SqliteDatabase) -> None:
    commits: list[None] = []
    before(sqlite_database, "COMMIT", lambda: commits.append(None))
    held = Held(sqlite_database)
    jobs = [
        sqlite_database.submit(lambda conn, n=n: put(conn, f"{n:03}"))
        for n in range(engine.GROUP + 10)
    ]
    held.let_go.set()
    for job in jobs:
        job.result(PATIENCE_S)
    assert len(commits) == 3
    assert len(sqlite_database.read(keys)) == engine.GROUP + 10


def test_no_caller_is_told_before_its_group_is_durable(sqlite_database: SqliteDatabase) -> None:
    seen: list[bool] = []
    jobs: list[Future[str]] = []
    held = Held(sqlite_database)
    before(sqlite_database, "COMMIT", lambda: seen.append(any(job.done() for job in jobs)))
    jobs += [sqlite_database.submit(lambda conn, n=n: put(conn, str(n))) for n in range(5)]
    held.let_go.set()
    for job in jobs:
        job.result(PATIENCE_S)
    assert seen == [False, False]


def test_a_commit_that_fails_is_told_to_everybody_in_its_group(
    sqlite_database: SqliteDatabase,
) -> None:
    held = Held(sqlite_database)
    jobs = [sqlite_database.submit(lambda conn, n=n: put(conn, str(n))) for n in range(3)]
    listening = [True]

    def fail() -> None:
        if listening:
            raise OSError("no room on the disk")

    before(sqlite_database, "COMMIT", fail)
    held.let_go.set()
    for job in jobs:
        with pytest.raises(OSError, match="no room on the disk"):
            job.result(PATIENCE_S)
    listening.clear()
    assert sqlite_database.read(keys) == set()
    assert sqlite_database.write(lambda conn: put(conn, "after")) == "after"


def test_a_database_that_cannot_be_begun_on_is_asked_once_for_a_whole_group(
    sqlite_database: SqliteDatabase,
) -> None:
    """Each asking may take as long as the lock of another process is waited for."""
    held = Held(sqlite_database)
    jobs = [sqlite_database.submit(lambda conn, n=n: put(conn, str(n))) for n in range(20)]
    askings: list[int] = []

    def fail() -> None:
        askings.append(1)
        if len(askings) <= 5:
            raise OSError("database is locked")

    before(sqlite_database, "BEGIN IMMEDIATE", fail)
    held.let_go.set()
    for job in jobs:
        with pytest.raises(OSError, match="database is locked"):
            job.result(PATIENCE_S)
    assert askings == [1]
    assert sqlite_database.read(keys) == set()


def test_a_new_file_that_others_switch_to_the_write_ahead_log_is_waited_for() -> None:
    said: list[str] = []

    class Cursor:
        def execute(self, statement: str) -> None:
            said.append(statement)
            if len(said) < 4:
                raise OSError("database is locked")

    engine._switch_to_wal(Cursor())
    assert said == ["PRAGMA journal_mode=WAL"] * 4

    class Broken:
        def execute(self, statement: str) -> None:
            raise OSError(f"file is not a database: {statement}")

    with pytest.raises(OSError, match="not a database"):
        engine._switch_to_wal(Broken())


def test_many_jobs_that_fail_hurt_none_of_those_between_them(
    sqlite_database: SqliteDatabase,
) -> None:
    held = Held(sqlite_database)

    def work(number: int) -> Callable[[sa.Connection], str]:
        def run(conn: sa.Connection) -> str:
            put(conn, f"{number:03}")
            if number % 3 == 0:
                raise KeyError(number)
            return f"{number:03}"

        return run

    jobs = [sqlite_database.submit(work(number)) for number in range(engine.GROUP + 20)]
    held.let_go.set()
    for number, job in enumerate(jobs):
        if number % 3 == 0:
            with pytest.raises(KeyError, match=str(number)):
                job.result(PATIENCE_S)
        else:
            assert job.result(PATIENCE_S) == f"{number:03}"
    assert sqlite_database.read(keys) == {
        f"{n:03}" for n in range(engine.GROUP + 20) if n % 3
    }


def test_a_caller_who_no_longer_waits_stops_nobody_else(database: Database) -> None:
    """What an event loop does to a request that is cut off: it cancels the future."""
    held = Held(database)
    waiting = [database.submit(lambda conn, n=n: put(conn, f"w{n}")) for n in range(20)]
    for future in waiting[::2]:
        future.cancel()
    held.let_go.set()
    for number in range(1, 20, 2):
        assert waiting[number].result(PATIENCE_S) == f"w{number}"
    assert database.write(lambda conn: put(conn, "after")) == "after"
    cancelled = {f"w{n}" for n in range(0, 20, 2) if waiting[n].cancelled()}
    assert database.read(keys).isdisjoint(cancelled)


# -- deadlines and ends


def test_a_writer_that_does_not_answer_in_time_is_busy(
    sqlite_database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(sqlite_database)
    monkeypatch.setattr(engine, "WRITE_DEADLINE_S", 0.05)
    with pytest.raises(DatabaseBusy, match=r"no answer from the database in 0\.05 s"):
        sqlite_database.write(keys)
    held.let_go.set()


def test_a_pool_with_no_connection_left_is_busy(
    postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WRITE_DEADLINE_S", 0.1)
    postgres_cluster.clear()
    database: PostgresDatabase = postgres_cluster.open(postgres_cluster.migrated, pool_size=1)
    others = [database.engine.connect(), database.engine.connect()]
    for way in (database.write, database.read):
        with pytest.raises(DatabaseBusy, match="no answer from the database"):
            way(keys)
    for other in others:
        other.close()
    assert database.read(keys) == set()
    database.close()


def test_readers_that_are_all_taken_are_busy(
    sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WRITE_DEADLINE_S", 0.1)
    database = SqliteDatabase(sqlite_template, readers=1)
    with ExitStack() as others:
        for _ in range(2):
            others.enter_context(database._readers.snapshot())
        with pytest.raises(DatabaseBusy):
            database.read(keys)
    assert database.read(keys) == set()
    database.close()


@pytest.mark.parametrize("way", ["read", "submit_read"])
def test_what_an_error_leaves_half_read_hides_nothing_from_later_reads(
    sqlite_template: Path, tmp_path: Path, way: str
) -> None:
    database = SqliteDatabase(Path(shutil.copy(sqlite_template, tmp_path)), readers=1)
    for n in range(3):
        database.write(lambda conn, n=n: put(conn, str(n)))

    def fails(conn: sa.Connection) -> None:
        for row in conn.execute(sa.select(meta.c.key)):
            raise LookupError(row.key)

    ask = database.read if way == "read" else lambda work: database.submit_read(work).result(9)
    with pytest.raises(LookupError) as raised:
        ask(fails)
    assert raised.tb is not None  # it keeps what the read was at work on
    database.write(lambda conn: put(conn, "later"))
    for _ in range(3):
        assert "later" in database.read(keys)
        assert "later" in database.submit_read(keys).result(PATIENCE_S)
    database.close()


def test_reads_that_wait_together_are_told_apart(sqlite_template: Path) -> None:
    database = SqliteDatabase(sqlite_template, readers=1)
    database.write(lambda conn: put(conn, "a"))
    began, let_go = threading.Event(), threading.Event()

    def first(conn: sa.Connection) -> set[str]:
        began.set()
        assert let_go.wait(PATIENCE_S)
        return keys(conn)

    def fails(_conn: sa.Connection) -> None:
        raise LookupError("mine alone")

    held = database.submit_read(first)
    assert began.wait(PATIENCE_S)
    database.write(lambda conn: put(conn, "b"))
    waiting = [database.submit_read(keys), database.submit_read(fails), database.submit_read(keys)]
    given_up = database.submit_read(keys)
    assert given_up.cancel()
    let_go.set()
    assert "a" in held.result(PATIENCE_S)
    assert waiting[0].result(PATIENCE_S) == waiting[2].result(PATIENCE_S) == {"a", "b"}
    with pytest.raises(LookupError, match="mine alone"):
        waiting[1].result(PATIENCE_S)
    database.close()
    with pytest.raises(DatabaseBusy):
        database.submit_read(keys).result(PATIENCE_S)


def test_closing_finishes_what_is_queued(sqlite_database: SqliteDatabase) -> None:
    held = Held(sqlite_database)
    job = sqlite_database.submit(lambda conn: put(conn, "last"))
    closer = threading.Thread(target=sqlite_database.close)
    closer.start()
    held.let_go.set()
    closer.join(PATIENCE_S)
    assert job.result(0) == "last"


def test_a_closed_database_says_so_at_once(sqlite_template: Path) -> None:
    database = SqliteDatabase(sqlite_template)
    database.close()
    started = time.monotonic()
    with pytest.raises((DatabaseBusy, RuntimeError)):
        database.write(keys)
    with pytest.raises((DatabaseBusy, RuntimeError)):
        database.submit(keys).result(PATIENCE_S)
    assert time.monotonic() - started < 1


# -- PostgreSQL: what is run again


def together(*works: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(PATIENCE_S) for future in [pool.submit(work) for work in works]]


def test_a_deadlock_is_run_again(postgres_database: PostgresDatabase) -> None:
    for key in ("a", "b"):
        postgres_database.write(lambda conn, key=key: put(conn, key, "0"))
    meeting = threading.Barrier(2)
    attempts: list[str] = []

    def cross(first: str, second: str) -> Callable[[sa.Connection], None]:
        def work(conn: sa.Connection) -> None:
            attempts.append(first)
            add_one(conn, first)
            if attempts.count(first) == 1:
                meeting.wait(PATIENCE_S)
            add_one(conn, second)

        return work

    together(
        lambda: postgres_database.write(cross("a", "b")),
        lambda: postgres_database.write(cross("b", "a")),
    )
    assert len(attempts) == 3
    assert postgres_database.read(
        lambda conn: conn.execute(sa.select(meta.c.value)).scalars().all()
    ) == ["2", "2"]


def add_one(conn: sa.Connection, key: str) -> None:
    conn.execute(sa.update(meta).where(meta.c.key == key).values(
        value=sa.cast(sa.cast(meta.c.value, sa.Integer) + 1, sa.Text)
    ))


def test_a_serialization_failure_is_run_again(postgres_database: PostgresDatabase) -> None:
    postgres_database.write(lambda conn: put(conn, "n", "0"))
    meeting = threading.Barrier(2)
    attempts: list[int] = []

    def work(conn: sa.Connection) -> None:
        conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute(sa.select(meta.c.value)).all()
        attempts.append(1)
        if len(attempts) <= 2:
            meeting.wait(PATIENCE_S)
        add_one(conn, "n")

    together(
        lambda: postgres_database.write(work), lambda: postgres_database.write(work)
    )
    assert len(attempts) == 3
    assert postgres_database.read(
        lambda conn: conn.execute(sa.select(meta.c.value)).scalar_one()
    ) == "2"


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_what_never_succeeds_is_given_up_in_the_end(
    postgres_database: PostgresDatabase, state: str
) -> None:
    attempts: list[int] = []

    def work(conn: sa.Connection) -> None:
        attempts.append(1)
        conn.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION SQLSTATE '{state}'; END $$")

    with pytest.raises(OperationalError):
        postgres_database.write(work)
    assert len(attempts) == PostgresDatabase.RETRIES


def test_another_error_is_not_run_again(postgres_database: PostgresDatabase) -> None:
    attempts: list[int] = []

    def work(conn: sa.Connection) -> None:
        attempts.append(1)
        conn.exec_driver_sql("SELECT 1/0")

    with pytest.raises(DBAPIError, match="division by zero"):
        postgres_database.write(work)
    assert attempts == [1]


def test_two_who_make_the_same_row_at_once_both_succeed(database: Database) -> None:
    """Look, then insert: the later one is run again and finds the row of the other."""
    meeting = threading.Barrier(2, timeout=0.3)

    def work(conn: sa.Connection) -> str:
        found = conn.execute(sa.select(meta.c.value).where(meta.c.key == "k")).scalar()
        with suppress(threading.BrokenBarrierError):  # SQLite's one writer comes alone
            meeting.wait()
        if found is None:
            put(conn, "k", "made")
            return "made"
        return "found"

    outcomes = together(lambda: database.write(work), lambda: database.write(work))
    assert sorted(outcomes) == ["found", "made"]


# -- opening


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 51, 3), True), ((3, 51, 4), True), ((3, 52, 0), True), ((4, 0, 0), True),
        ((3, 50, 7), True), ((3, 50, 8), True), ((3, 44, 6), True),
        ((3, 51, 2), False), ((3, 51, 0), False), ((3, 50, 6), False), ((3, 44, 5), False),
        ((3, 49, 9), False), ((3, 45, 1), False), ((3, 40, 1), False), ((3, 7, 0), False),
        ((3, 51), False),
    ],
)
def test_only_sqlite_versions_that_keep_commits_are_taken(
    version: tuple[int, ...], safe: bool
) -> None:
    assert sqlite_is_safe(version) is safe


def test_an_unsafe_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pysqlite3 import dbapi2

    monkeypatch.setattr(dbapi2, "sqlite_version_info", (3, 45, 1))
    with pytest.raises(DatabaseUnfit, match="can lose data in WAL mode: install pysqlite3"):
        SqliteDatabase(tmp_path / "treadle.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_an_empty_url_is_a_sqlite_file_of_the_folder(tmp_path: Path, synchronous: str) -> None:
    database = open_database("", tmp_path, synchronous=synchronous)

    def pragmas(conn: sa.Connection) -> tuple[Any, ...]:
        names = ("journal_mode", "synchronous", "foreign_keys", "query_only")
        return tuple(conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names)

    try:
        level = 2 if synchronous == "FULL" else 1
        assert database.write(pragmas) == ("wal", level, 1, 0)
        assert database.read(pragmas) == ("wal", level, 1, 1)
        assert (tmp_path / "treadle.sqlite").exists()
    finally:
        database.close()


@pytest.mark.parametrize(
    "folder", ["it's", 'a "quoted" one', "%2e%2e", "ключ", "a?b=c#d", "; DROP"]
)
def test_a_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    odd = tmp_path / folder
    odd.mkdir()
    database = open_database("", odd)
    try:
        assert database.write(lambda conn: conn.exec_driver_sql("SELECT 1").scalar()) == 1
    finally:
        database.close()
    assert (odd / "treadle.sqlite").exists()


@pytest.mark.parametrize(
    "url", ["mysql://u@h/n", "sqlite://", "oracle://x", "nonsense", "://", "sqlite:///:memory:"]
)
def test_a_url_of_another_kind_is_refused_with_the_mend(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatabaseUnfit, match="postgresql://"):
        open_database(url, tmp_path)


def test_a_password_in_the_url_is_used_and_never_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    database = open_database(f"postgresql://u:hunter%2F2@/n?host={tmp_path}", tmp_path)
    try:
        assert database.engine.url.password == "hunter/2"
        with pytest.raises(OperationalError) as failure:
            database.read(keys)
        assert "hunter" not in str(failure.value)
    finally:
        database.close()
