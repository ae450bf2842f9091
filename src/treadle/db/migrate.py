"""Brings a database to this version's schema. One Alembic lineage serves both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from treadle.db.engine import Database, DatabaseUnfit

HEAD = "0013"
"""The newest revision in `migrations/versions`; a test compares it with Alembic's own answer."""

LOCK = 0x747265
"""The number of PostgreSQL's advisory lock that is held while a database is migrated."""

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

    def ask(conn: sa.Connection) -> str | None:
        if not sa.inspect(conn).has_table("alembic_version"):
            return None
        version: str | None = conn.exec_driver_sql(
            "SELECT version_num FROM alembic_version"
        ).scalar()
        return version

    return database.read(ask)


def upgrade(database: Database) -> None:
    """Bring the database to `HEAD`; at once where it is there already.

    Alembic is imported only where there is something to do: it costs a tenth of a second.
    Errors: `DatabaseUnfit` where a newer Treadle has written the database.
    """
    try:
        found = current(database)
    except DBAPIError as error:
        raise DatabaseUnfit(f"the database cannot be opened: {error.orig}") from error
    if found == HEAD:
        return
    from alembic import command
    from alembic.util import CommandError

    def migrate(conn: sa.Connection) -> None:
        if conn.dialect.name == "postgresql":
            # Controllers that start together: one migrates, the others wait and find it done.
            conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        command.upgrade(alembic_config(conn), "head")

    try:
        database.write(migrate)
    except CommandError as error:
        raise DatabaseUnfit(
            f"the database is at revision {found}, which this version does not know: "
            "start the Treadle that wrote it, or a newer one"
        ) from error
