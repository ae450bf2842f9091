"""What need not be durable is written with what must be, and not later than it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from treadle.db.engine import Database, SqliteDatabase
from treadle.db.schema import meta


def put(key: str) -> Callable[[sa.Connection], None]:
    def work(conn: sa.Connection) -> None:
        conn.execute(sa.insert(meta).values(key=key, value=""))

    return work


@pytest.fixture
def said(own_sqlite_database: SqliteDatabase) -> list[str]:
    words: list[str] = []
    say = own_sqlite_database._writer.say

    def hear(what: str) -> None:
        words.append(what)
        say(what)

    own_sqlite_database._writer.say = hear  # type: ignore[method-assign]
    return words


def test_only_what_must_be_durable_waits_for_the_disk(
    own_sqlite_database: SqliteDatabase, said: list[str]
) -> None:
    database = own_sqlite_database
    synced = lambda: database.write(  # noqa: E731
        lambda conn: conn.exec_driver_sql("PRAGMA synchronous").scalar(), durable=False
    )
    database.write(put("kept-a"))
    assert said == ["BEGIN IMMEDIATE", "COMMIT"]
    database.write(put("kept-b"), durable=False)
    assert said[2:] == ["PRAGMA synchronous=NORMAL", "BEGIN IMMEDIATE", "COMMIT"]
    assert synced() == 1
    database.submit(put("kept-c"), durable=False).result(10)
    database.write(put("kept-d"))
    assert said[-3:] == ["PRAGMA synchronous=FULL", "BEGIN IMMEDIATE", "COMMIT"]
    assert database.read(lambda conn: set(conn.execute(sa.select(meta.c.key)).scalars())) >= {
        "kept-a", "kept-b", "kept-c", "kept-d"
    }


def test_every_database_takes_the_word(database: Database) -> None:
    database.write(put("kept-x"), durable=False)
    database.submit(put("kept-y"), durable=False).result(10)
    assert {"kept-x", "kept-y"} <= database.read(
        lambda conn: set(conn.execute(sa.select(meta.c.key)).scalars())
    )
