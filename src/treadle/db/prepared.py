"""Statements that are compiled once, and then run by the database's driver itself.

What SQLAlchemy does around each execution (looking the compiled form up, an execution context, a
result proxy) costs several times what SQLite needs to find a row. Statements that run for every
request and every pass are kept as `Prepared`; all others are executed as usual. Both may be mixed
in one transaction.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, MultipleResultsFound, NoResultFound
from sqlalchemy.sql.compiler import SQLCompiler

Convert = Callable[[Any], Any]


def execute(
    conn: sa.Connection, text: str, values: Any = (), *, fetch: bool = False
) -> tuple[Any, Sequence[Any]]:
    """The driver's cursor after `text`, and with `fetch` all that it gives.

    Errors: `sa.exc.DBAPIError`, as from any execution.
    """
    driver: Any = conn.connection.dbapi_connection
    try:
        cursor = driver.execute(text, values)
        return cursor, cursor.fetchall() if fetch else ()
    except conn.dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(
            text, values, error, conn.dialect.loaded_dbapi.Error, dialect=conn.dialect
        ) from error


def at_most(count: int) -> sa.ColumnElement[int]:
    """For `limit`. SQLite plans a statement anew each time that a bound limit is given to it,
    which takes longer than to find a few rows."""
    return sa.literal_column(str(int(count)), sa.Integer)


class Answer:
    """What a statement gave: its rows, with the columns as attributes, and how many it changed."""

    __slots__ = ("rowcount", "rows")

    def __init__(self, rows: Sequence[Any], rowcount: int) -> None:
        self.rows = rows
        self.rowcount = rowcount

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def all(self) -> Sequence[Any]:
        """Every row."""
        return self.rows

    def one_or_none(self) -> Any:
        """The only row, or None. Errors: `MultipleResultsFound`."""
        if not self.rows:
            return None
        if len(self.rows) > 1:
            raise MultipleResultsFound("one row was expected")
        return self.rows[0]

    def one(self) -> Any:
        """The only row. Errors: `NoResultFound`, `MultipleResultsFound`."""
        row = self.one_or_none()
        if row is None:
            raise NoResultFound("one row was expected")
        return row

    def scalar(self) -> Any:
        """The first column of the first row, or None."""
        return self.rows[0][0] if self.rows else None

    def scalar_one(self) -> Any:
        """The first column of the only row. Errors: `NoResultFound`, `MultipleResultsFound`."""
        return self.one()[0]

    def scalars(self) -> list[Any]:
        """The first column of every row."""
        return [row[0] for row in self.rows]


@dataclass(slots=True)
class _Form:
    """A statement for one kind of database. `binds`: name, conversion, and value where it is the
    statement's own; `positional` where the driver takes them in order. `converts`: what is made
    of columns by their index; None until the driver has told what it gives."""

    text: str
    binds: tuple[tuple[str, Convert | None, bool, Any], ...]
    positional: bool
    row: Callable[[Sequence[Any]], Any] | None
    types: tuple[Any, ...]
    converts: tuple[tuple[int, Convert], ...] | None = None


class Prepared:
    """`statement` with bound parameters of fixed number: no lists to expand, no defaults made in
    Python. Call it with the connection of a transaction and the parameters by name."""

    def __init__(self, statement: Any) -> None:
        self.statement = statement
        self._forms: dict[str, _Form] = {}

    def __call__(self, conn: sa.Connection, bound: Mapping[str, Any] | None = None) -> Answer:
        """Run it. Errors: `sa.exc.DBAPIError`, as from any execution; `KeyError` for a parameter
        that is missing; `ValueError` for a
        statement that cannot be prepared."""
        dialect = conn.dialect
        form = self._forms.get(dialect.name)
        if form is None:
            form = self._forms[dialect.name] = _form(self.statement, dialect)
        given: Mapping[str, Any] = {} if bound is None else bound
        values: Any = [
            own if is_own else given[name] if convert is None else convert(given[name])
            for name, convert, is_own, own in form.binds
        ]
        if not form.positional:
            values = {bind[0]: value for bind, value in zip(form.binds, values, strict=True)}
        cursor, rows = execute(conn, form.text, values, fetch=form.row is not None)
        count = cursor.rowcount
        if form.row is None:
            return Answer((), count)
        if form.converts is None:
            form.converts = tuple(_converts(form.types, cursor.description, dialect))
        if form.converts:
            return Answer([form.row(_converted(row, form.converts)) for row in rows], count)
        return Answer([form.row(row) for row in rows], count)


def _converts(
    types: Sequence[Any], description: Sequence[Any], dialect: sa.Dialect
) -> Iterator[tuple[int, Convert]]:
    for index, (type_, told) in enumerate(zip(types, description, strict=True)):
        convert = type_.dialect_impl(dialect).result_processor(dialect, told[1])
        if convert is not None:
            yield index, convert


def _converted(row: Sequence[Any], converts: tuple[tuple[int, Convert], ...]) -> list[Any]:
    values = list(row)
    for index, convert in converts:
        values[index] = convert(values[index])
    return values


def _form(statement: Any, dialect: sa.Dialect) -> _Form:
    if isinstance(statement, sa.Insert) and not statement._returning:
        statement = statement.inline()  # or the new row's number is asked for
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    if compiled.post_compile_params:
        raise ValueError(f"a list to expand cannot be prepared: {compiled.string}")
    if isinstance(statement, sa.Insert | sa.Update) and compiled.prefetch:
        raise ValueError(f"a default made in Python cannot be prepared: {compiled.string}")
    binds = []
    for name in compiled.positiontup or compiled.binds:
        bind = compiled.binds[name]
        convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
        own = bind.effective_value
        if not bind.required and convert is not None:
            own = convert(own)
        binds.append((name, convert, not bind.required, own))
    columns = compiled._result_columns
    names = [column.keyname for column in columns]
    kind: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]
    return _Form(
        compiled.string, tuple(binds), compiled.positional, kind._make if columns else None,
        tuple(column.type for column in columns),
    )
