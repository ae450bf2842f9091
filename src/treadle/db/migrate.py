"""Brings a database to this version's schema. One Alembic lineage serves both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from treadle.db.engine import Database, DatabaseUnfit
from treadle.db.schema import metadata

HEAD = "0016"
"""The newest revision in `migrations/versions`; a test compares it with Alembic's own answer."""

LOCK = 0x747265
"""The number of PostgreSQL's advisory lock that is held while a database is migrated."""

VERSION = sa.Table(
    "alembic_version", sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, as it makes it itself."""

FOLDER = Path(__file__).parent / "migrations"


def alembic_config(connection: sa.Connection) -> Any:
    """Alembic's configuration object for our lineage, bound to `connection`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = connection
    return config


def current(database: Database) -> str | None:
    """The revision that the database is at; None where it is empty."""
    return database.read(_revision)


def upgrade(database: Database) -> None:
    """Bring the database to `HEAD`; at once where it is there already.

    An empty one is made as the schema says, which a test holds to what the lineage comes to; so a
    first start needs no Alembic, whose import and run left 8 MB behind.
    Errors: `DatabaseUnfit` where a newer Treadle has written the database.
    """
    try:
        found = current(database)
    except DBAPIError as error:
        raise DatabaseUnfit(f"the database cannot be opened: {error.orig}") from error
    if found is None:
        database.write(_make)
    elif found != HEAD:
        run_lineage(database)


def run_lineage(database: Database) -> None:
    """Run the revisions that the database has not seen, from the first where it is empty.

    Errors: `DatabaseUnfit` where a newer Treadle has written the database.
    """
    from alembic import command
    from alembic.util import CommandError

    def migrate(conn: sa.Connection) -> None:
        _one_at_a_time(conn)
        command.upgrade(alembic_config(conn), "head")

    try:
        database.write(migrate)
    except CommandError as error:
        raise DatabaseUnfit(
            f"the database is at revision {current(database)}, which this version does not know: "
            "start the Treadle that wrote it, or a newer one"
        ) from error


def _revision(conn: sa.Connection) -> str | None:
    if not sa.inspect(conn).has_table(VERSION.name):
        return None
    found: str | None = conn.execute(sa.select(VERSION.c.version_num)).scalar()
    return found


def _make(conn: sa.Connection) -> None:
    _one_at_a_time(conn)
    if _revision(conn) is not None:
        return  # another controller has made it meanwhile, of this version or another
    metadata.create_all(conn, checkfirst=False)
    VERSION.create(conn)
    conn.execute(sa.insert(VERSION).values(version_num=HEAD))


def _one_at_a_time(conn: sa.Connection) -> None:
    """Controllers that start together: one changes the schema, the others wait and find it done."""
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
