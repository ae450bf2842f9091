"""The SQL of images. Every function takes an open connection of the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from treadle.db.clock import now
from treadle.db.prepared import Prepared, at_most
from treadle.db.schema import image, image_member, image_tag, instance, meta
from treadle.errors import Conflict


class ImageStatus(StrEnum):
    """How far the content is. `NEW`: an operator's image is being read. `QUEUED`: there is none
    yet. `SAVING`: it is arriving, or a snapshot is being taken. `STAGED`: it is here and waits
    for the import. `FETCHING`: the import goes on. `ACTIVE`: it can be used. `INACTIVE`: it was
    taken out of use. `ERROR`: it cannot be used; the row says why."""

    NEW = "new"
    QUEUED = "queued"
    SAVING = "saving"
    STAGED = "staged"
    FETCHING = "fetching"
    ACTIVE = "active"
    INACTIVE = "inactive"
    ERROR = "error"
    DELETED = "deleted"


ARRIVING = (ImageStatus.SAVING, ImageStatus.FETCHING)


@dataclass(frozen=True, slots=True)
class Image:
    """One row of the image table; what is None is not known before it is active.

    `path`, `sha256`, `format`, `size_bytes` and `virtual_bytes` tell of what hosts are given.
    `blob` names what was uploaded and `blob_bytes` its size, where that is kept by us; `checksum`
    (MD5) and `sha512` are of what was uploaded. `task` is the last import.
    """

    id: int
    name: str
    source: str
    state: ImageStatus
    path: str | None
    sha256: str | None
    format: str | None
    size_bytes: int | None
    virtual_bytes: int | None
    error: str | None
    uuid: str
    project_id: str
    visibility: str
    protected: bool
    hidden: bool
    min_disk_gib: int
    min_memory_mib: int
    container_format: str | None
    disk_format: str | None
    checksum: str | None
    sha512: str | None
    properties: Mapping[str, str]
    added_at: float
    updated_at: float
    deleted_at: float | None
    blob: str | None
    blob_bytes: int | None
    task: Mapping[str, Any] | None

    @property
    def bytes(self) -> int | None:
        """The size of what was uploaded."""
        return self.size_bytes if self.blob_bytes is None else self.blob_bytes


@dataclass(frozen=True, slots=True)
class NewImage:
    """What is said of an image when it is made. `uuid` empty: one is made up."""

    name: str
    project_id: str
    uuid: str = ""
    visibility: str = "shared"
    protected: bool = False
    hidden: bool = False
    min_disk_gib: int = 0
    min_memory_mib: int = 0
    container_format: str | None = None
    disk_format: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """What came in, and what hosts are given for it; they differ where it was converted.

    `blob` names what came in, `blob_bytes` is its size, `checksum` (MD5) and `sha512` are of it.
    The rest tells of the file for hosts at `path`.
    """

    blob: str | None
    blob_bytes: int
    checksum: str
    sha512: str
    path: str
    sha256: str
    format: str
    size_bytes: int
    virtual_bytes: int


# -- reading


def get(conn: sa.Connection, id: int) -> Image | None:
    """The image by its small number, deleted ones too; or None."""
    row = _GET(conn, {"i": id}).one_or_none()
    return None if row is None else image_of(row)


def by_uuid(conn: sa.Connection, uuid: str) -> Image | None:
    """The image by its UUID, deleted ones too; or None."""
    row = _GET_UUID(conn, {"u": uuid}).one_or_none()
    return None if row is None else image_of(row)


def visible(
    conn: sa.Connection, uuid: str, project_id: str | None, is_admin: bool
) -> Image | None:
    """The image, where this project (or an administrator) may know of it and it is not deleted."""
    found = by_uuid(conn, uuid)
    if found is None or found.deleted_at is not None:
        return None
    if is_admin or found.visibility in ("public", "community"):
        return found
    if project_id and found.project_id == project_id:
        return found
    if found.visibility == "shared" and project_id:
        member = sa.select(image_member.c.image_id).where(
            image_member.c.image_id == found.id, image_member.c.project_id == project_id
        )
        return found if conn.execute(member).first() is not None else None
    return None


def first(conn: sa.Connection) -> Image | None:
    """The image with the smallest number of those that the operator named."""
    row = _FIRST(conn).one_or_none()
    return None if row is None else image_of(row)


def list_images(conn: sa.Connection) -> list[Image]:
    """All that are not deleted, by number."""
    statement = sa.select(image).where(image.c.deleted_at.is_(None)).order_by(image.c.id)
    return [image_of(row) for row in conn.execute(statement)]


def in_use(conn: sa.Connection, id: int) -> bool:
    """Whether an instance that is not deleted was made from it, or needs it otherwise."""
    statement = sa.select(instance.c.id).where(
        sa.or_(
            instance.c.image_id == id, instance.c.disk_image_id == id,
            instance.c.rescue_image_id == id, instance.c.shelf_image_id == id,
        ),
        instance.c.state != "deleted",
    ).limit(1)
    return conn.execute(statement).first() is not None


# -- an operator's images


def add(conn: sa.Connection, source: str, name: str) -> int:
    """Register an image and return its id; a known source keeps its id and is read again."""
    values = {"name": name, "state": ImageStatus.NEW, "error": None, "deleted_at": None}
    known: int | None = conn.execute(
        sa.update(image).where(image.c.source == source).values(values).returning(image.c.id)
    ).scalar()
    if known is not None:
        return known
    owner = sa.select(meta.c.value).where(meta.c.key == "admin_project").scalar_subquery()
    added = sa.insert(image).values(
        source=source, added_at=now(), updated_at=now(), container_format="bare",
        project_id=sa.func.coalesce(owner, ""), **values,
    ).returning(image.c.id)
    return int(conn.execute(added).scalar_one())


def set_active(
    conn: sa.Connection, id: int, *, path: str, sha256: str, format: str, size_bytes: int,
    virtual_bytes: int, checksum: str | None = None, sha512: str | None = None,
) -> bool:
    """It was read and can be used. False where instances of it run and the content is another."""
    current = get(conn, id)
    if current is not None and current.sha256 not in (None, sha256) and in_use(conn, id):
        return False
    update(
        conn, id, state=ImageStatus.ACTIVE, error=None, path=path, sha256=sha256, format=format,
        size_bytes=size_bytes, virtual_bytes=virtual_bytes, disk_format=format,
        checksum=checksum, sha512=sha512,
    )
    return True


def set_error(conn: sa.Connection, id: int, error: str, *, final: bool) -> None:
    """Note what is wrong with it; `final`: another try gives the same."""
    values: dict[str, Any] = {"error": error}
    if final:
        values["state"] = ImageStatus.ERROR
    conn.execute(sa.update(image).where(image.c.id == id).values(values))


# -- images that come in


def create(
    conn: sa.Connection, new: NewImage, state: ImageStatus = ImageStatus.QUEUED
) -> Image:
    """Make the row. Errors: `Conflict` where the UUID is taken."""
    uuid = new.uuid or str(uuid4())
    if new.uuid and by_uuid(conn, uuid) is not None:
        raise Conflict(f"Image ID {uuid} already exists!")
    values = asdict(new)
    del values["tags"]
    values |= {"uuid": uuid, "properties": written(new.properties)}
    id = int(conn.execute(
        sa.insert(image).values(
            source=f"image:{uuid}", state=state, added_at=now(), updated_at=now(), **values
        ).returning(image.c.id)
    ).scalar_one())
    set_tags(conn, id, new.tags)
    made = get(conn, id)
    assert made is not None
    return made


def begin(conn: sa.Connection, new: NewImage) -> Image:
    """Make the row of an image whose content is made by us, such as a snapshot."""
    return create(conn, new, ImageStatus.SAVING)


def complete(
    conn: sa.Connection, id: int, content: Content, *, blob: str | None = None
) -> bool:
    """The content is here and can be used. False where nobody waits for it any more: it was
    deleted meanwhile, or (`blob` given) another upload has begun."""
    waiting = sa.and_(
        image.c.id == id, image.c.state.in_(ARRIVING), image.c.deleted_at.is_(None)
    )
    if blob is not None:
        waiting &= image.c.blob == blob
    return conn.execute(sa.update(image).where(waiting).values(
        state=ImageStatus.ACTIVE, error=None, updated_at=now(), **asdict(content)
    )).rowcount == 1


def fail(conn: sa.Connection, id: int, error: str) -> None:
    """The content will not come: the image stays, as one that cannot be used."""
    update(conn, id, state=ImageStatus.ERROR, error=error)


def update(conn: sa.Connection, id: int, **values: Any) -> None:
    """Set columns of one image, and when that was."""
    conn.execute(sa.update(image).where(image.c.id == id).values(updated_at=now(), **values))


def set_property(conn: sa.Connection, id: int, key: str, value: str) -> None:
    """Give it a property, unless it has one of that name."""
    found = get(conn, id)
    if found is not None and key not in found.properties:
        update(conn, id, properties=written({**found.properties, key: value}))


def written(properties: Mapping[str, str]) -> str:
    """Properties as the column holds them."""
    return json.dumps(dict(properties), separators=(",", ":"), ensure_ascii=False)


def set_tags(conn: sa.Connection, id: int, tags: Sequence[str]) -> None:
    """It has these tags and no others."""
    conn.execute(sa.delete(image_tag).where(image_tag.c.image_id == id))
    if tags:
        rows = [{"image_id": id, "tag": tag} for tag in dict.fromkeys(tags)]
        conn.execute(sa.insert(image_tag), rows)


def image_of(row: sa.Row[Any]) -> Image:
    """The image in a row of the whole table."""
    return Image(
        row.id, row.name, row.source, ImageStatus(row.state), row.path, row.sha256, row.format,
        row.size_bytes, row.virtual_bytes, row.error, row.uuid, row.project_id, row.visibility,
        row.protected, row.hidden, row.min_disk_gib, row.min_memory_mib, row.container_format,
        row.disk_format, row.checksum, row.sha512, json.loads(row.properties), row.added_at,
        row.updated_at or row.added_at, row.deleted_at, row.blob, row.blob_bytes,
        json.loads(row.task) if row.task else None,
    )


_GET = Prepared(sa.select(image).where(image.c.id == sa.bindparam("i")))
_GET_UUID = Prepared(sa.select(image).where(image.c.uuid == sa.bindparam("u")))
_FIRST = Prepared(
    sa.select(image)
    .where(image.c.deleted_at.is_(None), ~image.c.source.startswith("image:"))
    .order_by(image.c.id).limit(at_most(1))
)
