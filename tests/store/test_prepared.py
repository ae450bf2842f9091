"""Statements that are compiled once give what SQLAlchemy gives, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, NoResultFound

from treadle.db.engine import Database
from treadle.db.prepared import Prepared
from treadle.db.schema import flavor

ADD = sa.insert(flavor).values(
    id=sa.bindparam("i", type_=sa.Integer), vcpus=1, memory_mib=64, disk_gib=1,
    active=sa.bindparam("a", type_=sa.Boolean), rxtx_factor=sa.bindparam("f", type_=sa.Float),
)
ALL = sa.select(flavor).where(flavor.c.vcpus == 1, flavor.c.memory_mib == 64).order_by(flavor.c.id)
ONE = sa.select(flavor.c.id, flavor.c.active, flavor.c.id.label("id")).where(
    flavor.c.id == sa.bindparam("i")
)
SET = sa.update(flavor).where(flavor.c.id == sa.bindparam("i")).values(
    vcpus=flavor.c.vcpus + sa.bindparam("x", type_=sa.Integer)
)


@pytest.fixture(autouse=True)
def rows(database: Database) -> None:
    def write(conn: sa.Connection) -> None:
        add = Prepared(ADD)
        assert add(conn, {"i": 901, "a": True, "f": 1.5}).all() == ()
        assert add(conn, {"i": 902, "a": False, "f": 2.0}).rowcount == 1

    database.write(write)


def test_rows_are_as_sqlalchemy_gives_them(database: Database) -> None:
    prepared = Prepared(ALL)
    for _ in range(2):  # compiled, and compiled already
        ours, theirs = database.read(lambda conn: (prepared(conn).all(), conn.execute(ALL).all()))
        assert [tuple(row) for row in ours] == [tuple(row) for row in theirs]
        assert [row._fields for row in ours] == [row._fields for row in theirs]
        assert [(row.active, row.rxtx_factor) for row in ours] == [(True, 1.5), (False, 2.0)]
        assert type(ours[0].active) is bool


def test_one_row_a_value_and_nothing(database: Database) -> None:
    one, every = Prepared(ONE), Prepared(ALL)

    def read(conn: sa.Connection) -> None:
        assert one(conn, {"i": 901}).one().active is True
        assert one(conn, {"i": 1}).one_or_none() is None
        assert one(conn, {"i": 902}).scalar_one() == 902
        assert one(conn, {"i": 1}).scalar() is None
        assert every(conn).scalars() == [901, 902]
        assert [row.id for row in every(conn)] == [901, 902]
        with pytest.raises(NoResultFound):
            one(conn, {"i": 1}).one()
        with pytest.raises(MultipleResultsFound):
            every(conn).one_or_none()
        with pytest.raises(KeyError):
            one(conn, {"j": 1})

    database.read(read)


def test_what_a_change_has_changed(database: Database) -> None:
    change = Prepared(SET)
    give_back = Prepared(SET.returning(flavor.c.vcpus))

    def write(conn: sa.Connection) -> tuple[int, int, Any]:
        return (
            change(conn, {"i": 901, "x": 2}).rowcount, change(conn, {"i": 1, "x": 2}).rowcount,
            give_back(conn, {"i": 901, "x": 4}).scalar_one(),
        )

    assert database.write(write) == (1, 0, 7)


def test_an_error_of_the_driver_is_one_of_sqlalchemy(database: Database) -> None:
    add = Prepared(ADD)
    with pytest.raises(IntegrityError) as raised:
        database.write(lambda conn: add(conn, {"i": 901, "a": True, "f": 1.0}))
    assert raised.value.orig is not None


def test_lists_cannot_be_prepared(database: Database) -> None:
    listed = Prepared(sa.select(flavor.c.id).where(flavor.c.id.in_([1, 2])))
    with pytest.raises(ValueError, match="expand"):
        database.read(listed)
