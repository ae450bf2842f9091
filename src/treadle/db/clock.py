"""The database's clock, as an SQL expression: every lease and deadline is measured by it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):
    """Seconds since 1970, UTC, of the database server; not frozen within a transaction.

    On SQLite it calls `treadle_now()`, which `treadle.db.engine` registers on each connection.
    """

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite(_element: Any, _compiler: Any, **_kw: Any) -> str:
    return "treadle_now()"


@compiles(now, "postgresql")
def _postgresql(_element: Any, _compiler: Any, **_kw: Any) -> str:
    return "CAST(extract(epoch from clock_timestamp()) AS double precision)"
