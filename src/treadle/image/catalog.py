"""The SQL of lists of images, of members and of tags. Functions take an open connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from treadle.db.clock import now
from treadle.db.schema import image, image_member, image_tag
from treadle.errors import Conflict, InvalidInput, NotFound, QuotaExceeded
from treadle.image.store import Image, ImageStatus, image_of

MEMBERS_MAX = 128
SIZE = sa.func.coalesce(image.c.blob_bytes, image.c.size_bytes)
COLUMNS: dict[str, Any] = {
    "id": image.c.uuid, "name": image.c.name, "owner": image.c.project_id,
    "container_format": image.c.container_format, "disk_format": image.c.disk_format,
    "checksum": image.c.checksum, "os_hash_value": image.c.sha512, "size": SIZE,
    "virtual_size": image.c.virtual_bytes, "min_disk": image.c.min_disk_gib,
    "min_ram": image.c.min_memory_mib, "status": image.c.state,
    "created_at": image.c.added_at, "updated_at": image.c.updated_at,
}
"""What lists are filtered and sorted by, as OpenStack calls it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A project with which an image is shared; `status` is what it makes of it."""

    project_id: str
    status: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which images a list is of.

    `project_id` and `is_admin` say who asks. `visibility` None: what is in a list by default.
    `equal` maps names of `COLUMNS` to the values that one may have; `times` are comparisons of
    them. `properties` are those of the image's own.
    """

    project_id: str | None
    is_admin: bool
    visibility: str | None = None
    member_status: str = "accepted"
    hidden: bool = False
    protected: bool | None = None
    tags: Sequence[str] = ()
    size_min: int | None = None
    size_max: int | None = None
    equal: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    times: Sequence[tuple[str, str, float]] = ()
    properties: Mapping[str, str] = field(default_factory=dict)


Sort = Sequence[tuple[str, bool]]
"""Names of `COLUMNS`, each with whether the largest comes first."""


def find(
    conn: sa.Connection, wanted: Wanted, sort: Sort, *, marker: Image | None, limit: int
) -> list[Image]:
    """One page of the list that comes after `marker`."""
    statement = sa.select(image).where(_visible(wanted), *_filters(conn, wanted))
    keys = [(_sortable(name), descending) for name, descending in sort]
    if marker is not None:
        row = conn.execute(
            sa.select(*(key for key, _ in keys)).where(image.c.id == marker.id)
        ).one()
        statement = statement.where(_after(keys, list(row)))
    for key, descending in keys:
        statement = statement.order_by(key.desc() if descending else key.asc())
    return [image_of(row) for row in conn.execute(statement.limit(limit))]


def _visible(wanted: Wanted) -> sa.ColumnElement[bool]:
    mine = (
        image.c.project_id == wanted.project_id if wanted.project_id else sa.false()
    )
    shared = sa.and_(image.c.visibility == "shared", image.c.id.in_(
        sa.select(image_member.c.image_id).where(
            image_member.c.project_id == (wanted.project_id or ""),
            sa.true() if wanted.member_status == "all"
            else image_member.c.status == wanted.member_status,
        )
    ))
    seen = sa.or_(mine, image.c.visibility.in_(("public", "community")), shared)
    if wanted.is_admin:
        seen = sa.true()
    if wanted.visibility is None:
        seen = sa.and_(seen, sa.or_(image.c.visibility != "community", mine))
    elif wanted.visibility != "all":
        seen = sa.and_(seen, image.c.visibility == wanted.visibility)
    return sa.and_(image.c.deleted_at.is_(None), seen)


def _filters(conn: sa.Connection, wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = [image.c.hidden == wanted.hidden]
    if wanted.protected is not None:
        found.append(image.c.protected == wanted.protected)
    for tag in wanted.tags:
        found.append(image.c.id.in_(
            sa.select(image_tag.c.image_id).where(image_tag.c.tag == tag)
        ))
    if wanted.size_min is not None:
        found.append(wanted.size_min <= SIZE)
    if wanted.size_max is not None:
        found.append(wanted.size_max >= SIZE)
    for name, values in wanted.equal.items():
        found.append(COLUMNS[name].in_(values))
    for name, how, moment in wanted.times:
        found.append(_COMPARE[how](sa.func.floor(COLUMNS[name]), moment))
    for key, value in wanted.properties.items():
        found.append(_has_property(conn, key, value))
    return found


_COMPARE: dict[str, Any] = {
    "gt": lambda a, b: a > b, "gte": lambda a, b: a >= b, "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b, "eq": lambda a, b: a == b, "neq": lambda a, b: a != b,
}
COMPARISONS = tuple(_COMPARE)


def _has_property(conn: sa.Connection, key: str, value: str) -> sa.ColumnElement[bool]:
    if conn.dialect.name == "postgresql":
        held: sa.ColumnElement[str] = sa.cast(image.c.properties, JSONB)[key].astext
        return held == value
    each = sa.func.json_each(image.c.properties).table_valued("key", "value")
    return sa.exists(
        sa.select(sa.literal(1)).select_from(each).where(
            each.c.key == key, each.c.value == value
        )
    )


def _sortable(name: str) -> Any:
    """A column as it is sorted by: what is not known comes before everything else."""
    column = COLUMNS[name]
    if name in ("size", "virtual_size"):
        return sa.func.coalesce(column, -1)
    if name in ("container_format", "disk_format"):
        return sa.func.coalesce(column, "")
    return column


def _after(keys: Sequence[tuple[Any, bool]], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """Whether a row comes after the one that has these values."""
    ways = []
    for number, (key, descending) in enumerate(keys):
        same = [k == v for (k, _), v in zip(keys[:number], values[:number], strict=True)]
        beyond = key < values[number] if descending else key > values[number]
        ways.append(sa.and_(*same, beyond))
    return sa.or_(*ways)


# -- tags


def tags_of(conn: sa.Connection, ids: Sequence[int]) -> dict[int, list[str]]:
    """The tags of each image, in order."""
    found: dict[int, list[str]] = {id: [] for id in ids}
    rows = conn.execute(
        sa.select(image_tag).where(image_tag.c.image_id.in_(ids)).order_by(image_tag.c.tag)
    )
    for row in rows:
        found[row.image_id].append(row.tag)
    return found


def add_tag(conn: sa.Connection, id: int, tag: str, most: int) -> None:
    """Tag the image; what is tagged so already is success. Errors: `QuotaExceeded`."""
    tags = tags_of(conn, [id])[id]
    if tag in tags:
        return
    if len(tags) >= most:
        raise QuotaExceeded(f"an image may have {most} tags, and has as many")
    conn.execute(sa.insert(image_tag).values(image_id=id, tag=tag))


def remove_tag(conn: sa.Connection, id: int, tag: str) -> None:
    """Errors: `NotFound` where it has no such tag."""
    gone = conn.execute(
        sa.delete(image_tag).where(image_tag.c.image_id == id, image_tag.c.tag == tag)
    )
    if gone.rowcount == 0:
        raise NotFound("the image has no such tag")


# -- members


def members(conn: sa.Connection, id: int) -> list[Member]:
    """The projects that the image is shared with, oldest first."""
    rows = conn.execute(
        sa.select(image_member).where(image_member.c.image_id == id)
        .order_by(image_member.c.created_at, image_member.c.project_id)
    )
    return [Member(r.project_id, r.status, r.created_at, r.updated_at) for r in rows]


def member(conn: sa.Connection, id: int, project_id: str) -> Member:
    """One of them. Errors: `NotFound`."""
    for one in members(conn, id):
        if one.project_id == project_id:
            return one
    raise NotFound(f"{project_id[:80]} is not a member of the image")


def add_member(conn: sa.Connection, id: int, project_id: str) -> Member:
    """Share the image with a project. Errors: `Conflict`, `QuotaExceeded`."""
    known = members(conn, id)
    if any(one.project_id == project_id for one in known):
        raise Conflict(f"Image is already shared with {project_id[:80]}")
    if len(known) >= MEMBERS_MAX:
        raise QuotaExceeded(f"an image may have {MEMBERS_MAX} members, and has as many")
    conn.execute(sa.insert(image_member).values(
        image_id=id, project_id=project_id, created_at=now(), updated_at=now()
    ))
    return member(conn, id, project_id)


def answer(conn: sa.Connection, id: int, project_id: str, status: str) -> Member:
    """What a member makes of the image. Errors: `InvalidInput`, `NotFound`."""
    if status not in ("pending", "accepted", "rejected"):
        raise InvalidInput("status", status, "it must be pending, accepted or rejected")
    member(conn, id, project_id)
    conn.execute(
        sa.update(image_member)
        .where(image_member.c.image_id == id, image_member.c.project_id == project_id)
        .values(status=status, updated_at=now())
    )
    return member(conn, id, project_id)


def remove_member(conn: sa.Connection, id: int, project_id: str) -> None:
    """Share it no longer. Errors: `NotFound`."""
    gone = conn.execute(sa.delete(image_member).where(
        image_member.c.image_id == id, image_member.c.project_id == project_id
    ))
    if gone.rowcount == 0:
        raise NotFound(f"{project_id[:80]} is not a member of the image")


def with_tasks(conn: sa.Connection, project_id: str | None) -> list[Image]:
    """The images that were imported, of one project or (None) of all, newest first."""
    statement = sa.select(image).where(
        image.c.task.is_not(None), image.c.state != ImageStatus.DELETED
    ).order_by(image.c.id.desc()).limit(1000)
    if project_id is not None:
        statement = statement.where(image.c.project_id == project_id)
    return [image_of(row) for row in conn.execute(statement)]
