"""What can be asked of images: each function verifies and writes in the caller's transaction.

The content of an image comes by one of three ways: an upload, an upload that is staged and then
imported, or an import from a URL. Each has a key of its own, and only who holds the image's newest
key can finish. A work row is there from the first byte on: where the upload dies with its process,
the row comes due and the image can be uploaded to again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from treadle.controller import queue
from treadle.db.clock import now
from treadle.db.schema import image, image_member, image_tag
from treadle.errors import Conflict, Forbidden, QuotaExceeded, TooLarge
from treadle.image import store
from treadle.image.contents import Digests, new_key
from treadle.image.store import Content, Image, ImageStatus, NewImage

KIND = "image"
LANE = -1
"""The queue's lane for images: what tenants have us fetch and convert holds up no instance."""
SILENCE_S = 90.0
"""How long an upload may be silent in the database before it counts as dead."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What a project may have: how many images, and how many bytes in all of them."""

    images: int
    bytes: int


def create(conn: sa.Connection, new: NewImage, limits: Limits) -> Image:
    """Make an image without content. Errors: `Conflict`, `QuotaExceeded`."""
    _check_count(conn, new.project_id, limits)
    return store.create(conn, new)


def check_another(conn: sa.Connection, project_id: str, limits: Limits) -> None:
    """Let the project have one image more, of a size that is not known yet. Errors:
    `QuotaExceeded`, `TooLarge`."""
    _check_count(conn, project_id, limits)
    check_room(conn, project_id, limits, 1)


def _check_count(conn: sa.Connection, project_id: str, limits: Limits) -> None:
    count = sa.select(sa.func.count()).select_from(image).where(
        image.c.project_id == project_id, image.c.deleted_at.is_(None)
    )
    if conn.execute(count).scalar_one() >= limits.images:
        raise QuotaExceeded(f"the project may have {limits.images} images, and has as many")


def delete(conn: sa.Connection, one: Image) -> None:
    """Take it out of sight; its content goes when no instance needs it. Errors: `Forbidden`."""
    if one.protected:
        raise Forbidden(f"Image {one.uuid} is protected and cannot be deleted.")
    _delete(conn, one)


def retire(conn: sa.Connection, id: int) -> None:
    """Delete an image that was made for an instance's own sake, and has served."""
    one = store.get(conn, id)
    if one is not None and one.deleted_at is None:
        _delete(conn, one)


def _delete(conn: sa.Connection, one: Image) -> None:
    conn.execute(sa.delete(image_member).where(image_member.c.image_id == one.id))
    conn.execute(sa.delete(image_tag).where(image_tag.c.image_id == one.id))
    store.update(conn, one.id, state=ImageStatus.DELETED, deleted_at=now())
    queue.enqueue(conn, KIND, str(one.id), lane=LANE)


def set_usable(conn: sa.Connection, one: Image, usable: bool) -> None:
    """Take it out of use, or back into use. Errors: `Forbidden`."""
    wanted = ImageStatus.ACTIVE if usable else ImageStatus.INACTIVE
    if one.state not in (ImageStatus.ACTIVE, ImageStatus.INACTIVE):
        verb = "reactivate" if usable else "deactivate"
        raise Forbidden(f"Not allowed to {verb} an image that is {one.state}.")
    if one.state is not wanted:
        store.update(conn, one.id, state=wanted)


# -- content that comes in


def begin_upload(conn: sa.Connection, one: Image, limits: Limits, size: int | None) -> str:
    """Say that the content is about to arrive, of so many bytes if that is known; its key.

    Errors: `Conflict`, `TooLarge`.
    """
    if one.state is not ImageStatus.QUEUED:
        raise Conflict(f"Image status transition from {one.state} to saving is not allowed")
    _must_be_named(one)
    check_room(conn, one.project_id, limits, size or 0)
    key = new_key(one.uuid)
    begun = conn.execute(sa.update(image).where(
        image.c.id == one.id, image.c.state == ImageStatus.QUEUED
    ).values(
        state=ImageStatus.SAVING, blob=key, blob_bytes=None, error=None, updated_at=now()
    ))
    if begun.rowcount != 1:
        raise Conflict("another upload to this image has begun")
    queue.enqueue(conn, KIND, str(one.id), lane=LANE, delay=SILENCE_S)
    queue.postpone(conn, KIND, str(one.id), SILENCE_S)
    return key


def still_uploading(conn: sa.Connection, id: int) -> None:
    """The upload goes on."""
    queue.postpone(conn, KIND, str(id), SILENCE_S)


def arrived(
    conn: sa.Connection, one: Image, key: str, digests: Digests, limits: Limits, *,
    state: ImageStatus,
) -> None:
    """All of the content is in the store under `key`; what is left to do is in `state`.

    Errors: `Conflict` where somebody else's upload or a deletion came between, `TooLarge`.
    """
    check_room(conn, one.project_id, limits, digests.size)
    here = conn.execute(sa.update(image).where(_mine(one.id, key)).values(
        state=state, blob_bytes=digests.size, checksum=digests.md5, sha512=digests.sha512,
        updated_at=now(),
    ))
    if here.rowcount != 1:
        raise Conflict("the image was deleted, or another upload to it has begun")
    if state in store.ARRIVING:
        queue.enqueue(conn, KIND, str(one.id), lane=LANE)


def finish(
    conn: sa.Connection, one: Image, key: str, content: Content, limits: Limits
) -> None:
    """It can be used. Errors: `Conflict`, `TooLarge`."""
    check_room(conn, one.project_id, limits, content.blob_bytes, but=one.id)
    if not store.complete(conn, one.id, content, blob=key):
        raise Conflict("the image was deleted, or another upload to it has begun")


def give_back(conn: sa.Connection, id: int, key: str | None, error: str | None) -> bool:
    """The content did not come or cannot be used: the image is as it was before. False where it
    is no longer this upload's."""
    values: dict[str, Any] = {
        "state": ImageStatus.QUEUED, "blob": None, "blob_bytes": None, "checksum": None,
        "sha512": None, "error": error, "updated_at": now(),
    }
    found = store.get(conn, id)
    if found is not None and found.task is not None and found.state is ImageStatus.FETCHING:
        values["task"] = json.dumps({**found.task, "status": "failure", "message": error})
    return conn.execute(
        sa.update(image).where(_mine(id, key)).values(values)
    ).rowcount == 1


def begin_import(
    conn: sa.Connection, one: Image, limits: Limits, request: Mapping[str, Any], *,
    request_id: str, user_id: str,
) -> None:
    """Import what was staged, or what is at `request["method"]["uri"]`.

    Errors: `Conflict` where the image is in no state for it, `TooLarge`.
    """
    name = request["method"]["name"]
    wanted = ImageStatus.STAGED if name == "glance-direct" else ImageStatus.QUEUED
    if one.state is not wanted:
        raise Conflict(f"Only images with status '{_SHOWN[wanted]}' can be imported this way")
    _must_be_named(one)
    check_room(conn, one.project_id, limits, 0)
    values: dict[str, Any] = {"error": None, "task": json.dumps({
        "id": str(uuid4()), "request": request, "request_id": request_id, "user_id": user_id,
        "status": "pending", "message": "",
    })}
    if wanted is ImageStatus.QUEUED:
        values |= {"blob": new_key(one.uuid), "blob_bytes": None}
    begun = conn.execute(sa.update(image).where(
        image.c.id == one.id, image.c.state == wanted
    ).values(state=ImageStatus.FETCHING, updated_at=now(), **values))
    if begun.rowcount != 1:
        raise Conflict("another import to this image has begun")
    queue.enqueue(conn, KIND, str(one.id), lane=LANE)


_SHOWN = {ImageStatus.STAGED: "uploading", ImageStatus.QUEUED: "queued"}


def check_room(
    conn: sa.Connection, project_id: str, limits: Limits, size: int, *, but: int = 0
) -> int:
    """Whether the project may have `size` bytes more; `but` is the image they are for. Returns how
    many it may have.

    The project's rows are locked first, so that two at once cannot both have the last room.
    Errors: `TooLarge`.
    """
    of_project = sa.and_(image.c.project_id == project_id, image.c.deleted_at.is_(None))
    conn.execute(
        sa.select(image.c.id).where(of_project).order_by(image.c.id).with_for_update()
    ).all()
    used = conn.execute(
        sa.select(sa.func.coalesce(sa.func.sum(image.c.blob_bytes), 0))
        .where(of_project, image.c.id != but)
    ).scalar_one()
    if int(used) + size > limits.bytes:
        raise TooLarge(
            f"the project's images may have {limits.bytes} bytes in all: {used} are taken and "
            f"{size} more were asked for"
        )
    return limits.bytes - int(used)


def _must_be_named(one: Image) -> None:
    if one.disk_format is None or one.container_format is None:
        raise Conflict(
            "disk_format and container_format must be set before the content can be brought"
        )


def _mine(id: int, key: str | None) -> sa.ColumnElement[bool]:
    """Whether the image still waits for the content that `key` names."""
    states = (ImageStatus.SAVING, ImageStatus.FETCHING, ImageStatus.STAGED)
    named = image.c.blob.is_(None) if key is None else image.c.blob == key
    return sa.and_(image.c.id == id, named, image.c.state.in_(states))
