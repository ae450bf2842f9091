"""Flavors as OpenStack knows them: by a public id, with extra specs, and some for a few projects.

The SQL is here; every function takes an open connection of the caller's transaction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from treadle.compute import store
from treadle.compute.model import MOST_KEYS
from treadle.compute.store import Flavor, compact, flavor_of
from treadle.db.prepared import Prepared
from treadle.db.schema import flavor as table
from treadle.db.schema import flavor_access
from treadle.errors import Conflict, InvalidInput, NotFound

SPECS_MAX = 128
NUMBERS_MAX = 100_000


def visible(
    conn: sa.Connection, project_id: str | None, *, everything: bool = False
) -> list[Flavor]:
    """Those on offer to a project, by id; with `everything`, all."""
    statement = sa.select(table).where(table.c.active).order_by(table.c.id)
    if not everything:
        statement = statement.where(sa.or_(table.c.is_public, table.c.id.in_(_of(project_id))))
    return [flavor_of(row) for row in conn.execute(statement)]


def accessible(conn: sa.Connection, project_id: str | None) -> set[int]:
    """The ids of those that the project has been let use."""
    return {row.flavor_id for row in conn.execute(_of(project_id))}


def get(conn: sa.Connection, public_id: str, project_id: str | None = None, *,
        everything: bool = True) -> Flavor:
    """One on offer; without `everything`, to this project. Errors: `NotFound`."""
    row = _GET(conn, {"p": public_id}).one_or_none()
    if row is None or not (
        everything or row.is_public or row.id in accessible(conn, project_id)
    ):
        raise NotFound(f"Flavor {public_id} could not be found.")
    return flavor_of(row)


def create(conn: sa.Connection, wanted: Flavor) -> Flavor:
    """Offer a new flavor; its `id` is given here, and its `public_id` where it has none of its own.

    Errors: `Conflict` where the name or the public id is taken.
    """
    for column, value in (("name", wanted.name), ("public_id", wanted.public_id)):
        taken = sa.select(table.c.id).where(table.c.active, table.c[column] == value)
        if conn.execute(taken).first() is not None:
            word = "name" if column == "name" else "ID"
            raise Conflict(f"Flavor with {word} {value} already exists.")
    made = replace(wanted, id=_number(conn, wanted.public_id))
    store.put_flavor(conn, made)
    return made


def _number(conn: sa.Connection, public_id: str) -> int:
    """The small number for it: what its public id says where that was never used."""
    if public_id.isascii() and public_id.isdecimal() and 0 < int(public_id) <= NUMBERS_MAX:
        used = sa.select(table.c.id).where(table.c.id == int(public_id))
        if str(int(public_id)) == public_id and conn.execute(used).first() is None:
            return int(public_id)
    return store.next_flavor_id(conn)


def new_public_id() -> str:
    """A public id for a flavor whose maker did not care."""
    return str(uuid4())


def describe(conn: sa.Connection, flavor: Flavor, text: str | None) -> Flavor:
    """Change the description."""
    conn.execute(sa.update(table).where(table.c.id == flavor.id).values(description=text))
    return replace(flavor, description=text)


def set_specs(conn: sa.Connection, flavor: Flavor, specs: Mapping[str, str]) -> None:
    """Put these in place of the extra specs. Errors: `Conflict` where there are too many;
    `InvalidInput` for a most that is less than what the flavor has."""
    for key, own in zip(MOST_KEYS, (flavor.vcpus, flavor.memory_mib), strict=True):
        said = specs.get(key)
        if said is not None and not (re.fullmatch("[0-9]{1,9}", said) and int(said) >= own):
            raise InvalidInput(key, said, f"it must be a whole number, and at least {own}, which "
                               "its instances begin with")
    if len(specs) > SPECS_MAX:
        raise Conflict(f"Flavor {flavor.public_id} can have at most {SPECS_MAX} extra specs.")
    conn.execute(
        sa.update(table).where(table.c.id == flavor.id).values(extra_specs=compact(dict(specs)))
    )


def retire(conn: sa.Connection, flavor: Flavor) -> None:
    """Offer it no longer. Instances keep their sizes, and its names are free again."""
    conn.execute(sa.delete(flavor_access).where(flavor_access.c.flavor_id == flavor.id))
    conn.execute(sa.update(table).where(table.c.id == flavor.id).values(active=False))


def projects(conn: sa.Connection, flavor: Flavor) -> list[str]:
    """Who has been let use it, in order."""
    return list(conn.execute(
        sa.select(flavor_access.c.project_id).where(flavor_access.c.flavor_id == flavor.id)
        .order_by(flavor_access.c.project_id)
    ).scalars())


def grant(conn: sa.Connection, flavor: Flavor, project_id: str) -> None:
    """Let a project use it. Errors: `Conflict` where it may already."""
    if project_id in projects(conn, flavor):
        raise Conflict(
            f"Flavor access already exists for flavor {flavor.public_id} and project "
            f"{project_id} combination."
        )
    conn.execute(sa.insert(flavor_access).values(flavor_id=flavor.id, project_id=project_id))


def revoke(conn: sa.Connection, flavor: Flavor, project_id: str) -> None:
    """No longer let a project use it. Errors: `NotFound` where it may not."""
    gone = conn.execute(sa.delete(flavor_access).where(
        flavor_access.c.flavor_id == flavor.id, flavor_access.c.project_id == project_id
    ))
    if gone.rowcount == 0:
        raise NotFound(
            f"Flavor access not found for {flavor.public_id} / {project_id} combination."
        )


def _of(project_id: str | None) -> sa.Select[Any]:
    return sa.select(flavor_access.c.flavor_id).where(flavor_access.c.project_id == project_id)


_GET = Prepared(sa.select(table).where(table.c.public_id == sa.bindparam("p"), table.c.active))
