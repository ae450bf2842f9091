"""The SQL of images. Every function takes an open connection of the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from treadle.db.clock import now
from treadle.db.schema import image, instance


class ImageStatus(StrEnum):
    """`NEW`: it is being read. `ACTIVE`: it can be used. `ERROR`: it cannot; the row says why."""

    NEW = "new"
    ACTIVE = "active"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Image:
    """One row of the image table; what is None is not known before it is active."""

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


def add(conn: sa.Connection, source: str, name: str) -> int:
    """Register an image and return its id; a known source keeps its id and is read again."""
    values = {"name": name, "state": ImageStatus.NEW, "error": None}
    known: int | None = conn.execute(
        sa.update(image).where(image.c.source == source).values(values).returning(image.c.id)
    ).scalar()
    if known is not None:
        return known
    added = sa.insert(image).values(source=source, added_at=now(), **values).returning(image.c.id)
    return int(conn.execute(added).scalar_one())


def get(conn: sa.Connection, id: int) -> Image | None:
    """The image, or None."""
    row = conn.execute(_GET, {"i": id}).one_or_none()
    return None if row is None else _image(row)


def first(conn: sa.Connection) -> Image | None:
    """The image with the smallest id."""
    row = conn.execute(_FIRST).one_or_none()
    return None if row is None else _image(row)


def list_images(conn: sa.Connection) -> list[Image]:
    """All of them by id."""
    return [_image(row) for row in conn.execute(sa.select(image).order_by(image.c.id))]


def set_active(
    conn: sa.Connection, id: int, *, path: str, sha256: str, format: str, size_bytes: int,
    virtual_bytes: int,
) -> bool:
    """It was read and can be used. False where instances of it run and the content is another."""
    current = get(conn, id)
    if current is not None and current.sha256 not in (None, sha256) and in_use(conn, id):
        return False
    conn.execute(sa.update(image).where(image.c.id == id).values(
        state=ImageStatus.ACTIVE, error=None, path=path, sha256=sha256, format=format,
        size_bytes=size_bytes, virtual_bytes=virtual_bytes,
    ))
    return True


def set_error(conn: sa.Connection, id: int, error: str, *, final: bool) -> None:
    """Note what is wrong with it; `final`: another try gives the same."""
    values: dict[str, Any] = {"error": error}
    if final:
        values["state"] = ImageStatus.ERROR
    conn.execute(sa.update(image).where(image.c.id == id).values(values))


def in_use(conn: sa.Connection, id: int) -> bool:
    """Whether an instance that is not deleted was made from it."""
    statement = sa.select(instance.c.id).where(
        instance.c.image_id == id, instance.c.state != "deleted"
    ).limit(1)
    return conn.execute(statement).first() is not None


def _image(row: sa.Row[Any]) -> Image:
    return Image(
        row.id, row.name, row.source, ImageStatus(row.state), row.path, row.sha256, row.format,
        row.size_bytes, row.virtual_bytes, row.error,
    )


_GET = sa.select(image).where(image.c.id == sa.bindparam("i"))
_FIRST = sa.select(image).order_by(image.c.id).limit(1)
