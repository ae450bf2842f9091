"""Lists of instances: which, in which order, from where on. Reading only.

A list is read in two steps, so that what has been shown before and has not changed is not read
again: the keys of a page (`Key.version` counts every change of what is shown), then the rows of
those that are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from treadle.compute import store
from treadle.compute.model import (
    Goal,
    Instance,
    Mode,
    Standing,
    State,
    Task,
    task_state,
    vm_state,
)
from treadle.db.prepared import Prepared
from treadle.db.schema import (
    LIVE_INSTANCE,
    host,
    image,
    instance_tag,
    server_group,
)
from treadle.db.schema import instance as table
from treadle.errors import InvalidInput
from treadle.placement import aggregates
from treadle.placement.ledger import DEFAULT_ZONE

SORTS = {
    name: table.c[name] for name in (
        "created_at", "updated_at", "launched_at", "deleted_at", "name", "uuid", "host_id",
        "flavor_id", "image_id", "project_id", "user_id", "key_name", "description", "hostname",
        "availability_zone", "state", "goal", "vcpus", "memory_mib", "access_ipv4", "access_ipv6",
        "config_drive", "launch_index", "id",
    )
}
BATCH = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which instances. None and empty: all. `text` maps columns to what they must contain,
    `exactly` to what they must be; `keep` is asked last, of the whole row."""

    project_id: str | None = None
    deleted: bool = False
    exactly: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)
    image_uuid: str | None = None
    flavor: str | None = None
    host_name: str | None = None
    changed_since: float | None = None
    changed_before: float | None = None
    tags: frozenset[str] = frozenset()
    tags_any: frozenset[str] = frozenset()
    not_tags: frozenset[str] = frozenset()
    not_tags_any: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    locked: bool | None = None
    states: Callable[[str, str | None], bool] | None = None
    keep: Callable[[Row], bool] | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """What names one state of what is shown of an instance."""

    id: int
    uuid: str
    version: int
    host_id: int | None
    name: str
    project_id: str


@dataclass(frozen=True, slots=True)
class Row:
    """An instance with the rest of its columns and the image's UUID."""

    instance: Instance
    columns: Any
    image_uuid: str
    tags: tuple[str, ...]
    group_uuid: str | None


@dataclass(frozen=True, slots=True)
class HostWords:
    """What instances show of their host: `status` as OpenStack's host_status."""

    name: str
    status: str
    zone: str


def keys(
    conn: sa.Connection, wanted: Wanted, sort: Sequence[tuple[str, bool]], limit: int,
    marker: str | None,
) -> list[Key]:
    """The page after `marker`. `sort` holds pairs of a key of `SORTS` and whether it descends.

    Errors: `InvalidInput` for a marker that is not there.
    """
    statement = _sorted(_select(wanted), sort)
    if marker is not None:
        statement = statement.where(_after(conn, wanted, sort, marker))
    if wanted.keep is None and wanted.states is None:
        return [_key(row) for row in conn.execute(statement.limit(limit))]
    found: list[Key] = []
    offset = 0
    stands = _stands(wanted.states)
    while len(found) < limit:
        read = conn.execute(statement.add_columns(*_STANDING).limit(BATCH).offset(offset)).all()
        batch = [_key(row) for row in read if stands(row)]
        if wanted.keep is not None:
            by_id = rows(conn, [key.id for key in batch])
            batch = [key for key in batch if key.id in by_id and wanted.keep(by_id[key.id])]
        found += batch
        offset += BATCH
        if len(read) < BATCH:
            break
    return found[:limit]


def _stands(wanted: Callable[[str, str | None], bool] | None) -> Callable[[Any], bool]:
    """Whether a row's vm_state and task_state are wanted: asked once for all that stand alike."""
    if wanted is None:
        return lambda _row: True
    known: dict[tuple[Any, ...], bool] = {}

    def stands(row: Any) -> bool:
        alike = (row.state, row.settled_mode, row.goal, row.task, row.host_id is None)
        found = known.get(alike)
        if found is None:
            standing = Standing(
                State(row.state), Mode(row.settled_mode), Goal(row.goal),
                Task(row.task) if row.task else None, row.host_id,
            )
            found = known[alike] = wanted(vm_state(standing), task_state(standing))
        return found

    return stands


def key_of(conn: sa.Connection, uuid: str, project_id: str | None) -> Key | None:
    """One instance that is not deleted, of the project (None: of any)."""
    row = _KEY(conn, {"u": uuid}).one_or_none()
    if row is None or row.state == "deleted" or project_id not in (None, row.project_id):
        return None
    return _key(row)


def rows(conn: sa.Connection, ids: Collection[int]) -> dict[int, Row]:
    """The rows behind keys, by id."""
    if not ids:
        return {}
    tags: dict[int, list[str]] = {}
    if len(ids) == 1:
        [only] = ids
        found, tagged = _ROW(conn, {"i": only}).all(), _TAGS_OF_ONE(conn, {"i": only}).all()
    else:
        found = conn.execute(_ROWS, {"ids": list(ids)}).all()
        tagged = conn.execute(_TAGS, {"ids": list(ids)}).all()
    for id, tag in tagged:
        tags.setdefault(id, []).append(tag)
    return {
        row.id: Row(
            store.of_row(row), row, row.image_uuid, tuple(tags.get(row.id, ())), row.group_uuid
        )
        for row in found
    }


def host_words(conn: sa.Connection) -> dict[int, HostWords]:
    """What is shown of every host, by id."""
    zones = aggregates.zones(conn)
    found = {}
    for row in conn.execute(
        sa.select(host.c.id, host.c.name, host.c.status, host.c.enabled, host.c.forced_down)
    ):
        status = "UP" if row.status == "up" else "UNKNOWN"
        if row.status == "down" or row.forced_down:
            status = "DOWN"
        elif not row.enabled:
            status = "MAINTENANCE"
        found[row.id] = HostWords(row.name, status, zones.get(row.id, DEFAULT_ZONE))
    return found


def _key(row: Any) -> Key:
    return Key(row.id, row.uuid, row.version, row.host_id, row.name, row.project_id)


_KEYS = (
    table.c.id, table.c.uuid, table.c.version, table.c.host_id, table.c.name, table.c.project_id,
)
_STANDING = (table.c.state, table.c.settled_mode, table.c.goal, table.c.task)
_KEY = Prepared(
    sa.select(*_KEYS, table.c.state).where(
        table.c.uuid == sa.bindparam("u")
    )
)
_EVERY_ROW = (
    sa.select(table, image.c.uuid.label("image_uuid"), server_group.c.uuid.label("group_uuid"))
    .select_from(
        table.join(image, image.c.id == table.c.image_id)
        .outerjoin(server_group, server_group.c.id == table.c.group_id)
    )
)
_ROWS = _EVERY_ROW.where(table.c.id.in_(sa.bindparam("ids", expanding=True)))
_ROW = Prepared(_EVERY_ROW.where(table.c.id == sa.bindparam("i")))
_EVERY_TAG = sa.select(instance_tag.c.instance_id, instance_tag.c.tag).order_by(instance_tag.c.tag)
_TAGS = _EVERY_TAG.where(instance_tag.c.instance_id.in_(sa.bindparam("ids", expanding=True)))
_TAGS_OF_ONE = Prepared(_EVERY_TAG.where(instance_tag.c.instance_id == sa.bindparam("i")))


def _select(wanted: Wanted) -> sa.Select[Any]:
    statement = sa.select(*_KEYS)
    changes = wanted.changed_since is not None
    if wanted.deleted:
        statement = statement.where(table.c.state == "deleted")
    elif not changes:
        statement = statement.where(LIVE_INSTANCE)
    if wanted.project_id is not None:
        statement = statement.where(table.c.project_id == wanted.project_id)
    for name, value in wanted.exactly.items():
        statement = statement.where(
            table.c[name].in_(value) if isinstance(value, list | tuple) else table.c[name] == value
        )
    for name, value in wanted.text.items():
        statement = statement.where(table.c[name].contains(value, autoescape=True))
    if wanted.image_uuid is not None:
        statement = statement.where(table.c.image_id.in_(
            sa.select(image.c.id).where(image.c.uuid == wanted.image_uuid)
        ))
    if wanted.host_name is not None:
        statement = statement.where(table.c.host_id.in_(
            sa.select(host.c.id).where(host.c.name == wanted.host_name)
        ))
    if wanted.flavor is not None:
        id = store.compact({"id": wanted.flavor})[:-1]
        statement = statement.where(table.c.flavor.startswith(id + ",", autoescape=True))
    if wanted.changed_since is not None:
        statement = statement.where(table.c.updated_at >= wanted.changed_since)
    if wanted.changed_before is not None:
        statement = statement.where(table.c.updated_at <= wanted.changed_before)
    if wanted.locked is not None:
        statement = statement.where(
            table.c.locked_by.is_not(None) if wanted.locked else table.c.locked_by.is_(None)
        )
    for name, value in wanted.metadata.items():
        pair = store.compact({name: value})[1:-1]
        statement = statement.where(table.c["metadata"].contains(pair, autoescape=True))
    return _by_tags(statement, wanted)


def _by_tags(statement: sa.Select[Any], wanted: Wanted) -> sa.Select[Any]:
    def having(tags: Collection[str]) -> sa.Select[Any]:
        return sa.select(instance_tag.c.instance_id).where(instance_tag.c.tag.in_(tags))

    def having_all(tags: Collection[str]) -> sa.Select[Any]:
        return having(tags).group_by(instance_tag.c.instance_id).having(
            sa.func.count() == len(tags)
        )

    if wanted.tags:
        statement = statement.where(table.c.id.in_(having_all(wanted.tags)))
    if wanted.tags_any:
        statement = statement.where(table.c.id.in_(having(wanted.tags_any)))
    if wanted.not_tags:
        statement = statement.where(table.c.id.not_in(having_all(wanted.not_tags)))
    if wanted.not_tags_any:
        statement = statement.where(table.c.id.not_in(having(wanted.not_tags_any)))
    return statement


def _sorted(statement: sa.Select[Any], sort: Sequence[tuple[str, bool]]) -> sa.Select[Any]:
    for name, descends in sort:
        column = SORTS[name]
        if column.nullable:
            statement = statement.order_by(
                column.is_(None).asc() if descends else column.is_(None).desc()
            )
        statement = statement.order_by(column.desc() if descends else column.asc())
    return statement


def _after(
    conn: sa.Connection, wanted: Wanted, sort: Sequence[tuple[str, bool]], marker: str
) -> sa.ColumnElement[bool]:
    """What comes after the marker in the order: the keyset, so that a page far back costs no more.

    Of a column that may be null, null is the smallest.
    """
    found = conn.execute(
        sa.select(*(SORTS[name] for name, _ in sort), table.c.project_id)
        .where(table.c.uuid == marker)
    ).one_or_none()
    if found is None or wanted.project_id not in (None, found.project_id):
        raise InvalidInput("marker", marker, "it names no server of this list")
    columns = [SORTS[name] for name, _ in sort]
    ways = {descends for _, descends in sort}
    if len(ways) == 1 and not any(column.nullable for column in columns):
        here, there = sa.tuple_(*columns), sa.tuple_(*found[:len(columns)])
        return here < there if ways == {True} else here > there
    after: list[sa.ColumnElement[bool]] = []
    same: list[sa.ColumnElement[bool]] = []
    for (name, descends), value in zip(sort, found, strict=False):
        column = SORTS[name]
        beyond: sa.ColumnElement[bool]
        if value is None:
            beyond = sa.false() if descends else column.is_not(None)
            equal = column.is_(None)
        else:
            beyond = column < value if descends else column > value
            if descends and column.nullable:
                beyond = sa.or_(beyond, column.is_(None))
            equal = column == value
        after.append(sa.and_(*same, beyond))
        same.append(equal)
    return sa.or_(*after)
