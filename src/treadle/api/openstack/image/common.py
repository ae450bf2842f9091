"""What the calls of the image API share: how an image is shown, and who may touch it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.wire import Ask
from treadle.errors import NotFound
from treadle.image import store
from treadle.image.catalog import Member
from treadle.image.store import Image, ImageStatus

SHOWN = {
    ImageStatus.NEW: "importing", ImageStatus.QUEUED: "queued", ImageStatus.SAVING: "saving",
    ImageStatus.STAGED: "uploading", ImageStatus.FETCHING: "importing",
    ImageStatus.ACTIVE: "active", ImageStatus.INACTIVE: "deactivated",
    ImageStatus.ERROR: "killed", ImageStatus.DELETED: "deleted",
}
"""OpenStack's words for how far an image is."""
STATES = {
    word: [state for state, shown in SHOWN.items() if shown == word] for word in SHOWN.values()
}


def when(moment: float) -> str:
    """A time as the image API writes it, in whole seconds of UTC."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def view(ask: Ask, image: Image, tags: list[str]) -> dict[str, Any]:
    """The image as callers see it; its own properties stand beside the rest."""
    path = f"/v2/images/{image.uuid}"
    body: dict[str, Any] = dict(image.properties)
    usable = image.state in (ImageStatus.ACTIVE, ImageStatus.INACTIVE)
    body |= {
        "id": image.uuid,
        "name": image.name or None,
        "status": SHOWN[image.state],
        "visibility": image.visibility,
        "protected": image.protected,
        "os_hidden": image.hidden,
        "owner": image.project_id or None,
        "size": image.bytes if usable else None,
        "virtual_size": image.virtual_bytes if usable else None,
        "checksum": image.checksum if usable else None,
        "os_hash_algo": "sha512" if usable and image.sha512 else None,
        "os_hash_value": image.sha512 if usable else None,
        "container_format": image.container_format,
        "disk_format": image.disk_format,
        "min_disk": image.min_disk_gib,
        "min_ram": image.min_memory_mib,
        "tags": tags,
        "created_at": when(image.added_at),
        "updated_at": when(image.updated_at),
        "self": path,
        "file": f"{path}/file",
        "schema": "/v2/schemas/image",
    }
    kind = ask.context.contents.blobs.kind
    if usable:
        body["stores"] = kind
    if image.task is not None:
        failed = image.task["status"] == "failure"
        body["os_glance_importing_to_stores"] = "" if failed or usable else kind
        body["os_glance_failed_import"] = kind if failed else ""
    return body


def member_view(image: Image, member: Member) -> dict[str, Any]:
    """One member of an image."""
    return {
        "image_id": image.uuid, "member_id": member.project_id, "status": member.status,
        "created_at": when(member.created_at), "updated_at": when(member.updated_at),
        "schema": "/v2/schemas/member",
    }


def seek(ask: Ask, conn: sa.Connection) -> Image:
    """The image that the path names, if the caller may know of it. Errors: `NotFound`."""
    uuid = ask.path["image_id"]
    found = store.visible(conn, uuid, ask.caller.project_id, ask.caller.is_admin)
    if found is None:
        raise NotFound(f"No image found with ID {uuid[:100]}")
    return found


def seek_own(ask: Ask, conn: sa.Connection, rule: str) -> Image:
    """The image that the path names, if the caller may do to it what the rule says.

    Errors: `NotFound`, `Forbidden`.
    """
    found = seek(ask, conn)
    ask.check(rule, {"project_id": found.project_id})
    return found
