"""The lineage of migrations makes what the schema says, on both databases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from treadle.db import migrate
from treadle.db.engine import Database, DatabaseUnfit, PostgresDatabase, SqliteDatabase
from treadle.db.schema import metadata, work


@pytest.fixture
def sqlite_database(own_sqlite_database: SqliteDatabase) -> SqliteDatabase:
    return own_sqlite_database


def differences(conn: sa.Connection) -> list[object]:
    context = MigrationContext.configure(
        conn, opts={"compare_type": True, "target_metadata": metadata}
    )
    found: list[object] = compare_metadata(context, metadata)
    return found


def shape(conn: sa.Connection) -> dict[str, object]:
    """All that a database says of its tables; columns in the order of their names."""
    inspector = sa.inspect(conn)

    def sorted_by_name(found: Sequence[Mapping[str, object]]) -> list[str]:
        return sorted(str(sorted(
            (key, str(sorted((name, str(clause)) for name, clause in value.items())))
            if isinstance(value, dict) else (key, repr(value)) for key, value in one.items()
        )) for one in found)

    return {
        table: {
            "columns": sorted_by_name(inspector.get_columns(table)),
            "key": inspector.get_pk_constraint(table),
            "indexes": sorted_by_name(inspector.get_indexes(table)),
            "foreign keys": sorted_by_name(inspector.get_foreign_keys(table)),
            "checks": sorted_by_name(inspector.get_check_constraints(table)),
            "uniques": sorted_by_name(inspector.get_unique_constraints(table)),
        }
        for table in inspector.get_table_names()
    }


def test_a_new_database_is_what_the_lineage_comes_to(fresh_database: Database) -> None:
    assert migrate.current(fresh_database) is None
    migrate.upgrade(fresh_database)
    assert migrate.current(fresh_database) == migrate.HEAD
    made = fresh_database.read(shape)

    def empty(conn: sa.Connection) -> None:
        metadata.drop_all(conn)
        migrate.VERSION.drop(conn)

    fresh_database.write(empty)
    migrate.run_lineage(fresh_database)
    assert migrate.current(fresh_database) == migrate.HEAD
    came_to = fresh_database.read(shape)
    assert set(came_to) == set(made) == {*metadata.tables, "alembic_version"}
    for table, found in came_to.items():
        assert made[table] == found, table
    assert fresh_database.read(differences) == []


def test_constraints_are_those_of_the_schema(fresh_database: Database) -> None:
    migrate.run_lineage(fresh_database)

    def constraints(conn: sa.Connection) -> dict[str, set[str | None]]:
        inspector = sa.inspect(conn)
        return {
            table: {one["name"] for one in inspector.get_check_constraints(table)}
            | {one["name"] for one in inspector.get_foreign_keys(table)}
            | {one["name"] for one in inspector.get_unique_constraints(table)}
            for table in metadata.tables
        }

    wanted = {
        name: {
            one.name for one in table.constraints if not isinstance(one, sa.PrimaryKeyConstraint)
        }
        for name, table in metadata.tables.items()
    }
    assert fresh_database.read(constraints) == wanted


def test_the_head_that_is_written_down_is_the_head_there_is(sqlite_database: Database) -> None:
    def heads(conn: sa.Connection) -> list[str]:
        return ScriptDirectory.from_config(migrate.alembic_config(conn)).get_heads()

    assert sqlite_database.read(heads) == [migrate.HEAD]


def test_upgrading_twice_changes_nothing(fresh_database: Database) -> None:
    migrate.upgrade(fresh_database)
    fresh_database.write(
        lambda conn: conn.execute(sa.insert(work).values(kind="k", id="1", due_at=0.0)).rowcount
    )
    migrate.upgrade(fresh_database)
    assert migrate.current(fresh_database) == migrate.HEAD
    assert fresh_database.read(lambda conn: conn.execute(sa.select(work.c.id)).scalars().all()) == [
        "1"
    ]


def test_a_database_of_a_newer_version_is_refused_and_left_alone(database: Database) -> None:
    database.write(
        lambda conn: conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        .rowcount
    )
    with pytest.raises(DatabaseUnfit, match="9999, which this version does not know"):
        migrate.upgrade(database)
    assert migrate.current(database) == "9999"


STARTER = """
import sys
from pathlib import Path
from treadle.db.engine import open_database
from treadle.db.migrate import upgrade
database = open_database(sys.argv[1], Path("/nonexistent"))
print("ready", flush=True)
sys.stdin.readline()
upgrade(database)
database.close()
"""


def test_processes_that_start_together_migrate_once(fresh_database: Database) -> None:
    """Many controllers may be started at the same moment on one new database."""
    url = fresh_database.engine.url
    address = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, address], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    try:
        for starter in starters:
            assert starter.stdout is not None
            assert starter.stdout.readline() == "ready\n"
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("go\n")
            starter.stdin.flush()
        said = [starter.communicate(timeout=20)[1] for starter in starters]
    finally:
        for starter in starters:
            if starter.poll() is None:
                starter.kill()
                starter.communicate()
    assert [(starter.returncode, text) for starter, text in zip(starters, said, strict=True)] == [
        (0, "")
    ] * 3
    assert fresh_database.read(differences) == []


def test_a_file_that_is_no_database_is_named_as_the_trouble(tmp_path: Path) -> None:
    path = tmp_path / "treadle.sqlite"
    path.write_bytes(b"this is a diary, not a database\n" * 100)
    with pytest.raises(DatabaseUnfit, match="cannot be opened"):
        SqliteDatabase(path)
    assert path.read_bytes().startswith(b"this is a diary")


def test_a_folder_that_is_not_there_is_named_as_the_trouble(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnfit, match="cannot be opened"):
        SqliteDatabase(tmp_path / "nowhere" / "treadle.sqlite")


def test_a_server_that_does_not_answer_is_named_as_the_trouble(tmp_path: Path) -> None:
    database = PostgresDatabase(f"postgresql+psycopg://treadle@/none?host={tmp_path}")
    try:
        with pytest.raises(DatabaseUnfit, match="cannot be opened"):
            migrate.upgrade(database)
    finally:
        database.close()
